"""Find the settings in which runs differ, and the shortest labels that distinguish groups of runs.
A run's settings are its resolved config by dotted keys, as `Run.flat_config` gives it. An absent key is null.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedh2l_mpi.config import recipes
from fedh2l_mpi.config.comparison import Settings
from fedh2l_mpi.errors import UserError, did_you_mean

METHOD, SEED = "method.name", "seed"
# Keys whose value decides which other keys of their section are used; unused keys are null.
SELECTORS = ("name", "kind", "views")
# Longest value in a label, in characters; longer ones are shortened.
LONGEST_VALUE = 40


def differing(runs: Sequence[Settings]) -> list[str]:
    """Return the keys in which runs differ, in the config's order, except that the method's name comes first."""
    keys = dict.fromkeys(key for run in runs for key in run)
    found = [key for key in keys if len({repr(run.get(key)) for run in runs}) > 1]
    return sorted(found, key=lambda key: key != METHOD)


def expand_keys(asked: Sequence[str], option: str, runs: Sequence[Settings]) -> list[str]:
    """Return all keys that an option names, as single keys or as sections.

    Raises
    ------
    UserError
        If a run's config has no such key or section.
    """
    known = list(dict.fromkeys(key for run in runs for key in run))
    sections = list(dict.fromkeys(key.rsplit(".", n)[0] for key in known for n in range(1, key.count(".") + 1)))
    keys = []
    for name in asked:
        if name not in known and name not in sections:
            near = did_you_mean(name, [*known, *sections])
            raise UserError(f"{option}: got {name!r}, but no run's config has this key{near}")
        keys += [key for key in known if key == name or key.startswith(f"{name}.")]
    return keys


def distinguishing(runs: Sequence[Settings], candidates: Sequence[str], kept: Sequence[str] = ()) -> list[str]:
    """Return the candidates, in their order, that are needed to distinguish all runs that differ in any of them.

    A key that follows from earlier ones is dropped, such as an option that only one method has. A key that later ones
    make redundant is dropped too, unless it is the name or kind that gives them their meaning.

    Parameters
    ----------
    kept : sequence of str
        Candidates that are never dropped.
    """
    chosen = list(kept)
    for key in candidates:
        if key not in chosen and _count(runs, [*chosen, key]) > _count(runs, chosen):
            chosen.append(key)
    for key in reversed(chosen):
        rest = [other for other in chosen if other != key]
        is_needed = key in kept or _last_word(key) in SELECTORS or _count(runs, rest) < _count(runs, chosen)
        chosen = chosen if is_needed else rest
    return [key for key in candidates if key in chosen]


def group_key(run: Settings, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the run's values of the keys as text, which is equal for the runs of one group."""
    return tuple(repr(run.get(key)) for key in keys)


def common_values(groups: Sequence[Settings], keys: Sequence[str]) -> dict[str, Any]:
    """Return the values that more than half of the groups have, by key, except for the method."""
    found = {}
    for key in keys:
        values = [group_key(group, [key]) for group in groups]
        commonest, times = Counter(values).most_common(1)[0]
        if key != METHOD and 2 * times > len(groups) > 1:
            found[key] = groups[values.index(commonest)].get(key)
    return found


def labels(groups: Sequence[Settings], keys: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Return a label for each group: its values of the keys, except those that most groups have.

    Parameters
    ----------
    methods : sequence of str
        The groups' methods, which label a group that has only common values.
    """
    expected = common_values(groups, keys)
    shown = [
        {key: group.get(key) for key in keys if key not in expected or repr(group.get(key)) != repr(expected[key])}
        for group in groups
    ]
    # Null mostly means that a kind does not use the key, so it follows from the kind and is dropped first.
    ways = [(True, LONGEST_VALUE), (False, LONGEST_VALUE), (False, None)]
    for without_null, longest in ways:
        found = [label(settings, without_null, longest) for settings in shown]
        if len(set(found)) == len(found) and all(name or not own for name, own in zip(found, shown, strict=True)):
            break
    return [name or method for name, method in zip(found, methods, strict=True)]


def in_order(groups: Sequence[Settings], keys: Sequence[str]) -> list[int]:
    """Return the groups' indices, sorted: common values first, then other values as they first came, then numbers."""
    first = [list(dict.fromkeys(group_key(group, [key]) for group in groups)) for key in keys]
    expected = common_values(groups, keys)

    def rank(number: int) -> list[tuple[int, float]]:
        ranks: list[tuple[int, float]] = []
        for key, values in zip(keys, first, strict=True):
            value, here = groups[number].get(key), group_key(groups[number], [key])
            if key in expected and here == group_key(expected, [key]):
                ranks.append((0, 0))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                ranks.append((2, value))
            else:
                ranks.append((1, values.index(here)))
        return ranks

    return sorted(range(len(groups)), key=rank)


def other_differences(groups: Sequence[Sequence[Settings]], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return all other keys that differ within a group, and between groups, each as `key (value, value)`.

    A key that only one method or kind uses does not count as a difference.
    """
    runs = [run for group in groups for run in group]
    differ = differing(runs)
    within: list[str] = []
    between: list[str] = []
    for key in differ:
        if key in keys:
            continue
        unused = ("None",) if any(selector in differ for selector in _selectors_of(key)) else ()
        values = [{repr(run.get(key)): text(run.get(key)) for run in group} for group in groups]
        for by_repr in values:
            for none in unused:
                by_repr.pop(none, None)
        everywhere = {name: shown for by_repr in values for name, shown in by_repr.items()}
        if len(everywhere) > 1:
            mixed = any(len(by_repr) > 1 for by_repr in values)
            shown = list(everywhere.values())
            (within if mixed else between).append(f"{key} ({', '.join(shown[:4])}{', …' if len(shown) > 4 else ''})")
    return within, between


def following_the_method(runs: Sequence[Settings]) -> set[str]:
    """Return the keys whose values in all runs are those that the standard recipe derives from the method.

    A key that takes several values with one method does not follow the method alone, so it is not returned.

    Parameters
    ----------
    runs : sequence of mapping
        All settings of each run, because the recipe's rules look at other keys.
    """
    found = set()
    for key, rule in recipes.STANDARD.items():
        # The kinds that have no such key are left out.
        used = [run for run in runs if run.get(key) is not None]
        values = {group_key(run, [METHOD, key]) for run in used}
        if len(values) == _count(used, [METHOD]) and all(rule.value(run.get) == run[key] for run in used):
            found.add(key)
    return found


def label(settings: Settings, without_null: bool = False, longest: int | None = LONGEST_VALUE) -> str:
    """Write settings as `key=value`, and the method as its name alone."""
    parts = []
    for key, value in settings.items():
        if value is not None or not without_null:
            parts.append(text(value, longest) if key == METHOD else f"{key}={text(value, longest)}")
    return ", ".join(parts)


def text(value: Any, longest: int | None = LONGEST_VALUE) -> str:
    """Write a value for a label; a long list is shortened."""
    if isinstance(value, list | tuple):
        whole = "+".join(text(item, None) for item in value)
        if longest is None or len(whole) <= longest:
            return whole
        return f"{text(value[0], None)}+…+{text(value[-1], None)} ({len(value)})"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _count(runs: Sequence[Settings], keys: Sequence[str]) -> int:
    return len({group_key(run, keys) for run in runs})


def _last_word(key: str) -> str:
    return key.rpartition(".")[2]


def _selectors_of(key: str) -> list[str]:
    sections = [key.rsplit(".", n)[0] for n in range(1, key.count(".") + 1)]
    return [f"{section}.{word}" for section in sections for word in SELECTORS if f"{section}.{word}" != key]

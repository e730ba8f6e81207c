"""Which settings make runs different, and the shortest names that tell groups of runs apart.

A run's settings are its resolved config by dotted keys, as `Run.flat_config` gives it. An absent key is null.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedh2l_mpi.config.comparison import Settings
from fedh2l_mpi.errors import UserError, did_you_mean

METHOD, SEED = "method.name", "seed"
# Keys whose value decides which other keys of their section are used at all; those that are not are null.
SELECTORS = ("name", "kind", "views")
# Longer values are shortened in a label.
LONGEST_VALUE = 40


def differing(runs: Sequence[Settings]) -> list[str]:
    """Keys of which not all runs have the same value, in the config's order, but the method's name first."""
    keys = dict.fromkeys(key for run in runs for key in run)
    found = [key for key in keys if len({repr(run.get(key)) for run in runs}) > 1]
    return sorted(found, key=lambda key: key != METHOD)


def named(asked: Sequence[str], option: str, runs: Sequence[Settings]) -> list[str]:
    """The keys that an option names, singly or by a section.

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
            raise UserError(f"{option} {name!r}: no run's config has this key{did_you_mean(name, [*known, *sections])}")
        keys += [key for key in known if key == name or key.startswith(f"{name}.")]
    return keys


def telling(runs: Sequence[Settings], candidates: Sequence[str], kept: Sequence[str] = ()) -> list[str]:
    """The candidates that are needed to tell apart all that differ in any of them, in their order.

    A key that follows from those before it is left out, such as the options of a method; so is one that later ones
    make needless, but for the name or kind that gives them their meaning.

    Parameters
    ----------
    kept : sequence of str
        Candidates that stay in any case.
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


def place(run: Settings, keys: Sequence[str]) -> tuple[str, ...]:
    """What a run has under the keys, as something that can be compared: equal for the runs of one group."""
    return tuple(repr(run.get(key)) for key in keys)


def usual(groups: Sequence[Settings], keys: Sequence[str]) -> dict[str, Any]:
    """The values that more than half of the groups have, by key; of the method there is none."""
    found = {}
    for key in keys:
        places = [place(group, [key]) for group in groups]
        commonest, times = Counter(places).most_common(1)[0]
        if key != METHOD and 2 * times > len(groups) > 1:
            found[key] = groups[places.index(commonest)].get(key)
    return found


def labels(groups: Sequence[Settings], keys: Sequence[str], methods: Sequence[str]) -> list[str]:
    """A name for each group: its settings under the keys that tell it from the others, but for the usual ones.

    Parameters
    ----------
    methods : sequence of str
        The groups' methods, for the group of which all settings are usual.
    """
    expected = usual(groups, keys)
    said = [
        {key: group.get(key) for key in keys if key not in expected or repr(group.get(key)) != repr(expected[key])}
        for group in groups
    ]
    # Null is mostly a key that a kind does not use, and follows from that kind.
    ways = [(True, LONGEST_VALUE), (False, LONGEST_VALUE), (False, None)]
    for without_null, longest in ways:
        found = [label(settings, without_null, longest) for settings in said]
        if len(set(found)) == len(found) and all(name or not told for name, told in zip(found, said, strict=True)):
            break
    return [name or method for name, method in zip(found, methods, strict=True)]


def in_order(groups: Sequence[Settings], keys: Sequence[str]) -> list[int]:
    """Numbers of the groups, sorted: the usual value first, then numbers by their size, all else as it first came."""
    first = [list(dict.fromkeys(place(group, [key]) for group in groups)) for key in keys]
    expected = usual(groups, keys)

    def rank(number: int) -> list[tuple[int, float]]:
        ranks: list[tuple[int, float]] = []
        for key, places in zip(keys, first, strict=True):
            value, here = groups[number].get(key), place(groups[number], [key])
            if key in expected and here == place(expected, [key]):
                ranks.append((0, 0))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                ranks.append((2, value))
            else:
                ranks.append((1, places.index(here)))
        return ranks

    return sorted(range(len(groups)), key=rank)


def hidden(groups: Sequence[Sequence[Settings]], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """What else differs than the keys: within a group, and from group to group; each as `key (value, value)`.

    That a key is used with one method or kind and not with another is no difference of its own.
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
        everywhere = {name: said for by_repr in values for name, said in by_repr.items()}
        if len(everywhere) > 1:
            mixed = any(len(by_repr) > 1 for by_repr in values)
            said = list(everywhere.values())
            (within if mixed else between).append(f"{key} ({', '.join(said[:4])}{', …' if len(said) > 4 else ''})")
    return within, between


def label(settings: Settings, without_null: bool = False, longest: int | None = LONGEST_VALUE) -> str:
    """Settings in words, the method by its bare name."""
    parts = []
    for key, value in settings.items():
        if value is not None or not without_null:
            parts.append(text(value, longest) if key == METHOD else f"{key}={text(value, longest)}")
    return ", ".join(parts)


def text(value: Any, longest: int | None = LONGEST_VALUE) -> str:
    """A value as it stands in a name; a long list is shortened."""
    if isinstance(value, list | tuple):
        whole = "+".join(text(item, None) for item in value)
        if longest is None or len(whole) <= longest:
            return whole
        return f"{text(value[0], None)}+…+{text(value[-1], None)} ({len(value)})"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _count(runs: Sequence[Settings], keys: Sequence[str]) -> int:
    return len({place(run, keys) for run in runs})


def _last_word(key: str) -> str:
    return key.rpartition(".")[2]


def _selectors_of(key: str) -> list[str]:
    sections = [key.rsplit(".", n)[0] for n in range(1, key.count(".") + 1)]
    return [f"{section}.{word}" for section in sections for word in SELECTORS if f"{section}.{word}" != key]

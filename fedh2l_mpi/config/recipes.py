"""Recipes: sets of defaults, which are put under the keys that a config gives before its sections are checked.

`standard` has the declared default of each key, except where STANDARD has a rule that looks at other keys. `classic`
has the frozen values of `config/classic.py`. A recipe only sets defaults: every key that is given wins.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from fedh2l_mpi.config import classic
from fedh2l_mpi.config.data import DataConfig, Pack
from fedh2l_mpi.config.data_sets import BroughtData
from fedh2l_mpi.config.method import LabelOptions, MethodConfig, OwnMethodOptions, PosteriorOptions
from fedh2l_mpi.config.section import KindSection, Section, allows_null, is_section, with_kind

# The default of a field by its dotted key and its kind's name; `...` leaves the declared default.
Default = Callable[[str, str, FieldInfo], Any]
# The value that a dotted key has so far: what is given, or its default; None if the kind has no such key.
Lookup = Callable[[str], Any]

# Smallest share of the data whose seed labels give a sound temperature.
ENOUGH = 0.1
# Number of rounds from which on views are wide.
LONG = 40
# Partitions that may leave a class to few samples.
RARE_CLASSES = ("dirichlet",)


class Rule(NamedTuple):
    """Default that follows from other keys.

    Attributes
    ----------
    text : str
        The rule in words, for the list of keys.
    value : callable
        It gets a Lookup and returns the default.
    """

    text: str
    value: Callable[[Lookup], Any]


def _codec(value: Lookup) -> str:
    method = MethodConfig.class_of(value("method.name"))
    # A method of the user's own may publish anything, and uint8 encodes nothing but posteriors.
    posteriors = method is not None and method is not OwnMethodOptions and issubclass(method, PosteriorOptions)
    # A step of uint8 is 6 % of a probability, so a threshold of skipped rows below that would mean nothing.
    return "uint8" if posteriors and value("exchange.skip_below") is None else "float32"


def _takes_any(value: Lookup) -> bool:
    """Return True if only the file of the data says of what kind their samples are."""
    data = DataConfig.class_of(value("data.name"))
    return data is not None and issubclass(data, BroughtData) and not data.are_images


def _models(value: Lookup) -> tuple[str, ...]:
    # One architecture takes any samples.
    return ("mlp",) if _takes_any(value) else ("lenet5", "mlp", "cnn")


def _views(value: Lookup) -> str:
    data = DataConfig.class_of(value("data.name"))
    # Only their files say of what kind these samples are.
    return "auto" if data is not None and issubclass(data, BroughtData | Pack) else "affine"


def _views_per_sample(value: Lookup) -> int:
    return 1 if value("seed_set.views") == "none" else 2


def _teachers(value: Lookup) -> str:
    return "right" if value("seed_set.labelled") else "confidence"


def _temperature(value: Lookup) -> float:
    # The other methods that publish posteriors have no teachers that the seed labels choose.
    if value("method.name") != "fedh2l" or not value("seed_set.labelled"):
        return 1.0
    # Soft posteriors hold down a class that hardly anybody has.
    rare = value("data.partition.kind") in RARE_CLASSES and not value("data.partition.min_per_class")
    return 2.0 if rare else 4.0


def _by_method(fedh2l: int, others: int) -> Rule:
    """Return the rule of a number of steps.

    FedH2L's local steps learn the seed labels as well, so only as many are needed as hide the messages.
    """
    return Rule(
        f"{fedh2l} for fedh2l, else {others}", lambda value: fedh2l if value("method.name") == "fedh2l" else others
    )


def _by_length(short: float, long: float) -> Rule:
    """Return the rule of a view's width: a long run learns the seed set by heart unless its views are wide."""

    def width(value: Lookup) -> float:
        rounds = value("rounds")
        return long if isinstance(rounds, int) and rounds >= LONG else short

    return Rule(f"{short} up to {LONG - 1} rounds, {long} in a longer run", width)


def _local_labels(value: Lookup) -> str:
    # That local steps see private data alone is part of what defines the methods that average parameters.
    learns_labels = value("method.name") in ("fedh2l", "seed_supervised", "pooled")
    return "private_and_seed" if learns_labels and value("seed_set.labelled") else "private"


def _calibration(value: Lookup) -> str:
    method = MethodConfig.class_of(value("method.name"))
    trains = method is not None and issubclass(method, LabelOptions)
    trains = trains or value("method.local_labels") == "private_and_seed"
    # Without views, a temperature would be fitted on the very samples that were trained on; a small seed set is learned
    # by heart in any view.
    share = value("seed_set.share")
    suits = value("seed_set.labelled") and value("seed_set.views") != "none"
    return "seed_set" if trains and suits and isinstance(share, int | float) and share >= ENOUGH else "none"


# Rules of the standard recipe by dotted keys. A rule sees the values of the rules before it.
STANDARD: dict[str, Rule] = {
    "exchange.codec": Rule("uint8 for posteriors without skip_below, else float32", _codec),
    "models": Rule('["lenet5", "mlp", "cnn"]; ["mlp"] for data that may be no images', _models),
    "seed_set.views": Rule("affine; auto for data that may be other than images", _views),
    "seed_set.views_per_sample": Rule("2; 1 with views none", _views_per_sample),
    "seed_set.view_rotation_deg": _by_length(15.0, 30.0),
    "seed_set.view_scale": _by_length(0.1, 0.2),
    "seed_set.view_shift": _by_length(0.05, 0.1),
    "method.local_steps": _by_method(2, 10),
    "method.mutual_steps": _by_method(18, 10),
    "method.teachers": Rule("right; confidence without seed labels", _teachers),
    "method.temperature": Rule(
        "4.0 for fedh2l with seed labels, 2.0 under dirichlet without min_per_class; else 1.0", _temperature
    ),
    "method.local_labels": Rule(
        "private_and_seed for fedh2l, seed_supervised and pooled with seed labels, else private", _local_labels
    ),
    "evaluation.calibration": Rule(
        f"seed_set if the labels of a seed share of {ENOUGH} or more are learned in views, else none", _calibration
    ),
}


def with_defaults(root: type[Section], raw: Any) -> Any:
    """Return what a config gives, with the defaults of its recipe under it.

    Parameters
    ----------
    root : type
        `Config`.
    raw : object
        Keys and sections as in a file. Anything malformed in it is left for the sections' own messages; a section that
        is an object already is complete.
    """
    if not isinstance(raw, Mapping):
        return raw
    recipe = raw.get("recipe", "standard")
    if recipe == "classic":
        return _fill(root, _with_what_fits(root, raw), _classic_if_it_differs)
    for key, rule in STANDARD.items() if recipe == "standard" else ():
        # Each rule in turn, because the next one may look at this one's value.
        found = rule.value(lambda other, keys=raw: _look_up(root, keys, other))  # type: ignore[misc]
        raw = _fill(root, raw, lambda name, kind, field, key=key, found=found: found if name == key else ...)  # type: ignore[misc]
    return raw


def _with_what_fits(root: type[Section], raw: Mapping[str, Any]) -> Any:
    """Return what a config gives, with models and views that fit any samples for data that are younger than classic."""
    if not _takes_any(lambda key: _look_up(root, raw, key)):
        return raw
    fits: dict[str, Any] = {"models": ("mlp",), "seed_set.views": "auto"}
    return _fill(root, raw, lambda key, kind, field: fits.get(key, ...))


def of_stored(root: type[Section], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's config.yaml gives, with the classic value for each key that is younger than the file."""
    return dict(_fill(root, {"recipe": classic.ADDED["recipe"], **raw}, _classic_if_it_differs))


def complete(root: type[Section], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same as `of_stored`, with all keys of each kind written out, for a reader that checks no values."""

    def default(key: str, kind: str, field: FieldInfo) -> Any:
        value = classic.value(key, kind)
        # A list as YAML has it; otherwise an empty one would differ from the same one in a stored config.
        return list(value) if isinstance(value, tuple) else value

    return dict(_fill(root, raw, default))


def as_before(root: type[Section], raw: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config gives, with the recipe of the run that it resumes, unless it names a recipe itself.

    Parameters
    ----------
    before : mapping
        Keys and sections of the run's config.yaml. A key that it lacks has its classic value. A key with a rule keeps
        the run's value, because its rule may look at the number of rounds, which may change.
    """
    if "recipe" in raw:
        return dict(raw)

    def default(key: str, kind: str, field: FieldInfo) -> Any:
        stored = _stored(before, key)
        if stored is ...:
            return _classic_if_it_differs(key, kind, field)
        return stored if key in STANDARD and stored is not None else ...

    return dict(_fill(root, {"recipe": before.get("recipe", classic.ADDED["recipe"]), **raw}, default))


def _classic_if_it_differs(key: str, kind: str, field: FieldInfo) -> Any:
    # A value that equals the declared default is left out, because sections may ask which keys were given.
    value = classic.value(key, kind)
    return ... if value == field.default else value


def _fill(section: type[Section], raw: Any, default: Default, prefix: str = "") -> Any:
    """Return a section's keys with defaults for those that are not given; unchanged if it has no known kind."""
    raw = with_kind(section, raw)
    if not isinstance(raw, Mapping):
        return raw
    filled = dict(raw)
    if issubclass(section, KindSection):
        _put(section, section, filled, section.kind_key, default, prefix)
    chosen = _chosen(section, filled)
    for name, field in chosen.model_fields.items() if chosen is not None else ():
        if not is_section(field.annotation):
            _put(section, chosen, filled, name, default, prefix)  # type: ignore[arg-type]
            continue
        inner = _fill(field.annotation, filled.get(name, {}), default, f"{prefix}{name}.")  # type: ignore[arg-type]
        if name in filled or inner:
            filled[name] = inner
    return filled


def _put(
    section: type[Section], chosen: type[Section], filled: dict[str, Any], name: str, default: Default, prefix: str
) -> None:
    field = chosen.model_fields[name]
    if not _is_given(section, filled, name, field):
        value = default(f"{prefix}{name}", getattr(chosen, "kind_name", ""), field)
        if value is not ...:
            filled[name] = value


def _chosen(section: type[Section], raw: Mapping[str, Any]) -> type[Section] | None:
    """Return the class of the kind that a section's keys name; None if there is no such kind."""
    if not issubclass(section, KindSection):
        return section
    return section.class_of(raw.get(section.kind_key, section.default_kind()))


def _is_given(section: type[Section], raw: Mapping[str, Any], name: str, field: FieldInfo) -> bool:
    # Null for a kind's own key means its default, as in `KindSection`.
    is_null = raw.get(name) is None and name not in section.model_fields and not allows_null(field)
    return name in raw and not is_null


def _look_up(section: type[Section], raw: Any, key: str) -> Any:
    name, _, rest = key.partition(".")
    if isinstance(raw, Section):
        return _look_up(type(raw), dict(raw), key)
    raw = with_kind(section, raw)
    keys = raw if isinstance(raw, Mapping) else {}
    chosen = _chosen(section, keys)
    field = chosen.model_fields.get(name) if chosen is not None else None
    if field is None:
        return None
    if rest:
        return _look_up(field.annotation, keys.get(name, {}), rest)  # type: ignore[arg-type]
    return keys[name] if _is_given(section, keys, name, field) else field.default


def _stored(raw: Any, key: str) -> Any:
    """Return the value of a dotted key; `...` if there is none."""
    for name in key.split("."):
        if not isinstance(raw, Mapping) or name not in raw:
            return ...
        raw = raw[name]
    return raw

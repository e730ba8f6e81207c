"""Base classes of the configuration's sections: known keys only, each value checked once and never changed."""

import inspect
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, ClassVar, NoReturn, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from fedh2l_mpi.errors import did_you_mean, shown


def _refuse_switch(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


# Strict, so that `rounds: true` and `seed: "7"` are errors. The bound keeps a product of two counts within int64.
LARGEST = 2**31
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Natural = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Switch = Annotated[bool, Field(strict=True)]
# Not strict, because YAML reads `1e-4` as text. Bounds stand before it, because JSON Schema loses them otherwise.
NO_SWITCH = BeforeValidator(_refuse_switch)
Number = Annotated[float, NO_SWITCH]
Share = Annotated[float, Field(ge=0.0, lt=1.0), NO_SWITCH]


class Section(BaseModel):
    """Part of the configuration. An unknown key is an error; values never change after validation.

    Attributes
    ----------
    may_be_null : bool
        In a class, True if null stands for the section's defaults.
    """

    may_be_null: ClassVar[bool] = False

    # Most runs use few kinds, so a class builds its validator when it is first used: imports stay quick.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def problem(key: str, value: object, text: str) -> InitErrorDetails:
    """Describe a problem of a key within a section; `text` follows the dotted key and a colon in the message."""
    place = tuple(key.split("."))
    return InitErrorDetails(type=PydanticCustomError("problem", "{text}", {"text": text}), loc=place, input=value)


def refuse(*problems: InitErrorDetails) -> NoReturn:
    """Raise the problems as one validation error."""
    raise ValidationError.from_exception_data("config", list(problems))


class KindSection(Section):
    """Section with keys that depend on its kind; every kind is a subclass, which alone defines its keys and defaults.

    A subclass registers itself by `class Star(TopologyConfig, kind="star")`. A subclass without `kind` is a group of
    keys that several kinds share. Validation picks the kind's class, so a checked section is an object of that class
    and has only the keys of its kind. The section itself may be called like its kinds: `TopologyConfig(kind="star")`
    is a `Star`.

    A text stands for a section with this kind, so `topology: ring` is `topology: {kind: ring}`.

    In a file, null for a key of another kind is ignored, and null for a key of the own kind means its default. Dumps
    contain the keys of all kinds, with null for those of other kinds, so files of all kinds have the same keys.

    Attributes
    ----------
    kind_key : str
        Name of the key that holds the kind; its default is the section's default kind.
    noun : str
        Word for the kind in messages.
    kinds : dict
        The class of every kind, by name.
    kind_name : str
        Name of the class's own kind; empty for the section itself and for groups of keys.
    """

    kind_key: ClassVar[str] = "kind"
    noun: ClassVar[str] = "kind"
    kinds: ClassVar[dict[str, type[Any]]] = {}
    kind_name: ClassVar[str] = ""

    def __init_subclass__(cls, kind: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if kind:
            cls.kinds[kind] = cls
        elif KindSection in cls.__bases__:
            cls.kinds = {}
        cls.kind_name = kind or vars(cls).get("kind_name", "")

    def __new__(cls, *_: Any, **keys: Any) -> Self:
        """Create an object of the class of the kind that the keys name."""
        chosen = cls if cls.kind_name else cls.class_of(keys.get(cls.kind_key, cls.default_kind()))
        return super().__new__(chosen or cls)

    @classmethod
    def default_kind(cls) -> str:
        """Name of the section's default kind."""
        return str(cls.section().model_fields[cls.kind_key].default)

    @classmethod
    def section(cls) -> type["KindSection"]:
        """The section that this class is a kind of."""
        return next(base for base in cls.__mro__ if KindSection in base.__bases__)

    @classmethod
    def class_of(cls, kind: object) -> type[Any] | None:
        """Class of a kind, or None if there is no such kind."""
        return cls.kinds.get(kind) if isinstance(kind, str) else None

    @classmethod
    def classes(cls) -> list[type[Any]]:
        """Classes of all kinds."""
        return list(cls.kinds.values())

    @classmethod
    def unknown_kind(cls, kind: object) -> str:
        """Text of the message about an unknown kind."""
        # YAML reads off and no as false.
        word = "none" if kind is False else kind
        return f"got {shown(kind)}; known: {', '.join(sorted(cls.kinds))}{did_you_mean(word, list(cls.kinds))}"

    @classmethod
    def unused_key(cls, key: str, kind: str) -> str:
        """Reason why this kind refuses a key of other kinds; it follows `got VALUE, but `."""
        return f"{cls.noun} {kind!r} does not use it (used by: {', '.join(sorted(users(cls.section(), key)))})"

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        raw = with_kind(cls, raw)
        if not isinstance(raw, Mapping):
            return handler(raw)
        kind = raw.get(cls.kind_key, cls.kind_name or cls.default_kind())
        chosen = cls.class_of(kind)
        if chosen is None:
            refuse(problem(cls.kind_key, kind, cls.unknown_kind(kind)))
        if chosen is not cls:
            if cls.kind_name:
                refuse(problem(cls.kind_key, kind, f"got {shown(kind)}, must be {cls.kind_name!r} for {cls.__name__}"))
            checked: Self = chosen.model_validate(raw)
            return checked
        return handler({**cls._own_keys(raw, kind), cls.kind_key: kind})

    @classmethod
    def _own_keys(cls, raw: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """Keys for this kind's class: without nulls that only stand for another kind's key or for a default."""
        common, every = cls.section().model_fields, all_fields(cls.section())
        own, problems = {}, []
        for key, value in raw.items():
            mine = cls.model_fields.get(key)
            if key in common or key not in every or (mine and (value is not None or allows_null(mine))):
                own[key] = value
            elif mine is None and value is not None:
                text = f"got {shown(value)}, but {cls.unused_key(key, kind)}. Fix: remove it or set it to null."
                problems.append(problem(key, value, text))
        for key, field in cls.model_fields.items():
            if field.is_required() and own.get(key) is None:
                problems.append(problem(key, None, f"must be given for {cls.noun} {kind!r}"))
        if problems:
            refuse(*problems)
        return own

    @model_serializer(mode="plain")
    def _all_keys(self) -> dict[str, Any]:
        values = {key: getattr(self, key) for key in type(self).model_fields}
        dumped = {key: value.model_dump() if isinstance(value, Section) else value for key, value in values.items()}
        return {key: dumped.get(key) for key in all_fields(self.section())}


def with_kind(section: type[Section], raw: Any) -> Any:
    """Return the keys of a section for which a file gives only the name of a kind; anything else unchanged."""
    return {section.kind_key: raw} if isinstance(raw, str) and issubclass(section, KindSection) else raw


def section_at(root: type[Section], key: str) -> type[Section] | None:
    """Return the section with a dotted key; None if the key holds a value, or does not exist."""
    section: type[Section] = root
    for name in key.split("."):
        field = all_fields(section).get(name)
        if field is None or not is_section(field.annotation):
            return None
        section = field.annotation  # type: ignore[assignment]
    return section


def all_fields(section: type[Section]) -> dict[str, FieldInfo]:
    """Every key of a section, those of its kinds included, with the field of the first kind that has it.

    The keys of the default kind come first, because a reader looks for those first.
    """
    fields = dict(section.model_fields)
    if issubclass(section, KindSection):
        default = section.class_of(section.default_kind())
        for kind in sorted(section.section().classes(), key=lambda one: one is not default):
            fields |= {key: field for key, field in kind.model_fields.items() if key not in fields}
    return fields


def users(section: type[Section], key: str) -> dict[str, FieldInfo]:
    """Kinds that have a key of their own by this name, with its field; empty for a key that all kinds have."""
    if key in section.model_fields or not issubclass(section, KindSection):
        return {}
    return {name: kind.model_fields[key] for name, kind in section.kinds.items() if key in kind.model_fields}


def is_section(annotation: Any) -> bool:
    """Return True if a field holds a section instead of a value."""
    return inspect.isclass(annotation) and issubclass(annotation, Section)


def allows_null(field: FieldInfo) -> bool:
    """Return True if null is a value of a field."""
    return NoneType in get_args(field.annotation)

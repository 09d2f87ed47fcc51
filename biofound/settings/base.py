"""Base of all settings models: described fields, strict keys, defaults that follow other settings."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

from biofound.files import path_to_text
from biofound.weights import find_weights

T = TypeVar("T")

CheckpointFile = Annotated[Path, AfterValidator(find_weights)]
"""A checkpoint: its file, a directory with its weights, or the name of weights in the package."""

VITALDB_URL = "BIOFOUND_VITALDB_URL"
"""The environment variable for the address of VitalDB's server, the same for all commands."""
VITALDB_URL_HELP = "Address of VitalDB's server, such as a mirror (vitaldb)."


class Conflict(NamedTuple):
    """Settings that are each fine but do not fit together: their names, and what to change."""

    fields: tuple[str, ...]
    message: str


class Derived(NamedTuple):
    """A default that follows another setting: its value, and why."""

    value: Any
    reason: str


class Settings(BaseModel):
    """Base of all settings models: unknown keys, infinities and booleans posing as numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    command: ClassVar[str] = ""
    """The command of these settings, whose help is the class's docstring; '' for parts of a file."""
    file_option: ClassVar[str | None] = None
    """The field that names the YAML file with these settings; None where there is no such file."""

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults that a preset such as `fast` changes, where `given` switches it on."""
        del given
        return {}

    @classmethod
    def derived_defaults(cls, given: Mapping[str, Any]) -> dict[str, Derived]:
        """The defaults that depend on what else was given, by field."""
        del given
        return {}

    def conflicts(self) -> Iterator[Conflict]:
        """The settings that do not fit together."""
        yield from ()

    def fill(self, kind: type[T], **more: Any) -> T:
        """A dataclass filled with the settings of the same names, and with `more`."""
        for field in fields(kind):  # type: ignore[arg-type]
            if field.name not in more:
                more[field.name] = getattr(self, field.name)
        return kind(**more)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_derived_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        filled = {**cls.preset(given), **given}
        derived = {name: default.value for name, default in cls.derived_defaults(filled).items()}
        return {**derived, **filled}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `epochs: yes` as True, which Python counts as the number 1.
        kind = kind_of(cls.model_fields[info.field_name or ""])
        if isinstance(value, bool) and kind in (int, float):
            raise PydanticCustomError("boolean_for_number", "a number was expected")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any, info: ValidationInfo) -> Any:
        may_be_path = bool(extra_of(cls.model_fields[info.field_name or ""], "may_be_path"))
        if isinstance(value, tuple):
            return tuple(with_home(item, may_be_path=may_be_path) for item in value)
        return with_home(value, may_be_path=may_be_path)

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_numbers_beyond_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"expected a whole number below 2^63, got one of {value.bit_length()} bits")
        return value

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        found = list(self.conflicts())
        if found:
            message = "; ".join(conflict.message for conflict in found)
            raise PydanticCustomError("conflict", "{message}", {"message": message, "conflicts": found})
        return self


def setting(
    default: Any,
    description: str,
    *,
    panel: str = "Options",
    unit: str = "",
    in_file: bool = True,
    off_name: str | None = None,
    env: str | None = None,
    repeatable: bool = False,
    separator: str = ",",
    may_be_path: bool = False,
    **bounds: Any,
) -> Any:
    """A settings field. `PydanticUndefined` as default makes it required.

    Args:
        default: the value where none is given.
        description: one sentence for help, YAML comments and documentation.
        panel: the heading it is listed under.
        unit: its unit, as in "Hz"; "" for pure numbers and text.
        in_file: whether it may stand in the command's YAML file.
        off_name: the name of the option that switches it off, where `no-<name>` would read badly.
        env: its environment variable, where it is not named after the command and the field.
        repeatable: whether its option may be given several times; for lists (`tuple[X, ...]`) that
            `split_commas` splits, which is how a variable gives several.
        separator: what separates these in a variable, where it is no comma.
        may_be_path: whether its text may be a path, so that `~` in front is the home directory; in fields of
            paths it always is.
        bounds: what pydantic's `Field` takes: ge, gt, le, lt, min_length, pattern.
    """
    extra = {
        "panel": panel,
        "unit": unit,
        "in_file": in_file,
        "off_name": off_name,
        "env": env,
        "repeatable": repeatable,
        "separator": separator,
        "may_be_path": may_be_path,
    }
    return Field(default, description=description, json_schema_extra=extra, **bounds)  # type: ignore[arg-type]


REQUIRED = PydanticUndefined


def split_commas(value: Any) -> Any:
    """Split the text of an option or a variable: `PPG, ECG` -> ["PPG", "ECG"]; other values stay."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def split_path_list(value: Any) -> Any:
    """Split a list of paths like `split_commas`, each as text in UTF-8 (`path_to_text`)."""
    words = split_commas(value)
    return [path_to_text(word) if isinstance(word, str) else word for word in words] if words else words


def png_file(path: Path | None) -> Path | None:
    """A path that ends in .png, or None; for `AfterValidator`."""
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"expected a file that ends in .png, got {str(path)!r}")
    return path


def with_home(value: Any, *, may_be_path: bool = False) -> Any:
    """A path, or text that `may_be_path`, with `~` expanded; other values as they are.

    Raises:
        ValueError: when there is no home directory.
    """
    is_text = may_be_path and isinstance(value, str) and value.startswith("~")
    if not (is_text or isinstance(value, Path)):
        return value
    try:
        path = Path(value).expanduser()
        return path_to_text(path) if is_text else path
    except RuntimeError as problem:
        raise ValueError(f"expected a path, got {value}: there is no home directory for ~") from problem


def extra_of(field: FieldInfo, key: str) -> Any:
    """What `setting` noted about a field."""
    extra = field.json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


def kind_of(field: FieldInfo) -> Any:
    """A field's type without `| None`: int, float, bool, str, Path, a Literal, or a container's origin."""
    annotation = _without_none(field.annotation)
    origin = get_origin(annotation)
    return annotation if origin in (None, Literal) else origin


def item_kind_of(field: FieldInfo) -> Any:
    """The type of what a list `tuple[X, ...]` holds: X."""
    return get_args(_without_none(field.annotation))[0]


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(member for member in get_args(annotation) if member is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The words a field can be; () when it is not a choice."""
    kind = kind_of(field)
    return get_args(kind) if get_origin(kind) is Literal else ()


def bounds_of(field: FieldInfo) -> str:
    """A field's bounds in words, such as `above 0, at most 1`; '' when it has none."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found = [
        f"{word} {getattr(constraint, name)}"
        for name, word in words.items()
        for constraint in field.metadata
        if getattr(constraint, name, None) is not None
    ]
    return ", ".join(found)


def expectation(field: FieldInfo) -> str:
    """What a field expects, in words: `a number with 0 < x < 1`, `one of random, block`."""
    kind = kind_of(field)
    names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "text"}
    if choices_of(field):
        text = "one of " + ", ".join(choices_of(field))
    elif kind in (tuple, list):
        text = "a list"
    elif kind is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        text = "a mapping"
    else:
        text = names.get(kind, "text")
    if bounds := bounds_of(field):
        text += f" {bounds}"
    if unit := extra_of(field, "unit"):
        text += f" (in {unit})"
    return text

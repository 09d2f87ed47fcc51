"""Resolve settings by precedence, option > environment > YAML > default, with the origin of each."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from biofound.data.channels import Channel
from biofound.errors import SettingsError, did_you_mean
from biofound.files import path_to_text
from biofound.settings.base import Conflict, Settings, expectation, extra_of, kind_of, with_home
from biofound.settings.channels import ChannelsSettings, Section
from biofound.settings.recipes import find_recipe
from biofound.settings.yaml_source import YamlSource, read_yaml

S = TypeVar("S", bound=Settings)

DEFAULT = "default"

PRESET = "fast"
"""The field that changes the defaults of others (`Settings.preset`)."""

_LISTED = 50
"""Problems that one message lists."""


@dataclass(frozen=True, kw_only=True)
class Resolved(Generic[S]):
    """A command's settings, and the origin of each value."""

    settings: S
    origins: Mapping[str, str]

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Every field's name, value, unit and origin, as text."""
        for name, info in type(self.settings).model_fields.items():
            value = plain(getattr(self.settings, name))
            yield name, shown(value), extra_of(info, "unit") or "", self.origins[name]

    def as_json(self) -> dict[str, dict[str, Any]]:
        """`{name: {"value": ..., "origin": ...}}` in plain JSON: what `training_config.json` holds."""
        names = type(self.settings).model_fields
        return {
            name: {"value": plain(getattr(self.settings, name)), "origin": self.origins[name]}
            for name in names
        }

    def with_defaults(self, values: Mapping[str, Any], *, origin: str) -> "Resolved[S]":
        """The settings with other defaults: each of `values` where nothing was given for its field.

        Raises:
            SettingsError: when they do not fit the settings that were given.
        """
        model = type(self.settings)
        said = {
            name: origin
            for name, origin in self.origins.items()
            if origin != DEFAULT and not origin.startswith(f"{DEFAULT} for ")  # a derived one
        }
        given = _Given(
            values={**values, **{name: getattr(self.settings, name) for name in said}},
            origins={**dict.fromkeys(values, origin), **said},
        )
        settings, problems = _validate(model, given)
        if settings is None:
            raise SettingsError(_listing(problems))
        return Resolved(settings=settings, origins=_origins(model, given))


@dataclass(frozen=True, kw_only=True)
class ResolvedChannels:
    """The channels of one section of the channel table, and their origin."""

    channels: list[Channel]
    origin: str

    def named(self, names: Sequence[str]) -> list[Channel]:
        """The channels of these names, in this order.

        Raises:
            SettingsError: when a name is not in the table.
        """
        known = {channel.name: channel for channel in self.channels}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise SettingsError(
                f"channel {', '.join(unknown)}: not in {self.origin}; a channel of another name can be "
                f"described in a table of your own (--channels-yaml){did_you_mean(unknown[0], list(known))}"
            )
        return [known[name] for name in names]


@dataclass(kw_only=True)
class _Given:
    """The values given, by field, and the origin of each."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    file: YamlSource | None = None
    problems: list[str] = field(default_factory=list)

    def where(self, key: tuple[str | int, ...]) -> str:
        """The origin of the value at `key`; for a key of a file with its own line."""
        origin = self.origins.get(str(key[0]), DEFAULT)
        if self.file is not None and origin == self.file.where(key[:1]):
            return self.file.where(key)
        return origin


def resolve(
    model: type[S], *, options: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> Resolved[S]:
    """Resolve the settings of a command from its options, the environment, its YAML file and defaults.

    A preset (`fast`) has the rank of the place that gives it: as an option it outranks the environment and
    the file, in the file it outranks the defaults only. Single values of the same rank or above outrank it.

    Args:
        model: the command's settings model.
        options: the options given on the command line, by field name; None means not given.
        environ: the environment; by default the process's. An empty variable counts as not set.

    Raises:
        SettingsError: with all problems, one a line.
    """
    environ = os.environ if environ is None else environ
    given = _gather(model, options, environ)
    problems = list(given.problems)
    settings, more = _validate(model, given)
    problems += more
    if settings is None or problems:
        raise SettingsError(_listing(problems))
    return Resolved(settings=settings, origins=_origins(model, given))


def resolve_channels(path: Path | None, section: Section) -> ResolvedChannels:
    """One section (`pretrain`, `finetune`) of a channel table; without `path` of the built-in one.

    Raises:
        SettingsError: with every problem of the file, such as the section's absence, one a line.
    """
    if path is None:
        channels = ChannelsSettings().section(section)
        return ResolvedChannels(channels=channels, origin=f"the built-in channel table, section {section}")
    file = read_yaml(path)
    given = _Given(values=dict(file.values), file=file)
    given.origins = {name: file.where((name,)) for name in file.values}
    table, problems = _validate(ChannelsSettings, given)
    if section not in file.values:  # the built-in section must not pass for the file's
        held = ", ".join(file.values) or "nothing"
        problems.append(
            f"{path}: no section {section}; it holds {held}: add the section, or leave the file out"
        )
    if table is None or file.problems or problems:
        raise SettingsError(_listing(file.problems + problems))
    return ResolvedChannels(channels=table.section(section), origin=f"{path}, section {section}")


def option_name(name: str) -> str:
    """`mask_ratio` -> `--mask-ratio`."""
    return "--" + name.replace("_", "-")


def environment_name(model: type[Settings], name: str) -> str:
    """`mask_ratio` of `pretrain` -> `BIOFOUND_PRETRAIN_MASK_RATIO`."""
    own = extra_of(model.model_fields[name], "env")
    return own or f"{_environment_prefix(model)}{name.upper()}"


def shown(value: Any) -> str:
    """A plain value as text: lists as options take them, and a dash for nothing."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _environment_prefix(model: type[Settings]) -> str:
    return f"BIOFOUND_{model.command.upper()}_"


def plain_values(settings: Settings) -> dict[str, Any]:
    """All settings as plain JSON, by name."""
    return {name: plain(getattr(settings, name)) for name in type(settings).model_fields}


def plain(value: Any) -> Any:
    """A settings value as plain JSON."""
    if isinstance(value, Path):
        return path_to_text(value)
    return [plain(item) for item in value] if isinstance(value, tuple) else value


# ---------------------------------------------------------------------------------------------------------
# Gathering


def _gather(model: type[Settings], options: Mapping[str, Any], environ: Mapping[str, str]) -> _Given:
    said_as_option = {name: value for name, value in options.items() if value is not None}
    option_origins = {name: f"option {option_name(name)}" for name in said_as_option}
    said_outside, outside_origins, problems = _from_environment(model, environ)
    given = _Given(problems=problems)
    named = {**said_outside, **said_as_option}
    path = named.get(model.file_option) if model.file_option else None
    if path is not None:
        given.file = _read_file(model, find_recipe(Path(path)), given.problems)
    layers = [(said_outside, outside_origins), (said_as_option, option_origins)]
    if given.file is not None:
        file = given.file
        layers.insert(0, (file.values, {name: file.where((name,)) for name in file.values}))
    _stack(model, given, layers)
    return given


def _stack(model: type[Settings], given: _Given, layers: list[tuple[dict[str, Any], dict[str, str]]]) -> None:
    """Put each place's values over those of the places before it.

    A preset goes under the values of the last place that switches it on or off.
    """
    decisive = max((rank for rank, (values, _) in enumerate(layers) if PRESET in values), default=None)
    for rank, (values, origins) in enumerate(layers):
        preset = model.preset(values) if rank == decisive else {}
        reason = origins.get(PRESET, "")
        reason = option_name(PRESET) if reason.startswith("option ") else f"{PRESET}, {reason}"
        given.values.update({**preset, **values})
        given.origins.update({**dict.fromkeys(preset, reason), **origins})


def _from_environment(
    model: type[Settings], environ: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The values, their origins, and a message for each variable that names no setting."""
    names = {environment_name(model, name): name for name in model.model_fields}
    values, origins, problems = {}, {}, []
    for variable, value in sorted(environ.items()):
        if variable in names and value:
            values[names[variable]] = value
            origins[names[variable]] = f"environment {variable}"
        elif variable.startswith(_environment_prefix(model)) and value:
            problems.append(f"environment {variable}: no such setting{did_you_mean(variable, list(names))}")
    return values, origins, problems


def _read_file(model: type[Settings], path: Path, problems: list[str]) -> YamlSource | None:
    try:
        file = read_yaml(with_home(path))
    except SettingsError as problem:
        problems.append(str(problem))
        return None
    except ValueError:  # no home directory, as the field itself will say
        return None
    problems.extend(file.problems)
    for name in list(file.values):
        info = model.model_fields.get(name)
        if info is not None and not extra_of(info, "in_file"):
            problems.append(f"{file.where((name,))}: {name} cannot stand in a file; use {option_name(name)}")
            del file.values[name]
    return file


def _origins(model: type[Settings], given: _Given) -> dict[str, str]:
    derived = {name: default.reason for name, default in model.derived_defaults(given.values).items()}
    return {name: given.origins.get(name, derived.get(name, DEFAULT)) for name in model.model_fields}


# ---------------------------------------------------------------------------------------------------------
# Validating


def _validate(model: type[S], given: _Given) -> tuple[S | None, list[str]]:
    """The model, or None and a message for each problem."""
    try:
        return model.model_validate(given.values), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [message for detail in details for message in _messages(model, given, detail)]
    bad = {str(detail["loc"][0]) for detail in details if detail["loc"]}
    if bad & given.values.keys():
        # What does not fit together shows only once every value is readable: ask again without the bad ones.
        rest = _Given(
            values={name: value for name, value in given.values.items() if name not in bad},
            origins=given.origins,
            file=given.file,
        )
        problems += [
            message
            for conflict in _conflicts(model, rest)
            if not bad & set(conflict.fields)
            for message in [_conflict_message(rest, (), conflict)]
        ]
    return None, problems


def _conflicts(model: type[Settings], given: _Given) -> list[Conflict]:
    try:
        model.model_validate(given.values)
    except ValidationError as error:
        return [
            conflict for detail in error.errors() for conflict in detail.get("ctx", {}).get("conflicts", [])
        ]
    return []


def _messages(model: type[Settings], given: _Given, detail: ErrorDetails) -> Iterator[str]:
    key = tuple(part for part in detail["loc"] if part != "[key]")
    name = ".".join(str(part) for part in key)
    kind, got = detail["type"], detail["input"]
    if kind == "conflict":
        for conflict in detail["ctx"]["conflicts"]:
            yield _conflict_message(given, key, conflict)
        return
    where = given.where(key)
    if not where.startswith(("option ", "environment ")):
        where += f": {name}"
    info = _field_at(model, key)
    if kind == "extra_forbidden":
        known = list(_model_at(model, key[:-1]).model_fields)
        yield f"{where}: no such setting{did_you_mean(str(key[-1]), known)}"
    elif kind == "missing":
        place = f"{where} is missing" if len(key) > 1 else f"{_say(model, given, name)} is required"
        yield f"{place}: expected {expectation(info)}" if info else place
    elif kind == "value_error":
        yield f"{where}: {detail['ctx']['error']}"
    elif kind == "string_pattern_mismatch":
        expected = "a name of letters, digits and _, beginning with a letter"
        yield f"{where}: expected {expected}, got {got!r}"
    elif kind == "too_short":
        yield f"{where}: expected at least {detail['ctx']['min_length']}, got none"
    else:
        # What is inside a list has no field of its own: pydantic says what it should be.
        whole = info is not None and isinstance(key[-1], str)
        expected = expectation(info) if info and whole else detail["msg"].removeprefix("Input should be ")
        yield f"{where}: expected {expected}, got {_shortened(got)}"


def _say(model: type[Settings], given: _Given, name: str) -> str:
    return f"option {option_name(name)}" if model.command else f"{given.where((name,))}: {name}"


def _conflict_message(given: _Given, key: tuple[str | int, ...], conflict: Conflict) -> str:
    """The message, after the origins of the fields in it."""
    places = [given.where((*key, name)) for name in conflict.fields]
    given_at = list(dict.fromkeys(place for place in places if place != DEFAULT))
    prefix = ".".join(map(str, key))
    text = f"{prefix}: {conflict.message}" if prefix else conflict.message
    return f"{', '.join(given_at)}: {text}" if given_at else text


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listing(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    shown = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        shown.append(f"  and {len(problems) - _LISTED} more")
    return "\n".join([f"{len(problems)} settings are wrong:", *shown])


def _model_at(model: type[Settings], key: tuple[str | int, ...]) -> type[Settings]:
    """The model of the mapping at `key`, such as ("pretrain", "PPG", "filter")."""
    for part in key:
        info = model.model_fields.get(str(part))
        inner = _inner_model(info) if info is not None else None
        model = inner if inner is not None else model
    return model


def _field_at(model: type[Settings], key: tuple[str | int, ...]) -> FieldInfo | None:
    """The field that is responsible for the value at `key`: inside a list, the list's."""
    names = [str(part) for part in key]
    for end in range(len(names), 0, -1):
        info = _model_at(model, key[: end - 1]).model_fields.get(names[end - 1])
        if info is not None:
            return info
    return None


def _inner_model(info: FieldInfo) -> type[Settings] | None:
    """The settings model inside a field: itself, or what a mapping of names holds."""
    candidates = [kind_of(info), *get_args(info.annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)  # type: ignore[return-value]

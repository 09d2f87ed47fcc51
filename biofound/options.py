"""Register a command: its options from its settings model, its failures as one message and an exit code."""

import inspect
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from biofound import console
from biofound.errors import BiofoundError, SettingsError
from biofound.settings.base import Settings, bounds_of, choices_of, extra_of, item_kind_of, kind_of
from biofound.settings.resolve import Resolved, environment_name, option_name, plain, resolve, shown

S = TypeVar("S", bound=Settings)

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
"""Exit codes: data, machine or a check failed; wrong settings; Ctrl-C (128 + SIGINT); 128 + SIGTERM."""

_COMMON = "All commands"
"""The heading of the options that every command has."""


@dataclass(frozen=True, kw_only=True)
class Invocation(Generic[S]):
    """One call of a command: its settings, their origins, and whether to print the result as JSON."""

    settings: S
    resolved: Resolved[S]
    json: bool


class GroupedCommand(TyperCommand):
    """A command whose help lists the options under the headings of their settings.

    Typer's boxes group them as well, but at 80 columns they cut the names of options and variables.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section a heading."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                panel = getattr(param, "rich_help_panel", None) or _COMMON
                panels.setdefault(panel, []).append(record)
        panels[_COMMON] = panels.pop(_COMMON)  # to the end
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def add_command(app: typer.Typer, model: type[S], execute: Callable[[Invocation[S]], None]) -> None:
    """Register the command of `model`: its options are the model's fields, its help the model's docstring.

    Every command also gets `--dry-run`, `--json` and `--debug`.
    """

    def command(ctx: typer.Context, dry_run: bool, json: bool, debug: bool, **options: Any) -> None:
        with_debug = debug or bool((ctx.obj or {}).get("debug"))
        options = {name: _joined(value, model.model_fields[name]) for name, value in options.items()}
        with exit_on_failure(debug=with_debug):
            _resolve_and_execute(model, execute, options, dry_run=dry_run, json=json)

    command.__signature__ = inspect.Signature(_parameters(model))  # type: ignore[attr-defined]
    command.__annotations__ = {}
    app.command(name=model.command, help=inspect.cleandoc(model.__doc__ or ""), cls=GroupedCommand)(command)


def _joined(value: Any, info: FieldInfo) -> Any:
    """What a repeatable option was given, separated as in a variable; None where it was not."""
    return (extra_of(info, "separator").join(value) or None) if isinstance(value, list) else value


class Terminated(BaseException):
    """SIGTERM was received inside `ending_on_sigterm`."""


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside, so that worker processes end too, as after Ctrl-C.

    By default SIGTERM ends this process alone; idle workers then stay for minutes.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def exit_on_failure(*, debug: bool) -> Iterator[None]:
    """Turn what is raised inside into one message and an exit code; with `debug` into a traceback."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as problem:
        console.error(str(problem) or "interrupted", every_rank=False)
        raise typer.Exit(INTERRUPTED) from None
    except Terminated:
        console.error("stopped by SIGTERM", every_rank=False)
        raise typer.Exit(TERMINATED) from None
    except SettingsError as problem:  # the same on every rank
        if debug:
            raise
        console.error(str(problem), every_rank=False)
        raise typer.Exit(USAGE) from None
    except Exception as problem:
        if debug:
            raise
        console.error(_message_of(problem))
        raise typer.Exit(FAILED) from None


def _message_of(problem: Exception) -> str:
    if isinstance(problem, BiofoundError):
        return str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        path = f"{problem.filename}: " if problem.filename is not None else ""
        return f"{path}{problem.strerror}"
    return f"a bug in biofound, {type(problem).__name__}: {problem} (--debug shows the traceback)"


def _resolve_and_execute(
    model: type[S],
    execute: Callable[[Invocation[S]], None],
    options: dict[str, Any],
    *,
    dry_run: bool,
    json: bool,
) -> None:
    resolved = resolve(model, options=options)
    if not dry_run:
        execute(Invocation(settings=resolved.settings, resolved=resolved, json=json))
    elif json:
        console.print_json({"command": model.command, "settings": resolved.as_json()})
    else:
        columns = ("setting", "value", "unit", "origin")
        console.table(f"biofound {model.command}: settings", columns, list(resolved.rows()))


# ---------------------------------------------------------------------------------------------------------
# Options


def _parameters(model: type[Settings]) -> list[inspect.Parameter]:
    own = [_parameter(name, _option(model, name, info)) for name, info in model.model_fields.items()]
    switches = {
        "dry_run": "Print the settings and their origins, and do nothing.",
        "json": "Print the result as JSON on standard output.",
        "debug": "Show the traceback of an error.",
    }
    common = [
        _parameter(name, Annotated[bool, _switch(option_name(name), text)], default=False)
        for name, text in switches.items()
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    return [context, *own, *common]


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _switch(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=_COMMON, show_default=False)


def _option(model: type[Settings], name: str, info: FieldInfo) -> Any:
    """The option of one field. Numbers arrive as text: pydantic judges all values, so all errors show."""
    kind, names = kind_of(info), option_name(name)
    if kind is bool:
        names += "/" + option_name(extra_of(info, "off_name") or f"no_{name}")
    option = typer.Option(
        names,
        help=help_text(model, name, info),
        metavar=None if kind is bool else _metavar(info),
        show_default=False,
        autocompletion=_completion(choices_of(info)),
        rich_help_panel=extra_of(info, "panel"),
    )
    type_: Any = list[str] if extra_of(info, "repeatable") else kind if kind in (bool, Path) else str
    return Annotated[type_ | None, option]


def help_text(model: type[Settings], name: str, info: FieldInfo) -> str:
    """An option's help: its description, unit, bounds, default and environment variable."""
    unit, bounds = extra_of(info, "unit"), bounds_of(info)
    details = [
        f"in {unit}" if unit else "",
        bounds,
        "may be repeated" if extra_of(info, "repeatable") else "",
        _default_text(info),
        f"env {environment_name(model, name)}",
    ]
    return f"{info.description} [{'; '.join(detail for detail in details if detail)}]"


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = plain(info.default)
    if value in (None, []):
        return ""
    if isinstance(value, bool):
        return f"default: {'on' if value else 'off'}"
    return f"default: {shown(value)}"


def _metavar(info: FieldInfo) -> str:
    if choices := choices_of(info):
        return "|".join(choices)
    words = {int: "<int>", float: "<number>", Path: "<path>", tuple: "<list>"}
    kind = kind_of(info)
    return words.get(item_kind_of(info) if extra_of(info, "repeatable") else kind, "<text>")


def _completion(choices: tuple[str, ...]) -> Callable[[], list[str]] | None:
    return (lambda: list(choices)) if choices else None

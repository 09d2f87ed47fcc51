"""How a settings model becomes the options of a command, and a command line becomes a resolved run."""

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
from biofound.errors import BiofoundError
from biofound.settings.base import Settings, bounds_of, choices_of, extra_of, kind_of
from biofound.settings.resolve import Resolved, environment_name, option_name, plain, resolve, shown

S = TypeVar("S", bound=Settings)

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT."""
TERMINATED = 143
"""The exit code after SIGTERM where there was no run to save: 128 + SIGTERM."""

_THIS_RUN = "This run"


@dataclass(frozen=True, kw_only=True)
class Invocation(Generic[S]):
    """What a command's body gets: its settings, where they came from, and whether to answer in JSON."""

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
                panel = getattr(param, "rich_help_panel", None) or _THIS_RUN
                panels.setdefault(panel, []).append(record)
        panels[_THIS_RUN] = panels.pop(_THIS_RUN)  # to the end
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def add_command(app: typer.Typer, model: type[S]) -> Callable[[Callable[[Invocation[S]], None]], None]:
    """Register a body as the command of `model`: its options are the model's fields, its help its docstring.

    Every command also gets `--dry-run`, `--json` and `--debug`.
    """

    def register(body: Callable[[Invocation[S]], None]) -> None:
        def command(ctx: typer.Context, dry_run: bool, json: bool, debug: bool, **said: Any) -> None:
            with_debug = debug or bool((ctx.obj or {}).get("debug"))
            guarded(lambda: _answer(model, body, said, dry_run=dry_run, json=json), debug=with_debug)

        command.__signature__ = inspect.Signature(_parameters(model))  # type: ignore[attr-defined]
        command.__annotations__ = {}
        app.command(name=model.command, help=inspect.cleandoc(body.__doc__ or ""), cls=GroupedCommand)(
            command
        )

    return register


class Terminated(BaseException):
    """SIGTERM came, while `ending_on_sigterm`."""


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`: what was started is ended too, as after Ctrl-C.

    By itself SIGTERM ends this process alone; idle worker processes then stay for minutes, and whoever reads
    their standard error waits for them.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def guarded(call: Callable[[], None], *, debug: bool) -> None:
    """Call, and turn what goes wrong into one message and an exit code; with `debug` into a traceback."""
    try:
        call()
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        console.error("interrupted", exit_code=INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    except Terminated:
        console.error("stopped by SIGTERM", exit_code=TERMINATED)
        raise typer.Exit(TERMINATED) from None
    except Exception as problem:
        if debug:
            raise
        exit_code = problem.exit_code if isinstance(problem, BiofoundError) else 1
        console.error(_told(problem), exit_code=exit_code)
        raise typer.Exit(exit_code) from None


def _told(problem: Exception) -> str:
    if isinstance(problem, BiofoundError):
        return str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        where = f"{problem.filename}: " if problem.filename is not None else ""
        return f"{where}{problem.strerror}"
    return f"a fault of biofound's own, {type(problem).__name__}: {problem} (--debug shows the traceback)"


def _answer(
    model: type[S],
    body: Callable[[Invocation[S]], None],
    said: dict[str, Any],
    *,
    dry_run: bool,
    json: bool,
) -> None:
    resolved = resolve(model, options=said)
    if not dry_run:
        body(Invocation(settings=resolved.settings, resolved=resolved, json=json))
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
        "dry_run": "Print the settings and where each came from, and do nothing.",
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
    return typer.Option(name, help=text, rich_help_panel=_THIS_RUN, show_default=False)


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
    type_: Any = kind if kind in (bool, Path) else str
    return Annotated[type_ | None, option]


def help_text(model: type[Settings], name: str, info: FieldInfo) -> str:
    """An option's help: its description, unit, bounds, default and environment variable."""
    unit, bounds = extra_of(info, "unit"), bounds_of(info)
    facts = [
        f"in {unit}" if unit else "",
        bounds,
        _default_text(info),
        f"env {environment_name(model, name)}",
    ]
    return f"{info.description} [{'; '.join(fact for fact in facts if fact)}]"


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = plain(info.default)
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"default: {'on' if value else 'off'}"
    return f"default: {shown(value)}"


def _metavar(info: FieldInfo) -> str:
    if choices := choices_of(info):
        return "|".join(choices)
    words = {int: "<int>", float: "<number>", Path: "<path>", tuple: "<list>"}
    return words.get(kind_of(info), "<text>")


def _completion(choices: tuple[str, ...]) -> Callable[[], list[str]] | None:
    return (lambda: list(choices)) if choices else None

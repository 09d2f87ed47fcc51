"""Command line: registers every command of `COMMANDS`, which `biofound/commands/<name>.py` executes.

A command's module is imported when the command is executed and its inputs are open, and only then: help,
`--dry-run`, wrong settings and wrong paths are answered at once, while torch alone takes seconds to import.
"""

from importlib import import_module
from typing import Annotated, Any

import typer

import biofound
from biofound import console
from biofound.options import Invocation, add_command
from biofound.settings import COMMANDS

app = typer.Typer(
    name="biofound",
    help=biofound.__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help answers sooner, and reads [mV] as it stands
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """The console script."""
    console.open_closed_streams()
    app(prog_name="biofound")


def execute_command(invocation: Invocation[Any]) -> None:
    """Open the inputs of the command, then import its module, and execute it."""
    inputs = import_module("biofound.commands.inputs").open_inputs(invocation)
    command = import_module(f"biofound.commands.{invocation.settings.command}")
    command.execute(**{"invocation": invocation, **inputs})


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"biofound {biofound.__version__}")
        raise typer.Exit


@app.callback()
def _before_every_command(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    del version
    ctx.obj = {"debug": debug}


for _settings in COMMANDS:
    add_command(app, _settings, execute_command)

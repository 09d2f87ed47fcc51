"""What the program does when it is called: one short function a command.

A command is a settings model (`settings/models.py`) and a body here, under `@add_command(app, Model)`.
Bodies import what they need themselves: `biofound --help` must answer at once, and torch takes seconds.
"""

from typing import Annotated

import typer

import biofound
from biofound.options import Run, add_command
from biofound.settings.models import PrepareSettings, WindowsSettings

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
    app(prog_name="biofound")


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


@add_command(app, PrepareSettings)
def prepare(run: Run[PrepareSettings]) -> None:
    """Find the cases of a source and split them by patient into train, val and test."""


@add_command(app, WindowsSettings)
def windows(run: Run[WindowsSettings]) -> None:
    """Cut recordings into windows: gaps, resampling, filters, quality; or look into a window store."""

"""Print messages, tables and progress on standard error, and JSON results on standard output.

Under `torchrun` rank 0 prints for all ranks; another rank prints only a failure of its own.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 120
"""Columns of a table that does not go to a terminal."""
PLAIN_SECONDS = 10.0
"""Least time between two progress lines that do not go to a terminal, in seconds."""


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed (`biofound ... >&-`).

    Otherwise Python has None for them, and the first file that is opened takes their number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))  # the lowest free number


def note(text: str) -> None:
    """Print a line of information."""
    _say(text)


def warning(text: str) -> None:
    """Print something the user should know, though the command continues."""
    _say(text, label="warning", style="yellow")


def error(text: str, *, every_rank: bool = True) -> None:
    """Print why the command ends, on every rank or, for what is the same on all, on rank 0 alone."""
    rank = _rank()
    label = f"error on rank {rank}" if rank else "error"
    _say(text, label=label, style="bold red", every_rank=every_rank)


def print_json(value: Any) -> None:
    """Print the result on standard output."""
    if _rank() == 0:
        # ASCII, which every locale can print; paths that are not UTF-8 keep their bytes as escapes.
        sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()
) -> None:
    """Print a table; the columns in `numbers` are aligned to the right."""
    if _rank():
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table()
    for column in columns:
        shown.add_column(Text(column), justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    console = _console()
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(shown)


class Progress(Protocol):
    """Progress of a long piece of work."""

    def advance(self, amount: int = 1, text: str = "") -> None:
        """Count `amount` more as done, and show `text` beside it."""
        ...

    def line(self, text: str) -> None:
        """Print a line that stays, such as the summary of an epoch."""
        ...


@contextmanager
def progress(title: str, *, total: int, unit: str) -> Iterator[Progress]:
    """Show progress over `total` units: a bar with ETA on a terminal, else a plain line now and then."""
    if _rank():
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(title, total, unit)
    else:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (  # so narrow that the text beside them fits 80 columns
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),
            TextColumn("{task.completed}/{task.total} {task.fields[unit]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}", markup=False),
        )
        with RichProgress(*columns, console=_console()) as bar:
            yield _Bar(bar, bar.add_task(title, total=total, unit=unit, text=""))


class _Silent:
    """Progress of a rank that prints nothing."""

    def advance(self, amount: int = 1, text: str = "") -> None:
        pass

    def line(self, text: str) -> None:
        pass


class _Lines:
    """Progress without a terminal: a line every now and then, and one at the end."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._printed_at = time.monotonic()

    def advance(self, amount: int = 1, text: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if self._done < self._total and now - self._printed_at < PLAIN_SECONDS:
            return
        self._printed_at = now
        tail = f"  {text}" if text else ""
        _say(f"{self._title}: {self._done}/{self._total} {self._unit}{tail}")

    def line(self, text: str) -> None:
        self._printed_at = time.monotonic()
        _say(text)


class _Bar:
    """Progress on a terminal."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: int = 1, text: str = "") -> None:
        self._bar.update(self._task, advance=amount, text=text)

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _say(text: str, *, label: str = "", style: str = "", every_rank: bool = False) -> None:
    if _rank() and not every_rank:
        return
    from rich.text import Text

    line = Text(f"{label}: ", style=style) if label else Text()
    _console().print(line.append(text, style="default"), soft_wrap=True, highlight=False)


def _console() -> "Console":
    """A console made anew each time, as a test or `torchrun` may have replaced stderr."""
    from rich.console import Console

    width = None if sys.stderr.isatty() else int(os.environ.get("COLUMNS") or PLAIN_WIDTH)
    return Console(stderr=True, highlight=False, width=width)


def _rank() -> int:
    return int(os.environ.get("RANK") or 0)

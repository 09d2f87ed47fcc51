"""Settings of `biofound report`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator

from biofound.settings.base import REQUIRED, Conflict, Settings, setting, split_commas

MAX_RUNS = 2


def _html_file(path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"expected a file that ends in .html, got {str(path)!r}")
    return path


class ReportSettings(Settings):
    """Write one HTML page about a training run, or about two side by side."""

    command: ClassVar[str] = "report"

    run: Annotated[tuple[Path, ...], BeforeValidator(split_commas)] = setting(
        REQUIRED,
        "Output directory of a training run; two are shown side by side.",
        panel="Data",
        repeatable=True,
        min_length=1,
    )
    probe: Annotated[tuple[Path, ...], BeforeValidator(split_commas)] = setting(
        (), "File with what `biofound probe --json` printed.", panel="Data", repeatable=True
    )
    verify: Annotated[tuple[Path, ...], BeforeValidator(split_commas)] = setting(
        (), "File with what `biofound verify --json` printed.", panel="Data", repeatable=True
    )
    examples: bool = setting(
        True,
        "Draw windows: reconstructions by best_model.pt (imports torch), and dropped windows (reads a few "
        "recordings again).",
        panel="Data",
    )
    output: Annotated[Path, AfterValidator(_html_file)] = setting(
        Path("report.html"), "File to write.", panel="Output"
    )
    overwrite: bool = setting(False, "Replace a file that is no report of biofound.", panel="Output")

    def conflicts(self) -> Iterator[Conflict]:
        """Yields more runs than two, and a run that is given twice."""
        if len(self.run) > MAX_RUNS:
            yield Conflict(("run",), f"run: expected one or two directories, got {len(self.run)}")
        elif len(set(self.run)) < len(self.run):
            yield Conflict(("run",), f"run: {self.run[0]} is given twice; give another run to compare with")

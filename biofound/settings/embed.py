"""Settings of `biofound embed`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from biofound.core.readout_names import DEFAULT_BATCH_SIZE, DEFAULT_READOUT, ReadoutName
from biofound.settings.base import REQUIRED, CheckpointFile, Conflict, setting
from biofound.settings.channels import Section
from biofound.settings.source import SourceSettings

SUFFIXES = (".parquet", ".npz")


def _vector_file(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"expected a file that ends in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    return path


class EmbedSettings(SourceSettings):
    """Embed windows or recordings: one vector a window, with its start and quality."""

    command: ClassVar[str] = "embed"

    checkpoint: CheckpointFile = setting(REQUIRED, "Checkpoint whose encoder embeds.", panel="Encoder")
    readout: ReadoutName = setting(
        DEFAULT_READOUT, "What is read of the encoder, as in `biofound probe`.", panel="Encoder"
    )
    data_dir: Path | None = setting(
        None,
        "Window store, or directory of <split>_windows.npz; the windows of all its splits are embedded.",
        panel="Windows",
    )
    section: Section = setting(
        "pretrain",
        "Section of the channel table, which says the tracks; filters, units and quality thresholds are the "
        "checkpoint's.",
        panel="Source",
    )
    gate: bool = setting(
        True,
        "Leave out windows of the recordings that the checkpoint's quality thresholds reject; windows with "
        "gaps always are.",
        panel="Source",
    )
    output: Annotated[Path, AfterValidator(_vector_file)] = setting(
        REQUIRED, "File to write: .parquet, or .npz.", panel="Output"
    )
    overwrite: bool = setting(
        False, "Replace a file that holds something else than earlier vectors of the same.", panel="Output"
    )
    batch_size: int = setting(
        DEFAULT_BATCH_SIZE,
        "Windows that go through the encoder at once.",
        panel="Machine and run",
        unit="windows",
        ge=1,
        le=2**20,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Device to compute on; auto takes CUDA where it is available.", panel="Machine and run"
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yields what does not fit the source, and both or neither of windows and recordings."""
        yield from super().conflicts()
        if (self.data_dir is None) == (self.source is None):
            message = "give either data_dir, for windows, or source, for recordings"
            yield Conflict(("data_dir", "source"), message)
        if self.data_dir is not None and not self.gate:
            message = "gate is about recordings: the windows in data_dir have passed theirs"
            yield Conflict(("gate", "data_dir"), message)

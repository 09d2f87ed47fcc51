"""Settings of `biofound windows`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from biofound.data.channels import DEFAULT_MOTION_GATE, DType, MotionGate, samples_in_window
from biofound.data.splits import SPLITS, SplitName
from biofound.errors import SettingsError
from biofound.settings.base import VITALDB_URL, VITALDB_URL_HELP, Conflict, Settings, png_file, setting
from biofound.settings.channels import CHANNELS_YAML_HELP, Section

DEFAULT_STORE = Path("data/windows")
"""The directory that `windows` writes, and that `pretrain` reads, by default."""


class WindowsSettings(Settings):
    """Cut recordings into windows, or inspect a window store."""

    command: ClassVar[str] = "windows"
    file_option: ClassVar[str | None] = "windows_yaml"

    split_file: Path = setting(
        Path("data/splits_fasttrack.json"),
        "Splits written by `biofound prepare`.",
        panel="Data",
        in_file=False,
    )
    split: Literal[SplitName, "all"] = setting("all", "Split to build.", panel="Data", in_file=False)
    vitaldb_url: str | None = setting(None, VITALDB_URL_HELP, panel="Data", in_file=False, env=VITALDB_URL)
    channels_yaml: Path | None = setting(None, CHANNELS_YAML_HELP, panel="Data", in_file=False)
    section: Section = setting(
        "pretrain", "Section of the channel table to build windows of.", panel="Data", in_file=False
    )
    windows_yaml: Path | None = setting(
        None,
        "Window settings (YAML); the built-in ones equal configs/windows.yaml.",
        panel="Data",
        in_file=False,
    )
    outdir: Path = setting(
        DEFAULT_STORE,
        "Directory of the window store, with one directory a split.",
        panel="Output",
        in_file=False,
    )
    overwrite: bool = setting(
        False,
        "Replace windows that were built of other recordings or with other settings.",
        panel="Output",
        in_file=False,
    )
    inspect: Path | None = setting(
        None, "Summarise this window store, and build nothing.", panel="Output", in_file=False
    )
    picture: Annotated[Path | None, AfterValidator(png_file)] = setting(
        None, "PNG file for a picture of random windows of the store.", panel="Output", in_file=False
    )
    picture_seed: int = setting(
        0, "Seed of the windows in the picture.", panel="Output", in_file=False, ge=0, lt=2**32
    )
    sfreq: float = setting(
        125.0, "Sampling frequency of the windows.", panel="Windows", unit="Hz", gt=0, le=10_000
    )
    window_seconds: float = setting(
        10.0, "Length of a window.", panel="Windows", unit="seconds", gt=0, le=3600
    )
    max_gap_seconds: float = setting(
        0.1,
        "Longest gap that is bridged by a straight line; windows that touch a longer one are dropped.",
        panel="Windows",
        unit="seconds",
        ge=0,
        le=60,
    )
    dtype: DType = setting("float16", "Number format of the stored samples.", panel="Windows")
    motion_gate: MotionGate = setting(
        DEFAULT_MOTION_GATE,
        "Drop windows whose PPG is motion rather than a pulse: auto where acceleration is among the "
        "channels, on also by the ECG, or by the PPG alone, off never.",
        panel="Windows",
    )
    workers: int | None = setting(
        None,
        "Worker processes, each with one case at a time; by default one a core.",
        panel="Machine and run",
        in_file=False,
        ge=1,
    )
    scheduler: str | None = setting(
        None,
        "Address of a Dask scheduler (tcp://...) to work on instead of this machine.",
        panel="Machine and run",
        in_file=False,
    )
    skip_failed: bool = setting(
        False,
        "Leave out cases that cannot be read, and list them, instead of failing.",
        panel="Machine and run",
        in_file=False,
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yields a window that is no whole number of samples, and a picture inside the store of a split."""
        try:
            samples_in_window(self.window_seconds, self.sfreq)
        except SettingsError as problem:
            yield Conflict(("window_seconds", "sfreq"), str(problem))
        store = self.outdir if self.inspect is None else self.inspect
        of_splits = {store / name for name in SPLITS}
        if store.name in SPLITS:
            of_splits.add(store)
        if self.picture is not None and self.picture.parent in of_splits:
            message = f"picture must not lie among a store's own files, in {self.picture.parent}"
            yield Conflict(("picture", "outdir" if self.inspect is None else "inspect"), message)

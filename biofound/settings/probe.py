"""Settings of `biofound probe`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator

from biofound.core.readout_names import DEFAULT_READOUT, ReadoutName
from biofound.settings.base import (
    REQUIRED,
    CheckpointFile,
    Conflict,
    Settings,
    png_file,
    setting,
    split_commas,
)

NUMERICS, ANNOTATIONS = "numerics", "annotations"
"""Words for labels that the windows' own recordings bring along."""
LABELS_HELP = (
    "CSV with case_id, start_s, end_s and labels; or numerics or annotations, those that come with WFDB or "
    "(annotations) BUT PPG recordings."
)
TARGET_HELP = (
    "Label to predict: a column of the CSV, a numeric such as HR, or of annotations HR or rhythm, for BUT "
    "PPG quality, HR, motion and other columns of its tables."
)
LABELS_ROOT_HELP = (
    "Where the recordings with the numerics or annotations are now; by default where they were."
)


class ProbeSettings(Settings):
    """Compare frozen encoders by how well a label of windows follows from what they compute."""

    command: ClassVar[str] = "probe"

    checkpoint: Annotated[tuple[CheckpointFile, ...], BeforeValidator(split_commas)] = setting(
        (), "Checkpoint whose encoder is probed.", panel="Encoders", repeatable=True
    )
    encoder: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = setting(
        (),
        "Any other encoder, as module:function, from windows (B, C, T) and their rate in Hz to (B, F).",
        panel="Encoders",
        repeatable=True,
    )
    readout: ReadoutName = setting(
        DEFAULT_READOUT,
        "What is read of a checkpoint's encoder: the fused latents, each channel before the fusion "
        "(channels_), or every layer (layers_); pooled by mean, or by mean and standard deviation.",
        panel="Encoders",
    )
    data_dir: Path = setting(
        REQUIRED,
        "Window store, or directory of <split>_windows.npz; the windows of all its splits are used.",
        panel="Data",
    )
    test_data_dir: Path | None = setting(
        None,
        "Windows of other subjects: fit on all of data_dir, and test on these instead of in folds.",
        panel="Data",
    )
    labels: str = setting(
        REQUIRED,
        LABELS_HELP,
        panel="Labels",
        may_be_path=True,
        min_length=1,
    )
    target: str = setting(
        REQUIRED,
        TARGET_HELP,
        panel="Labels",
        min_length=1,
    )
    classes: bool = setting(False, "Read the numbers in a CSV as names of classes.", panel="Labels")
    labels_root: Path | None = setting(None, LABELS_ROOT_HELP, panel="Labels")
    folds: int = setting(5, "Folds, which no subject crosses.", panel="Folds", ge=2, le=1000)
    repeats: int = setting(
        3,
        "How often the subjects are dealt into folds anew; scores are averaged.",
        panel="Folds",
        ge=1,
        le=100,
    )
    seed: int = setting(
        42, "Seed of folds, of intervals and of the random encoder.", panel="Folds", ge=0, lt=2**31
    )
    picture: Annotated[Path | None, AfterValidator(png_file)] = setting(
        None,
        "PNG file for a picture: error by subject, and Bland-Altman plots (numbers) or ROC, calibration and "
        "confusion (words).",
        panel="Output",
    )

    @property
    def labels_from_recordings(self) -> bool:
        """Whether the labels are the recordings' own, and not a CSV's."""
        return self.labels in (NUMERICS, ANNOTATIONS)

    def conflicts(self) -> Iterator[Conflict]:
        """Yields settings that would have no effect, and an encoder that is named twice."""
        from_recordings = self.labels_from_recordings
        if self.classes and from_recordings:
            yield Conflict(
                ("classes", "labels"), f"classes is about labels in a CSV, not about {self.labels}"
            )
        if self.labels_root is not None and not from_recordings:
            yield Conflict(("labels_root", "labels"), "labels_root is about numerics and annotations")
        for field in ("checkpoint", "encoder"):
            names = getattr(self, field)
            twice = sorted({str(name) for name in names if names.count(name) > 1})
            if twice:
                yield Conflict((field,), f"expected each once, got {', '.join(twice)} twice")

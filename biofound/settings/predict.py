"""Settings of `biofound predict`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from biofound.settings.base import REQUIRED, Conflict, png_file, setting
from biofound.settings.channels import Section
from biofound.settings.probe import ANNOTATIONS, LABELS_HELP, LABELS_ROOT_HELP, NUMERICS
from biofound.settings.window_table import WindowTableSettings


class PredictSettings(WindowTableSettings):
    """Predict a label of windows or recordings with a fine-tuned model: one row a window."""

    command: ClassVar[str] = "predict"

    model: Path = setting(REQUIRED, "Model that `biofound finetune` wrote.", panel="Model")
    section: Section = setting(
        "finetune",
        "Section of the channel table, which says the tracks; filters, units and quality thresholds are the "
        "model's.",
        panel="Source",
    )
    labels: str | None = setting(
        None,
        f"Score the predictions of data_dir: {LABELS_HELP}",
        panel="Labels",
        may_be_path=True,
        min_length=1,
    )
    target: str | None = setting(
        None,
        "Label to score against; by default the one that the model was fine-tuned to predict.",
        panel="Labels",
        min_length=1,
    )
    labels_root: Path | None = setting(None, LABELS_ROOT_HELP, panel="Labels")
    picture: Annotated[Path | None, AfterValidator(png_file)] = setting(
        None,
        "PNG file for a picture of the scores: error by subject, and a Bland-Altman plot (numbers) or ROC, "
        "calibration and confusion (words).",
        panel="Output",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yields what `WindowTableSettings` do, and settings of labels without labels or windows."""
        yield from super().conflicts()
        if self.labels is not None and self.data_dir is None:
            message = "labels are scored for windows: give data_dir, not source"
            yield Conflict(("labels", "data_dir"), message)
        for name in ("target", "labels_root", "picture"):
            if self.labels is None and getattr(self, name) is not None:
                yield Conflict((name, "labels"), f"{name} is about scores: give labels too, or leave it out")
        if self.labels_root is not None and self.labels not in (None, NUMERICS, ANNOTATIONS):
            yield Conflict(("labels_root", "labels"), "labels_root is about numerics and annotations")

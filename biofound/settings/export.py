"""Settings of `biofound export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from biofound.settings.base import REQUIRED, CheckpointFile, Conflict, Settings, setting, split_commas
from biofound.settings.pretrain import DEFAULT_OUTPUT

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors"}
"""The ending of a format's file; huggingface is a directory."""


class ExportSettings(Settings):
    """Export an encoder for others: a Hugging Face directory, ONNX, or safetensors."""

    command: ClassVar[str] = "export"

    checkpoint: CheckpointFile = setting(
        DEFAULT_OUTPUT / "best_model.pt", "Checkpoint to export.", panel="Data"
    )
    to: Literal["huggingface", "onnx", "safetensors"] = setting(REQUIRED, "Format.", panel="Output")
    output: Path = setting(
        REQUIRED, "File to write, or the directory for huggingface; it must not be there.", panel="Output"
    )
    subjects: bool = setting(
        False,
        "Include the names of the subjects in the training, so that `probe` can mark them in a test; they "
        "may be none of the recipient's business.",
        panel="Output",
    )
    title: str = setting("biofound encoder", "Title of the model card.", panel="Model card", min_length=1)
    run: Path | None = setting(
        None,
        "Directory of the training, for the card's data and losses; by default the checkpoint's, where the "
        "history lies beside it.",
        panel="Model card",
    )
    verify: Path | None = setting(
        None, "What `biofound verify --checkpoint … --json` printed, for the card.", panel="Model card"
    )
    probe: Annotated[tuple[Path, ...], BeforeValidator(split_commas)] = setting(
        (), "What `biofound probe --json` printed, for the card.", panel="Model card", repeatable=True
    )
    license: str | None = setting(None, "Licence of the weights, such as apache-2.0.", panel="Model card")
    data_license: str | None = setting(None, "Licence of the training data.", panel="Model card")
    citation: str | None = setting(None, "How to cite the model.", panel="Model card")

    def conflicts(self) -> Iterator[Conflict]:
        """Yields an output of another format's name."""
        suffix = SUFFIXES.get(self.to, "")
        if suffix and self.output.suffix != suffix:
            yield Conflict(("output", "to"), f"expected a file that ends in {suffix}, got {self.output}")

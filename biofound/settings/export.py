"""Settings of `biofound export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from biofound.settings.base import (
    REQUIRED,
    CheckpointFile,
    Conflict,
    Settings,
    extra_of,
    setting,
    split_commas,
)
from biofound.settings.pretrain import DEFAULT_OUTPUT

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors"}
"""The ending of a format's file; huggingface is a directory."""
_CARD = "Model card"


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
    run: Path | None = setting(
        None,
        "Directory of the training, for hours and subjects on the card; by default the checkpoint's.",
        panel=_CARD,
    )
    verify: Path | None = setting(
        None,
        "File with what `biofound verify --checkpoint … --json` printed, for the card.",
        panel=_CARD,
    )
    probe: Annotated[tuple[Path, ...], BeforeValidator(split_commas)] = setting(
        (),
        "File with what `biofound probe --checkpoint … --json` printed, for the card.",
        panel=_CARD,
        repeatable=True,
    )
    title: str = setting("biofound encoder", "Title of the model card.", panel=_CARD, min_length=1)
    command_line: str | None = setting(None, "Command that trained the encoder.", panel=_CARD)
    license: str | None = setting(None, "Licence of the weights, such as apache-2.0.", panel=_CARD)
    data_license: str | None = setting(None, "Licence of the training data.", panel=_CARD)
    probe_data: str | None = setting(
        None, "On which recordings the probes were run, and where they come from.", panel=_CARD
    )
    citation: str | None = setting(None, "How to cite the model.", panel=_CARD)

    def said(self) -> dict[str, Any]:
        """What the author says for the card, by its names in `CardFacts`."""
        names = ("title", "license", "data_license", "probe_data", "citation")
        return {**{name: getattr(self, name) for name in names}, "command": self.command_line}

    def conflicts(self) -> Iterator[Conflict]:
        """Yields an output of another format's name, and words for a card where none is written."""
        suffix = SUFFIXES.get(self.to, "")
        if suffix and self.output.suffix != suffix:
            yield Conflict(("output", "to"), f"expected a file that ends in {suffix}, got {self.output}")
        for name, field in type(self).model_fields.items():
            about_card = extra_of(field, "panel") == _CARD and getattr(self, name) != field.default
            if about_card and self.to != "huggingface":
                message = f"{name} is for the model card, which only huggingface has: leave it out"
                yield Conflict((name, "to"), message)

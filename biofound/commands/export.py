"""`biofound export`: an encoder for others, as a Hugging Face directory, ONNX or safetensors."""

import os
import tempfile
from pathlib import Path
from typing import Any

from biofound import console
from biofound.core.checkpoint import load_checkpoint
from biofound.core.models import parameter_count
from biofound.core.pretrained import require_same, write_directory
from biofound.core.safetensors_file import load_safetensors, portable, save_safetensors
from biofound.errors import DataError, checkpoint_error_context, write_error_context
from biofound.model_card import CardFacts, model_card
from biofound.options import Invocation
from biofound.settings import ExportSettings


def execute(invocation: Invocation[ExportSettings], facts: CardFacts) -> None:
    """Write the export, compare it with the checkpoint, and only then give it its name.

    Args:
        invocation: the command's settings.
        facts: what the model card says beside the checkpoint.

    Raises:
        SettingsError: when a package for the format is missing.
        CheckpointError: when the checkpoint cannot be read, or what was written does not come back.
        DataError: when the output is there, or cannot be written.
    """
    settings = invocation.settings
    checkpoint = load_checkpoint(settings.checkpoint)
    with checkpoint_error_context(settings.checkpoint):
        parameters = parameter_count(checkpoint.build().encoder)
    shared = portable(checkpoint, with_subjects=settings.subjects)
    with write_error_context(settings.output, option="--output"):
        if settings.to == "huggingface":
            compared = "read back: the same tensors and description"
            write_directory(settings.output, shared, card=model_card(shared, facts))
        elif settings.to == "safetensors":
            compared = "read back: the same tensors and description"
            settings.output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=settings.output.absolute().parent) as place:
                draft = Path(place) / settings.output.name
                save_safetensors(draft, shared)
                require_same(load_safetensors(draft), shared)
                _give_name(draft, settings.output)
        else:
            from biofound.core.onnx_file import save_onnx  # an extra

            difference = save_onnx(settings.output, shared)
            compared = f"onnxruntime against torch: {difference:.1e} of the largest value"
    result: dict[str, Any] = {
        "output": str(settings.output),
        "to": settings.to,
        "channels": list(checkpoint.model.channels),
        "parameters": parameters,
        "compared": compared,
        "bytes": _bytes_in(settings.output),
        "synthetic": checkpoint.data.synthetic,
    }
    if invocation.json:
        console.print_json(result)
        return
    rows = [
        ("from", str(settings.checkpoint)),
        ("encoder", f"{parameters:,} parameters, {', '.join(checkpoint.model.channels)}"),
        ("compared", compared),
        ("size", f"{result['bytes'] / 1e6:.1f} MB"),
    ]
    console.table(f"exported to {settings.to}", ("what", "value"), rows)
    console.note(f"written: {settings.output}")


def _give_name(draft: Path, path: Path) -> None:
    """Like a rename, but never over a file that has appeared meanwhile."""
    try:
        os.link(draft, path)
    except FileExistsError as error:
        raise DataError(f"{path}: is there; choose another file with --output") from error


def _bytes_in(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)

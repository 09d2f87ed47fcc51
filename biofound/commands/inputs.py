"""Inputs of the commands that use torch: checked and opened before it is imported, which takes seconds.

A wrong path is thus answered at once. Nothing in here imports torch.
"""

import errno
import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from biofound.data.integrity import splits_in
from biofound.errors import DataError, SettingsError, write_error_context
from biofound.files import path_to_text, require_checkpoint_file, sha256_of
from biofound.onnx_encoder import require_onnx
from biofound.settings import (
    EmbedSettings,
    ExportSettings,
    InflateSettings,
    PretrainSettings,
    ProbeSettings,
    VerifySettings,
    resolve_channels,
)
from biofound.settings.base import Settings
from biofound.weights import PLACE as WEIGHTS_PLACE


def open_inputs(settings: Settings) -> dict[str, Any]:
    """Check the paths in a command's settings, and open what needs no torch.

    Returns:
        What the command's `execute` takes beside the invocation, by name.

    Raises:
        SettingsError: when a setting does not fit the inputs.
        DataError: when windows or labels cannot be used, or a place cannot be written.
        CheckpointError: when a checkpoint is not there.
        OSError: when a checkpoint cannot be read.
    """
    match settings:
        case PretrainSettings():
            return _pretrain(settings)
        case ProbeSettings():
            return _probe(settings)
        case EmbedSettings():
            return _embed(settings)
        case InflateSettings():
            return _inflate(settings)
        case ExportSettings():
            return _export(settings)
        case VerifySettings():
            return _verify(settings)
    return {}


def _pretrain(settings: PretrainSettings) -> dict[str, Any]:
    from biofound.commands.pretrain_data import open_training_windows, parts_of, wants_embedded_cohort

    if settings.tensorboard and find_spec("tensorboard") is None:
        raise SettingsError(
            "tensorboard: the package is not installed; install biofound[tensorboard], or leave "
            "--tensorboard out: metrics.jsonl holds the same numbers"
        )
    if settings.resume_from is not None:
        require_checkpoint_file(settings.resume_from)
    require_writable(settings.output_dir, option="--output-dir")
    table = resolve_channels(settings.channels_yaml, "pretrain")
    if wants_embedded_cohort(settings):
        if settings.probe_labels is not None:
            raise SettingsError(
                "option --probe-labels: the embedded cohort, which is trained on without --data-dir, has no "
                "labels; give --data-dir, such as synthetic:icu with --probe-labels truth"
            )
        table.named(settings.channels)
        return {"windows": None, "probe": None}
    data_dirs = settings.data_dirs
    train, val = open_training_windows(settings, data_dirs)
    probe = None
    if settings.probe_labels is not None:
        from biofound.commands.pretrain_probe import open_probe  # scikit-learn

        probe = open_probe(settings, parts_of(val, name=", ".join(data_dirs)))
    return {"windows": (train, val), "probe": probe}


def _probe(settings: ProbeSettings) -> dict[str, Any]:
    from biofound.commands.probe_data import open_labelled

    for path in settings.checkpoint:
        require_checkpoint_file(path)
    if settings.picture is not None:
        require_writable(settings.picture.parent, option="--picture")
    directories = [settings.data_dir, settings.test_data_dir]
    return {"sets": [open_labelled(settings, path) for path in directories if path is not None]}


def _embed(settings: EmbedSettings) -> dict[str, Any]:
    from biofound.data.sources.registry import open_source
    from biofound.data.vectors import VectorsOrigin, refuse_other_vectors
    from biofound.data.windows import open_windows

    require_checkpoint_file(settings.checkpoint)
    if settings.output.is_dir():
        raise SettingsError(f"--output {settings.output}: this is a directory; name a file")
    require_writable(settings.output.parent, option="--output")
    table = resolve_channels(settings.channels_yaml, settings.section)
    data: dict[str, Any]
    if settings.data_dir is not None:
        windows = {split: open_windows(settings.data_dir, split) for split in splits_in(settings.data_dir)}
        fingerprints = {split: part.fingerprint for split, part in windows.items()}
        data = {"data_dir": path_to_text(settings.data_dir.absolute()), "fingerprints": fingerprints}
        opened: dict[str, Any] = {"windows": list(windows.values()), "source": None}
    else:
        source = open_source(**settings.source_description())
        data = {"source": source.describe(), "dataset_version": source.version()}
        opened = {"windows": None, "source": source}
    origin = VectorsOrigin(
        checkpoint=path_to_text(settings.checkpoint.absolute()),
        checkpoint_sha256=sha256_of(settings.checkpoint),
        readout=settings.readout,
        gate=settings.gate,
        data=data,
    )
    if not settings.overwrite:
        refuse_other_vectors(settings.output, origin)
    return {**opened, "table": table, "origin": origin}


def _inflate(settings: InflateSettings) -> dict[str, Any]:
    require_checkpoint_file(settings.checkpoint)
    path = inflate_output(settings)
    require_writable(path.parent, option="--output")
    return {"table": resolve_channels(settings.channels_yaml, "finetune"), "path": path}


def _export(settings: ExportSettings) -> dict[str, Any]:
    from biofound.model_card import CardFacts

    require_checkpoint_file(settings.checkpoint)
    if settings.output.exists():
        raise SettingsError(f"--output {settings.output}: is there, and is not replaced; name another")
    require_writable(settings.output.parent, option="--output")
    if settings.to == "onnx":
        require_onnx(("onnx", "onnxruntime", "onnxscript"))
    run = settings.run if settings.run is not None else settings.checkpoint.parent
    asked = settings.run is not None
    return {
        "facts": CardFacts(
            title=settings.title,
            history=_facts_in(run / "training_history.json", needed=asked),
            training=_facts_in(run / "training_config.json", needed=asked),
            verify=None if settings.verify is None else _facts_in(settings.verify, keys=("checks",)),
            probes=[_facts_in(path, keys=("target", "rows", "classes")) or {} for path in settings.probe],
            license=settings.license,
            data_license=settings.data_license,
            citation=settings.citation,
        )
    }


def _facts_in(path: Path, *, keys: Sequence[str] = (), needed: bool = True) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is not needed and not there."""
    if not needed and not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); expected what --json printed") from error
    absent = [key for key in keys if not isinstance(found, dict) or key not in found]
    if absent or not isinstance(found, dict):
        raise DataError(
            f"{path}: expected a JSON object with {', '.join(absent) or 'keys'}, as --json printed it"
        )
    return found


def _verify(settings: VerifySettings) -> dict[str, Any]:
    if settings.checkpoint is not None:
        require_checkpoint_file(settings.checkpoint)
    if settings.data_dir is not None:
        splits_in(settings.data_dir)
    return {}


def inflate_output(settings: InflateSettings) -> Path:
    """The file that `inflate` writes.

    Raises:
        SettingsError: when that is the checkpoint itself or a directory.
    """
    default = settings.checkpoint.with_name(f"{settings.checkpoint.stem}_{settings.to}ch.pt")
    if settings.output is None and settings.checkpoint.is_relative_to(WEIGHTS_PLACE):
        raise SettingsError("--output: needed for weights that biofound brings along; name a file")
    path = settings.output or default
    if path.resolve() == settings.checkpoint.resolve():
        raise SettingsError(f"--output {path}: this is the checkpoint itself; name another file")
    if path.is_dir():
        raise SettingsError(
            f"--output {path}: this is a directory; name a file, such as {path / default.name}"
        )
    return path


def require_writable(directory: Path, *, option: str) -> None:
    """Refuse a directory that can be neither written nor made; nothing is made yet.

    Raises:
        DataError: which names `option`, by which another place is chosen.
    """
    with write_error_context(directory, option=option):
        nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

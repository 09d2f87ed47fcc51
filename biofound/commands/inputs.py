"""Inputs of the commands that use torch: checked and opened before it is imported, which takes seconds.

A wrong path is thus answered at once. Nothing in here imports torch.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biofound.core.run_files import CONFIG
from biofound.data.integrity import splits_in
from biofound.errors import DataError, SettingsError, write_error_context
from biofound.files import path_from_text, path_to_text, require_checkpoint_file, sha256_of
from biofound.options import Invocation
from biofound.settings import (
    EmbedSettings,
    ExportSettings,
    FinetuneSettings,
    InflateSettings,
    PredictSettings,
    PretrainSettings,
    ProbeSettings,
    ResolvedChannels,
    VerifySettings,
    resolve_channels,
)
from biofound.settings.base import Settings
from biofound.settings.probe import ANNOTATIONS, NUMERICS
from biofound.settings.window_table import WindowTableSettings
from biofound.weights import PLACE as WEIGHTS_PLACE

if TYPE_CHECKING:
    from biofound.data.sources import Source
    from biofound.data.windows import Windows


@dataclass(frozen=True, kw_only=True)
class TableInputs:
    """The windows of each split of `data_dir`, or the recordings; and the channel table for their tracks."""

    windows: "Sequence[Windows] | None"
    source: "Source | None"
    table: ResolvedChannels


def open_inputs(invocation: Invocation[Any]) -> dict[str, Any]:
    """Check the paths in a command's settings, and open what needs no torch.

    Returns:
        What the command's `execute` takes, by name; of the invocation only where its settings are completed.

    Raises:
        SettingsError: when a setting does not fit the inputs.
        DataError: when windows or labels cannot be used, or a place cannot be written.
        CheckpointError: when a checkpoint is not there.
        OSError: when a checkpoint cannot be read.
    """
    settings: Settings = invocation.settings
    match settings:
        case PretrainSettings():
            return _pretrain(invocation)
        case ProbeSettings():
            return _probe(settings)
        case EmbedSettings():
            return _embed(settings)
        case PredictSettings():
            return _predict(settings)
        case InflateSettings():
            return _inflate(settings)
        case FinetuneSettings():
            return _finetune(settings)
        case ExportSettings():
            return _export(settings)
        case VerifySettings():
            return _verify(settings)
    return {}


def _pretrain(invocation: Invocation[PretrainSettings]) -> dict[str, Any]:
    from biofound.commands.pretrain_data import open_training_windows, parts_of, wants_embedded_cohort

    settings = invocation.settings
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise SettingsError(
            "tensorboard: the package is not installed; install biofound[tensorboard], or leave "
            "--tensorboard out: metrics.jsonl holds the same numbers"
        )
    for path in (settings.resume_from, settings.init_from):
        if path is not None:
            require_checkpoint_file(path)
    if (
        settings.init_from is not None
        and settings.init_from.resolve().parent == settings.output_dir.resolve()
    ):
        raise SettingsError(
            f"--init-from {settings.init_from}: lies in the output directory, and a new run moves the run "
            "in it away; choose another --output-dir"
        )
    require_writable(settings.output_dir, option="--output-dir")
    initial = None
    if settings.init_from is not None or settings.resume or settings.resume_from is not None:
        if not wants_embedded_cohort(settings):
            for name in settings.data_dirs:
                if name not in settings.streams():
                    splits_in(path_from_text(name))
        # The checkpoint says what the model is, which windows have to fit: so torch is needed already.
        from biofound.commands.pretrain_init import complete_settings, read_initial_weights

        invocation = complete_settings(invocation)
        settings = invocation.settings
        if settings.init_from is not None:
            initial = read_initial_weights(settings.init_from, settings)
    taken: dict[str, Any] = {"invocation": invocation, "initial": initial}
    table = resolve_channels(settings.channels_yaml, "pretrain")
    if wants_embedded_cohort(settings):
        if settings.probe_labels is not None:
            raise SettingsError(
                "option --probe-labels: the embedded cohort, which is trained on without --data-dir, has no "
                "labels; give --data-dir, such as synthetic:icu with --probe-labels truth"
            )
        table.named(settings.channels)
        return {**taken, "windows": None, "probe": None}
    data_dirs = settings.data_dirs
    train, val = open_training_windows(settings, data_dirs)
    probe = None
    if settings.probe_labels is not None:
        from biofound.commands.pretrain_probe import open_probe  # scikit-learn

        probe = open_probe(settings, parts_of(val, name=", ".join(data_dirs)))
    return {**taken, "windows": (train, val), "probe": probe}


def _probe(settings: ProbeSettings) -> dict[str, Any]:
    from biofound.commands.probe_data import open_labelled

    for path in settings.checkpoint:
        require_checkpoint_file(path)
    if settings.picture is not None:
        require_writable(settings.picture.parent, option="--picture")
    directories = [settings.data_dir, settings.test_data_dir]
    return {"sets": [open_labelled(settings, path) for path in directories if path is not None]}


def _embed(settings: EmbedSettings) -> dict[str, Any]:
    from biofound.data.window_table import VectorsHeader, VectorsOrigin, refuse_other_table

    inputs, origin = _open_table_inputs(settings, settings.checkpoint)
    vectors = VectorsOrigin(**origin, readout=settings.readout)
    if not settings.overwrite:
        refuse_other_table(settings.output, VectorsHeader, vectors)
    return {"inputs": inputs, "origin": vectors}


def _predict(settings: PredictSettings) -> dict[str, Any]:
    from biofound.data.window_table import PredictionsHeader, TableOrigin, refuse_other_table

    inputs, values = _open_table_inputs(settings, settings.model)
    if settings.labels not in (None, NUMERICS, ANNOTATIONS) and not Path(settings.labels).is_file():
        raise DataError(f"--labels {settings.labels}: no such file; expected a CSV of labels")
    if settings.picture is not None:
        require_writable(settings.picture.parent, option="--picture")
    origin = TableOrigin(**values)
    if not settings.overwrite:
        refuse_other_table(settings.output, PredictionsHeader, origin)
    return {"inputs": inputs, "origin": origin}


def _open_table_inputs(settings: WindowTableSettings, model: Path) -> tuple[TableInputs, dict[str, Any]]:
    """What a command that writes a row a window reads, and the values of the file's `TableOrigin`."""
    from biofound.commands.recordings import open_recordings
    from biofound.data.windows import open_windows

    require_checkpoint_file(model)
    if settings.output.is_dir():
        raise SettingsError(f"--output {settings.output}: this is a directory; name a file")
    require_writable(settings.output.parent, option="--output")
    table = resolve_channels(settings.channels_yaml, settings.section)
    data: dict[str, Any]
    if settings.data_dir is not None:
        windows = {split: open_windows(settings.data_dir, split) for split in splits_in(settings.data_dir)}
        fingerprints = {split: part.fingerprint for split, part in windows.items()}
        data = {"data_dir": path_to_text(settings.data_dir.absolute()), "fingerprints": fingerprints}
        inputs = TableInputs(windows=list(windows.values()), source=None, table=table)
    else:
        source = open_recordings(settings.source_description())
        data = {
            "source": source.describe(),
            "dataset_version": source.version(),
            "channels": [channel.name for channel in table.channels],
        }
        inputs = TableInputs(windows=None, source=source, table=table)
    return inputs, {
        "checkpoint": path_to_text(model.absolute()),
        "checkpoint_sha256": sha256_of(model),
        "gate": settings.gate,
        "data": data,
    }


def _inflate(settings: InflateSettings) -> dict[str, Any]:
    require_checkpoint_file(settings.checkpoint)
    path = inflate_output(settings)
    require_writable(path.parent, option="--output")
    return {"table": resolve_channels(settings.channels_yaml, "finetune"), "path": path}


def _finetune(settings: FinetuneSettings) -> dict[str, Any]:
    from biofound.commands.finetune_data import open_finetune_data

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("finetune trains in one process: start it without torchrun")
    require_checkpoint_file(settings.checkpoint)
    require_writable(settings.output_dir, option="--output-dir")
    table = resolve_channels(settings.channels_yaml, "finetune")
    if settings.labels not in (NUMERICS, ANNOTATIONS) and not Path(settings.labels).is_file():
        raise DataError(f"--labels {settings.labels}: no such file; expected a CSV of labels")
    return {"data": open_finetune_data(settings), "table": table}


def _export(settings: ExportSettings) -> dict[str, Any]:
    from biofound.model_card import CardFacts
    from biofound.report_data import read_config, read_probe, read_verification

    require_checkpoint_file(settings.checkpoint)
    if settings.output.exists():
        raise SettingsError(f"--output {settings.output}: is there, and is not replaced; name another")
    require_writable(settings.output.parent, option="--output")
    if settings.to == "onnx":
        from biofound.onnx_encoder import require_onnx  # by way of scipy, which other commands may not need

        require_onnx(("onnx", "onnxruntime", "onnxscript"))
    run = settings.checkpoint.parent if settings.run is None else settings.run
    training = read_config(run / CONFIG)
    if settings.run is not None and training is None:
        raise DataError(f"--run {run}: no {CONFIG}; expected the directory of a training")
    return {
        "facts": CardFacts(
            training=training,
            verify=None if settings.verify is None else read_verification(settings.verify),
            probes=[read_probe(path) for path in settings.probe],
            **settings.said(),
        )
    }


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

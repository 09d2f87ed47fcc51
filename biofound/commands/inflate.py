"""`biofound inflate`: give a pretrained encoder more input channels."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from biofound import console
from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.inflate import TensorTransfer, inflate, inflated_checkpoint
from biofound.errors import (
    CheckpointError,
    SettingsError,
    checkpoint_error_context,
    write_error_context,
)
from biofound.files import sha256_of
from biofound.options import Invocation
from biofound.settings import InflateSettings, ResolvedChannels


def execute(invocation: Invocation[InflateSettings], table: ResolvedChannels, path: Path) -> None:
    """Write the inflated checkpoint, and show the transfer of every tensor.

    Args:
        invocation: the command's settings.
        table: the channel table, section finetune.
        path: the file to write.
    """
    settings = invocation.settings
    checkpoint = load_checkpoint(settings.checkpoint)
    old = checkpoint.model.channels
    names = _channels_afterwards(settings, old, table)
    new = table.named([name for name in names if name not in old])
    _refuse_other_file(settings, path)
    with checkpoint_error_context(settings.checkpoint):
        inflation = inflate(checkpoint, channels=names, seed=settings.seed)
    result = inflated_checkpoint(
        checkpoint,
        inflation,
        path=settings.checkpoint,
        new=new,
    )
    with write_error_context(path, option="--output"):
        save_checkpoint(path, result)
    if invocation.json:
        console.print_json(
            {
                "output": str(path),
                "channels": {"before": list(old), "after": list(names)},
                "synthetic": checkpoint.data.synthetic,
                "tensors": [asdict(transfer) for transfer in inflation.transfers],
            }
        )
    else:
        before, after = (", ".join(channels) for channels in (checkpoint.model.channels, names))
        show_transfers(
            f"inflated from {before} to {after}", inflation.transfers, synthetic=checkpoint.data.synthetic
        )
        console.note(f"written: {path}")


def _channels_afterwards(
    settings: InflateSettings, old: Sequence[str], table: ResolvedChannels
) -> tuple[str, ...]:
    """The names of all channels afterwards: those given, else those of the channel table.

    Raises:
        SettingsError: when they are not more than `old`, or the table has another number of channels.
    """
    if settings.to <= len(old):
        raise SettingsError(
            f"--to {settings.to}: the checkpoint already has {len(old)} channels ({', '.join(old)}); "
            f"inflation adds channels: use --to {len(old) + 1} or more"
        )
    if settings.channels is not None:
        return settings.channels
    names = tuple(channel.name for channel in table.channels)
    if len(names) != settings.to:
        raise SettingsError(
            f"--to {settings.to}: {table.origin} names {len(names)} channels ({', '.join(names)}); "
            f"give {settings.to} names with --channels, or put them into the table"
        )
    return names


def _refuse_other_file(settings: InflateSettings, path: Path) -> None:
    """Refuse to replace a file that is not what an earlier call made of the same checkpoint, unless told to.

    Raises:
        SettingsError: when `path` is such a file.
    """
    if settings.overwrite or not path.exists():
        return
    try:
        origin = load_checkpoint(path).inflated_from
    except CheckpointError:
        origin = None
    if origin is None or origin["sha256"] != sha256_of(settings.checkpoint):
        raise SettingsError(
            f"--output {path}: this file exists and was not inflated from {settings.checkpoint}; name "
            "another file, or replace it with --overwrite"
        )


def show_transfers(title: str, transfers: Sequence[TensorTransfer], *, synthetic: bool) -> None:
    """The status of every tensor; those copied in one row."""
    copied = [item for item in transfers if item.status == "copied"]
    numbers = sum(math.prod(item.after or ()) for item in copied)
    rows = [("copied", f"{len(copied)} tensors", f"{numbers:,} numbers")]
    rows += [
        (item.status, item.name, _shape_change(item.before, item.after))
        for item in transfers
        if item.status != "copied"
    ]
    console.table(title, ("status", "tensor", "shape"), rows)
    counts = ", ".join(
        f"{sum(item.status == status for item in transfers)} {status}"
        for status in ("copied", "inflated", "new", "dropped")
    )
    console.note(f"{counts}; pretrained on {'synthetic' if synthetic else 'recorded'} data")


def _shape_change(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> str:
    shapes = ["(" + ", ".join(map(str, shape)) + ")" for shape in (before, after) if shape is not None]
    return " -> ".join(shapes)

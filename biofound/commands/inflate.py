"""What `biofound inflate` does: from a checkpoint to one with more channels."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from biofound.commands.common import checkpoint_error_context, lookup_channels
from biofound.errors import SettingsError
from biofound.files import refused_as_data_error
from biofound.settings import InflateSettings, resolve_channels

if TYPE_CHECKING:
    from biofound.core.inflate import Inflation


@dataclass(frozen=True, kw_only=True)
class Inflated:
    """Where the inflated checkpoint is, the channels before and after, and the transfer of every tensor."""

    path: Path
    before: tuple[str, ...]
    after: tuple[str, ...]
    synthetic: bool
    inflation: "Inflation"


def run_inflation(settings: InflateSettings) -> Inflated:
    """Inflate and write the new checkpoint.

    Raises:
        SettingsError: when the channels do not fit, or the output is the checkpoint itself.
        CheckpointError: when the checkpoint cannot be used.
        DataError: when the new file cannot be written.
    """
    from biofound.core.checkpoint import load_checkpoint, save_checkpoint
    from biofound.core.inflate import inflate, inflated_checkpoint

    checkpoint = load_checkpoint(settings.checkpoint)
    old = checkpoint.model.channels
    if settings.to <= len(old):
        raise SettingsError(
            f"--to {settings.to}: the checkpoint already has {len(old)} channels ({', '.join(old)}); "
            f"inflation adds channels: use --to {len(old) + 1} or more"
        )
    names = settings.channels or _names_of_table(settings)
    new = lookup_channels([name for name in names if name not in old], settings.channels_yaml, "finetune")
    default = settings.checkpoint.with_name(f"{settings.checkpoint.stem}_{settings.to}ch.pt")
    path = settings.output or default
    if path.resolve() == settings.checkpoint.resolve():
        raise SettingsError(f"--output {path}: this is the checkpoint itself; name another file")
    if path.is_dir():
        raise SettingsError(
            f"--output {path}: this is a directory; name a file, such as {path / default.name}"
        )
    with checkpoint_error_context(settings.checkpoint):
        inflation = inflate(checkpoint, channels=names, seed=settings.seed)
    result = inflated_checkpoint(
        checkpoint,
        inflation,
        path=settings.checkpoint,
        filters={channel.name: channel.band.as_json() for channel in new},
        units={channel.name: channel.unit for channel in new},
    )
    with refused_as_data_error(path, choose="--output"):
        save_checkpoint(path, result)
    return Inflated(
        path=path, before=old, after=tuple(names), synthetic=checkpoint.data.synthetic, inflation=inflation
    )


def _names_of_table(settings: InflateSettings) -> tuple[str, ...]:
    table = resolve_channels(settings.channels_yaml, "finetune")
    names = tuple(channel.name for channel in table.channels)
    if len(names) != settings.to:
        raise SettingsError(
            f"--to {settings.to}: {table.origin} names {len(names)} channels ({', '.join(names)}); "
            f"give {settings.to} names with --channels, or put them into the table"
        )
    return names

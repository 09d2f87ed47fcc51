"""Settings of `biofound inflate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from biofound.settings.base import REQUIRED, CheckpointFile, Conflict, Settings, setting
from biofound.settings.channels import CHANNELS_YAML_HELP, ChannelNames
from biofound.settings.pretrain import DEFAULT_OUTPUT


class InflateSettings(Settings):
    """Give a pretrained encoder more input channels."""

    command: ClassVar[str] = "inflate"

    checkpoint: CheckpointFile = setting(
        DEFAULT_OUTPUT / "best_model.pt", "Checkpoint written by `biofound pretrain`.", panel="Data"
    )
    to: int = setting(REQUIRED, "Number of channels afterwards.", panel="Channels", unit="channels", ge=1)
    channels: ChannelNames | None = setting(
        None,
        "Names of all channels afterwards, in their new order, separated by commas; "
        "by default those of the section finetune of the channel table.",
        panel="Channels",
    )
    channels_yaml: Path | None = setting(None, CHANNELS_YAML_HELP, panel="Channels")
    output: Path | None = setting(
        None,
        "Checkpoint to write; by default beside the old one, as <name>_<to>ch.pt.",
        panel="Output",
    )
    overwrite: bool = setting(
        False,
        "Replace a file of the output's name, also one that was not inflated from this checkpoint.",
        panel="Output",
    )
    seed: int = setting(42, "Seed of the new channels' weights.", panel="Output", ge=0, lt=2**32)

    def conflicts(self) -> Iterator[Conflict]:
        """Yields another number of names than of channels."""
        if self.channels is not None and len(self.channels) != self.to:
            message = f"channels names {len(self.channels)} ({', '.join(self.channels)}), but to is {self.to}"
            yield Conflict(("channels", "to"), message)

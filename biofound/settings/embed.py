"""Settings of `biofound embed`."""

from typing import ClassVar

from biofound.core.readout_names import DEFAULT_READOUT, ReadoutName
from biofound.settings.base import REQUIRED, CheckpointFile, setting
from biofound.settings.window_table import WindowTableSettings


class EmbedSettings(WindowTableSettings):
    """Embed windows or recordings: one vector a window, with its start and quality."""

    command: ClassVar[str] = "embed"

    checkpoint: CheckpointFile = setting(REQUIRED, "Checkpoint whose encoder embeds.", panel="Encoder")
    readout: ReadoutName = setting(
        DEFAULT_READOUT, "What is read of the encoder, as in `biofound probe`.", panel="Encoder"
    )

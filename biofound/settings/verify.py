"""Settings of `biofound verify`."""

from pathlib import Path
from typing import ClassVar

from biofound.settings.base import CheckpointFile, Settings, setting


class VerifySettings(Settings):
    """Check the code, a checkpoint and a window store for what usually breaks."""

    command: ClassVar[str] = "verify"

    checkpoint: CheckpointFile | None = setting(None, "Checkpoint whose model is checked.", panel="Data")
    data_dir: Path | None = setting(
        None, "Window store to check: checksums, shapes, channels, patients.", panel="Data"
    )
    seed: int = setting(
        42,
        "Seed of the weights and windows made for the checks.",
        panel="Machine and run",
        ge=0,
        lt=2**32,
    )

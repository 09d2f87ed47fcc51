"""What is a channel: its name, the tracks it is read from, its unit, pass band and quality threshold."""

from dataclasses import asdict, dataclass
from typing import Any

CHANNEL_NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
"""The pattern of a channel's name."""


@dataclass(frozen=True, kw_only=True)
class PassBand:
    """A zero-phase band-pass: edges in Hz where the *forward-backward* response is -3 dB, and its order."""

    low_hz: float
    high_hz: float
    order: int

    def as_json(self) -> dict[str, Any]:
        """The band as plain JSON, for sidecars and checkpoints."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One channel of a window: a row of `channels.yaml`, in plain values.

    `tracks` are the names it may have in a source, in order of preference; `unit` is its
    physical unit; a window is kept when the channel's quality is at least `quality_threshold` (0 to 1).
    """

    name: str
    tracks: tuple[str, ...]
    unit: str
    band: PassBand
    quality_threshold: float

    @property
    def modality(self) -> str:
        """`PPG`, `ECG` or `ACC`: what kind of signal it is, which decides how its quality is judged."""
        return self.name.split("_")[0].rstrip("0123456789")


PRETRAIN_CHANNELS = ("PPG", "ECG")
"""The channels of pretraining windows, in order, where nothing else is said."""

FINETUNE_CHANNELS = ("ACC_X", "ACC_Y", "ACC_Z", *PRETRAIN_CHANNELS)
"""The channels of fine-tuning windows, in order, where nothing else is said."""

"""Channels (name, tracks, unit, pass band, quality threshold); length and number format of windows."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from biofound.errors import SettingsError

CHANNEL_NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
"""The pattern of a channel's name."""


@dataclass(frozen=True, kw_only=True)
class PassBand:
    """A zero-phase band-pass: edges in Hz where the *forward-backward* response is -3 dB, and its order."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)  # read from JSON

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
    A recording may lack a channel that is not `required`: it is then a gap, as in windows where it is bad.
    """

    name: str
    tracks: tuple[str, ...]
    unit: str
    band: PassBand
    quality_threshold: float
    required: bool = True

    @property
    def modality(self) -> str:
        """`PPG`, `ECG` or `ACC`: the kind of signal, which decides how its quality is assessed."""
        return self.name.split("_")[0].rstrip("0123456789")


DType = Literal["float16", "float32"]
"""The number formats in which windows are stored."""

MotionGate = Literal["off", "auto", "on"]
"""Whether windows are dropped whose PPG is motion: never; where there is acceleration; or also by the ECG, or
the PPG alone."""

DEFAULT_MOTION_GATE: MotionGate = "auto"


def samples_in_window(window_seconds: float, sfreq: float) -> int:
    """Window length in samples.

    Raises:
        SettingsError: when it is not a whole number, or below 2.
    """
    samples = window_seconds * sfreq
    if round(samples) < 2 or abs(samples - round(samples)) > 1e-6 * samples:
        raise SettingsError(
            "window_seconds x sfreq must be a whole number of samples, at least 2, "
            f"but {window_seconds:g} s x {sfreq:g} Hz is {samples:g}"
        )
    return round(samples)


PRETRAIN_CHANNELS = ("PPG", "ECG")
"""The channels of pretraining windows, in order, by default."""

FINETUNE_CHANNELS = ("ACC_X", "ACC_Y", "ACC_Z", *PRETRAIN_CHANNELS)
"""The channels of fine-tuning windows, in order, by default."""

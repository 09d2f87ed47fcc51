"""Settings of `channels.yaml`: the channels that windows hold, with their tracks, filters and thresholds."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from biofound.data.channels import CHANNEL_NAME, FINETUNE_CHANNELS, PRETRAIN_CHANNELS, Channel, PassBand
from biofound.settings.base import REQUIRED, Conflict, Settings, setting, split_commas

CHANNELS_YAML_HELP = "Channel table (YAML); the built-in table equals configs/channels.yaml."


def _refuse_repeated(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"expected each channel once, got {', '.join(repeated)} more than once")
    return names


ChannelName = Annotated[str, Field(pattern=CHANNEL_NAME)]
ChannelNames = Annotated[
    tuple[ChannelName, ...], BeforeValidator(split_commas), AfterValidator(_refuse_repeated)
]
"""A list of different channel names, such as `PPG,ECG`."""

Section = Literal["pretrain", "finetune"]
"""The sections of `channels.yaml`."""


class FilterSettings(Settings):
    """The band-pass of one channel."""

    low_hz: float = setting(REQUIRED, "Lower edge of the pass band, -3 dB in all.", unit="Hz", gt=0)
    high_hz: float = setting(REQUIRED, "Upper edge of the pass band, -3 dB in all.", unit="Hz", gt=0)
    order: int = setting(
        REQUIRED, "Order of the filter, before it is run forwards and backwards.", ge=1, le=12
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yields band edges in the wrong order."""
        if self.low_hz >= self.high_hz:
            message = f"low_hz ({self.low_hz:g} Hz) must be below high_hz ({self.high_hz:g} Hz)"
            yield Conflict(("low_hz", "high_hz"), message)


class ChannelSettings(Settings):
    """One channel: its tracks in the sources, unit, filter and quality threshold."""

    tracks: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = setting(
        REQUIRED, "Names the channel may have in a source, in order of preference.", min_length=1
    )
    unit: str = setting(REQUIRED, "Physical unit of the samples.", min_length=1)
    filter: FilterSettings = setting(REQUIRED, "Zero-phase band-pass.")
    quality_threshold: float = setting(
        REQUIRED, "A window is kept when the channel's quality (0 to 1) is at least this.", ge=0, le=1
    )
    required: bool = setting(
        True,
        "Whether recordings and windows must have the channel; if not, it is a gap where missing or bad.",
    )

    def as_channel(self, name: str) -> Channel:
        """The plain values that the data package takes."""
        band = PassBand(low_hz=self.filter.low_hz, high_hz=self.filter.high_hz, order=self.filter.order)
        return Channel(
            name=name,
            tracks=self.tracks,
            unit=self.unit,
            band=band,
            quality_threshold=self.quality_threshold,
            required=self.required,
        )


def _channel(*tracks: str, unit: str, band: tuple[float, float]) -> dict[str, Any]:
    low_hz, high_hz = band
    return {
        "tracks": tracks,
        "unit": unit,
        "filter": {"low_hz": low_hz, "high_hz": high_hz, "order": 4},
        "quality_threshold": 0.5,
    }


_BUILT_IN = {
    "PPG": _channel("SNUADC/PLETH", "PLETH", "PPG", unit="NU", band=(0.5, 8.0)),
    "ECG": _channel("SNUADC/ECG_II", "II", "MLII", "ECG", unit="mV", band=(0.5, 40.0)),
    **{f"ACC_{axis}": _channel(f"ACC_{axis}", unit="g", band=(0.5, 10.0)) for axis in "XYZ"},
}
"""Every channel of the built-in sections; `biofound/data/channels.py` says which section has which."""


def _filled(given: Any, built_in: Any) -> Any:
    """A mapping, or nothing, with the built-in value of every key that it does not give."""
    if not isinstance(built_in, Mapping):
        return given
    if given is None:
        return built_in
    if not isinstance(given, Mapping):
        return given
    filled = {key: _filled(value, built_in.get(key)) for key, value in given.items()}
    return {**built_in, **filled}


class ChannelsSettings(Settings):
    """The channel tables of `channels.yaml`, in the order in which windows hold the channels."""

    pretrain: dict[ChannelName, ChannelSettings] = setting(
        {name: _BUILT_IN[name] for name in PRETRAIN_CHANNELS},
        "Channels of the windows for pretraining.",
        min_length=1,
        validate_default=True,
    )
    finetune: dict[ChannelName, ChannelSettings] = setting(
        {name: _BUILT_IN[name] for name in FINETUNE_CHANNELS},
        "Channels of the windows for fine-tuning.",
        min_length=1,
        validate_default=True,
    )

    @field_validator("pretrain", "finetune", mode="before")
    @classmethod
    def _fill_in_built_in_channels(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        return {name: _filled(given, _BUILT_IN.get(name)) for name, given in table.items()}

    def section(self, name: Section) -> list[Channel]:
        """The channels of one section, in file order."""
        table = self.pretrain if name == "pretrain" else self.finetune
        return [channel.as_channel(channel_name) for channel_name, channel in table.items()]

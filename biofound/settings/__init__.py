"""What can be set and where a value came from: the only home of defaults, units and bounds."""

from biofound.settings.models import (
    COMMANDS,
    ChannelSettings,
    ChannelsSettings,
    FilterSettings,
    InflateSettings,
    PrepareSettings,
    PretrainSettings,
    VerifySettings,
    WindowsSettings,
)
from biofound.settings.resolve import Resolved, ResolvedChannels, resolve, resolve_channels

__all__ = [
    "COMMANDS",
    "ChannelSettings",
    "ChannelsSettings",
    "FilterSettings",
    "InflateSettings",
    "PrepareSettings",
    "PretrainSettings",
    "Resolved",
    "ResolvedChannels",
    "VerifySettings",
    "WindowsSettings",
    "resolve",
    "resolve_channels",
]

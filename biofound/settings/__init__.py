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

__all__ = [
    "COMMANDS",
    "ChannelSettings",
    "ChannelsSettings",
    "FilterSettings",
    "InflateSettings",
    "PrepareSettings",
    "PretrainSettings",
    "VerifySettings",
    "WindowsSettings",
]

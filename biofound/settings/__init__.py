"""Settings of every command: the only home of defaults, units and bounds."""

from biofound.settings.base import Settings
from biofound.settings.channels import ChannelSettings, ChannelsSettings, FilterSettings
from biofound.settings.embed import EmbedSettings
from biofound.settings.export import ExportSettings
from biofound.settings.inflate import InflateSettings
from biofound.settings.prepare import PrepareSettings
from biofound.settings.pretrain import PretrainSettings
from biofound.settings.probe import ProbeSettings
from biofound.settings.resolve import Resolved, ResolvedChannels, resolve, resolve_channels
from biofound.settings.verify import VerifySettings
from biofound.settings.windows import DEFAULT_STORE, WindowsSettings

COMMANDS: tuple[type[Settings], ...] = (
    PrepareSettings,
    WindowsSettings,
    PretrainSettings,
    VerifySettings,
    ProbeSettings,
    EmbedSettings,
    InflateSettings,
    ExportSettings,
)
"""Every command's settings, in the order of the work; `biofound/commands/<command>.py` executes each."""

__all__ = [
    "COMMANDS",
    "DEFAULT_STORE",
    "ChannelSettings",
    "ChannelsSettings",
    "EmbedSettings",
    "ExportSettings",
    "FilterSettings",
    "InflateSettings",
    "PrepareSettings",
    "PretrainSettings",
    "ProbeSettings",
    "Resolved",
    "ResolvedChannels",
    "VerifySettings",
    "WindowsSettings",
    "resolve",
    "resolve_channels",
]

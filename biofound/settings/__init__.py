"""Settings of every command: the only home of defaults, units and bounds."""

from biofound.settings.base import Settings
from biofound.settings.channels import ChannelSettings, ChannelsSettings, FilterSettings
from biofound.settings.embed import EmbedSettings
from biofound.settings.export import ExportSettings
from biofound.settings.finetune import FinetuneSettings
from biofound.settings.inflate import InflateSettings
from biofound.settings.predict import PredictSettings
from biofound.settings.prepare import PrepareSettings
from biofound.settings.pretrain import PretrainSettings
from biofound.settings.probe import ProbeSettings
from biofound.settings.report import ReportSettings
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
    FinetuneSettings,
    PredictSettings,
    ExportSettings,
    ReportSettings,
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
    "FinetuneSettings",
    "InflateSettings",
    "PredictSettings",
    "PrepareSettings",
    "PretrainSettings",
    "ProbeSettings",
    "ReportSettings",
    "Resolved",
    "ResolvedChannels",
    "VerifySettings",
    "WindowsSettings",
    "resolve",
    "resolve_channels",
]

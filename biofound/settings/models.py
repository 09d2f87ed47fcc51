"""What can be set: one flat model a command, the only home of defaults, units and bounds."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, field_validator

from biofound.data.channels import FINETUNE_CHANNELS, PRETRAIN_CHANNELS, Channel, PassBand
from biofound.settings.base import CHANNEL_NAME, REQUIRED, Conflict, Derived, Settings, setting


def _split_commas(value: Any) -> Any:
    """`PPG, ECG` as options and the environment give it -> ["PPG", "ECG"]."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


ChannelNames = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Lengths = Annotated[tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...], BeforeValidator(_split_commas)]


# ---------------------------------------------------------------------------------------------------------
# channels.yaml


class FilterSettings(Settings):
    """The band-pass of one channel."""

    low_hz: float = setting(REQUIRED, "Lower edge of the pass band, -3 dB in all.", unit="Hz", gt=0)
    high_hz: float = setting(REQUIRED, "Upper edge of the pass band, -3 dB in all.", unit="Hz", gt=0)
    order: int = setting(
        REQUIRED, "Order of the filter, before it is run forwards and backwards.", ge=1, le=12
    )

    def conflicts(self) -> Iterator[Conflict]:
        """The edges must stand in order."""
        if self.low_hz >= self.high_hz:
            message = f"low_hz ({self.low_hz:g} Hz) must be below high_hz ({self.high_hz:g} Hz)"
            yield Conflict(("low_hz", "high_hz"), message)


class ChannelSettings(Settings):
    """One channel: where it is read from, and what is a good stretch of it."""

    tracks: Annotated[tuple[str, ...], BeforeValidator(_split_commas)] = setting(
        REQUIRED, "Names the channel may have in a source, in order of preference.", min_length=1
    )
    unit: str = setting(REQUIRED, "Physical unit of the samples.", min_length=1)
    filter: FilterSettings = setting(REQUIRED, "Zero-phase band-pass.")
    quality_threshold: float = setting(
        REQUIRED, "A window is kept when the channel's quality (0 to 1) is at least this.", ge=0, le=1
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
        )


Section = Literal["pretrain", "finetune"]
"""The sections of `channels.yaml`."""

ChannelName = Annotated[str, Field(pattern=CHANNEL_NAME)]


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
"""Every channel that a built-in section names; which those are, and their order, the data package says."""


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

    def section(self, name: Section) -> list[Channel]:
        """The channels of one section, in file order."""
        table = self.pretrain if name == "pretrain" else self.finetune
        return [channel.as_channel(channel_name) for channel_name, channel in table.items()]


# ---------------------------------------------------------------------------------------------------------
# Commands

_SOURCE, _SPLIT, _DATA, _OUTPUT = "Source", "Split", "Data", "Output"
_MODEL, _MASK, _OPTIMISER, _MACHINE = "Model", "Masking and loss", "Optimisation", "Machine and run"
_CHANNELS_YAML = "Channel table (YAML); the built-in table equals configs/channels.yaml."


VITALDB_URL = "BIOFOUND_VITALDB_URL"
"""The environment variable for the address; one for all commands."""
_VITALDB_URL = "Address of VitalDB's server, such as a mirror (vitaldb)."

DEFAULT_STORE = Path("data/windows")
"""Where `windows` writes, and `pretrain` looks when it is told nothing."""


class PrepareSettings(Settings):
    """`biofound prepare`: from a source to patient-level splits."""

    command: ClassVar[str] = "prepare"

    source: Literal["synthetic", "wfdb", "vitaldb", "vital"] = setting(
        REQUIRED, "Where recordings come from.", panel=_SOURCE
    )
    root: Path | None = setting(None, "Directory of the recordings (wfdb, vital).", panel=_SOURCE)
    cache_dir: Path = setting(
        Path("data/vitaldb"), "Directory where downloads are kept (vitaldb).", panel=_SOURCE
    )
    vitaldb_url: str | None = setting(None, _VITALDB_URL, panel=_SOURCE, env=VITALDB_URL)
    subjects: int | None = setting(
        None, "Number of patients in the embedded cohort (synthetic).", panel=_SOURCE, ge=3, le=100_000
    )
    minutes: float | None = setting(
        None, "Length of a recording (synthetic).", panel=_SOURCE, unit="minutes", ge=0.1, le=1440
    )
    subjects_csv: Path | None = setting(
        None, "CSV with the columns record and subject (wfdb, vital).", panel=_SOURCE
    )
    subject_pattern: str | None = setting(
        None,
        "Regular expression whose first group is the patient, searched in the header comments (wfdb).",
        panel=_SOURCE,
    )
    record_is_subject: bool = setting(
        False, "Your word that each record is another patient (wfdb, vital).", panel=_SOURCE
    )
    channels_yaml: Path | None = setting(None, _CHANNELS_YAML, panel=_SOURCE)
    section: Section = setting(
        "pretrain", "Section of the channel table: cases must have all its channels.", panel=_SOURCE
    )
    case_set: Literal["bis", "ppf", "rft20", "sevo", "des", "tiva", "all"] | None = setting(
        None, "Which cases of VitalDB (vitaldb only, and there bis by default).", panel=_SOURCE
    )
    mode: Literal["fasttrack", "full"] = setting(
        "fasttrack",
        "fasttrack: 50/10/10 cases; full: every eligible case, about 80/10/10 %.",
        panel=_SPLIT,
    )
    seed: int = setting(
        42, "Seed of the split, and of the embedded cohort (synthetic).", panel=_SPLIT, ge=0, lt=2**32
    )
    output: Path = setting(Path("data"), "Directory for splits_<mode>.json.", panel=_OUTPUT)

    @field_validator("subject_pattern")
    @classmethod
    def _is_pattern_with_group(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            groups = re.compile(value).groups
        except re.error as problem:
            raise ValueError(f"expected a regular expression, got {value!r}: {problem}") from problem
        if groups < 1:
            raise ValueError(f"expected a group in parentheses around the patient, got {value!r}")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        """Settings that belong to other sources, and more than one rule for the subject."""
        if self.source in ("wfdb", "vital") and self.root is None:
            yield Conflict(
                ("root", "source"), f"source {self.source} needs root, its directory of recordings"
            )
        belong_to = {
            "root": (self.root is not None, ("wfdb", "vital")),
            "case_set": (self.case_set is not None, ("vitaldb",)),
            "subjects": (self.subjects is not None, ("synthetic",)),
            "minutes": (self.minutes is not None, ("synthetic",)),
            "subjects_csv": (self.subjects_csv is not None, ("wfdb", "vital")),
            "subject_pattern": (self.subject_pattern is not None, ("wfdb",)),
            "record_is_subject": (self.record_is_subject, ("wfdb", "vital")),
        }
        for name, (given, sources) in belong_to.items():
            if given and self.source not in sources:
                belongs = " and ".join(sources)
                message = f"{name} belongs to source {belongs}, not to {self.source}: leave it out"
                yield Conflict((name, "source"), message)
        rules = ("subjects_csv", "subject_pattern", "record_is_subject")
        used = tuple(name for name in rules if belong_to[name][0])
        if len(used) > 1:
            yield Conflict(used, f"only one rule can say who the patient is, not {' and '.join(used)}")

    @classmethod
    def derived_defaults(cls, given: Mapping[str, Any]) -> dict[str, Derived]:
        """VitalDB is used by its set of cases with BIS where no other is named."""
        if given.get("source") != "vitaldb" or "case_set" in given:
            return {}
        return {"case_set": Derived("bis", "default for vitaldb")}

    def source_description(self) -> dict[str, Any]:
        """What `biofound.data.sources.registry.open_source` takes, besides the name: what was given."""
        given: dict[str, Any]
        if self.source == "synthetic":
            given = {"seed": self.seed, "subjects": self.subjects, "minutes": self.minutes}
        elif self.source == "vitaldb":
            given = {
                "cache_dir": self.cache_dir,
                "case_set": self.case_set,
                "base_url": self.vitaldb_url,
            }
        else:
            given = {
                "root": self.root,
                "subjects_csv": self.subjects_csv,
                "subject_pattern": self.subject_pattern,
                "record_is_subject": self.record_is_subject or None,
            }
        return {name: value for name, value in given.items() if value is not None}


class WindowsSettings(Settings):
    """`biofound windows`: from recordings to a window store."""

    command: ClassVar[str] = "windows"
    file_option: ClassVar[str | None] = "windows_yaml"

    split_file: Path = setting(
        Path("data/splits_fasttrack.json"),
        "Splits written by `biofound prepare`.",
        panel=_DATA,
        in_file=False,
    )
    split: Literal["train", "val", "test", "all"] = setting(
        "all", "Which split to build.", panel=_DATA, in_file=False
    )
    vitaldb_url: str | None = setting(None, _VITALDB_URL, panel=_DATA, in_file=False, env=VITALDB_URL)
    channels_yaml: Path | None = setting(None, _CHANNELS_YAML, panel=_DATA, in_file=False)
    section: Section = setting(
        "pretrain", "Which section of the channel table to build windows of.", panel=_DATA, in_file=False
    )
    windows_yaml: Path | None = setting(
        None,
        "Window settings (YAML); the built-in ones equal configs/windows.yaml.",
        panel=_DATA,
        in_file=False,
    )
    outdir: Path = setting(
        DEFAULT_STORE, "Directory of the store: one directory a split.", panel=_OUTPUT, in_file=False
    )
    inspect: Path | None = setting(
        None, "Say what is in this store, and build nothing.", panel=_OUTPUT, in_file=False
    )
    picture: Path | None = setting(
        None, "PNG file for a picture of random windows of the store.", panel=_OUTPUT, in_file=False
    )
    picture_seed: int = setting(
        0, "Which random windows are drawn.", panel=_OUTPUT, in_file=False, ge=0, lt=2**32
    )
    sfreq: float = setting(
        125.0, "Sampling frequency of the windows.", panel="Windows", unit="Hz", gt=0, le=10_000
    )
    window_seconds: float = setting(
        10.0, "Length of a window.", panel="Windows", unit="seconds", gt=0, le=3600
    )
    max_gap_seconds: float = setting(
        0.1,
        "Gaps up to this are bridged by a straight line; a longer one voids the windows it touches.",
        panel="Windows",
        unit="seconds",
        ge=0,
        le=60,
    )
    dtype: Literal["float16", "float32"] = setting(
        "float16", "Number format of the stored samples.", panel="Windows"
    )
    workers: int | None = setting(
        None, "Cases worked on side by side; by default one a core.", panel=_MACHINE, in_file=False, ge=1
    )
    scheduler: str | None = setting(
        None,
        "Address of a Dask scheduler (tcp://...) to work on instead of this machine.",
        panel=_MACHINE,
        in_file=False,
    )
    skip_failed: bool = setting(
        False,
        "Leave out cases that cannot be read, and list them, rather than fail.",
        panel=_MACHINE,
        in_file=False,
    )

    @field_validator("picture")
    @classmethod
    def _is_png(cls, path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() != ".png":
            raise ValueError(f"expected a file that ends in .png, got {str(path)!r}")
        return path

    def conflicts(self) -> Iterator[Conflict]:
        """A window is a whole number of samples; a store's directory holds nothing but its own files."""
        samples = self.sfreq * self.window_seconds
        if abs(samples - round(samples)) > 1e-6 or round(samples) < 2:
            message = (
                f"window_seconds x sfreq must be a whole number of samples, at least 2, "
                f"but {self.window_seconds:g} s x {self.sfreq:g} Hz is {samples:g}"
            )
            yield Conflict(("window_seconds", "sfreq"), message)
        store = self.outdir if self.inspect is None else self.inspect
        of_splits = {store / name for name in ("train", "val", "test")}
        if store.name in ("train", "val", "test"):
            of_splits.add(store)
        if self.picture is not None and self.picture.parent in of_splits:
            message = f"picture must not lie among a store's own files, in {self.picture.parent}"
            yield Conflict(("picture", "outdir" if self.inspect is None else "inspect"), message)


class PretrainSettings(Settings):
    """`biofound pretrain`: from windows to an encoder."""

    command: ClassVar[str] = "pretrain"
    file_option: ClassVar[str | None] = "config"

    FAST: ClassVar[Mapping[str, Any]] = {
        "epochs": 8,
        "warmup_epochs": 1,
        "batch_size": 32,
        "save_interval": 4,
    }
    """What `fast` changes: a run of minutes at most on 2 cores."""

    config: Path | None = setting(
        None,
        "Settings (YAML); the built-in ones equal configs/ssl_pretrain.yaml.",
        panel=_DATA,
        in_file=False,
    )
    data_dir: Path | None = setting(
        None,
        "Window store, or directory of train_windows.npz and val_windows.npz. When it is not given: "
        f"{DEFAULT_STORE} where there is one, else the embedded synthetic cohort.",
        panel=_DATA,
    )
    channels: ChannelNames = setting(
        PRETRAIN_CHANNELS, "Channels to train on, separated by commas.", panel=_DATA, min_length=1
    )
    channels_yaml: Path | None = setting(None, _CHANNELS_YAML, panel=_DATA)
    random_crop: bool = setting(
        True, "Training windows start anywhere inside a stretch of adjacent windows.", panel=_DATA
    )
    shuffle: Literal["full", "block"] = setting(
        "full",
        "full: any order; block: neighbouring windows are read together, for disks on which jumps cost much.",
        panel=_DATA,
    )
    output_dir: Path = setting(
        Path("artifacts/foundation_model"), "Directory for checkpoints, history and pictures.", panel=_OUTPUT
    )
    resume: bool = setting(
        False,
        "Go on with the run in the output directory; where there is none, begin one.",
        panel=_OUTPUT,
        in_file=False,
    )
    resume_from: Path | None = setting(
        None,
        "Go on with the run of this checkpoint, into the output directory.",
        panel=_OUTPUT,
        in_file=False,
    )
    force: bool = setting(
        False,
        "Resume although settings differ that change what the run means.",
        panel=_OUTPUT,
        in_file=False,
    )
    checkpoint_minutes: float = setting(
        10.0,
        "Time between checkpoints within an epoch; 0 writes them only at its end.",
        panel=_OUTPUT,
        unit="minutes",
        ge=0,
    )
    on_write_error: Literal["stop", "continue"] = setting(
        "stop", "Whether to stop or go on when a checkpoint cannot be written.", panel=_OUTPUT
    )
    tensorboard: bool = setting(
        False,
        "Also write TensorBoard events (needs the extra biofound[tensorboard]).",
        panel=_OUTPUT,
    )
    log_interval: int = setting(
        10, "Optimizer steps between progress lines.", panel=_OUTPUT, unit="steps", ge=1
    )
    save_interval: int = setting(
        10, "Epochs between the checkpoints that are kept.", panel=_OUTPUT, unit="epochs", ge=1
    )
    context_length: int = setting(
        1250, "Length of a window.", panel=_MODEL, unit="samples", ge=2, le=1_000_000
    )
    patch_size: int = setting(
        125, "Length of a patch; it divides the context.", panel=_MODEL, unit="samples", ge=1
    )
    patch_embedding: Literal["linear", "convolutional"] = setting(
        "linear",
        "linear: each patch by itself; convolutional: also by convolutions over the whole window.",
        panel=_MODEL,
    )
    d_model: int = setting(192, "Width of the latent.", panel=_MODEL, ge=1)
    num_layers: int = setting(4, "Mixer layers of the encoder.", panel=_MODEL, ge=1)
    expansion_factor: int = setting(
        8, "Hidden width of a mixer's perceptron, in widths of what it mixes.", panel=_MODEL, ge=1
    )
    dropout: float = setting(0.0, "Dropout in the encoder; it costs speed.", panel=_MODEL, ge=0, lt=1)
    mask_ratio: float = setting(0.4, "Share of the patches that are hidden.", panel=_MASK, gt=0, lt=1)
    mask_type: Literal["random", "block"] = setting(
        "random", "random: any patches; block: one contiguous run a window.", panel=_MASK
    )
    stft_weight: float = setting(0.3, "Weight of the STFT loss beside the MSM loss.", panel=_MASK, ge=0)
    stft_windows: Lengths = setting(
        (64, 128, 256),
        "Window lengths of the STFT loss, separated by commas; when not given, those that fit the context.",
        panel=_MASK,
        unit="samples",
        min_length=1,
    )
    stft_floor: float = setting(
        1e-3,
        "What the STFT loss adds to the power before the logarithm, relative to a signal of unit variance.",
        panel=_MASK,
        gt=0,
        le=1,
    )
    global_weight: float = setting(
        0.0,
        "Weight of the global term: autocorrelation and spectrum of the whole window, from the latents.",
        panel=_MASK,
        ge=0,
    )
    rhythm_weight: float = setting(
        0.0,
        "Weight of the rhythm term: likely beat intervals of the whole window, from the latents.",
        panel=_MASK,
        ge=0,
    )
    epochs: int = setting(100, "Passes over the training windows.", panel=_OPTIMISER, unit="epochs", ge=1)
    batch_size: int = setting(128, "Windows an optimizer step.", panel=_OPTIMISER, unit="windows", ge=1)
    lr: float = setting(5e-4, "Peak learning rate of AdamW.", panel=_OPTIMISER, gt=0, le=1)
    weight_decay: float = setting(
        0.01, "Weight decay (not on biases, norms and embeddings).", panel=_OPTIMISER, ge=0, le=1
    )
    warmup_epochs: int = setting(
        10,
        "Epochs of linear warm-up before the cosine; when not given, at most a tenth of the epochs.",
        panel=_OPTIMISER,
        unit="epochs",
        ge=0,
    )
    gradient_clip: float = setting(1.0, "Largest norm of the gradient.", panel=_OPTIMISER, gt=0)
    seed: int = setting(42, "Seed of weights, order, crops and masks.", panel=_OPTIMISER, ge=0, lt=2**32)
    fast: bool = setting(
        False,
        "A run of minutes at most on 2 cores: " + ", ".join(f"{k} {v}" for k, v in FAST.items()) + ".",
        panel=_MACHINE,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Where to compute; auto takes CUDA where there is one.", panel=_MACHINE
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "Number format of the matrix products; auto takes bf16 where it is fast.", panel=_MACHINE
    )
    no_amp: bool = setting(
        False, "Compute in fp32 throughout: the same as --precision fp32.", panel=_MACHINE, off_name="amp"
    )
    compile: bool = setting(
        False, "Compile the model first: minutes more at the start, fewer later.", panel=_MACHINE
    )
    threads: int | None = setting(
        None, "Threads of torch on the CPU; by default torch's own choice.", panel=_MACHINE, ge=1
    )

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `fast` changes."""
        return cls.FAST if _read(bool, given.get("fast"), False) else {}

    @classmethod
    def derived_defaults(cls, given: Mapping[str, Any]) -> dict[str, Derived]:
        """Short runs get a short warm-up, and short contexts the STFT windows that fit them."""
        derived = {}
        epochs = _read(int, given.get("epochs"), None)
        normal = cls.model_fields["warmup_epochs"].default
        if "warmup_epochs" not in given and epochs is not None and 1 <= math.ceil(epochs / 10) < normal:
            derived["warmup_epochs"] = Derived(math.ceil(epochs / 10), f"default for {epochs} epochs")
        context = _read(int, given.get("context_length"), None)
        windows = cls.model_fields["stft_windows"].default
        if "stft_windows" not in given and context is not None and 4 <= context < max(windows):
            fitting = tuple(n for n in windows if n <= context) or (2 ** int(math.log2(context)),)
            derived["stft_windows"] = Derived(fitting, f"default for context_length {context}")
        return derived

    @field_validator("channels")
    @classmethod
    def _are_channel_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_channel_names(names)

    def conflicts(self) -> Iterator[Conflict]:
        """Lengths that do not divide, masks that hide nothing or all, and a warm-up that never ends."""
        yield from self._patch_conflicts()
        if self.warmup_epochs > self.epochs:
            message = f"warmup_epochs ({self.warmup_epochs}) must not exceed epochs ({self.epochs})"
            yield Conflict(("warmup_epochs", "epochs"), message)
        if max(self.stft_windows) > self.context_length:
            longest = max(self.stft_windows)
            message = f"stft_windows (up to {longest}) must fit context_length ({self.context_length})"
            yield Conflict(("stft_windows", "context_length"), message)
        if self.resume and self.resume_from is not None:
            yield Conflict(("resume", "resume_from"), "resume and resume_from name two runs: leave one out")
        if self.force and not self.resume and self.resume_from is None:
            yield Conflict(("force", "resume"), "force belongs to resume or resume_from: leave it out")
        if self.no_amp and self.precision in ("bf16", "fp16"):
            message = f"no_amp means fp32, but precision is {self.precision}: leave one of them out"
            yield Conflict(("no_amp", "precision"), message)

    def _patch_conflicts(self) -> Iterator[Conflict]:
        length, patch = self.context_length, self.patch_size
        if length % patch:
            yield Conflict(
                ("context_length", "patch_size"),
                f"patch_size ({patch}) must divide context_length ({length}); nearest that do: "
                f"context_length {_either(nearest_multiples(length, patch))} with patch_size {patch}, "
                f"or patch_size {_either(nearest_divisors(length, patch))} with context_length {length}",
            )
            return
        patches = length // patch
        if patches < 2:
            message = f"context_length ({length}) must hold at least 2 patches of patch_size ({patch})"
            yield Conflict(("context_length", "patch_size"), message)
            return
        hidden = round(self.mask_ratio * patches)
        if not 1 <= hidden <= patches - 1:
            message = (
                f"mask_ratio ({self.mask_ratio:g}) hides {hidden} of {patches} patches; "
                f"it must hide at least 1 and leave at least 1: "
                f"choose between {1 / patches:.3g} and {1 - 1 / patches:.3g}"
            )
            yield Conflict(("mask_ratio", "context_length", "patch_size"), message)


class VerifySettings(Settings):
    """`biofound verify`: measure the properties that usually break."""

    command: ClassVar[str] = "verify"

    checkpoint: Path | None = setting(None, "Check this checkpoint's model as well.", panel=_DATA)
    data_dir: Path | None = setting(
        None, "Check this window store: checksums, shapes, channels, patients.", panel=_DATA
    )
    seed: int = setting(
        42, "Seed of the weights and windows made for the checks.", panel=_MACHINE, ge=0, lt=2**32
    )


class InflateSettings(Settings):
    """`biofound inflate`: give a pretrained encoder more input channels."""

    command: ClassVar[str] = "inflate"

    checkpoint: Path = setting(REQUIRED, "Checkpoint written by `biofound pretrain`.", panel=_DATA)
    to: int = setting(REQUIRED, "Number of channels afterwards.", panel="Channels", unit="channels", ge=1)
    channels: ChannelNames | None = setting(
        None,
        "Names of all channels afterwards, in their new order, separated by commas; "
        "by default those of the section finetune of the channel table.",
        panel="Channels",
    )
    channels_yaml: Path | None = setting(None, _CHANNELS_YAML, panel="Channels")
    output: Path | None = setting(
        None,
        "File to write; by default beside the checkpoint, with its name and the channel count.",
        panel=_OUTPUT,
    )
    seed: int = setting(42, "Seed of the new channels' weights.", panel=_OUTPUT, ge=0, lt=2**32)

    @field_validator("channels")
    @classmethod
    def _are_channel_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else check_channel_names(names)

    def conflicts(self) -> Iterator[Conflict]:
        """As many names as channels."""
        if self.channels is not None and len(self.channels) != self.to:
            message = f"channels names {len(self.channels)} ({', '.join(self.channels)}), but to is {self.to}"
            yield Conflict(("channels", "to"), message)


COMMANDS: tuple[type[Settings], ...] = (
    PrepareSettings,
    WindowsSettings,
    PretrainSettings,
    VerifySettings,
    InflateSettings,
)
"""Every command's settings, in the order of the work."""


# ---------------------------------------------------------------------------------------------------------
# Helpers


def check_channel_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, when each is a possible channel name and none comes twice; else ValueError."""
    bad = [name for name in names if not re.match(CHANNEL_NAME, name)]
    if bad:
        raise ValueError(f"expected names of letters, digits and _, beginning with a letter, got {bad[0]!r}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected each channel once, got {', '.join(twice)} more than once")
    return names


def nearest_multiples(length: int, patch: int) -> list[int]:
    """The context lengths around `length` that hold at least 2 whole patches."""
    below = max(length // patch, 2) * patch
    return [below] if below > length else [below, below + patch]


def nearest_divisors(length: int, patch: int) -> list[int]:
    """The patch sizes around `patch` that divide `length` into at least 2 patches."""
    divisors = [size for size in range(1, length // 2 + 1) if length % size == 0]
    below = [size for size in divisors if size < patch][-1:]
    return below + [size for size in divisors if size > patch][:1]


def _either(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)


def _read(kind: type, value: Any, otherwise: Any) -> Any:
    """`value` as `kind`, or `otherwise` where it is none: its own field reports that."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return otherwise

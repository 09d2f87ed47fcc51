"""Settings of `biofound pretrain`."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from biofound.core.masking import MaskType, hidden_patches
from biofound.core.sampler import Shuffle
from biofound.data.channels import PRETRAIN_CHANNELS
from biofound.data.sources.populations import PopulationName
from biofound.settings.base import (
    CheckpointFile,
    Conflict,
    Derived,
    Settings,
    setting,
    split_commas,
    split_path_list,
)
from biofound.settings.channels import CHANNELS_YAML_HELP, ChannelNames
from biofound.settings.probe import ANNOTATIONS, NUMERICS
from biofound.settings.windows import DEFAULT_STORE

Lengths = Annotated[tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...], BeforeValidator(split_commas)]
PatchEmbedding = Literal["linear", "convolutional"]
DEFAULT_OUTPUT = Path("artifacts/foundation_model")
STREAM_PREFIX = "synthetic:"
"""What a synthetic stream among the data directories begins with."""
TRUTH = "truth"
"""The word for labels that are known of the windows of a synthetic stream."""
_MASK, _OPTIMISATION, _MACHINE = "Masking and loss", "Optimisation", "Machine and run"
_PROBE = "Probe of the validation windows"


class PretrainSettings(Settings):
    """Pretrain an encoder on windows by reconstructing hidden patches."""

    command: ClassVar[str] = "pretrain"
    file_option: ClassVar[str | None] = "config"

    FAST: ClassVar[Mapping[str, Any]] = {
        "epochs": 8,
        "warmup_epochs": 1,
        "batch_size": 32,
        "save_interval": 4,
    }
    """What `fast` changes, for a run of minutes at most on 2 cores."""

    config: Path | None = setting(
        None,
        "Settings: a YAML file, or a recipe by name: ssl_pretrain (the defaults), small_data, seed_card.",
        panel="Data",
        in_file=False,
    )
    data_dir: Annotated[tuple[str, ...], BeforeValidator(split_path_list)] = setting(
        (),
        "Window store, directory of train_windows.npz and val_windows.npz, or "
        "synthetic:<population>[:<weight>] for windows generated as training goes, weight (1 by default) "
        f"for each window of the stores; by default {DEFAULT_STORE} where it exists, else the embedded "
        "synthetic cohort.",
        panel="Data",
        may_be_path=True,
        repeatable=True,
    )
    hours_per_epoch: float = setting(
        10.0,
        "Synthetic signal in an epoch, where no store has training windows.",
        panel="Data",
        unit="hours",
        gt=0,
        le=10_000,
    )
    channels: ChannelNames = setting(
        PRETRAIN_CHANNELS, "Channels to train on, separated by commas.", panel="Data", min_length=1
    )
    channels_yaml: Path | None = setting(None, CHANNELS_YAML_HELP, panel="Data")
    random_crop: bool = setting(
        True, "Start training windows at random places inside segments of adjacent windows.", panel="Data"
    )
    shuffle: Shuffle = setting(
        "full",
        "full: any order; block: read neighbouring windows together, for disks with slow random access.",
        panel="Data",
    )
    output_dir: Path = setting(
        DEFAULT_OUTPUT, "Directory for checkpoints, history and pictures.", panel="Output"
    )
    resume: bool = setting(
        False,
        "Resume the run in the output directory; start one where there is none.",
        panel="Output",
        in_file=False,
    )
    resume_from: Path | None = setting(
        None,
        "Resume from this checkpoint, into the output directory.",
        panel="Output",
        in_file=False,
    )
    init_from: CheckpointFile | None = setting(
        None,
        "Start a new run from the weights of this checkpoint of pretrain or inflate; channels that it lacks "
        "are inflated. Model settings that are not given are its own.",
        panel="Model",
        in_file=False,
    )
    force: bool = setting(
        False,
        "Resume even though settings that shape the result differ.",
        panel="Output",
        in_file=False,
    )
    checkpoint_minutes: float = setting(
        10.0,
        "Time between checkpoints within an epoch; 0 saves only at its end.",
        panel="Output",
        unit="minutes",
        ge=0,
    )
    on_write_error: Literal["stop", "continue"] = setting(
        "stop", "Stop or continue when a file cannot be written.", panel="Output"
    )
    tensorboard: bool = setting(
        False,
        "Write TensorBoard events too (needs the extra biofound[tensorboard]).",
        panel="Output",
    )
    log_interval: int = setting(
        10, "Optimizer steps between progress lines.", panel="Output", unit="steps", ge=1
    )
    save_interval: int = setting(
        10, "Epochs between the checkpoints that are kept.", panel="Output", unit="epochs", ge=1
    )
    probe_labels: str | None = setting(
        None,
        "Probe the encoder on validation windows with these labels: a CSV with case_id, start_s, end_s and "
        "labels; numerics or annotations, those of recordings; or truth, that of a synthetic stream.",
        panel=_PROBE,
        may_be_path=True,
        min_length=1,
    )
    probe_target: str = setting(
        "HR",
        "Label to predict: a column of the CSV, a numeric, or of annotations and truth HR or rhythm.",
        panel=_PROBE,
        min_length=1,
    )
    probe_labels_root: Path | None = setting(
        None,
        "Where the recordings with the numerics or annotations are now; by default where they were.",
        panel=_PROBE,
    )
    probe_interval: int = setting(
        5, "Epochs between probes; the last epoch always has one.", panel=_PROBE, unit="epochs", ge=1
    )
    best_by: Literal["loss", "probe"] = setting(
        "loss",
        "What the best checkpoint has: the lowest validation loss, or the smallest probe error.",
        panel=_PROBE,
    )
    context_length: int = setting(
        1250, "Length of a window.", panel="Model", unit="samples", ge=2, le=1_000_000
    )
    patch_size: int = setting(
        125, "Length of a patch; it must divide the context.", panel="Model", unit="samples", ge=1
    )
    patch_embedding: PatchEmbedding = setting(
        "convolutional",
        "linear: each patch by itself; convolutional: also by convolutions over the whole window.",
        panel="Model",
    )
    d_model: int = setting(192, "Width of the latent vectors.", panel="Model", ge=1)
    num_layers: int = setting(4, "Mixer layers of the encoder.", panel="Model", ge=1)
    expansion_factor: int = setting(2, "MLP expansion ratio of the mixer layers.", panel="Model", ge=1)
    dropout: float = setting(0.0, "Dropout of the encoder; it makes steps slower.", panel="Model", ge=0, lt=1)
    mask_ratio: float = setting(0.4, "Fraction of the patches that are hidden.", panel=_MASK, gt=0, lt=1)
    mask_type: MaskType = setting(
        "random", "random: any patches; block: one contiguous block a window.", panel=_MASK
    )
    channel_dropout: float = setting(
        0.0,
        "Probability that a training window loses one or more of its channels, never all: the encoder then "
        "also serves windows without them.",
        panel=_MASK,
        ge=0,
        le=1,
    )
    stft_weight: float = setting(0.3, "Weight of the STFT loss beside the MSM loss.", panel=_MASK, ge=0)
    stft_windows: Lengths = setting(
        (64, 128, 256),
        "Window lengths of the STFT loss, separated by commas; by default those that fit the context.",
        panel=_MASK,
        unit="samples",
        min_length=1,
    )
    stft_floor: float = setting(
        1e-3,
        "Floor added to the power before the logarithm of the STFT loss, for signals of unit variance.",
        panel=_MASK,
        gt=0,
        le=1,
    )
    global_weight: float = setting(
        0.3,
        "Weight of the global term: autocorrelation and spectrum of the whole window, from the latents.",
        panel=_MASK,
        ge=0,
    )
    rhythm_weight: float = setting(
        0.1,
        "Weight of the rhythm term: likely beat intervals of the whole window, from the latents.",
        panel=_MASK,
        ge=0,
    )
    rate_weight: float = setting(
        0.0,
        "Weight of the rate term: the log heart rate of synthetic windows, from the latents.",
        panel=_MASK,
        ge=0,
    )
    qrs_weight: float = setting(
        0.0,
        "Weight of the QRS term: the QRS amplitude of the ECG in hidden patches, so that beats are placed.",
        panel=_MASK,
        ge=0,
    )
    epochs: int = setting(100, "Passes over the training windows.", panel=_OPTIMISATION, unit="epochs", ge=1)
    steps: int | None = setting(
        None,
        "Optimizer steps in place of epochs, rounded up to whole epochs; the warm-up is at most a tenth of "
        "them.",
        panel=_OPTIMISATION,
        unit="steps",
        ge=1,
    )
    batch_size: int = setting(128, "Windows in an optimizer step.", panel=_OPTIMISATION, unit="windows", ge=1)
    lr: float = setting(5e-4, "Peak learning rate of AdamW.", panel=_OPTIMISATION, gt=0, le=1)
    weight_decay: float = setting(
        0.01, "Weight decay (not on biases, norms and embeddings).", panel=_OPTIMISATION, ge=0, le=1
    )
    warmup_epochs: int = setting(
        10,
        "Epochs of linear warm-up before the cosine decay; by default at most a tenth of the epochs.",
        panel=_OPTIMISATION,
        unit="epochs",
        ge=0,
    )
    gradient_clip: float = setting(
        1.0, "Gradient clipping: largest norm of the gradient.", panel=_OPTIMISATION, gt=0
    )
    seed: int = setting(42, "Seed of weights, order, crops and masks.", panel=_OPTIMISATION, ge=0, lt=2**32)
    fast: bool = setting(
        False,
        "Preset for a run of minutes on 2 cores: " + ", ".join(f"{k} {v}" for k, v in FAST.items()) + ".",
        panel=_MACHINE,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Device to compute on; auto takes CUDA where it is available.", panel=_MACHINE
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "Number format of matrix products; auto takes bf16 where the hardware is faster in it.",
        panel=_MACHINE,
    )
    no_amp: bool = setting(
        False,
        "Switch off automatic mixed precision: the same as --precision fp32.",
        panel=_MACHINE,
        off_name="amp",
    )
    compile: bool = setting(False, "Compile the model: slower start, faster steps.", panel=_MACHINE)
    threads: int | None = setting(
        None, "CPU threads of torch; by default torch's own choice.", panel=_MACHINE, ge=1
    )

    @property
    def data_dirs(self) -> tuple[str, ...]:
        """The directories and streams to train on: those given, else the default store."""
        return self.data_dir or (str(DEFAULT_STORE),)

    @property
    def rhythm_head(self) -> bool:
        """Whether the model needs the head of the global and rhythm terms."""
        return self.global_weight > 0 or self.rhythm_weight > 0

    @property
    def rate_head(self) -> bool:
        """Whether the model needs the head of the rate term."""
        return self.rate_weight > 0

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults that `fast` changes."""
        return cls.FAST if _read(bool, given.get("fast"), False) else {}

    @classmethod
    def derived_defaults(cls, given: Mapping[str, Any]) -> dict[str, Derived]:
        """Short runs get a short warm-up, and short contexts the STFT windows that fit them."""
        derived = {}
        epochs = _read(int, given.get("epochs"), None)
        normal = cls.model_fields["warmup_epochs"].default
        if "warmup_epochs" not in given and epochs is not None and 1 <= (tenth := -(-epochs // 10)) < normal:
            derived["warmup_epochs"] = Derived(tenth, f"default for {epochs} epochs")
        context = _read(int, given.get("context_length"), None)
        windows = cls.model_fields["stft_windows"].default
        if "stft_windows" not in given and context is not None and 4 <= context < max(windows):
            fitting = tuple(n for n in windows if n <= context) or (2 ** int(math.log2(context)),)
            derived["stft_windows"] = Derived(fitting, f"default for context_length {context}")
        return derived

    def conflicts(self) -> Iterator[Conflict]:
        """Yields lengths that do not divide, masks that hide nothing or all, options that contradict."""
        yield from self._data_conflicts()
        yield from self._probe_conflicts()
        yield from self._patch_conflicts()
        if self.warmup_epochs > self.epochs:
            message = f"warmup_epochs ({self.warmup_epochs}) must not exceed epochs ({self.epochs})"
            yield Conflict(("warmup_epochs", "epochs"), message)
        if max(self.stft_windows) > self.context_length:
            longest = max(self.stft_windows)
            message = f"stft_windows (up to {longest}) must fit context_length ({self.context_length})"
            yield Conflict(("stft_windows", "context_length"), message)
        if self.channel_dropout and len(self.channels) < 2:
            message = f"channel_dropout needs two channels or more, and channels is {self.channels[0]}"
            yield Conflict(("channel_dropout", "channels"), message)
        if self.resume and self.resume_from is not None:
            yield Conflict(("resume", "resume_from"), "resume and resume_from name two runs: leave one out")
        if self.init_from is not None and (self.resume or self.resume_from is not None):
            other = "resume" if self.resume else "resume_from"
            message = (
                f"init_from starts a new run, and {other} goes on with one: leave one of them out (a run "
                "that was started with init_from is resumed without it)"
            )
            yield Conflict(("init_from", other), message)
        if self.force and not self.resume and self.resume_from is None:
            yield Conflict(("force", "resume"), "force belongs to resume or resume_from: leave it out")
        if self.no_amp and self.precision in ("bf16", "fp16"):
            message = f"no_amp means fp32, but precision is {self.precision}: leave one of them out"
            yield Conflict(("no_amp", "precision"), message)

    def options_for(self, samples: int) -> dict[str, Any]:
        """The settings to change for windows of so many samples: `context_length`, and what then must follow.

        Empty where none of the patch sizes nearest to `patch_size`, up to twice or half of it, will do.
        """
        for patch in (self.patch_size, *nearest_divisors(samples, self.patch_size)):
            changed: dict[str, Any] = {"context_length": samples}
            if patch != self.patch_size:
                changed["patch_size"] = patch
            if max(self.stft_windows) > samples:
                derived = self.derived_defaults(changed)
                changed |= {name: default.value for name, default in derived.items()}
            try:
                type(self).model_validate({**self.model_dump(), **changed})
            except ValidationError:
                continue
            if self.patch_size / 2 <= patch <= self.patch_size * 2:
                return changed
        return {}

    def streams(self) -> dict[str, tuple[str, float]]:
        """The synthetic streams in `data_dir`: each one's text to its population and weight.

        Raises:
            ValueError: when a text is no stream's.
        """
        found = {}
        for text in self.data_dir:
            if text.startswith(STREAM_PREFIX):
                population, _, weight = text.removeprefix(STREAM_PREFIX).partition(":")
                if population not in get_args(PopulationName) or not _is_weight(weight or "1"):
                    raise ValueError(
                        f"data_dir: expected synthetic:<{'|'.join(get_args(PopulationName))}>[:<weight above "
                        f"0>], such as synthetic:icu:0.5, got {text!r}"
                    )
                found[text] = (population, float(weight or 1))
        return found

    def _data_conflicts(self) -> Iterator[Conflict]:
        try:
            populations = [population for population, _ in self.streams().values()]
        except ValueError as problem:
            yield Conflict(("data_dir",), str(problem))
            return
        twice = len(set(populations)) < len(populations) or len(set(self.data_dir)) < len(self.data_dir)
        if twice:
            yield Conflict(("data_dir",), "data_dir: every directory and population at most once")
        if self.rate_weight and not populations:
            message = "rate_weight: the rate term learns from synthetic windows: add data_dir synthetic:icu"
            yield Conflict(("rate_weight", "data_dir"), message)

    def _probe_conflicts(self) -> Iterator[Conflict]:
        labels = self.probe_labels
        if labels is None:
            if self.best_by == "probe":
                yield Conflict(("best_by", "probe_labels"), "best_by probe needs probe_labels")
            if self.probe_labels_root is not None:
                yield Conflict(("probe_labels_root", "probe_labels"), "probe_labels_root needs probe_labels")
            return
        if self.probe_labels_root is not None and labels not in (NUMERICS, ANNOTATIONS):
            message = "probe_labels_root is about numerics and annotations"
            yield Conflict(("probe_labels_root", "probe_labels"), message)
        if labels == TRUTH and not any(name.startswith(STREAM_PREFIX) for name in self.data_dir):
            message = "probe_labels truth is that of a synthetic stream: add data_dir synthetic:icu"
            yield Conflict(("probe_labels", "data_dir"), message)
        if labels not in (NUMERICS, ANNOTATIONS, TRUTH) and not Path(labels).is_file():
            message = f"probe_labels: expected {NUMERICS}, {ANNOTATIONS}, {TRUTH} or a CSV, got {labels!r}"
            yield Conflict(("probe_labels",), f"{message}, which is no file")

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
        try:
            hidden_patches(ratio=self.mask_ratio, patches=patches)
        except ValueError as problem:
            yield Conflict(("mask_ratio", "context_length", "patch_size"), str(problem))


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


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
    """`value` as `kind`; `otherwise` where it is invalid, which its own field reports."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return otherwise

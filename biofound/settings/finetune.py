"""Settings of `biofound finetune`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from biofound.settings.base import REQUIRED, CheckpointFile, Conflict, Settings, setting, split_commas
from biofound.settings.channels import CHANNELS_YAML_HELP, ChannelNames
from biofound.settings.pretrain import DEFAULT_OUTPUT
from biofound.settings.probe import ANNOTATIONS, LABELS_HELP, LABELS_ROOT_HELP, NUMERICS, TARGET_HELP

Head = Literal["linear", "mlp", "attention"]
STAGES = ("head", "layers", "all")
SUBSETS = ";"
"""What separates subsets of channels in a variable."""
_STAGES, _HEAD, _SCORES = "Stages", "Task and head", "Evaluation"
_OPTIMISATION, _MACHINE = "Optimisation", "Machine and run"


def _split_subsets(value: Any) -> Any:
    """`PPG,ECG;PPG` -> [["PPG", "ECG"], ["PPG"]]; other values stay."""
    return [split_commas(part) for part in value.split(SUBSETS)] if isinstance(value, str) else value


class FinetuneSettings(Settings):
    """Fine-tune a pretrained encoder on labelled windows, beside baselines on the same windows."""

    command: ClassVar[str] = "finetune"

    checkpoint: CheckpointFile = setting(
        DEFAULT_OUTPUT / "best_model.pt", "Checkpoint written by `biofound pretrain`.", panel="Data"
    )
    data_dir: Path = setting(
        REQUIRED,
        "Window store, or directory of <split>_windows.npz, with train, val and test of different subjects.",
        panel="Data",
    )
    channels: Annotated[tuple[ChannelNames, ...], BeforeValidator(_split_subsets)] = setting(
        (),
        "Channels to use, separated by commas; repeated, each subset is trained and all are compared in one "
        "table (in a variable separated by semicolons). By default all of the windows. Channels that the "
        "checkpoint lacks are added to it; it may have others if it was trained with channel dropout.",
        panel="Data",
        repeatable=True,
        separator=SUBSETS,
    )
    channels_yaml: Path | None = setting(None, CHANNELS_YAML_HELP, panel="Data")
    labels: str = setting(
        REQUIRED,
        LABELS_HELP,
        panel="Labels",
        may_be_path=True,
        min_length=1,
    )
    target: str = setting(
        REQUIRED,
        TARGET_HELP,
        panel="Labels",
        min_length=1,
    )
    labels_root: Path | None = setting(None, LABELS_ROOT_HELP, panel="Labels")
    task: Literal["classification", "regression"] = setting(
        REQUIRED, "classification: the label names a class; regression: it is a number.", panel=_HEAD
    )
    head: Head = setting(
        "linear",
        "linear: of mean and standard deviation over the patches, fitted as a linear probe before the first "
        "step; mlp: with a hidden layer; attention: of a learned weighted mean over the patches.",
        panel=_HEAD,
    )
    head_hidden: int = setting(64, "Width of the hidden layer of mlp and attention.", panel=_HEAD, ge=1)
    head_dropout: float = setting(0.0, "Dropout before the last layer of the head.", panel=_HEAD, ge=0, lt=1)
    class_weights: bool = setting(
        True, "Weigh the classes so that each counts the same in the loss.", panel=_HEAD
    )
    head_epochs: int = setting(
        10, "Epochs at most that train the head alone; 0 skips the stage.", panel=_STAGES, unit="epochs", ge=0
    )
    head_lr: float = setting(
        1e-3, "Peak learning rate of the stage that trains the head.", panel=_STAGES, gt=0, le=1
    )
    layers_epochs: int = setting(
        10,
        "Epochs at most that also train the last mixer layers and the channel fusion behind them; 0 skips "
        "the stage.",
        panel=_STAGES,
        unit="epochs",
        ge=0,
    )
    layers_lr: float = setting(
        3e-4, "Peak learning rate of the stage that trains the last layers.", panel=_STAGES, gt=0, le=1
    )
    unfreeze_layers: int = setting(
        2, "Mixer layers, counted from the last, that this stage trains.", panel=_STAGES, unit="layers", ge=1
    )
    all_epochs: int = setting(
        20, "Epochs at most that train everything; 0 skips the stage.", panel=_STAGES, unit="epochs", ge=0
    )
    all_lr: float = setting(
        1e-4, "Peak learning rate of the stage that trains everything.", panel=_STAGES, gt=0, le=1
    )
    patience: int = setting(
        5,
        "End a stage when the validation loss has not fallen for so many epochs.",
        panel=_STAGES,
        unit="epochs",
        ge=1,
    )
    folds: int | None = setting(
        None,
        "Cross-validate over all windows, in folds that no subject crosses, instead of training on train and "
        "testing on test.",
        panel=_SCORES,
        ge=3,
        le=100,
    )
    repeats: int = setting(
        1,
        "How often the subjects are dealt into folds anew; scores are averaged.",
        panel=_SCORES,
        ge=1,
        le=100,
    )
    batch_size: int = setting(64, "Windows in an optimizer step.", panel=_OPTIMISATION, unit="windows", ge=1)
    weight_decay: float = setting(
        0.01, "Weight decay (not on biases, norms and embeddings).", panel=_OPTIMISATION, ge=0, le=1
    )
    gradient_clip: float = setting(
        1.0, "Gradient clipping: largest norm of the gradient.", panel=_OPTIMISATION, gt=0
    )
    seed: int = setting(
        42, "Seed of new weights, order, folds and intervals.", panel=_OPTIMISATION, ge=0, lt=2**31
    )
    output_dir: Path = setting(
        Path("artifacts/finetuned_model"), "Directory for models, history and results.", panel="Output"
    )
    resume: bool = setting(
        False,
        "Resume the run in the output directory; start one where there is none.",
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
    log_interval: int = setting(
        10, "Optimizer steps between progress lines.", panel="Output", unit="steps", ge=1
    )
    save_interval: int = setting(
        10, "Epochs between the checkpoints that are kept.", panel="Output", unit="epochs", ge=1
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Device to compute on; auto takes CUDA where it is available.", panel=_MACHINE
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "Number format of matrix products; auto takes bf16 where the hardware is faster in it.",
        panel=_MACHINE,
    )
    threads: int | None = setting(
        None, "CPU threads of torch; by default torch's own choice.", panel=_MACHINE, ge=1
    )

    @property
    def schedule(self) -> tuple[tuple[str, int, float], ...]:
        """The stages that are not skipped: name, epochs at most, and peak learning rate."""
        every = ((name, getattr(self, f"{name}_epochs"), getattr(self, f"{name}_lr")) for name in STAGES)
        return tuple(stage for stage in every if stage[1])

    def conflicts(self) -> Iterator[Conflict]:
        """Yields a schedule without epochs, repeats without folds, subsets named twice, needless roots."""
        if not self.schedule:
            fields = tuple(f"{name}_epochs" for name in STAGES)
            yield Conflict(fields, f"{', '.join(fields)} are all 0: nothing would be trained")
        if self.repeats > 1 and self.folds is None:
            yield Conflict(("repeats", "folds"), "repeats is about folds: give folds too, or leave it out")
        if len({frozenset(subset) for subset in self.channels}) < len(self.channels):
            yield Conflict(("channels",), "channels: expected different subsets, got one of them twice")
        if self.labels_root is not None and self.labels not in (NUMERICS, ANNOTATIONS):
            yield Conflict(("labels_root", "labels"), "labels_root is about numerics and annotations")

"""Initial weights of `biofound pretrain` from a checkpoint (`--init-from`): settings, checks and transfer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from biofound.commands.pretrain_data import describe_data, parts_of
from biofound.commands.pretrain_resume import checkpoint_to_resume
from biofound.commands.probe_data import check_fit
from biofound.core.checkpoint import Checkpoint, Parent, load_checkpoint
from biofound.core.inflate import Inflation, transfer_weights
from biofound.core.models import ModelConfig
from biofound.data.mixture import Part
from biofound.data.windows import Windows
from biofound.errors import DataError, SettingsError, checkpoint_error_context
from biofound.options import Invocation
from biofound.settings import PretrainSettings

HEADS = ("rhythm_head", "rate_head")
"""Of the model settings those that follow from the weights of the loss terms."""


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """A model with the weights of `checkpoint`, what became of each tensor, and the parent to record."""

    checkpoint: Checkpoint
    inflation: Inflation
    parent: Parent

    def summary(self) -> str:
        """The row of the first table."""
        parent, channels = self.parent, ", ".join(self.parent.channels)
        return f"{parent.path} ({channels}; epoch {parent.epoch}; SHA-256 {parent.sha256[:12]})"


def complete_settings(invocation: Invocation[PretrainSettings]) -> Invocation[PretrainSettings]:
    """Take the model settings that are not given from the checkpoint to start from.

    So does a resumed run that was started from one. Other invocations are left as they are.

    Raises:
        CheckpointError: when the checkpoint cannot be read.
        SettingsError: when they do not fit the settings that are given.
    """
    settings = invocation.settings
    path = settings.init_from or checkpoint_to_resume(settings)
    if path is None:
        return invocation
    checkpoint = load_checkpoint(path)
    if settings.init_from is None and checkpoint.parent is None:
        return invocation
    model = {name: value for name, value in vars(checkpoint.model).items() if name not in HEADS}
    resolved = invocation.resolved.with_defaults(model, origin=f"checkpoint {path}")
    return replace(invocation, settings=resolved.settings, resolved=resolved)


def read_initial_weights(path: Path, settings: PretrainSettings) -> InitialWeights:
    """The model of the settings with the weights of the checkpoint at `path`.

    Raises:
        CheckpointError: when it cannot be read.
        SettingsError: when the settings describe another model, or leave out one of its channels.
    """
    checkpoint = load_checkpoint(path)
    try:
        with checkpoint_error_context(path):
            inflation = transfer_weights(checkpoint, settings.fill(ModelConfig), seed=settings.seed)
    except SettingsError as problem:
        raise SettingsError(f"--init-from {path}: {problem}") from problem
    return InitialWeights(checkpoint=checkpoint, inflation=inflation, parent=checkpoint.as_parent(path))


def refuse_unfit_windows(
    initial: InitialWeights, train: Windows, val: Windows, settings: PretrainSettings
) -> None:
    """Refuse windows of another rate, filter or unit than the checkpoint was trained on.

    Raises:
        DataError: when they differ, also where the windows do not say them and the channel table does.
    """
    name, checkpoint = f"--init-from {settings.init_from}", initial.checkpoint
    check_fit(
        name, checkpoint, [part.windows for windows in (train, val) for part in parts_of(windows, name="")]
    )
    ours, theirs = describe_data(train, val, settings), checkpoint.data
    for channel in checkpoint.model.channels:
        for what in ("filters", "units"):
            assumed, known = getattr(ours, what)[channel], getattr(theirs, what)[channel]
            if assumed != known:
                raise DataError(
                    f"{name}: was trained on windows whose {what[:-1]} of {channel} is {known}; these do not "
                    f"say theirs, and the channel table has {assumed}: give the table that describes them "
                    "(--channels-yaml)"
                )


def refuse_patients_of_ancestors(ancestors: Iterable[Parent], val: Sequence[Part]) -> None:
    """Refuse validation windows of patients on whom the weights were trained before.

    Raises:
        DataError: when there is such a patient.
    """
    for parent in ancestors:
        for part in val:
            shared = sorted(set(part.windows.subjects) & set(parent.subjects))
            if shared:
                some = f"{', '.join(shared[:5])}{', …' if len(shared) > 5 else ''}"
                raise DataError(
                    f"{part.name}: {len(shared)} validation patient(s) were in the training of {parent.path} "
                    f"({some}), whose weights the run starts from: the validation loss would be too good; "
                    "split with the seed of that run, or validate on others"
                )


def unchecked_ancestors(ancestors: Iterable[Parent]) -> str:
    """The ancestors that do not say on whom they were trained; empty where all do."""
    return ", ".join(parent.path for parent in ancestors if not (parent.subjects or parent.synthetic))

"""How settings become the plain values that the core takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from biofound.data.channels import Channel
from biofound.errors import CheckpointError, SettingsError
from biofound.settings import PretrainSettings, resolve_channels
from biofound.settings.models import Section

if TYPE_CHECKING:
    from biofound.core.models import ModelConfig
    from biofound.core.trainer import TrainConfig


def channels_named(names: Sequence[str], channels_yaml: Path | None, section: Section) -> list[Channel]:
    """The rows of the channel table for `names`, in their order.

    Raises:
        SettingsError: when names are not in the table.
    """
    table = resolve_channels(channels_yaml, section)
    known = {channel.name: channel for channel in table.channels}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SettingsError(
            f"channel {', '.join(unknown)}: not in {table.origin}, which has {', '.join(known)}; correct the "
            "name, or describe the channel in a table of your own (--channels-yaml)"
        )
    return [known[name] for name in names]


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """What is found wrong inside with a checkpoint that was read is told with the name of its file."""
    try:
        yield
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from problem


def model_config(settings: PretrainSettings) -> "ModelConfig":
    """The model that the settings ask for."""
    from biofound.core.models import ModelConfig

    return ModelConfig(
        channels=settings.channels,
        context_length=settings.context_length,
        patch_length=settings.patch_size,
        d_model=settings.d_model,
        num_layers=settings.num_layers,
        expansion_factor=settings.expansion_factor,
        dropout=settings.dropout,
        patch_embedding=settings.patch_embedding,
        rhythm_head=settings.global_weight > 0 or settings.rhythm_weight > 0,
    )


def train_config(settings: PretrainSettings, *, precision: Literal["fp32", "bf16", "fp16"]) -> "TrainConfig":
    """How the settings ask to train, in a precision that the machine has."""
    from biofound.core.trainer import TrainConfig

    return TrainConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        warmup_epochs=settings.warmup_epochs,
        gradient_clip=settings.gradient_clip,
        mask_ratio=settings.mask_ratio,
        mask_type=settings.mask_type,
        stft_weight=settings.stft_weight,
        stft_windows=settings.stft_windows,
        stft_floor=settings.stft_floor,
        global_weight=settings.global_weight,
        rhythm_weight=settings.rhythm_weight,
        random_crop=settings.random_crop,
        shuffle=settings.shuffle,
        seed=settings.seed,
        precision=precision,
        compile=settings.compile,
        log_interval=settings.log_interval,
        save_interval=settings.save_interval,
        checkpoint_minutes=settings.checkpoint_minutes,
        on_write_error=settings.on_write_error,
    )

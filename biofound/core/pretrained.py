"""Pretrained encoders in a few lines of Python: load, preprocess, embed; share on the Hugging Face Hub.

encoder = load_pretrained("artifacts/foundation_model/best_model.pt")
windows = encoder.preprocess(x, sfreq=250)
vectors = encoder.embed(windows.x)
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.readout import embed_windows
from biofound.core.readout_names import DEFAULT_BATCH_SIZE, DEFAULT_READOUT
from biofound.core.safetensors_file import CARD, CONFIG, config_json, portable, save_safetensors
from biofound.data.model_input import PreparedWindows, prepare_array
from biofound.errors import CheckpointError, DataError
from biofound.files import write_atomically, write_json
from biofound.model_card import model_card
from biofound.weights import WEIGHTS


class BiofoundEncoder(nn.Module, ModelHubMixin, library_name="biofound"):
    """A pretrained encoder with what its signal must go through: (B, C, T) -> (B, P, D).

    It starts in eval mode. `from_pretrained`, `save_pretrained` and `push_to_hub` are those of
    https://huggingface.co/docs/huggingface_hub/package_reference/mixins, with safetensors alone: no pickle is
    loaded.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Without the mixin's copy of the arguments into a configuration: the checkpoint describes itself."""
        instance: Self = object.__new__(cls)
        return instance

    def __init__(self, checkpoint: Checkpoint) -> None:
        """An encoder with a checkpoint's weights.

        Raises:
            CheckpointError: when the checkpoint's tensors do not fit its model.
        """
        super().__init__()
        self.checkpoint = checkpoint
        self.encoder = checkpoint.build().encoder
        self.eval()

    @property
    def channels(self) -> tuple[str, ...]:
        """The C channel names, in the order of the input."""
        return self.checkpoint.model.channels

    @property
    def units(self) -> dict[str, str]:
        """Channel name to the physical unit of its input."""
        return self.checkpoint.data.units

    @property
    def sfreq(self) -> float:
        """Sampling rate of the windows in Hz."""
        return self.checkpoint.data.sfreq

    @property
    def window_samples(self) -> int:
        """T."""
        return self.checkpoint.model.context_length

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """The latents (B, P, D) of windows x (B, C, T); see `biofound.core.models.Encoder.encode`."""
        latents: Tensor = self.encoder(x, observed=observed)
        return latents

    def preprocess(
        self, x: ArrayLike, *, sfreq: float, channels: Sequence[str] | None = None, gate: bool = True
    ) -> PreparedWindows:
        """Filter and resample a recording as the training's were, and cut it into windows.

        Args:
            x: (C, samples) in `units`, unfiltered; NaN in gaps.
            sfreq: its rate in Hz.
            channels: the names of the rows, in any order; by default `self.channels`. If the encoder was
                trained with channel dropout, some of its channels may be missing.
            gate: whether windows are left out whose quality is below the training's thresholds; those with
                gaps always are.

        Raises:
            ValueError: when `x`, `sfreq` or `channels` cannot be.
            DataError: when a channel is missing, or the rate is too low for its filter.
        """
        return prepare_array(
            x,
            sfreq=sfreq,
            names=channels,
            channels=self.channels,
            window_samples=self.window_samples,
            data=self.checkpoint.data,
            settings=self.checkpoint.settings,
            gate=gate,
        )

    def embed(
        self, x: ArrayLike, *, readout: str = DEFAULT_READOUT, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> NDArray[np.float32]:
        """One vector a window, (N, F), of windows x (N, C, T) as `preprocess` makes them.

        Raises:
            ValueError: when the windows are not of the model's shape, or there is no such read-out.
        """
        windows = np.asarray(x, np.float32)
        return embed_windows(self.encoder, windows, readout=readout, batch_size=batch_size)

    # -----------------------------------------------------------------------------------------------------
    # Sharing

    def save_pretrained(self, save_directory: str | Path, *, card: str | None = None, **_: Any) -> None:
        """Write a directory of `model.safetensors`, `config.json` and the card `README.md`.

        Without optimizer, run, paths and names of subjects. What was written is read back and compared.

        Args:
            save_directory: a directory that does not hold one of these files.
            card: the model card; by default one from the checkpoint alone.

        Raises:
            DataError: when a file is there.
            OSError: when the disk refuses.
        """
        directory = Path(save_directory)
        there = [name for name in (WEIGHTS, CONFIG, CARD) if (directory / name).exists()]
        if there:
            raise DataError(f"{directory}: holds {', '.join(there)} already; name another directory")
        write_directory(directory, portable(self._current()), card=card)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **_: Any,
    ) -> Self:
        directory = Path(model_id)
        if not directory.is_dir():
            directory = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[WEIGHTS, CONFIG],
                )
            )
        if not (directory / WEIGHTS).is_file():
            raise CheckpointError(
                f"{model_id}: no {WEIGHTS}; expected a directory or repository that `biofound export --to "
                "huggingface` made (other formats, pickles among them, are not loaded)"
            )
        return cls(load_checkpoint(directory / WEIGHTS))

    def _current(self) -> Checkpoint:
        """The checkpoint with the encoder's weights as they are; its metrics only where they still hold."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.encoder.state_dict().items()}
        changed = any(
            not torch.equal(tensor, self.checkpoint.encoder[name]) for name, tensor in state.items()
        )
        current = replace(self.checkpoint, encoder=state)
        return replace(current, metrics={}, best_val_loss=None) if changed else current


def load_pretrained(path: str | Path) -> BiofoundEncoder:
    """An encoder from a file or directory, or the weights of that name that biofound brings along.

    Encoders on the Hugging Face Hub: `BiofoundEncoder.from_pretrained("owner/name")`.

    Args:
        path: a checkpoint of `biofound pretrain`, what `biofound export` wrote, or a name.

    Raises:
        CheckpointError: when there is none, or it cannot be read.
    """
    return BiofoundEncoder(load_checkpoint(path))


def write_directory(directory: Path, shared: Checkpoint, *, card: str | None = None) -> None:
    """Write a Hugging Face directory of a portable checkpoint whole, and compare what it holds.

    Nothing half-written stays.

    Raises:
        CheckpointError: when what was written does not come back.
        OSError: when the disk refuses.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as place:
        draft = Path(place) / "draft"
        draft.mkdir()
        save_safetensors(draft / WEIGHTS, shared)
        write_json(draft / CONFIG, config_json(shared))
        text = card if card is not None else model_card(shared)
        write_atomically(draft / CARD, lambda file: file.write(text.encode()))
        require_same(load_checkpoint(draft / WEIGHTS), shared)
        if directory.is_dir():
            for name in (WEIGHTS, CONFIG, CARD):
                (draft / name).replace(directory / name)
        else:
            draft.replace(directory)


def require_same(read: Checkpoint, written: Checkpoint) -> None:
    """Compare a checkpoint that was read back with what was written.

    Raises:
        CheckpointError: when a value or tensor differs.
    """
    for part in ("encoder", "decoder"):
        before, after = getattr(written, part), getattr(read, part)
        if before.keys() != after.keys() or any(not torch.equal(before[k], after[k]) for k in before):
            raise CheckpointError(f"the {part} that was written does not come back: nothing was kept of it")
    if config_json(read) != json.loads(json.dumps(config_json(written))):
        raise CheckpointError("the description that was written does not come back: nothing was kept of it")

"""A small real model and small real windows, for tests that need no full size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core.checkpoint import Checkpoint, save_checkpoint
from biofound.core.models import ModelConfig, build_model
from biofound.core.scores import ScoredTask
from biofound.core.trainer import TrainConfig, Trainer
from biofound.core.validation_probe import ValidationProbe
from biofound.core.verify import probe_windows
from biofound.data.description import DataDescription
from biofound.data.windows import ArrayWindows

DEFAULT = {"context_length": 1250, "patch_size": 125, "d_model": 192, "num_layers": 4, "expansion_factor": 8}
SMALL = {"context_length": 250, "patch_size": 25, "d_model": 16, "num_layers": 2, "expansion_factor": 2}
DATA = DataDescription(
    sfreq=125.0,
    filters={
        "PPG": {"low_hz": 0.5, "high_hz": 8.0, "order": 4},
        "ECG": {"low_hz": 0.5, "high_hz": 40.0, "order": 4},
    },
    units={"PPG": "NU", "ECG": "mV"},
    quality_thresholds={"PPG": 0.5, "ECG": 0.5},
    max_gap_seconds=0.1,
    fingerprint="0" * 64,
    synthetic=True,
)
TRAINING = TrainConfig(
    epochs=3,
    batch_size=5,
    lr=1e-3,
    weight_decay=0.01,
    warmup_epochs=1,
    gradient_clip=1.0,
    mask_ratio=0.4,
    mask_type="random",
    channel_dropout=0.0,
    stft_weight=0.3,
    stft_windows=(32, 64, 128),
    stft_floor=1e-3,
    global_weight=0.0,
    rhythm_weight=0.0,
    rate_weight=0.0,
    qrs_weight=0.0,
    random_crop=True,
    shuffle="full",
    seed=7,
    precision="fp32",
    compile=False,
    log_interval=1,
    save_interval=2,
    checkpoint_minutes=0.0,
    on_write_error="stop",
)


class MemoryWindows(ArrayWindows):
    """Windows in memory; a crop shifts a window in time, round its end, and is recorded."""

    def __init__(self, windows):
        cases = [f"case{row}" for row in range(len(windows))]
        super().__init__(windows, channels=("PPG", "ECG"), sfreq=125.0, case_ids=cases)
        self.crops = []

    def read(self, index, crop=None):
        windows = super().read(index)
        if crop is None:
            return windows
        self.crops.append(crop)
        shift = (crop * self.window_samples).astype(int)
        return np.stack([np.roll(x, -s, axis=-1) for x, s in zip(windows, shift, strict=True)])


def validation_probe(windows, **changes):
    """A probe every 2 epochs of windows (N, 2, T): each next three of one subject, with a rate of its own."""
    row = np.arange(len(windows))
    task = ScoredTask(
        target="HR", values=60.0 + 7 * (row * 5 % 11), subjects=np.array([f"s{r // 3}" for r in row])
    )
    given = {"windows": MemoryWindows(windows), "task": task, "folds": 5, "interval": 2, "seed": 0}
    return ValidationProbe(**{**given, **changes})


@pytest.fixture
def config():
    return ModelConfig(channels=("PPG", "ECG"), dropout=0.0, **SMALL)


@pytest.fixture
def default_config():
    return ModelConfig(channels=("PPG", "ECG"), dropout=0.0, **DEFAULT)


@pytest.fixture
def model(config):
    return build_model(config, seed=0)


def checkpoint_of(model, **changes):
    """A checkpoint of `model` as after three epochs, without a run to resume."""
    described = {"settings": {"lr": 5e-4, "channels": ["PPG", "ECG"]}, "metrics": {"val": {"loss": 0.5}}}
    state = {"encoder": model.encoder.state_dict(), "decoder": model.decoder.state_dict()}
    progress = {"epoch": 3, "step": 17, "best_val_loss": 0.5}
    return Checkpoint(model=model.config, data=DATA, **{**state, **described, **progress, **changes})


@pytest.fixture
def checkpoint(model):
    return checkpoint_of(model)


@pytest.fixture
def path(tmp_path, checkpoint):
    """`checkpoint` as a file."""
    save_checkpoint(tmp_path / "best_model.pt", checkpoint)
    return tmp_path / "best_model.pt"


def small_windows():
    """Twelve windows of two seconds, (12, 2, 250)."""
    return probe_windows(windows=12, channels=2, samples=250, sfreq=125.0, seed=0)


@pytest.fixture
def windows():
    return small_windows()


@pytest.fixture
def x(windows):
    return torch.from_numpy(windows)


@pytest.fixture
def data():
    return DATA


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train_config():
    return TRAINING


def small_trainer(
    output,
    *,
    train,
    val,
    stop=lambda: False,
    dropout=0.0,
    model_seed=1,
    probe=None,
    **changes,
):
    """A trainer of the small model on `train`; other keywords change its `TrainConfig`."""
    config = ModelConfig(channels=("PPG", "ECG"), dropout=dropout, **SMALL)
    return Trainer(
        model=build_model(config, seed=model_seed),
        train=MemoryWindows(train) if isinstance(train, np.ndarray) else train,
        val=MemoryWindows(val),
        data=DATA,
        config=replace(TRAINING, **changes),
        settings={"seed": 7},
        output_dir=output,
        device=torch.device("cpu"),
        stop=stop,
        probe=probe,
    )


@pytest.fixture
def make_trainer(windows, tmp_path):
    """`small_trainer` on 12 windows, if no others are given, in a directory of the test."""

    def make(output=tmp_path / "run", *, train=windows, val=windows[:4], **changes):
        return small_trainer(output, train=train, val=val, **changes)

    return make

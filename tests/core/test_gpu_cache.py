import numpy as np
import pytest
import torch

from biofound.core.gpu_cache import GpuWindowCache, fits
from biofound.data.windows import open_windows, select_channels


@pytest.fixture
def stored(tmp_path):
    """20 windows: segments of 4, 1, 8 and 7 windows of two subjects, known by their start times."""
    random = np.random.default_rng(0)
    starts = np.array([0, 1, 2, 3, 7, *range(10, 18), *range(20, 27)], float) * 2.0
    np.savez(
        tmp_path / "train_windows.npz",
        x=random.standard_normal((20, 2, 250)).astype(np.float32),
        channels=["PPG", "ECG"],
        sfreq=125.0,
        start_s=starts,
        subjects=np.array(["a"] * 13 + ["b"] * 7),
    )
    return open_windows(tmp_path, "train")


@pytest.mark.parametrize("channels", [("PPG", "ECG"), ("ECG", "PPG"), ("ECG",)])
def test_a_gather_on_the_device_gives_what_the_disk_does(stored, channels):
    windows = select_channels(stored, channels)
    cache = GpuWindowCache(windows, torch.device("cpu"))
    random = np.random.default_rng(1)
    index = random.integers(0, 20, 200)
    crop = random.uniform(0, 1, 200)
    crop[:4] = 0.0
    assert np.array_equal(cache.read(index).numpy(), windows.read(index))
    assert np.array_equal(cache.read(index, crop).numpy(), windows.read(index, crop))
    assert not np.array_equal(windows.read(index, crop), windows.read(index))
    assert len(cache) == 20
    assert cache.info(index).case_id.tolist() == windows.info(index).case_id.tolist()


def test_nothing_is_cached_on_a_cpu(stored):
    assert not fits(stored, torch.device("cpu"))

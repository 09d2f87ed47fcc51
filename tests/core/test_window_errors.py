"""Error of reconstructions window by window, against one window at a time and by hand."""

import numpy as np
import pytest
import torch

from biofound.core.models import PretrainingModel
from biofound.core.window_errors import RANKS, WindowErrors, reconstruct, window_errors
from tests.core.conftest import MemoryWindows


def masks(index):
    rows = np.zeros((len(index), 10), np.bool_)
    rows[np.arange(len(index)), index % 10] = rows[:, 4] = True
    return rows


@pytest.fixture
def gappy(windows: np.ndarray) -> MemoryWindows:
    x = windows.copy()
    x[1, 0] = np.nan  # a whole channel is missing
    x[2] = np.nan
    return MemoryWindows(x)


def test_errors_are_those_of_single_windows(model: PretrainingModel, gappy: MemoryWindows) -> None:
    index = np.arange(len(gappy))[::-1].copy()
    found = window_errors(model, gappy, masks, index)
    for place, number in enumerate(index.tolist()):
        one = np.array([number])
        with torch.no_grad():
            out = model(torch.from_numpy(gappy.read(one)), torch.from_numpy(masks(one)))
        errors = [
            (out.values[0, c] - out.target[0, c])[out.loss_mask[0, c]].square().numpy() for c in range(2)
        ]
        by_hand = [error.mean() if error.size else np.nan for error in errors]
        np.testing.assert_allclose(found.by_channel[place], by_hand, rtol=1e-5)
        together = np.concatenate(errors)
        np.testing.assert_allclose(
            found.overall[place], together.mean() if together.size else np.nan, rtol=1e-5
        )
    assert np.isnan(found.by_channel[index == 1, 0]).all() and np.isnan(found.overall[index == 2]).all()


def test_ranks_leave_out_windows_without_anything_hidden() -> None:
    overall = np.array([0.5, np.nan, 0.1, 0.9, 0.3])
    errors = WindowErrors(index=np.arange(5), overall=overall, by_channel=overall[:, None])
    assert errors.ranked() == dict(zip(RANKS, (2, 4, 3), strict=True))
    nothing = WindowErrors(index=np.arange(1), overall=np.array([np.nan]), by_channel=np.ones((1, 1)))
    assert nothing.ranked() == {}


def test_reconstructions_are_in_the_units_of_the_signal(model: PretrainingModel, windows: np.ndarray) -> None:
    stored = MemoryWindows(windows)
    index = np.array([3, 0])
    for place, one in zip(index, reconstruct(model, stored, masks, index), strict=True):
        np.testing.assert_array_equal(one.signal, windows[place])
        assert one.hidden.reshape(10, -1).all(axis=1).sum() == 2 - (place % 10 == 4)
        scaled = MemoryWindows(windows * 7 + 3)
        (other,) = reconstruct(model, scaled, masks, np.array([place]))
        np.testing.assert_allclose(other.reconstruction, one.reconstruction * 7 + 3, rtol=1e-3, atol=1e-3)

"""Mixtures of stores and synthetic streams."""

import numpy as np
import pytest

from biofound.data.mixture import MixedWindows, Part
from biofound.data.stream import SyntheticStream
from biofound.data.windows import ArrayWindows
from biofound.errors import DataError
from biofound.settings import resolve_channels

CHANNELS = resolve_channels(None, "pretrain").channels
FILTERS = {channel.name: channel.band.as_json() for channel in CHANNELS}


def stored(windows=7, *, seed=0, channels=("PPG", "ECG"), subject="a"):
    x = np.random.default_rng(seed).standard_normal((windows, 2, 1250)).astype(np.float32)
    return ArrayWindows(
        x,
        channels=channels,
        sfreq=125.0,
        subjects=[subject] * windows,
        start_s=np.arange(windows) * 10.0,
        filters=FILTERS,
        fingerprint=f"{seed}",
    )


def stream(**changes):
    return SyntheticStream(**{"population": "icu", "channels": CHANNELS, "hours": 12 / 360, **changes})


def mixture(**changes):
    parts = [stored(), stream(**changes), stored(5, seed=1, subject="b")]
    return MixedWindows([Part(name=str(k), windows=part) for k, part in enumerate(parts)])


def test_windows_stand_one_part_after_the_other():
    mixed = mixture()
    assert len(mixed) == 7 + 12 + 5
    assert mixed.subjects == ("a", "b") and not mixed.synthetic
    assert mixed.synthetic_share == 0.5
    index = np.array([23, 7, 0, 18, 6, 19])
    crop = np.linspace(0, 0.9, 6)
    got = mixed.read(index, crop)
    first, middle, last = (part.windows for part in mixed.parts)
    expected = [
        last.read(np.array([4]), crop[:1]),
        middle.read(np.array([0]), crop[1:2]),
        first.read(np.array([0]), crop[2:3]),
        middle.read(np.array([11]), crop[3:4]),
        first.read(np.array([6]), crop[4:5]),
        last.read(np.array([0]), crop[5:6]),
    ]
    assert np.array_equal(got, np.concatenate(expected))
    info = mixed.info(index)
    assert info.subject_id.tolist()[::2] == ["b", "a", "a"]
    assert info.start_s.tolist() == [40.0, 0.0, 0.0, 50.0, 60.0, 0.0]
    segments = mixed.segments()
    assert segments.first.tolist() == [0] * 7 + [7] * 6 + [13] * 6 + [19] * 5
    assert segments.length.tolist() == [7] * 7 + [6] * 12 + [5] * 5


def test_only_streams_change_from_epoch_to_epoch_and_no_epoch_repeats_another():
    mixed, index = mixture(), np.arange(24)
    epochs = [mixed.at_epoch(epoch).read(index) for epoch in (0, 1, 2)]
    is_stored = (index < 7) | (index >= 19)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.array_equal(epochs[one][is_stored], epochs[other][is_stored])
        assert all((epochs[one][~is_stored] != epochs[other][~is_stored]).any((1, 2)))
    assert np.array_equal(epochs[1], mixture().at_epoch(1).read(index))
    assert np.array_equal(epochs[0], mixed.read(index))


def test_heart_rates_are_known_of_synthetic_windows_only():
    mixed, index = mixture().at_epoch(3), np.array([0, 8, 20, 9])
    crop = np.array([0.1, 0.2, 0.3, 0.4])
    rates = mixed.heart_rate(index, crop)
    assert np.isnan(rates[[0, 2]]).all()
    truth = mixed.parts[1].windows.truth(np.array([1, 2]) + 3 * 12, crop[[1, 3]])
    assert rates[[1, 3]] == pytest.approx(truth.heart_rate, rel=1e-6)


def test_the_fingerprint_changes_with_each_part():
    prints = {
        mixture().fingerprint,
        mixture(seed=1).fingerprint,
        mixture(hours=18 / 360).fingerprint,
        MixedWindows(mixture().parts[:2]).fingerprint,
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "other",
    [stored(channels=("ECG", "PPG")), stream(sfreq=250.0, window_seconds=5.0), stream(window_seconds=5.0)],
)
def test_parts_that_differ_are_refused_by_name(other):
    with pytest.raises(
        DataError, match=r"here and there differ in their (channels|sampling rate|window length)"
    ):
        MixedWindows([Part(name="here", windows=stored()), Part(name="there", windows=other)])

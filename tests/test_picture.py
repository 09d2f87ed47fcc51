"""`biofound windows --picture`: what is drawn are windows of the store, and no store is spoilt by it."""

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from biofound.data.integrity import check_store
from biofound.data.store import StoreWindows, random_windows
from biofound.figures import PIXELS_PER_INCH, window_grid
from tests.chain import run
from tests.data.cohort import build, cohort, entries_of


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("store")
    for split, cases in (("train", slice(0, 2)), ("val", slice(2, 3))):
        build(outdir, split=split, entries=entries_of(cohort())[cases])
    return outdir


windows = partial(run, "windows")


def test_random_windows_are_windows_of_the_store_each_once_and_in_order(store: Path) -> None:
    stored = StoreWindows(store / "train")
    everything = random_windows(stored, count=10_000, seed=3)
    assert len(everything) == len(stored)
    for number, window in enumerate(everything):
        np.testing.assert_array_equal(window.samples, stored.read(np.array([number]))[0])
        assert window.case_id == stored.info(np.array([number])).case_id[0] and window.split == "train"
    assert len({(window.case_id, window.start_s) for window in everything}) == len(stored)
    some = [(w.case_id, w.start_s) for w in random_windows(stored, count=5, seed=3)]
    assert some == [(w.case_id, w.start_s) for w in random_windows(stored, count=5, seed=3)]
    assert some != [(w.case_id, w.start_s) for w in random_windows(stored, count=5, seed=4)]


def test_a_picture_is_written_and_said_and_the_store_stays_whole(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biofound.commands.windows.PICTURE_ROWS", 2)  # drawing takes time
    picture = tmp_path / "new" / "windows.png"
    result = windows("--inspect", store, "--picture", picture)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.endswith(f"written: {picture}\n")
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert windows("--inspect", store, "--picture", picture).exit_code == 0
    assert picture.read_bytes() == first
    assert windows("--inspect", store, "--picture", picture, "--picture-seed", 1).exit_code == 0
    assert picture.read_bytes() != first
    assert windows("--inspect", store / "val", "--picture", picture).exit_code == 0
    assert [check for check in check_store(store) if not check.passed] == []


def test_a_picture_that_cannot_be_is_refused_before_anything_is_done(store: Path, tmp_path: Path) -> None:
    for arguments, message in [
        (("--inspect", store, "--picture", tmp_path / "x.pdf"), ".png"),
        (("--inspect", store, "--picture", store / "val" / "x.png"), "option --picture, option --inspect: "),
        (("--inspect", store / "val", "--picture", store / "val" / "x.png"), "option --picture"),
        (("--outdir", tmp_path, "--picture", tmp_path / "train" / "x.png"), "option --picture"),
    ]:
        result = windows(*arguments)
        assert result.exit_code == 2, result.stderr
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_more_than_two_channels_stand_one_below_the_other_so_that_1600_pixels_are_enough() -> None:
    for windows, channels, rows, columns in ((3, 2, 3, 2), (3, 5, 10, 2), (1, 3, 3, 1)):
        figure, axes = window_grid(windows, channels, row=1.0, more=0.5)
        assert axes.shape == (windows, channels)
        assert figure.get_size_inches().tolist() == [6.5 * columns, rows + 0.5]
        assert figure.get_size_inches()[0] * PIXELS_PER_INCH <= 1600
        assert set(figure.axes) == set(axes.flat)  # none is empty
        for one in axes if channels > 2 else ():
            places = [axis.get_subplotspec() for axis in one]
            assert len({place.colspan.start for place in places}) == 1
            first = places[0].rowspan.start
            assert [place.rowspan.start for place in places] == list(range(first, first + channels))
            assert [axis.get_xlabel() for axis in one] == [""] * (channels - 1) + ["seconds"]
        plt.close(figure)


def test_splits_of_different_channels_are_not_drawn_into_one_picture(tmp_path: Path) -> None:
    entries = entries_of(cohort())[:1]
    build(tmp_path / "store", entries=entries)
    build(tmp_path / "store", entries=entries, split="val", sfreq=100.0)
    result = windows("--inspect", tmp_path / "store", "--picture", tmp_path / "x.png")
    assert result.exit_code == 1
    assert str(tmp_path / "store") in result.stderr
    assert not (tmp_path / "x.png").exists()

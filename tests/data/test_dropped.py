"""Examples of dropped windows: read again from the recordings, and what the counts of the store say."""

from pathlib import Path

import numpy as np
import pytest

from biofound.data.dropped import MAX_RECORDINGS, choose_recordings, dropped_examples
from biofound.data.store import read_index, read_sidecar
from biofound.errors import DataError
from tests.data.cohort import CHANNELS, build, change_sealed, cohort

TRACKS = {channel.name: channel.tracks for channel in CHANNELS}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dropped")
    build(directory, source=cohort(subjects=3))
    return directory / "train"


def sidecars_of(store: Path):
    return [read_sidecar((store / case.file).with_suffix(".json")) for case in read_index(store).cases]


def test_every_reason_and_channel_has_an_example_which_is_no_window_of_the_store(store: Path) -> None:
    index = read_index(store)
    found = list(dropped_examples(store, TRACKS))
    wanted = {(reason, channel) for reason, row in index.dropped.items() for channel in row}
    assert len(wanted) > 2
    assert {(one.reason, one.channel) for one in found} == wanted
    kept = {sidecar.case_id: np.load(store / sidecar.file)["start_s"] for sidecar in sidecars_of(store)}
    for one in found:
        assert one.start_s not in kept[one.case_id]
        assert (one.seconds, len(one.filtered)) == (10.0, 1250)
        assert one.unit == index.units[one.channel]


def test_a_flat_window_is_flat_as_recorded_and_a_gap_is_a_gap(store: Path) -> None:
    by_reason = {one.reason: one for one in dropped_examples(store, TRACKS)}
    assert {"flat", "gap"} & by_reason.keys()
    if "flat" in by_reason:
        recorded = by_reason["flat"].recorded
        changes = np.flatnonzero(np.diff(recorded, prepend=np.nan, append=np.nan) != 0)
        longest = np.diff(changes).max() / len(recorded) * 10
        assert longest > 0.5
    if "gap" in by_reason:
        assert np.isnan(by_reason["gap"].filtered).any()


def test_few_recordings_are_read_and_the_ones_with_most_reasons_first(store: Path) -> None:
    chosen = choose_recordings(sidecars_of(store))
    assert len(chosen) <= MAX_RECORDINGS
    numbers = [len(wanted) for _, wanted in chosen]
    assert numbers == sorted(numbers, reverse=True)
    every = [why for _, wanted in chosen for why in wanted]
    assert len(every) == len(set(every))


def test_a_recording_that_has_changed_or_drops_other_windows_now_gives_no_example(
    store: Path, tmp_path: Path
) -> None:
    chosen, _ = choose_recordings(sidecars_of(store))[0]
    path = (store / chosen.file).with_suffix(".json")
    before = path.read_bytes()
    reason, channel = next((reason, channel) for reason, row in chosen.dropped.items() for channel in row)
    more = {**chosen.dropped, reason: {**chosen.dropped[reason], channel: 999}}
    try:
        for change, words in (
            ({"dropped": more}, "other windows"),
            ({"source_fingerprint": "0"}, "has changed since"),
        ):
            path.write_bytes(before)
            change_sealed(path, lambda content: content.update(change))  # noqa: B023 -- called at once
            with pytest.raises(DataError, match=words):
                list(dropped_examples(store, TRACKS))
    finally:
        path.write_bytes(before)

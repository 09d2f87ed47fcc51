"""Recordings are fetched while others are worked on."""

import threading
from pathlib import Path

import pytest

from biofound.data.prefetch import THREADS, prefetch_cases
from biofound.data.sources.synthetic import SyntheticSource
from biofound.errors import DataError
from tests.data.cohort import build, bytes_of, cohort

PATIENCE_SECONDS = 20
CASES = [f"syn{number:04d}_1" for number in range(1, 9)]


class DistantSource(SyntheticSource):
    """A cohort whose recordings are `fetch`ed; its first case can be read only once the last is here."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.fetched = []
        self.last_is_here = threading.Event()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "last_is_here"}

    def fetch(self, case_id: str) -> Path:
        self.fetched.append(case_id)
        if case_id == "syn0003_1":
            raise DataError("case syn0003_1: the server has it not")
        if case_id == CASES[-1]:
            self.last_is_here.set()
        return Path(case_id)

    def read(self, case_id, channels):
        if case_id == CASES[0]:
            assert self.last_is_here.wait(PATIENCE_SECONDS), "nothing was fetched beside the computing"
        return super().read(case_id, channels)


def settings_of(source):
    return {name: value for name, value in source.describe().items() if name != "name"}


def test_later_cases_are_fetched_while_the_first_is_worked_on_and_a_failed_fetch_is_no_matter(tmp_path):
    source = DistantSource(**settings_of(cohort(subjects=8, minutes=0.6)))
    build(tmp_path / "distant", source=source)
    assert sorted(source.fetched) == CASES
    build(tmp_path / "near", source=cohort(subjects=8, minutes=0.6))
    assert bytes_of(tmp_path / "distant") == bytes_of(tmp_path / "near")

    again = DistantSource(**settings_of(source))
    build(tmp_path / "distant", source=again)
    assert again.fetched == []  # all windows are there

    (tmp_path / "distant" / "train" / "syn0005_1.json").unlink()
    (tmp_path / "distant" / "train" / "syn0006_1.npz").unlink()
    build(tmp_path / "distant", source=again)
    assert sorted(again.fetched) == ["syn0005_1", "syn0006_1"]
    build(tmp_path / "distant", source=again, max_gap_seconds=0.5, entries=None)
    assert sorted(set(again.fetched)) == CASES


def test_when_the_work_ends_no_more_is_fetched():
    going, asked = threading.Semaphore(0), []

    class Endless(DistantSource):
        def fetch(self, case_id: str) -> Path:
            asked.append(case_id)
            assert going.acquire(timeout=PATIENCE_SECONDS)
            return Path(case_id)

    names = [str(number) for number in range(100)]
    with pytest.raises(KeyboardInterrupt), prefetch_cases(Endless(seed=1), names):
        raise KeyboardInterrupt
    threads = [thread for thread in threading.enumerate() if thread.name == "fetch"]
    going.release(len(names))
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert set(asked) <= set(names[:THREADS])


def test_a_source_with_nothing_to_fetch_starts_no_thread():
    with prefetch_cases(cohort(), ["syn0001_1"]):
        assert not [thread for thread in threading.enumerate() if thread.name == "fetch"]

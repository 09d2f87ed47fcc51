"""A small embedded cohort and the store built of it, for the tests of windows."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from biofound.data.build import BuildConfig, CaseResult, build_windows
from biofound.data.channels import Channel, PassBand
from biofound.data.sources import Recording
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.splits import SplitCase
from biofound.data.store import IndexedCase, StoreIndex, Totals, fingerprint_of
from biofound.errors import DataError
from biofound.files import write_json


def _channel(name: str, unit: str, high_hz: float) -> Channel:
    band = PassBand(low_hz=0.5, high_hz=high_hz, order=4)
    return Channel(name=name, tracks=(name,), unit=unit, band=band, quality_threshold=0.5)


PPG, ECG = _channel("PPG", "NU", 8.0), _channel("ECG", "mV", 40.0)
CHANNELS = (PPG, ECG)


def cohort(**changes: Any) -> SyntheticSource:
    """Five subjects of two minutes each, with artefacts enough that some windows are dropped."""
    return SyntheticSource(**{"seed": 1, "subjects": 5, "minutes": 2.0, "artefacts": 3.0, **changes})


def entries_of(source: SyntheticSource) -> list[SplitCase]:
    return [SplitCase(case_id=case.case_id, subject_id=case.subject_id) for case in source.cases(CHANNELS)]


def building(
    outdir: Path,
    *,
    source: SyntheticSource | None = None,
    entries: Sequence[SplitCase] | None = None,
    **changes: Any,
) -> Iterator[CaseResult]:
    """Build the store outdir/train (or another `split`) in this process, result by result."""
    source = source or cohort()
    settings: dict[str, Any] = {
        "split": "train",
        "channels": CHANNELS,
        "sfreq": 125.0,
        "window_seconds": 10.0,
        "max_gap_seconds": 1.0,
        "dtype": "float16",
        "workers": 1,
        "overwrite": True,
    }
    entries = entries_of(source) if entries is None else entries
    return build_windows(source=source, entries=entries, outdir=outdir, **{**settings, **changes})


def build(outdir: Path, **changes: Any) -> list[CaseResult]:
    """All results of `building`."""
    return list(building(outdir, **changes))


def write_index(directory: Path, cases: Mapping[str, int]) -> None:
    """The index of a store of `cases` (id to windows), each of a subject of its own."""
    config = BuildConfig(
        channels=CHANNELS, sfreq=125.0, window_samples=1250, max_gap_seconds=1.0, dtype="float16"
    )
    listed = tuple(
        IndexedCase(case_id=name, subject_id=name, file=f"{name}.npz", windows=windows, sha256="")
        for name, windows in cases.items()
    )
    total = sum(cases.values())
    index = StoreIndex.seal(
        **dict(config.header()),
        split="train",
        synthetic=False,
        source={"name": "made"},
        dataset_version="1",
        cases=listed,
        failed_cases=(),
        totals=Totals(cases=len(cases), subjects=len(cases), candidates=total, windows=total, hours=0.0),
        dropped={},
        rejected={},
        fingerprint=fingerprint_of(listed),
    )
    write_json(directory / "index.json", index.model_dump(mode="json"))


def change_sealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what an index or sidecar says, and make its digest fit again, as if it had been written so."""
    content = json.loads(path.read_text())
    change(content)
    content.pop("content_sha256", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "content_sha256": digest}))


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`, hidden ones too."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


class FailingSource(SyntheticSource):
    """A cohort whose cases `broken` cannot be read."""

    broken: tuple[str, ...] = ("syn0002_1",)
    error: Exception | None = None

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        if case_id in self.broken:
            raise self.error or DataError(f"case {case_id}, channel ECG: every sample is a gap")
        return super().read(case_id, channels)


class DeadlySource(SyntheticSource):
    """A cohort whose case `deadly` kills the worker that reads it, as the kernel does when memory ends."""

    deadly = "syn0003_1"

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        if case_id == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(case_id, channels)


class OnceDeadlySource(DeadlySource):
    """A cohort whose case `deadly` kills the first worker that reads it; `tombstone` then says so."""

    tombstone: Path

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        if case_id == self.deadly and self.tombstone.exists():
            return SyntheticSource.read(self, case_id, channels)
        if case_id == self.deadly:
            self.tombstone.touch()
        return super().read(case_id, channels)


class SlowSource(SyntheticSource):
    """A cohort that takes its time, so that a build can be caught at work."""

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        time.sleep(0.02)
        return super().read(case_id, channels)

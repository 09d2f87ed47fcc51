"""How a split's window store is built: case by case, side by side, to be stopped and resumed at will.

A case's old sidecar goes before its npz is replaced, and its new one comes after: a sidecar that is
there describes the npz beside it. The index goes before anything it describes changes, and comes last.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from joblib import cpu_count

from biofound import __version__
from biofound.data.channels import Channel
from biofound.data.extract import DTYPES, CaseWindows, Counts, extract_windows
from biofound.data.npz import member_names, write_npz
from biofound.data.pool import WorkerLostError, run_pool
from biofound.data.prefetch import prefetch_cases
from biofound.data.segments import whole_samples
from biofound.data.sources import Source
from biofound.data.store import (
    FORMAT_VERSION,
    INDEX_KIND,
    INDEX_NAME,
    MEMBERS,
    SIDECAR_KIND,
    file_stem,
    fingerprint_of,
    read_sidecar,
)
from biofound.errors import DataError, SettingsError
from biofound.files import sha256_of, sweep_temporary_files, write_atomically, write_json


class Entry(Protocol):
    """A case of a split: an entry of the splits file."""

    @property
    def case_id(self) -> str:
        """The case, as its source calls it."""
        ...

    @property
    def subject_id(self) -> str:
        """Who was recorded."""
        ...


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What became of one case; `status` says whether its windows were built now or were there already.

    `hours` are hours of kept signal; `dropped` and `rejected` are counted as in `cut.CaseWindows`;
    `error` says why a `failed` case has no windows.
    """

    case_id: str
    subject_id: str
    status: Literal["built", "unchanged", "failed"]
    candidates: int = 0
    windows: int = 0
    hours: float = 0.0
    dropped: Counts = field(default_factory=dict)
    rejected: Counts = field(default_factory=dict)
    npz_sha256: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """All that decides what a case's windows hold, besides its recording."""

    channels: tuple[Channel, ...]
    sfreq: float
    window_samples: int
    max_gap_seconds: float
    dtype: str

    def header(self) -> dict[str, Any]:
        """What index and sidecars say alike."""
        return {
            "biofound_version": __version__,
            "channels": [channel.name for channel in self.channels],
            "units": {channel.name: channel.unit for channel in self.channels},
            "filters": {channel.name: channel.band.as_json() for channel in self.channels},
            "quality_thresholds": {channel.name: channel.quality_threshold for channel in self.channels},
            "sfreq": self.sfreq,
            "window_samples": self.window_samples,
            "max_gap_seconds": self.max_gap_seconds,
            "dtype": self.dtype,
        }

    def digest(self) -> str:
        """A hash of every setting, the tracks looked for and the version of the program among them."""
        settings = {"version": __version__, "format_version": FORMAT_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One case to build, as it travels to a worker."""

    case_id: str
    subject_id: str
    directory: Path
    config: BuildConfig
    builder_pid: int | None
    """The process whose child the worker must be to go on; None where it is no child (Dask)."""


def build_windows(
    *,
    source: Source,
    entries: Sequence[Entry],
    split: str,
    channels: Sequence[Channel],
    sfreq: float,
    window_seconds: float,
    max_gap_seconds: float,
    dtype: str,
    outdir: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    skip_failed: bool = False,
) -> Generator[CaseResult, None, None]:
    """Build the store `outdir/split`, or what is missing or out of date of it.

    Gives each case's result as it is done, in any order; the index is written when the last result has
    been taken. Stopped at any moment and run again, it ends in the same bytes as if left alone.

    Args:
        source: where recordings come from; picklable.
        entries: the cases of the split; cases that are no longer among them leave the store.
        split: `train`, `val` or `test`; the directory's name.
        channels: the channels wanted, in order.
        sfreq: sampling rate of the windows in Hz.
        window_seconds: window length; a whole number of samples.
        max_gap_seconds: longest gap that is bridged.
        dtype: `float16` or `float32`.
        outdir: the data directory, parent of the store.
        workers: processes at work at the same time; 1 works in this process, None is one a core.
        scheduler: address of a Dask scheduler to work on instead, such as `tcp://host:8786`.
        skip_failed: leave out the cases that fail; else they end the run, after all others are done.

    Raises:
        SettingsError: at once, for settings that cannot work.
        DataError: at the end, when cases failed or no window was kept.
    """
    if dtype not in DTYPES:
        raise SettingsError(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    workers = cpu_count() if workers is None else workers
    if workers < 1:
        raise SettingsError(f"workers: expected 1 or more, got {workers}")
    config = BuildConfig(
        channels=tuple(channels),
        sfreq=float(sfreq),
        window_samples=whole_samples(seconds=window_seconds, sfreq=sfreq),
        max_gap_seconds=float(max_gap_seconds),
        dtype=dtype,
    )
    _refuse_bad_entries(entries, split)
    return _build(source, entries, split, config, outdir / split, workers, scheduler, skip_failed)


def _refuse_bad_entries(entries: Sequence[Entry], split: str) -> None:
    if not entries:
        raise DataError(f"split {split}: it has no cases; make splits again with `biofound prepare`")
    ids = [entry.case_id for entry in entries]
    repeated = (
        sorted({case_id for case_id in ids if ids.count(case_id) > 1}) if len(set(ids)) < len(ids) else []
    )
    if repeated:
        raise DataError(f"split {split}: cases listed more than once: {', '.join(repeated)}")


def _build(
    source: Source,
    entries: Sequence[Entry],
    split: str,
    config: BuildConfig,
    directory: Path,
    workers: int,
    scheduler: str | None,
    skip_failed: bool,
) -> Generator[CaseResult, None, None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    tasks = {
        entry.case_id: _Task(
            case_id=entry.case_id,
            subject_id=entry.subject_id,
            directory=directory,
            config=config,
            builder_pid=None if scheduler else os.getpid(),
        )
        for entry in entries
    }
    results = []
    with _only_builder(directory):
        _remove_departed(directory, {file_stem(case_id) for case_id in tasks})
        wanted = [case_id for case_id, task in tasks.items() if not _seems_built(task, source.name)]
        outcomes = run_pool(_build_case, source, tasks, workers=workers, scheduler=scheduler, marks=directory)
        with prefetch_cases(source, wanted), closing(outcomes):
            for case_id, outcome in outcomes:
                result = _lost(tasks[case_id], outcome) if isinstance(outcome, WorkerLostError) else outcome
                results.append(result)
                yield result
        results.sort(key=lambda result: result.case_id)
        _refuse_failures(results, split, skip_failed)
        for result in results:
            if result.status == "failed":
                _remove_case(directory, file_stem(result.case_id))
        _write_index(directory, split, source, config, results)


@contextmanager
def _only_builder(directory: Path) -> Iterator[None]:
    """Hold `directory` against a second build, and free it of what dead ones left.

    The lock falls with the process, however it ends.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{directory}: another `biofound windows` is building here; wait for it"
            ) from error
        sweep_temporary_files(directory)
        try:
            yield
        finally:
            sweep_temporary_files(directory)
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------------------------------------
# One case, in a worker


def _build_case(source: Source, task: _Task) -> CaseResult:
    """Build one case, or see that it is there already. Failures in the data are its result."""
    stem = file_stem(task.case_id)
    npz, sidecar_path = task.directory / f"{stem}.npz", task.directory / f"{stem}.json"
    config = task.config
    try:
        header = _sidecar_header(task, source.name, source.fingerprint(task.case_id))
        present = _up_to_date(npz, sidecar_path, header)
        if present is not None:
            return _result(task, "unchanged", present)
        windows = extract_windows(
            source.read(task.case_id, config.channels),
            config.channels,
            sfreq=config.sfreq,
            window_samples=config.window_samples,
            max_gap_seconds=config.max_gap_seconds,
            dtype=config.dtype,
        )
    except DataError as error:
        return _failed(task, str(error))
    except MemoryError:
        return _failed(task, f"case {task.case_id}: out of memory; give fewer workers, or more memory")
    except OSError as error:
        return _failed(task, f"case {task.case_id}: cannot be read ({error})")
    _leave_if_abandoned(task)
    # a worker that was given up for lost may have gone on and finished the case meanwhile
    present = _up_to_date(npz, sidecar_path, header)
    if present is not None:
        return _result(task, "built", present)
    try:
        return _result(task, "built", _write_case(npz, sidecar_path, windows, header))
    except OSError as error:  # the next case would fare no better, so this ends the run
        raise _cannot_write(npz, error) from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror}); see to the disk, or change outdir")


def _sidecar_header(task: _Task, source_name: str, source_fingerprint: str) -> dict[str, Any]:
    """What a sidecar says of how its case was made; a case is up to date when its sidecar says the same."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": SIDECAR_KIND,
        "case_id": task.case_id,
        "subject_id": task.subject_id,
        "source": source_name,
        "source_fingerprint": source_fingerprint,
        "settings_sha256": task.config.digest(),
        **task.config.header(),
    }


def _seems_built(task: _Task, source_name: str) -> bool:
    """Whether a case is up to date as far as its sidecar tells, without a look at its recording."""
    stem = file_stem(task.case_id)
    try:
        sidecar = read_sidecar(task.directory / f"{stem}.json")
    except DataError:
        return False
    header = _sidecar_header(task, source_name, str(sidecar.get("source_fingerprint")))
    same = all(sidecar.get(key) == value for key, value in header.items())
    return same and (task.directory / f"{stem}.npz").is_file()


def _up_to_date(npz: Path, sidecar_path: Path, header: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sidecar, if it says what `header` says and the npz beside it is whole; else None."""
    if not sidecar_path.is_file() or not npz.is_file():
        return None
    try:
        sidecar = read_sidecar(sidecar_path)
    except DataError:  # damaged or from another version: the case is built again
        return None
    same = all(sidecar.get(key) == value for key, value in header.items())
    whole = same and sidecar.get("npz_sha256") == sha256_of(npz)
    return sidecar if whole else None


def _write_case(
    npz: Path, sidecar_path: Path, case: CaseWindows, header: Mapping[str, Any]
) -> dict[str, Any]:
    (npz.parent / INDEX_NAME).unlink(missing_ok=True)
    sidecar_path.unlink(missing_ok=True)
    arrays = {name: getattr(case, name) for name in MEMBERS}
    write_atomically(npz, lambda file: write_npz(file, arrays))
    windows = len(case.x)
    sidecar = {
        **header,
        "file": npz.name,
        "npz_sha256": sha256_of(npz),
        "npz_bytes": npz.stat().st_size,
        "candidates": case.candidates,
        "windows": windows,
        "hours": windows * header["window_samples"] / header["sfreq"] / 3600,
        "dropped": case.dropped,
        "rejected": case.rejected,
    }
    write_json(sidecar_path, sidecar)
    return sidecar


def _leave_if_abandoned(task: _Task) -> None:
    """End a worker whose builder was killed: a new builder may be at work here, with other settings."""
    if task.builder_pid not in (None, os.getpid(), os.getppid()):
        raise SystemExit(1)


def _result(task: _Task, status: Literal["built", "unchanged"], sidecar: Mapping[str, Any]) -> CaseResult:
    return CaseResult(
        case_id=task.case_id,
        subject_id=task.subject_id,
        status=status,
        candidates=sidecar["candidates"],
        windows=sidecar["windows"],
        hours=sidecar["hours"],
        dropped=sidecar["dropped"],
        rejected=sidecar["rejected"],
        npz_sha256=sidecar["npz_sha256"],
    )


def _failed(task: _Task, error: str) -> CaseResult:
    return CaseResult(case_id=task.case_id, subject_id=task.subject_id, status="failed", error=error)


def _lost(task: _Task, error: WorkerLostError) -> CaseResult:
    return _failed(
        task,
        f"case {task.case_id}: every worker that tried it died, the last with no other case beside it "
        f"({error}); it may need more memory than there is",
    )


# ---------------------------------------------------------------------------------------------------------
# The whole split


def _remove_departed(directory: Path, stems: set[str]) -> None:
    """Remove the files of cases that have left the split; files that are not a store's stay."""
    for path in sorted(directory.glob("*.json")):
        if path.name != INDEX_NAME and path.stem not in stems and _is_sidecar(path):
            _remove_case(directory, path.stem)
    for path in sorted(directory.glob("*.npz")):
        if path.stem not in stems and _is_case(path):
            _remove_case(directory, path.stem)


def _is_sidecar(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()).get("kind") == SIDECAR_KIND)
    except (ValueError, AttributeError):
        return False


def _is_case(path: Path) -> bool:
    try:
        return set(member_names(path)) == set(MEMBERS)
    except DataError:
        return False


def _remove_case(directory: Path, stem: str) -> None:
    for path in (directory / f"{stem}.json", directory / f"{stem}.npz"):
        if path.exists():
            (directory / INDEX_NAME).unlink(missing_ok=True)
            path.unlink()


def _refuse_failures(results: Sequence[CaseResult], split: str, skip_failed: bool) -> None:
    failed = [result for result in results if result.status == "failed"]
    if failed and not skip_failed:
        lines = "\n".join(f"  {result.error}" for result in failed)
        raise DataError(
            f"split {split}: {len(failed)} of {len(results)} cases failed; the others are done and will not "
            f"be built again. Mend these, or leave them out with --skip-failed:\n{lines}"
        )
    if not any(result.windows for result in results):
        candidates = sum(result.candidates for result in results)
        raise DataError(f"split {split}: none of {candidates} windows was kept; {_why(results)}")


def _why(results: Sequence[CaseResult]) -> str:
    dropped = _sum_counts([result.dropped for result in results])
    if not dropped:
        return "the recordings are shorter than one window, or every case failed"
    parts = [
        f"{reason} {sum(counts.values())} ({', '.join(f'{name} {n}' for name, n in sorted(counts.items()))})"
        for reason, counts in sorted(dropped.items())
    ]
    return "dropped for: " + "; ".join(parts)


def _sum_counts(cases: Sequence[Mapping[str, Mapping[str, int]]]) -> Counts:
    total: Counts = {}
    for case in cases:
        for outer, counts in case.items():
            row = total.setdefault(outer, {})
            for inner, count in counts.items():
                row[inner] = row.get(inner, 0) + count
    return total


def _write_index(
    directory: Path, split: str, source: Source, config: BuildConfig, results: Sequence[CaseResult]
) -> None:
    done = [result for result in results if result.status != "failed"]
    cases = [
        {
            "case_id": result.case_id,
            "subject_id": result.subject_id,
            "file": f"{file_stem(result.case_id)}.npz",
            "windows": result.windows,
            "sha256": result.npz_sha256,
        }
        for result in done
    ]
    index = {
        "format_version": FORMAT_VERSION,
        "kind": INDEX_KIND,
        "split": split,
        "synthetic": source.name == "synthetic",
        "source": source.describe(),
        "dataset_version": source.version(),
        **config.header(),
        "settings_sha256": config.digest(),
        "cases": cases,
        "failed_cases": [result.case_id for result in results if result.status == "failed"],
        "totals": {
            "cases": len(done),
            "subjects": len({result.subject_id for result in done}),
            "candidates": sum(result.candidates for result in done),
            "windows": sum(result.windows for result in done),
            "hours": sum(result.windows for result in done) * config.window_samples / config.sfreq / 3600,
        },
        "dropped": _sum_counts([result.dropped for result in done]),
        "rejected": _sum_counts([result.rejected for result in done]),
        "fingerprint": fingerprint_of(cases),
    }
    try:
        write_json(directory / INDEX_NAME, index)
    except OSError as error:
        raise _cannot_write(directory / INDEX_NAME, error) from error

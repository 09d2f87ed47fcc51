"""Build a split's window store case by case, in parallel; stopped at any moment, it can be resumed.

A case's old sidecar goes before its npz is replaced, and its new one comes after: a sidecar that is
there describes the npz beside it. The index goes before anything it describes changes, and comes last.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from joblib import cpu_count

from biofound import __version__
from biofound.data.channels import Channel, DType, samples_in_window
from biofound.data.extract import CaseWindows, extract_windows
from biofound.data.npz import member_names, write_npz
from biofound.data.pool import WorkerLostError, run_pool
from biofound.data.prefetch import prefetch_cases
from biofound.data.sources import Source
from biofound.data.splits import SplitCase, SplitName
from biofound.data.store import (
    INDEX_NAME,
    MEMBERS,
    CaseHeader,
    Sidecar,
    StoreHeader,
    file_stem,
    make_index,
    read_sidecar,
    sum_counts,
    total,
)
from biofound.errors import DataError, SettingsError
from biofound.files import sha256_of, sweep_temporary_files, write_atomically, write_json

SIDECAR_KIND = CaseHeader.model_fields["kind"].default


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """The result of one case; `status` says whether its windows were built now or were there already.

    `sidecar` describes the windows; `error` says why a `failed` case has none.
    """

    case_id: str
    status: Literal["built", "unchanged", "failed"]
    sidecar: Sidecar | None = None
    error: str = ""

    @property
    def windows(self) -> int:
        """The windows kept."""
        return self.sidecar.windows if self.sidecar else 0

    @property
    def hours(self) -> float:
        """The hours of signal kept."""
        return self.sidecar.hours if self.sidecar else 0.0


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """All that decides what a case's windows hold, besides its recording."""

    channels: tuple[Channel, ...]
    sfreq: float
    window_samples: int
    max_gap_seconds: float
    dtype: DType

    def header(self) -> StoreHeader:
        """What the index and every sidecar say."""
        return StoreHeader(
            biofound_version=__version__,
            settings_sha256=self.digest(),
            channels=tuple(channel.name for channel in self.channels),
            units={channel.name: channel.unit for channel in self.channels},
            filters={channel.name: channel.band for channel in self.channels},
            quality_thresholds={channel.name: channel.quality_threshold for channel in self.channels},
            sfreq=self.sfreq,
            window_samples=self.window_samples,
            max_gap_seconds=self.max_gap_seconds,
            dtype=self.dtype,
        )

    def digest(self) -> str:
        """The SHA-256 of every setting, with the tracks looked for and the version of biofound."""
        versions = {"version": __version__, "format_version": Sidecar.model_fields["format_version"].default}
        return hashlib.sha256(json.dumps({**versions, **asdict(self)}, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One case to build, as it is sent to a worker."""

    case_id: str
    subject_id: str
    directory: Path
    config: BuildConfig
    builder_pid: int | None
    """The process whose child the worker must be to continue; None where it is no child (Dask)."""

    @property
    def npz(self) -> Path:
        return self.directory / f"{file_stem(self.case_id)}.npz"

    @property
    def sidecar_path(self) -> Path:
        return self.npz.with_suffix(".json")

    def header(self, source_name: str, source_fingerprint: str) -> CaseHeader:
        """What the case's sidecar says when it is up to date."""
        return CaseHeader(
            **dict(self.config.header()),
            case_id=self.case_id,
            subject_id=self.subject_id,
            source=source_name,
            source_fingerprint=source_fingerprint,
        )


def build_windows(
    *,
    source: Source,
    entries: Sequence[SplitCase],
    split: SplitName,
    channels: Sequence[Channel],
    sfreq: float,
    window_seconds: float,
    max_gap_seconds: float,
    dtype: DType,
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
        workers: number of processes; 1 works in this process, None is one a core.
        scheduler: address of a Dask scheduler to work on instead, such as `tcp://host:8786`.
        skip_failed: leave out the cases that fail; else they end the run, after all others are done.

    Raises:
        SettingsError: at once, for settings that cannot work.
        DataError: at the end, when cases failed or no window was kept.
    """
    if dtype not in get_args(DType):
        raise SettingsError(f"dtype: expected {' or '.join(get_args(DType))}, got {dtype!r}")
    workers = cpu_count() if workers is None else workers
    if workers < 1:
        raise SettingsError(f"workers: expected 1 or more, got {workers}")
    config = BuildConfig(
        channels=tuple(channels),
        sfreq=float(sfreq),
        window_samples=samples_in_window(window_seconds, sfreq),
        max_gap_seconds=float(max_gap_seconds),
        dtype=dtype,
    )
    _refuse_bad_entries(entries, split)
    return _build(source, entries, split, config, outdir / split, workers, scheduler, skip_failed)


def _refuse_bad_entries(entries: Sequence[SplitCase], split: str) -> None:
    if not entries:
        raise DataError(f"split {split}: it has no cases; make splits again with `biofound prepare`")
    repeated = [case_id for case_id, n in Counter(entry.case_id for entry in entries).items() if n > 1]
    if repeated:
        raise DataError(f"split {split}: cases listed more than once: {', '.join(repeated)}")


def _build(
    source: Source,
    entries: Sequence[SplitCase],
    split: SplitName,
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
        index = make_index(
            [result.sidecar for result in results if result.sidecar],
            header=config.header(),
            split=split,
            source=source.describe(),
            dataset_version=source.version(),
            failed_cases=[result.case_id for result in results if result.status == "failed"],
        )
        try:
            write_json(directory / INDEX_NAME, index)
        except OSError as error:
            raise _cannot_write(directory / INDEX_NAME, error) from error


@contextmanager
def _only_builder(directory: Path) -> Iterator[None]:
    """Lock `directory` against a second build, and remove temporary files that killed builds left.

    The lock ends with the process, however it ends.
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
    """Build one case, or find it up to date. Failures in the data are its result."""
    config = task.config
    try:
        header = task.header(source.name, source.fingerprint(task.case_id))
        sidecar = _up_to_date(task, header)
        if sidecar is not None:
            return CaseResult(case_id=task.case_id, status="unchanged", sidecar=sidecar)
        windows = extract_windows(
            source.read(task.case_id, config.channels),
            config.channels,
            sfreq=config.sfreq,
            window_samples=config.window_samples,
            max_gap_seconds=config.max_gap_seconds,
            dtype=config.dtype,
        )
    except DataError as error:
        return CaseResult(case_id=task.case_id, status="failed", error=str(error))
    except MemoryError:
        return _failed(task, "out of memory; give fewer workers, or more memory")
    except OSError as error:
        return _failed(task, f"cannot be read ({error})")
    _leave_if_abandoned(task)
    # a worker believed lost may have finished the case since
    sidecar = _up_to_date(task, header)
    if sidecar is None:
        try:
            sidecar = _write_case(task, windows, header)
        except OSError as error:  # the next case would fare no better, so this ends the build
            raise _cannot_write(task.npz, error) from error
    return CaseResult(case_id=task.case_id, status="built", sidecar=sidecar)


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror}); free the disk, or change outdir")


def _sidecar_of(task: _Task) -> Sidecar | None:
    """The sidecar of a case that has an npz; None where it is missing, damaged or from another version."""
    try:
        sidecar = read_sidecar(task.sidecar_path)
    except DataError:
        return None
    return sidecar if task.npz.is_file() else None


def _says(sidecar: Sidecar, header: CaseHeader) -> bool:
    return all(getattr(sidecar, name) == value for name, value in header)


def _seems_built(task: _Task, source_name: str) -> bool:
    """Whether a case is up to date according to its sidecar; its recording and npz are not read."""
    sidecar = _sidecar_of(task)
    return sidecar is not None and _says(sidecar, task.header(source_name, sidecar.source_fingerprint))


def _up_to_date(task: _Task, header: CaseHeader) -> Sidecar | None:
    """The sidecar, if it says what `header` says and the npz beside it is whole; else None."""
    sidecar = _sidecar_of(task)
    same = sidecar is not None and _says(sidecar, header) and sidecar.npz_sha256 == sha256_of(task.npz)
    return sidecar if same else None


def _write_case(task: _Task, case: CaseWindows, header: CaseHeader) -> Sidecar:
    (task.directory / INDEX_NAME).unlink(missing_ok=True)
    task.sidecar_path.unlink(missing_ok=True)
    arrays = {name: getattr(case, name) for name in MEMBERS}
    write_atomically(task.npz, lambda file: write_npz(file, arrays))
    sidecar = Sidecar(
        **dict(header),
        file=task.npz.name,
        npz_sha256=sha256_of(task.npz),
        npz_bytes=task.npz.stat().st_size,
        candidates=case.candidates,
        windows=len(case.x),
        hours=header.hours_of(len(case.x)),
        dropped=case.dropped,
        rejected=case.rejected,
    )
    write_json(task.sidecar_path, sidecar)
    return sidecar


def _leave_if_abandoned(task: _Task) -> None:
    """End a worker whose builder was killed: a new build may be writing here, with other settings."""
    if task.builder_pid not in (None, os.getpid(), os.getppid()):
        raise SystemExit(1)


def _failed(task: _Task, reason: str) -> CaseResult:
    return CaseResult(case_id=task.case_id, status="failed", error=f"case {task.case_id}: {reason}")


def _lost(task: _Task, error: WorkerLostError) -> CaseResult:
    return _failed(
        task,
        f"every worker that tried it died, the last with no other case beside it ({error}); it may need "
        "more memory than there is",
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
            f"be built again. Correct these, or leave them out with --skip-failed:\n{lines}"
        )
    if not any(result.windows for result in results):
        sidecars = [result.sidecar for result in results if result.sidecar]
        candidates = sum(sidecar.candidates for sidecar in sidecars)
        reasons = _listed_reasons(sidecars)
        raise DataError(f"split {split}: none of {candidates} windows was kept; {reasons}")


def _listed_reasons(sidecars: Sequence[Sidecar]) -> str:
    dropped = sum_counts(sidecar.dropped for sidecar in sidecars)
    if not dropped:
        return "the recordings are shorter than one window, or every case failed"
    reasons = [
        f"{reason} {total({reason: row})} ({', '.join(f'{name} {n}' for name, n in sorted(row.items()))})"
        for reason, row in sorted(dropped.items())
    ]
    return "dropped for: " + "; ".join(reasons)

"""Summaries of window stores, and checks that a store is what its index says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.checks import Check
from biofound.data.npz import find_members, map_members
from biofound.data.npz_windows import npz_file
from biofound.data.splits import SPLITS, SplitName
from biofound.data.store import (
    INDEX_NAME,
    MEMBERS,
    Counts,
    IndexedCase,
    Sidecar,
    StoreHeader,
    StoreIndex,
    StoreWindows,
    file_stem,
    fingerprint_of,
    make_index,
    read_index,
    read_sidecar,
    total,
)
from biofound.data.windows import Windows, open_windows
from biofound.errors import DataError
from biofound.files import LOCK_NAME, sha256_of

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MAX_NAMED = 3
BLOCK_WINDOWS = 1024


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What one split's store holds.

    `quality` is channel to the values of `QUANTILES` over the kept windows; `dropped` is reason to channel
    to windows, each dropped window once; `rejected` is channel to reason, each channel by itself. `timing` is
    case to channel to the values of `store.Timing`, where these are notable.
    """

    directory: Path
    split: SplitName
    synthetic: bool
    channels: tuple[str, ...]
    sfreq: float
    window_seconds: float
    cases: int
    subjects: int
    failed_cases: tuple[str, ...]
    candidates: int
    windows: int
    hours: float
    quality: Mapping[str, tuple[float, ...]]
    dropped: Counts
    rejected: Counts
    timing: Mapping[str, Mapping[str, Mapping[str, str | float]]]


def splits_in(data_dir: Path) -> list[SplitName]:
    """The splits of which `data_dir` holds windows, in either form.

    Raises:
        DataError: when there are none.
    """
    found = [
        split
        for split in SPLITS
        if (data_dir / split / INDEX_NAME).is_file() or npz_file(data_dir, split).is_file()
    ]
    if not found:
        open_windows(data_dir, SPLITS[0])  # says what was looked for
    return found


def inspect_store(directory: Path, index: StoreIndex | None = None) -> StoreSummary:
    """Summarise the store of one split, such as `data/windows/train`.

    Args:
        directory: the store.
        index: what to take for its index, where that is not on disk.

    Raises:
        DataError: when there is no store, or it cannot be read.
    """
    index = StoreWindows(directory, index).index
    quality = [_map_case(directory, case)["quality"] for case in index.cases if case.windows]
    same = ("split", "synthetic", "channels", "sfreq", "failed_cases", "dropped", "rejected")
    return StoreSummary(
        directory=directory,
        window_seconds=index.window_samples / index.sfreq,
        quality=_quantiles(quality, index.channels),
        timing={case.case_id: found for case in index.cases if (found := _notable_timing(directory, case))},
        **{name: getattr(index, name) for name in same},
        **dict(index.totals),
    )


def _quantiles(
    quality: Sequence[NDArray[np.float32]], channels: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    if not quality:
        return {}
    by_channel = np.concatenate(quality).astype(np.float64).T
    known = {name: row[~np.isnan(row)] for name, row in zip(channels, by_channel, strict=True)}
    return {name: tuple(np.quantile(row, QUANTILES).tolist()) for name, row in known.items() if len(row)}


def _notable_timing(directory: Path, case: IndexedCase) -> dict[str, dict[str, str | float]]:
    timing = read_sidecar((directory / case.file).with_suffix(".json")).timing
    return {channel: values.model_dump() for channel, values in timing.items() if values.is_notable}


def _map_case(directory: Path, case: IndexedCase) -> dict[str, NDArray[Any]]:
    path = directory / case.file
    try:
        return map_members(path, find_members(path, MEMBERS))
    except OSError as error:
        raise DataError(f"{path}: case {case.case_id} cannot be read ({error})") from error


# ---------------------------------------------------------------------------------------------------------
# Checks


def check_store(data_dir: Path, *, sfreq_if_unsaid: float | None = None) -> list[Check]:
    """Check all windows under `data_dir`: every byte, every count, and the splits against each other.

    A split whose build did not finish fails.

    Args:
        data_dir: the data directory.
        sfreq_if_unsaid: Hz; for plain npz files that do not hold their own `sfreq`.

    Raises:
        DataError: when `data_dir` holds no windows at all.
    """
    checks = []
    opened: dict[str, Windows] = {}
    whole = splits_in(data_dir)
    for split in SPLITS:
        if split not in whole and not is_begun(data_dir / split):
            continue
        is_store = (data_dir / split / INDEX_NAME).is_file()
        try:
            opened[split] = open_windows(data_dir, split, sfreq_if_unsaid=sfreq_if_unsaid)
            found = list(_check_split(data_dir / split)) if is_store else list(_check_plain(opened[split]))
        except DataError as error:
            found = [Check(name="readable", passed=False, measured=str(error))]
        checks += [
            Check(name=f"{split}: {check.name}", passed=check.passed, measured=check.measured)
            for check in found
        ]
    return [*checks, *(_check_across(opened) if opened else ())]


def is_begun(directory: Path) -> bool:
    """Whether a split's directory holds anything, be it a whole store or what a build left."""
    return directory.is_dir() and any(directory.iterdir())


def _check_split(directory: Path) -> Iterator[Check]:
    index = read_index(directory)
    sidecars = [read_sidecar(directory / f"{file_stem(case.case_id)}.json") for case in index.cases]
    expected = make_index(
        sidecars,
        header=index,
        split=index.split,
        source=index.source,
        dataset_version=index.dataset_version,
        failed_cases=index.failed_cases,
    )
    yield _check_files(directory, index)
    yield _check_checksums(directory, index, sidecars)
    yield _check_sidecars(index, sidecars, expected)
    yield _check_counts(index, sidecars, expected)
    yield _check_fingerprint(index)
    yield from _check_arrays(directory, index)


def _check_files(directory: Path, index: StoreIndex) -> Check:
    listed = {INDEX_NAME}
    for case in index.cases:
        listed |= {case.file, f"{file_stem(case.case_id)}.json"}
    unlisted = [path.name for path in sorted(directory.iterdir()) if path.name not in {*listed, LOCK_NAME}]
    return _check_empty("files", unlisted, f"{len(listed)} files, all in the index", "not in the index")


def _check_checksums(directory: Path, index: StoreIndex, sidecars: Sequence[Sidecar]) -> Check:
    bad = []
    for case, sidecar in zip(index.cases, sidecars, strict=True):
        path = directory / case.file
        found = sha256_of(path), path.stat().st_size
        if found != (sidecar.npz_sha256, sidecar.npz_bytes) or case.sha256 != sidecar.npz_sha256:
            bad.append(case.case_id)
    return _check_empty("checksums", bad, f"SHA-256 of {len(sidecars)} npz files", "npz changed")


def _check_sidecars(index: StoreIndex, sidecars: Sequence[Sidecar], expected: StoreIndex) -> Check:
    """Index and sidecars agree on every case, and all cases were made with the same settings."""
    by_id = {case.case_id: case for case in expected.cases}
    bad = []
    for case, sidecar in zip(index.cases, sidecars, strict=True):
        same_case = case.model_copy(update={"sha256": sidecar.npz_sha256}) == by_id.get(case.case_id)
        same_settings = all(
            getattr(index, name) == getattr(sidecar, name) for name in StoreHeader.model_fields
        )
        if not (same_case and same_settings and sidecar.source == index.source["name"]):
            bad.append(case.case_id)
    bad += sorted(set(index.failed_cases) & by_id.keys())
    if index.synthetic != expected.synthetic:
        bad.append("synthetic")
    return _check_empty("sidecars", bad, f"{len(sidecars)} agree with the index", "sidecar disagrees")


def _check_counts(index: StoreIndex, sidecars: Sequence[Sidecar], expected: StoreIndex) -> Check:
    """Kept and dropped windows add up to the candidates, in every case and in all."""
    bad = [
        sidecar.case_id
        for sidecar in sidecars
        if sidecar.windows + total(sidecar.dropped) != sidecar.candidates
        or sidecar.hours != sidecar.hours_of(sidecar.windows)
        or not _rejected_fit(sidecar)
    ]
    sums = ("totals", "dropped", "rejected")
    bad += [f"{name} of the index" for name in sums if getattr(index, name) != getattr(expected, name)]
    kept, candidates = index.totals.windows, index.totals.candidates
    measured = f"{kept} kept + {total(index.dropped)} dropped = {candidates}"
    return _check_empty("counts", bad, measured, "does not add up")


def _rejected_fit(sidecar: Sidecar) -> bool:
    """Whether each dropped window is one that its channel alone rejects, and each rejected one is dropped.

    One that an optional channel rejects may be kept.
    """
    rejected, dropped = sidecar.rejected, total(sidecar.dropped)
    most = dict.fromkeys(sidecar.optional_channels, sidecar.candidates)
    return all(sum(row.values()) <= most.get(channel, dropped) for channel, row in rejected.items()) and all(
        count <= rejected.get(channel, {}).get(reason, 0)
        for reason, row in sidecar.dropped.items()
        for channel, count in row.items()
    )


def _check_fingerprint(index: StoreIndex) -> Check:
    expected = fingerprint_of(index.cases)
    measured = f"{index.fingerprint[:12]}, from the cases {expected[:12]}"
    return Check(name="fingerprint", passed=index.fingerprint == expected, measured=measured)


def _check_arrays(directory: Path, index: StoreIndex) -> Iterator[Check]:
    """Shapes, numbers and the grid, of every window of every case, a block at a time."""
    bad: dict[str, list[str]] = {"shapes": [], "finite": [], "mean and std": [], "quality": [], "grid": []}
    for case in index.cases:
        arrays = _map_case(directory, case)
        if not _shapes_fit(arrays, case, index):
            bad["shapes"].append(case.case_id)
            continue
        for name, broken in _faults(arrays, index).items():
            if broken:
                bad[name].append(case.case_id)
    windows = sum(case.windows for case in index.cases)
    shape = f"({windows}, {len(index.channels)}, {index.window_samples}) {index.dtype}"
    yield _check_empty("shapes", bad["shapes"], f"{shape} in all", "other shape or dtype")
    yield _check_empty("finite", bad["finite"], f"{windows} windows", "NaN or infinity")
    yield _check_empty("mean and std", bad["mean and std"], f"those of {windows} windows", "not those of x")
    yield _check_empty("quality", bad["quality"], "in [threshold, 1] throughout", "outside [threshold, 1]")
    yield _check_empty("grid", bad["grid"], "starts are multiples of the window", "starts off the grid")


def _shapes_fit(arrays: Mapping[str, NDArray[Any]], case: IndexedCase, index: StoreIndex) -> bool:
    n, c, t = case.windows, len(index.channels), index.window_samples
    expected = {
        "x": (index.dtype, (n, c, t)),
        "mean": ("float32", (n, c)),
        "std": ("float32", (n, c)),
        "start_s": ("float64", (n,)),
        "quality": ("float32", (n, c)),
    }
    return all((str(arrays[name].dtype), arrays[name].shape) == want for name, want in expected.items())


def _faults(arrays: Mapping[str, NDArray[Any]], index: StoreIndex) -> dict[str, bool]:
    """Which properties the arrays of one case break.

    Where an optional channel has no quality, it must be NaN throughout the window.
    """
    optional = np.isin(index.channels, index.optional_channels)
    absent = np.isnan(arrays["quality"]) & optional
    finite, moments_fit = True, True
    for start in range(0, len(arrays["x"]), BLOCK_WINDOWS):
        block = slice(start, start + BLOCK_WINDOWS)
        x = arrays["x"][block].astype(np.float32)
        real = ~absent[block]
        if not (np.isfinite(x) == real[:, :, None]).all():
            finite = False
            continue
        mean, std = x.mean(axis=2, dtype=np.float64), x.std(axis=2, dtype=np.float64)
        tolerance = 1e-4 * (np.abs(mean) + std) + 1e-12
        for name, values in (("mean", mean), ("std", std)):
            fits = np.abs(arrays[name][block] - values) <= tolerance
            moments_fit &= bool(np.where(real, fits, np.isnan(arrays[name][block])).all())
    thresholds = np.array([index.quality_thresholds[name] for name in index.channels], np.float32)
    quality = arrays["quality"]
    number = arrays["start_s"] * index.sfreq / index.window_samples
    on_grid = np.abs(number - np.rint(number)) < 1e-6
    return {
        "finite": not finite,
        "mean and std": not moments_fit,
        "quality": not (absent | ((quality >= thresholds) & (quality <= 1))).all(),
        "grid": not (on_grid.all() and (np.diff(number) > 0.5).all() and (number >= 0).all()),
    }


def _check_plain(windows: Windows) -> Iterator[Check]:
    origin = "assumed, the file does not say" if windows.sfreq_is_assumed else "from the file"
    yield Check(name="sampling rate", passed=True, measured=f"{windows.sfreq:g} Hz, {origin}")
    infinite = []
    for start in range(0, len(windows), BLOCK_WINDOWS):
        rows = np.arange(start, min(start + BLOCK_WINDOWS, len(windows)))
        infinite += [
            str(start + row) for row in np.flatnonzero(np.isinf(windows.read(rows)).any(axis=(1, 2)))
        ]
    yield _check_empty(
        "finite", infinite, f"{len(windows)} windows; NaN counts as a gap", "rows with infinity"
    )


def _check_across(opened: Mapping[str, Windows]) -> Iterator[Check]:
    described = {
        split: (windows.channels, windows.sfreq, windows.window_samples, windows.filters)
        for split, windows in opened.items()
    }
    equal = all(one == other for one, other in combinations(described.values(), 2))
    measured = "; ".join(
        f"{split}: {', '.join(windows.channels)} at {windows.sfreq:g} Hz, {windows.window_samples} samples"
        for split, windows in opened.items()
    )
    yield Check(name="splits: same channels, rate, length and filters", passed=equal, measured=measured)
    shared = [
        f"{subject} ({one}, {other})"
        for one, other in combinations(opened, 2)
        for subject in sorted(set(opened[one].subjects) & set(opened[other].subjects))
    ]
    unknown = [split for split, windows in opened.items() if not windows.subjects]
    numbers = ", ".join(f"{split} {len(windows.subjects)}" for split, windows in opened.items())
    measured = f"subjects: {numbers}" + (f"; unknown in {', '.join(unknown)}" if unknown else "")
    yield _check_empty("splits: no subject in two", shared, measured, "in two splits")


def _check_empty(name: str, bad: Sequence[str], measured: str, complaint: str) -> Check:
    """A check that holds when nothing is `bad`; else it names the first few."""
    if not bad:
        return Check(name=name, passed=True, measured=measured)
    named = ", ".join(bad[:MAX_NAMED]) + (f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else "")
    return Check(name=name, passed=False, measured=f"{complaint}: {named}")

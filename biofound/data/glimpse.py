"""Which windows of a store are shown in its picture?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biofound.data.npz import find_members, map_members
from biofound.data.store import MEMBERS, read_index
from biofound.errors import DataError


@dataclass(frozen=True, kw_only=True)
class WindowSample:
    """One window of a store: `samples` (C, T) in physical units and `quality` (C,); where it was cut from."""

    samples: NDArray[np.float32]
    quality: NDArray[np.float32]
    split: str
    case_id: str
    start_s: float


def random_windows(directory: Path, *, count: int, seed: int) -> list[WindowSample]:
    """Draw `count` different windows of the store of one split (all, if there are fewer), in its order.

    Raises:
        DataError: when there is no store, or it cannot be read.
    """
    index = read_index(directory)
    cases = [case for case in index["cases"] if case["windows"]]
    ends = np.cumsum([case["windows"] for case in cases])
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    found = []
    for number in chosen.tolist():
        place = int(np.searchsorted(ends, number, side="right"))
        row = number - int(ends[place]) + cases[place]["windows"]
        path = directory / str(cases[place]["file"])
        try:
            arrays = map_members(path, find_members(path, MEMBERS))
        except OSError as error:
            raise DataError(f"{path}: case {cases[place]['case_id']} cannot be read ({error})") from error
        found.append(
            WindowSample(
                samples=arrays["x"][row].astype(np.float32),
                quality=arrays["quality"][row].copy(),
                split=str(index["split"]),
                case_id=str(cases[place]["case_id"]),
                start_s=float(arrays["start_s"][row]),
            )
        )
    return found

"""What do the windows of a store look like: random ones of each split, in one picture."""

from collections.abc import Sequence
from pathlib import Path

from biofound.data.store import random_windows, read_index
from biofound.errors import DataError
from biofound.figures import draw_windows

ROWS = 12


def draw_stores(path: Path, directories: Sequence[Path], *, seed: int) -> None:
    """Draw about a dozen windows, as many of each split's store in `directories`, into the PNG `path`.

    Raises:
        DataError: when a store cannot be read, or the stores hold different channels.
    """
    indices = [read_index(directory) for directory in directories]
    first = indices[0]
    if any((index.channels, index.sfreq) != (first.channels, first.sfreq) for index in indices):
        raise DataError(
            f"{directories[0].parent}: its splits differ in channels or rate; build them alike, or draw one "
            "with --inspect"
        )
    each = max(1, ROWS // len(directories))
    windows = [
        window for directory in directories for window in random_windows(directory, count=each, seed=seed)
    ]
    draw_windows(
        path,
        windows,
        channels=first.channels,
        units=first.units,
        sfreq=first.sfreq,
        synthetic=first.synthetic,
    )

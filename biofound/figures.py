"""Pictures of windows, loss curves and reconstructions, as PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from biofound.data.store import WindowSample
from biofound.files import write_atomically

_SIGNAL, _RECONSTRUCTION, _HIDDEN = "#222222", "#d1495b", "#f3e3c3"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One window: `signal` and `reconstruction` (C, T) in physical units, `hidden` (T,) bool, its case."""

    signal: NDArray[np.float32]
    reconstruction: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    case: str


def draw_losses(path: Path, history: Mapping[str, Any]) -> None:
    """Draw loss, MSM and STFT of training and validation over the epochs."""
    epochs = history["epoch"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, name in zip(axes, ("loss", "msm", "stft"), strict=True):
        marker = "." if len(epochs) < 60 else None
        axis.plot(epochs, history[f"train_{name}"], label="train", color=_SIGNAL, marker=marker)
        axis.plot(epochs, history[f"val_{name}"], label="validation", color=_RECONSTRUCTION, marker=marker)
        axis.set(xlabel="epoch", title={"loss": "loss", "msm": "MSM", "stft": "STFT"}[name])
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[1].axhline(1.0, color="#888888", linewidth=0.8, linestyle="--", label="constant predictor")
    axes[0].axvline(history["best_epoch"], color="#888888", linewidth=0.8, linestyle=":", label="best epoch")
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(f"pretraining on {'synthetic' if history['synthetic'] else 'recorded'} data", fontsize=10)
    _save(figure, path)


def draw_reconstructions(
    path: Path,
    examples: Sequence[Example],
    *,
    channels: Sequence[str],
    units: Mapping[str, str],
    sfreq: float,
    synthetic: bool,
) -> None:
    """Draw windows with their hidden spans shaded and the reconstruction over them.

    Args:
        path: the file to write.
        examples: the windows, one a row.
        channels: the channel names, one a column.
        units: unit by channel name.
        sfreq: sampling frequency in Hz.
        synthetic: whether the windows are synthetic, which the title then says.
    """
    figure, axes = _grid(len(examples), len(channels), height=1.9 * len(examples) + 0.6)
    for row, example in zip(axes, examples, strict=True):
        seconds = np.arange(len(example.hidden)) / sfreq
        for c, axis in enumerate(row):
            signal = example.signal[c]
            axis.fill_between(
                seconds, 0, 1, where=example.hidden, color=_HIDDEN, transform=axis.get_xaxis_transform()
            )
            axis.plot(seconds, signal, color=_SIGNAL, linewidth=0.8, label="signal")
            shown = np.where(example.hidden, example.reconstruction[c], np.nan)
            axis.plot(seconds, shown, color=_RECONSTRUCTION, linewidth=1.1, label="reconstruction")
            axis.set_ylabel(f"{channels[c]} ({units.get(channels[c], '?')})", fontsize=8)
            axis.set_title(example.case, fontsize=8, loc="left")
    axes[0][-1].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    kind = "synthetic" if synthetic else "recorded"
    figure.suptitle(f"validation windows ({kind}); shaded: hidden from the encoder", fontsize=10)
    _save(figure, path)


def draw_windows(
    path: Path,
    windows: Sequence[WindowSample],
    *,
    channels: Sequence[str],
    units: Mapping[str, str],
    sfreq: float,
    synthetic: bool,
) -> None:
    """Draw stored windows, with the quality of each channel.

    Args:
        path: the file to write.
        windows: the windows, one a row.
        channels: the channel names, one a column.
        units: unit by channel name.
        sfreq: sampling frequency in Hz.
        synthetic: whether the windows are synthetic, which the title then says.
    """
    figure, axes = _grid(len(windows), len(channels), height=1.35 * len(windows) + 0.8, sharex=True)
    for row, window in zip(axes, windows, strict=True):
        seconds = np.arange(window.samples.shape[1]) / sfreq
        for c, axis in enumerate(row):
            axis.plot(seconds, window.samples[c], color=_SIGNAL, linewidth=0.8)
            axis.set_title(f"quality {window.quality[c]:.2f}", fontsize=8, loc="right", pad=2)
            axis.grid(alpha=0.3)
        title = f"{window.split}: {window.case_id} at {window.start_s:g} s"
        row[0].set_title(title, fontsize=8, loc="left", pad=2)
    for c, name in enumerate(channels):
        axes[0][c].annotate(
            f"{name} ({units.get(name, '?')})",
            (0.5, 1.0),
            xytext=(0, 16),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=10,
        )
    kind = "synthetic" if synthetic else "recorded"
    figure.suptitle(f"random windows of the store ({kind})", fontsize=10)
    _save(figure, path)


def _grid(rows: int, columns: int, *, height: float, sharex: bool = False) -> tuple[Any, Any]:
    """A figure of that height in inches and its axes over seconds: windows by row, channels by column."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(6.5 * columns, height), layout="constrained", sharex=sharex, squeeze=False
    )
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.margins(x=0)
    for axis in axes[-1]:
        axis.set_xlabel("seconds", fontsize=8)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    # Without the software's version and date, the same run gives the same bytes.
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    )
    plt.close(figure)

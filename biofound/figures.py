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

PIXELS_PER_INCH = 110
_COLUMNS = 2
"""Panels side by side in a picture of windows, which is then 1,430 pixels wide at most."""
_SIGNAL, _RECONSTRUCTION, _HIDDEN = "#222222", "#d1495b", "#f3e3c3"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One window: `signal` and `reconstruction` (C, T) in physical units, `hidden` (T,) bool, its case."""

    signal: NDArray[np.float32]
    reconstruction: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    case: str


def draw_losses(path: Path, history: Mapping[str, Any]) -> None:
    """Draw the curves of a run: losses, validation MSM beside simple guesses, monitor, probe if any."""
    epochs, monitor, probe = history["epoch"], history["val_monitor"], history.get("val_probe")
    marker = "." if len(epochs) < 60 else None
    columns = 3 if probe is None else 4
    figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 6.6), layout="constrained")
    (loss, msm, stft), (variance, peaks, rank) = axes[:, :3]
    for axis, name, title in ((loss, "loss", "loss"), (stft, "stft", "STFT")):
        axis.plot(epochs, history[f"train_{name}"], label="train", color=_SIGNAL, marker=marker)
        axis.plot(epochs, history[f"val_{name}"], label="validation", color=_RECONSTRUCTION, marker=marker)
        axis.set(title=title)
    if history["best_epoch"] is not None:
        loss.axvline(history["best_epoch"], color="#888888", linewidth=0.8, linestyle=":", label="best epoch")
    if probe is not None:
        axes[1, 3].remove()
        _draw_probe(axes[0, 3], epochs, probe)
    for number, (channel, values) in enumerate(history["val_msm_by_channel"].items()):
        color = f"C{number}"
        msm.plot(epochs, values, label=channel, color=color, marker=marker)
        for baseline, style in (("constant_guess", "--"), ("copy_patch", ":")):
            level = monitor[f"{baseline}_msm"][channel][-1]
            if level is not None:
                label = f"{channel}, {baseline.replace('_', ' ')}"
                msm.axhline(level, color=color, linewidth=0.9, linestyle=style, label=label)
        variance.plot(epochs, monitor["variance_ratio"][channel], label=channel, color=color, marker=marker)
    for name in ("recall", "precision"):
        peaks.plot(epochs, monitor[f"r_peak_{name}"], label=name, marker=marker)
    rank.plot(epochs, monitor["latent_rank"], color=_SIGNAL, marker=marker)
    msm.set(title="validation MSM", ylim=(0, None))
    variance.set(title="variance, reconstruction / signal", ylim=(0, None))
    peaks.set(title="hidden R peaks within 50 ms", ylim=(0, 1))
    rank.set(title="effective rank of the latents", ylim=(0, None))
    for axis in axes.flat:
        axis.set(xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=7)
    figure.suptitle(f"pretraining on {'synthetic' if history['synthetic'] else 'recorded'} data", fontsize=10)
    save_figure(figure, path)


def draw_task_curves(path: Path, history: Mapping[str, Any], *, title: str, error: str) -> None:
    """Draw the loss and the error (whose name is `error`) of a fine-tuning, with the stages' borders."""
    epochs, stages = history["epoch"], history["stage"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, name, label in zip(axes, ("loss", "error"), ("loss", error), strict=True):
        axis.plot(epochs, history[f"train_{name}"], label="train", color=_SIGNAL, marker=".")
        axis.plot(epochs, history[f"val_{name}"], label="validation", color=_RECONSTRUCTION, marker=".")
        for place, (before, stage) in enumerate(zip([None, *stages], stages, strict=False)):
            if stage != before:
                axis.axvline(epochs[place] - 0.5, color=_HIDDEN)
                axis.text(
                    epochs[place] - 0.4, 0.98, stage, transform=axis.get_xaxis_transform(), va="top", size=7
                )
        if history["best_epoch"] is not None:
            axis.axvline(
                history["best_epoch"], color="#888888", linewidth=0.8, linestyle=":", label="best epoch"
            )
        axis.set(xlabel="epoch", title=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _draw_probe(axis: Any, epochs: Sequence[int], probe: Mapping[str, Any]) -> None:
    """Draw the errors of the epochs that ended with a probe, beside the constant guess."""
    probed = [k for k, error in enumerate(probe["error"]) if error is not None]
    shown = {"error": ("encoder", _RECONSTRUCTION, "-"), "constant_error": ("constant guess", _SIGNAL, "--")}
    for name, (label, color, style) in shown.items():
        values = [probe[name][k] for k in probed]
        axis.plot([epochs[k] for k in probed], values, label=label, color=color, linestyle=style, marker=".")
    axis.set(title=f"probe of {probe['target']}, error", ylim=(0, None))


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
        examples: the windows.
        channels: the channel names.
        units: unit by channel name.
        sfreq: sampling frequency in Hz.
        synthetic: whether the windows are synthetic, which the title then says.
    """
    figure, axes = window_grid(len(examples), len(channels), row=1.9, more=0.6)
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
        row[0].set_title(example.case, fontsize=8, loc="left")
    axes[0][-1].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    kind = "synthetic" if synthetic else "recorded"
    figure.suptitle(f"validation windows ({kind}); shaded: hidden from the encoder", fontsize=10)
    save_figure(figure, path)


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
        windows: the windows.
        channels: the channel names.
        units: unit by channel name.
        sfreq: sampling frequency in Hz.
        synthetic: whether the windows are synthetic, which the title then says.
    """
    figure, axes = window_grid(len(windows), len(channels), row=1.35, more=0.8)
    for row, window in zip(axes, windows, strict=True):
        seconds = np.arange(window.samples.shape[1]) / sfreq
        for c, axis in enumerate(row):
            axis.plot(seconds, window.samples[c], color=_SIGNAL, linewidth=0.8)
            known = np.isfinite(window.quality[c])
            quality = f"quality {window.quality[c]:.2f}" if known else "missing"
            axis.set_title(quality, fontsize=8, loc="right", pad=2)
            axis.grid(alpha=0.3)
        title = f"{window.split}: {window.case_id} at {window.start_s:g} s"
        row[0].set_title(title, fontsize=8, loc="left", pad=2)
        for axis, name in zip(row, channels, strict=True):
            axis.set_ylabel(f"{name} ({units.get(name, '?')})", fontsize=8)
    kind = "synthetic" if synthetic else "recorded"
    figure.suptitle(f"random windows of the store ({kind})", fontsize=10)
    save_figure(figure, path)


def window_grid(windows: int, channels: int, *, row: float, more: float) -> tuple[Any, Any]:
    """A figure, and its axes over seconds (windows, channels).

    Few channels stand side by side, one window a row; more stand one below the other, so that they stay wide.

    Args:
        windows: the number of windows.
        channels: the number of channels.
        row: the height of a row of axes in inches.
        more: the height for titles in inches.
    """
    stacked = channels > _COLUMNS
    columns = min(windows, _COLUMNS) if stacked else channels
    rows = -(-windows // columns) * channels if stacked else windows
    figure, axes = plt.subplots(
        rows, columns, figsize=(6.5 * columns, row * rows + more), layout="constrained", squeeze=False
    )
    if stacked:
        axes = axes.reshape(-1, channels, columns).swapaxes(1, 2).reshape(-1, channels)
    for unused in axes[windows:].flat:
        unused.remove()
    axes = axes[:windows]
    lowest = axes[:, -1] if stacked else axes[-1]
    for axis in axes.flat:
        axis.tick_params(labelsize=7, labelbottom=axis in lowest)
        axis.margins(x=0)
    for axis in lowest:
        axis.set_xlabel("seconds", fontsize=8)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    # Without the software's version and date, the same run gives the same bytes.
    try:
        write_atomically(
            path,
            lambda file: figure.savefig(file, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None}),
        )
    finally:
        plt.close(figure)

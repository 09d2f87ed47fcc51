"""Filter and judge a recording window by window, as toolboxes for biosignals do: a baseline to be timed.

Each window is resampled, filtered, searched for peaks and scored by the mean correlation of its beats with
their average (Orphanidou et al. 2015). Its scores have the errors of filtering windows one by one.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import signal as scipy_signal

from biofound.data.channels import Channel
from biofound.data.sources import Signal


def judge_by_loop(
    signal: Signal, channel: Channel, *, sfreq: float, window_seconds: float
) -> NDArray[np.float64]:
    """(N,) the mean correlation of each window's beats with their mean; 0 without beats."""
    length = round(window_seconds * signal.sfreq)
    windows = [signal.samples[at : at + length] for at in range(0, len(signal.samples) - length + 1, length)]
    return np.array([_judge(window, signal.sfreq, channel, sfreq) for window in windows])


def _judge(window: NDArray[np.float32], native: float, channel: Channel, sfreq: float) -> float:
    if not np.isfinite(window).all():
        return 0.0
    resampled = scipy_signal.resample_poly(window.astype(np.float64), round(sfreq), round(native))
    band = (channel.band.low_hz, channel.band.high_hz)
    sos = scipy_signal.butter(channel.band.order, band, "bandpass", fs=sfreq, output="sos")
    clean = scipy_signal.sosfiltfilt(sos, resampled)
    peaks = _peaks(clean, sfreq)
    return _match(clean, peaks, sfreq)


def _peaks(clean: NDArray[np.float64], sfreq: float) -> list[int]:
    """Elgendi et al. 2013: blocks where the short moving average exceeds the long one; a peak in each."""
    power = np.maximum(clean, 0.0) ** 2
    short, long = (
        np.convolve(power, np.ones(width) / width, "same")
        for width in (round(0.111 * sfreq), round(0.667 * sfreq))
    )
    steps = np.diff((short > long + 0.02 * power.mean()).astype(int), prepend=0, append=0)
    peaks: list[int] = []
    for start, stop in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
        if stop - start < 0.05 * sfreq:
            continue
        inside, properties = scipy_signal.find_peaks(clean[start:stop], prominence=(None, None))
        if len(inside):
            peak = int(start + inside[np.argmax(properties["prominences"])])
            if not peaks or peak - peaks[-1] > 0.27 * sfreq:
                peaks.append(peak)
    return peaks


def _match(clean: NDArray[np.float64], peaks: list[int], sfreq: float) -> float:
    if len(peaks) < 3:
        return 0.0
    half = round(float(np.median(np.diff(peaks))) / 2)
    beats = [clean[peak - half : peak + half] for peak in peaks if half <= peak <= len(clean) - half]
    if len(beats) < 2:
        return 0.0
    template = np.mean(beats, axis=0)
    return float(np.mean([np.corrcoef(beat, template)[0, 1] for beat in beats]))

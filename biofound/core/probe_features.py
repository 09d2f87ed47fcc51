"""Baselines of a probe that need no pretraining: classical features, a beat counter, anybody's encoder."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from biofound.errors import SettingsError

AUTOCORRELATION_SECONDS = (0.24, 2.0)
"""Lags of the autocorrelation: the beat-to-beat intervals of 250 to 30 beats a minute."""
LAG_SECONDS = 0.04
SPECTRUM_HZ = (0.1, 8.0)
"""Breathing, and heart rates with their first harmonics."""
SLOPE_SECONDS = 0.1
"""Smoothing of the slope's energy: a QRS complex or the rise of a pulse becomes one bump."""

FASTEST_BPM = 220.0
QRS_HZ = (10.0, 25.0)
"""Where a QRS complex has more energy than a T wave."""
BEAT_HEIGHT = 0.35
"""The smallest beat, as part of the window's usual one."""
PLAUSIBLE_INTERVALS = (0.5, 1.7)
"""Intervals between beats that count, as parts of the window's median: wide enough for fibrillation."""

EncoderFunction = Callable[[NDArray[np.float32], float], NDArray[Any]]
"""Windows (B, C, T) float32 and their rate in Hz to vectors (B, F)."""


def classical_features(x: NDArray[np.float32], sfreq: float) -> NDArray[np.float32]:
    """Autocorrelation, log spectrum and statistics of each channel: (B, C, T) -> (B, F).

    Spectrum and autocorrelation are of the signal and of its slope's energy, which shows beats in an ECG.

    Args:
        x: windows; NaN only in gaps, which become the channel's mean.
        sfreq: Hz.
    """
    filled = _without_gaps(x)
    parts = [_statistics(filled)]
    for waves in (_standardised(filled), _standardised(slope_energy(filled, sfreq))):
        parts += [_autocorrelation(waves, sfreq), _log_spectrum(waves, sfreq)]
    return np.concatenate(parts, axis=-1).reshape(len(x), -1).astype(np.float32)


def slope_energy(x: NDArray[Any], sfreq: float) -> NDArray[np.float64]:
    """The smoothed size of the slope, (..., T) per second: high where a QRS complex or a pulse rises."""
    return _smooth(np.abs(np.gradient(x, axis=-1)) * sfreq, sfreq)


def _smooth(x: NDArray[np.float64], sfreq: float) -> NDArray[np.float64]:
    return np.asarray(ndimage.gaussian_filter1d(x, SLOPE_SECONDS / 2 * sfreq, axis=-1, mode="nearest"))


def _without_gaps(x: NDArray[Any]) -> NDArray[np.float64]:
    observed = np.isfinite(x)
    kept = np.where(observed, x, 0.0).astype(np.float64)
    mean = kept.sum(-1, keepdims=True) / np.maximum(observed.sum(-1, keepdims=True), 1)
    return np.asarray(np.where(observed, x, mean), dtype=np.float64)


def _standardised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = x - x.mean(-1, keepdims=True)
    std = centred.std(-1, keepdims=True)
    return np.asarray(np.where(std > 0, centred / np.where(std > 0, std, 1.0), 0.0))


def _statistics(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, C, 9): log scale, skewness, kurtosis, quantiles, zero crossings, log size of the slope."""
    waves = _standardised(x)
    quantiles = np.moveaxis(np.quantile(waves, [0.05, 0.25, 0.5, 0.75, 0.95], axis=-1), 0, -1)
    crossings = (np.diff(np.sign(waves), axis=-1) != 0).mean(-1)
    single = [
        np.log(x.std(-1) + 1e-6),
        (waves**3).mean(-1),
        np.log((waves**4).mean(-1) + 1e-6),
        crossings,
        np.log(np.abs(np.diff(waves, axis=-1)).mean(-1) + 1e-6),
    ]
    return np.concatenate([np.stack(single, axis=-1), quantiles], axis=-1)


def _autocorrelation(waves: NDArray[np.float64], sfreq: float) -> NDArray[np.float64]:
    """(B, C, lags), unbiased: divided by the samples that overlap."""
    samples = waves.shape[-1]
    power = np.abs(np.fft.rfft(waves, 2 * samples, axis=-1)) ** 2
    sums = np.fft.irfft(power, axis=-1)[..., :samples]
    low, high = AUTOCORRELATION_SECONDS
    lags = np.rint(np.arange(low, high + LAG_SECONDS / 2, LAG_SECONDS) * sfreq).astype(np.int64)
    lags = lags[lags < samples // 2]
    return np.asarray(sums[..., lags] / (samples - lags))


def _log_spectrum(waves: NDArray[np.float64], sfreq: float) -> NDArray[np.float64]:
    """(B, C, bins): log power by frequency, Hann window, floor of a thousandth of the mean power."""
    taper = signal.get_window("hann", waves.shape[-1])
    power = np.abs(np.fft.rfft(waves * taper, axis=-1)) ** 2 / (taper**2).sum()
    frequency = np.fft.rfftfreq(waves.shape[-1], 1 / sfreq)
    band = (frequency >= SPECTRUM_HZ[0] - 1e-9) & (frequency <= SPECTRUM_HZ[1] + 1e-9)
    return np.asarray(np.log(power[..., band] + 1e-3))


# ---------------------------------------------------------------- beats


def count_beats(x: NDArray[np.float32], sfreq: float, *, channels: Sequence[str]) -> NDArray[np.float64]:
    """Heart rate (B,) in beats a minute by counting beats in windows (B, C, T); NaN where there are none.

    Beats are peaks of the QRS energy of the first ECG channel, else (also in windows that hold nothing of
    it) of the upward slope of the first PPG channel. The rate is that of the mean interval between beats,
    without those under half the median (noise) or over 1.7 times the median (a missed beat).

    Args:
        x: windows; NaN only in gaps.
        sfreq: Hz.
        channels: the C channel names.

    Raises:
        ValueError: when no channel is an ECG or a PPG.
    """
    rows = {
        kind: next((i for i, name in enumerate(channels) if name.startswith(kind)), None)
        for kind in ("ECG", "PPG")
    }
    if rows["ECG"] is None and rows["PPG"] is None:
        raise ValueError(f"counting beats needs a channel ECG or PPG; got {', '.join(channels)}")
    rates, todo = np.full(len(x), np.nan), np.ones(len(x), np.bool_)
    for row, energy_of in ((rows["ECG"], _qrs_energy), (rows["PPG"], _rises)):
        if row is None:
            continue
        mine = todo & np.isfinite(x[:, row]).any(-1)
        if mine.any():
            energy = energy_of(_standardised(_without_gaps(x[mine, row])), sfreq)
            rates[mine] = [_rate(one, sfreq) for one in energy]
        todo &= ~mine
    return rates


def _qrs_energy(waves: NDArray[np.float64], sfreq: float) -> NDArray[np.float64]:
    high = min(QRS_HZ[1], 0.45 * sfreq)
    band = signal.butter(2, [QRS_HZ[0] / QRS_HZ[1] * high, high], "bandpass", fs=sfreq, output="sos")
    return _smooth(np.abs(signal.sosfiltfilt(band, waves, axis=-1)), sfreq)


def _rises(waves: NDArray[np.float64], sfreq: float) -> NDArray[np.float64]:
    return _smooth(np.maximum(np.gradient(waves, axis=-1), 0.0), sfreq)


def _rate(energy: NDArray[np.float64], sfreq: float) -> float:
    """Beats a minute from the peaks of an energy (T,)."""
    peaks, _ = signal.find_peaks(energy, distance=max(1, int(60.0 / FASTEST_BPM * sfreq)))
    # The usual beat: the median over cells of two seconds, which hold a beat however slow the heart.
    cell = round(2 * sfreq)
    usual = np.median([energy[start : start + cell].max() for start in range(0, len(energy), cell)])
    intervals = np.diff(peaks[energy[peaks] > BEAT_HEIGHT * usual])
    if not len(intervals):
        return float("nan")
    low, high = np.median(intervals) * np.array(PLAUSIBLE_INTERVALS)
    return float(60.0 * sfreq / intervals[(intervals > low) & (intervals < high)].mean())


# ---------------------------------------------------------------- any other encoder


def load_encoder_function(spec: str) -> EncoderFunction:
    """The function that `module:function` names: windows (B, C, T) and rate in Hz to vectors (B, F).

    Raises:
        SettingsError: when the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise SettingsError(f"encoder {spec!r}: expected module:function, such as my_package.models:embed")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingsError(f"encoder {spec!r}: cannot import {module_name}: {error}") from error
    found = getattr(module, function_name, None)
    if not callable(found):
        here = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise SettingsError(
            f"encoder {spec!r}: {module_name} has no function {function_name}; it has "
            f"{', '.join(sorted(here)) or 'none'}"
        )
    return cast(EncoderFunction, found)

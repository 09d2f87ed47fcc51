"""Windows without end: synthetic PPG, ECG and acceleration, generated as they are read, with their truth.

Nothing is stored. A window follows from population, seed, split and index alone, so any process computes
the same bits, whatever else is in its batch. Six windows (by default) come from one virtual subject.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy import signal as scipy_signal

from biofound.data.channels import Channel, PassBand
from biofound.data.conditioning import design
from biofound.data.segments import Segments, WindowInfo, crop_offsets
from biofound.data.sources.heart_signals import SIGNALS, render
from biofound.data.sources.heart_truth import Truth, truth_of
from biofound.data.sources.hearts import Heart, draw_heart
from biofound.data.sources.keyed_draws import Floats
from biofound.data.sources.populations import population_named
from biofound.errors import SettingsError

GENERATOR = 1
"""The generator's version; to be raised by whoever changes what the same seed gives."""

HEARTS_KEPT = 2048
"""Hearts that are not drawn again for their next window; each takes about 11 kB."""
_MARGIN_S = 3.0
"""Rendered on either side of a window and filtered with it: what lies beyond changes the window by 0.3 % of
its standard deviation in the median, and by less than 3 %."""
_FADE_S = 1.0  # of the margin, at its ends, so that the filter's circle closes without a step


class SyntheticStream:
    """Windows of a population of virtual hearts; see `Windows`, whose contract it meets.

    Args:
        population: `rest`, `icu` or `exercise`.
        channels: the rows, of those that can be rendered (PPG, ECG, ACC_X, ACC_Y, ACC_Z), with pass bands.
        hours: nominal length: how many windows an epoch has. An index beyond it gives a new window too.
        seed: which hearts.
        split: names the part, such as `train` or `val`; the subjects of different splits differ.
        sfreq: sampling frequency in Hz.
        window_seconds: length of a window.
        segment_windows: adjacent windows that come from one subject; crops are drawn among them.

    Raises:
        SettingsError: when a value is out of range, or a channel cannot be rendered.
    """

    synthetic = True
    sfreq_is_assumed = False

    def __init__(
        self,
        *,
        population: str,
        channels: Sequence[Channel],
        hours: float,
        seed: int = 42,
        split: str = "train",
        sfreq: float = 125.0,
        window_seconds: float = 10.0,
        segment_windows: int = 6,
    ) -> None:
        self._population = population_named(population)
        self.channels = tuple(channel.name for channel in channels)
        if unknown := [name for name in self.channels if name not in SIGNALS]:
            raise SettingsError(
                f"synthetic windows have {', '.join(SIGNALS)}, but not {', '.join(unknown)}; leave it out"
            )
        self.window_samples = round(window_seconds * sfreq)
        seconds = self.window_samples / sfreq
        if not (hours > 0 and seed >= 0 and segment_windows >= 1 and self.window_samples >= 1):
            raise SettingsError(
                "a synthetic stream needs hours above 0, a seed of 0 or more, and at least one sample and "
                f"one window a subject; got hours={hours}, seed={seed}, window_seconds={window_seconds}, "
                f"segment_windows={segment_windows}"
            )
        self.sfreq, self.seed, self.split, self.segment_windows = sfreq, seed, split, segment_windows
        self._hearts = math.ceil(hours * 3600 / (seconds * segment_windows))
        self._duration_s = seconds * segment_windows
        self._bands = tuple(channel.band for channel in channels)
        self.filters: dict[str, dict[str, Any]] = {
            channel.name: channel.band.as_json() for channel in channels
        }
        self.units = {channel.name: channel.unit for channel in channels}
        self._stream = int(_digest(self._population.name, seed, split)[:16], 16)
        self._margin = math.ceil(_MARGIN_S * sfreq)
        # Checks the pass bands now, not in the middle of an epoch.
        for band in self._bands:
            design(band, sfreq=sfreq)

    @property
    def fingerprint(self) -> str:
        """A digest of all that shapes the windows, and of how many there are."""
        return _digest(
            GENERATOR,
            repr(self._population),
            self.seed,
            self.split,
            self.sfreq,
            self.window_samples,
            self.segment_windows,
            self._hearts,
            list(self.filters.items()),
        )

    @property
    def subjects(self) -> tuple[str, ...]:
        """The virtual subjects of the nominal length, one for each `segment_windows` windows; sorted."""
        return tuple(self._subject(segment) for segment in range(self._hearts))

    def __len__(self) -> int:
        """The number of windows in the nominal length."""
        return self._hearts * self.segment_windows

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T) in physical units; see `Windows.read`. Any index from 0 on will do."""
        out = np.empty((len(index), len(self.channels), self.window_samples), np.float32)
        for row, (heart, offset) in enumerate(self._places(index, crop)):
            raw = render(
                heart,
                self.channels,
                first=offset - self._margin,
                samples=self.window_samples + 2 * self._margin,
                sfreq=self.sfreq,
            )
            out[row] = self._filtered(raw)
        return out

    def truth(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> Truth:
        """What is true of the windows that `read` gives for the same arguments."""
        places = [(heart, offset / self.sfreq) for heart, offset in self._places(index, crop)]
        return truth_of(places, seconds=self.window_samples / self.sfreq)

    def heart_rate(
        self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None
    ) -> NDArray[np.float32]:
        """The true heart rates (B,) of the windows that `read` gives, in beats a minute."""
        return self.truth(index, crop).heart_rate.astype(np.float32)

    def info(self, index: NDArray[np.int64]) -> WindowInfo:
        """The virtual subject (also the case) and start of the windows `index` (B,); quality is unknown."""
        segments, place = np.divmod(np.asarray(index, np.int64), self.segment_windows)
        subjects = np.array([self._subject(segment) for segment in segments.tolist()], np.str_)
        return WindowInfo(
            case_id=subjects,
            subject_id=subjects,
            start_s=place * self.window_samples / self.sfreq,
            quality=np.full((len(place), len(self.channels)), np.nan, np.float32),
        )

    def segments(self) -> Segments:
        """Which of the windows adjoin: those of a subject."""
        rows = np.arange(len(self), dtype=np.int64)
        return Segments(
            first=rows - rows % self.segment_windows,
            length=np.full(len(rows), self.segment_windows, np.int64),
        )

    def heart(self, segment: int) -> Heart:
        """The heart whose `segment_windows` windows start at index `segment * segment_windows`."""
        return _heart(self._population.name, self._stream, segment, self._duration_s)

    def _subject(self, segment: int) -> str:
        return f"{self._population.name}_{self.split}_{segment:08d}"

    def _places(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None) -> list[tuple[Heart, int]]:
        """Of each window its heart, and the sample of the heart's segment at which it starts."""
        index = np.asarray(index, np.int64)
        if np.any(index < 0):
            raise IndexError(f"expected window indices of 0 or more, got {int(index.min())}")
        segments, place = np.divmod(index, self.segment_windows)
        if crop is None:
            offsets = place * self.window_samples
        else:
            length = np.full(len(place), self.segment_windows, np.int64)
            offsets = crop_offsets(place, length, crop, self.window_samples)
        return [
            (self.heart(segment), offset)
            for segment, offset in zip(segments.tolist(), offsets.tolist(), strict=True)
        ]

    def _filtered(self, raw: Floats) -> NDArray[np.float32]:
        """Filter (C, T + two margins) with zero phase in the channels' pass bands, and cut the window."""
        length = raw.shape[1]
        raw = raw - raw.mean(axis=1, keepdims=True)
        raw *= _fade(length, round(_FADE_S * self.sfreq))
        padded = fft.next_fast_len(length, real=True)
        spectrum = fft.rfft(raw.astype(np.float32), padded)
        spectrum *= _responses(self._bands, padded, self.sfreq)
        filtered = fft.irfft(spectrum, padded)
        window: NDArray[np.float32] = filtered[:, self._margin : self._margin + self.window_samples]
        return window


@lru_cache(maxsize=HEARTS_KEPT)
def _heart(population: str, stream: int, segment: int, duration_s: float) -> Heart:
    return draw_heart(population_named(population), (stream, segment), duration_s)


def forget_hearts() -> None:
    """Drop the hearts kept for their next windows; each is then drawn anew."""
    _heart.cache_clear()


@lru_cache(maxsize=16)
def _responses(bands: tuple[PassBand, ...], length: int, sfreq: float) -> NDArray[np.float32]:
    """Gains (C, length // 2 + 1) of the pass bands' filters, run forward and backward."""
    frequency = np.fft.rfftfreq(length, 1 / sfreq)
    gains = [
        np.abs(scipy_signal.sosfreqz(design(band, sfreq=sfreq), frequency, fs=sfreq)[1]) ** 2
        for band in bands
    ]
    return np.asarray(gains, np.float32)


@lru_cache(maxsize=16)
def _fade(length: int, samples: int) -> NDArray[np.float32]:
    """A gain (length,) that rises from 0 to 1 over `samples` and falls again at the end."""
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / samples)
    return np.concatenate([rise, np.ones(length - 2 * samples), rise[::-1]]).astype(np.float32)


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

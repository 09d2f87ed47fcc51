"""Random numbers of one virtual heart: keyed generators, cheap single draws, and slow signals."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from biofound.data.sources.populations import Range

Floats = NDArray[np.float64]

_T = TypeVar("_T")


class Purpose(IntEnum):
    """What random numbers are for; those of different purposes are independent."""

    HEART = 0
    BEATS = 1


def generator(key: tuple[int, int], case: int, purpose: Purpose) -> np.random.Generator:
    """Random numbers that depend on a subject's key (two numbers below 2**64), case and purpose alone."""
    counter = np.array([0, 0, case, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64), counter=counter))


@dataclass(frozen=True, kw_only=True)
class Sines:
    """A slow signal: a sum of sines. `frequency` (K,) in Hz, `phase` (K, 1) in rad, `amplitude` (K,)."""

    frequency: Floats
    phase: NDArray[np.float32]
    amplitude: NDArray[np.float32]

    def __call__(self, times: Floats) -> Floats:
        """Its value at `times` (N,) in s."""
        turns = np.multiply.outer(self.frequency, times)
        turns -= np.rint(turns)  # so that float32, whose sine is several times as fast, will do
        angles = turns.astype(np.float32)
        angles *= np.float32(2 * np.pi)
        angles += self.phase
        return np.asarray(self.amplitude @ np.sin(angles, out=angles), np.float64)


class Draw:
    """Deals uniform numbers that were drawn at once, which costs a tenth of drawing each.

    Those of the subject stay the same in all its cases; the phases of what is slow are the case's.
    """

    def __init__(self, subject: np.random.Generator, case: np.random.Generator) -> None:
        numbers = subject.random(400)
        self._single: Iterator[float] = iter(numbers[:250].tolist())
        self._numbers, self._next = numbers, 250
        self._phases = (2 * math.pi * case.random(100)).astype(np.float32)
        self._next_phase = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number between the two."""
        return low + (high - low) * next(self._single)

    def log_uniform(self, span: Range) -> float:
        """A number with equal chances per octave of a range above 0."""
        return float(span.low * (span.high / span.low) ** next(self._single))

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return next(self._single) < share

    def array(self, count: int, low: float = 0.0, high: float = 1.0) -> Floats:
        """(count,) numbers between the two."""
        self._next += count
        return low + (high - low) * self._numbers[self._next - count : self._next]

    def choose(self, shares: Sequence[tuple[_T, float]]) -> _T:
        """One of several, each with its share; the shares add up to 1."""
        left = next(self._single)
        for choice, share in shares:
            left -= share
            if left < 0:
                return choice
        return shares[-1][0]

    def sines(self, slowest_s: float, fastest_s: float, size: float, count: int = 4) -> Sines:
        """Sines with periods between the two and, together, the standard deviation `size`."""
        weights = self.array(count, 0.5, 1.0)
        self._next_phase += count
        return Sines(
            frequency=(slowest_s / fastest_s) ** self.array(count) / slowest_s,
            phase=self._phases[self._next_phase - count : self._next_phase, None],
            amplitude=(weights * (size * math.sqrt(2 / float(weights @ weights)))).astype(np.float32),
        )

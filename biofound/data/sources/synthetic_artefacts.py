"""Artefacts of synthetic recordings: drawn, applied and labelled.

Hard artefacts (motion bursts, clipping, flat lines, gaps) destroy what they cover and are the ground
truth for quality gating. Mild ones (mains hum and baseline wander of ordinary size) lie outside the pass
bands and should cost no window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from biofound.data.sources.synthetic_heart import Floats

Kind = Literal["motion", "clipping", "flat", "gap", "mains", "wander", "ectopic"]

ACCELERATION = ("ACC_X", "ACC_Y", "ACC_Z")
HARD: frozenset[Kind] = frozenset({"motion", "clipping", "flat", "gap"})

_MOTION_HZ = 100.0
_GUARD_S = 1.5  # two artefacts of one channel stay this far apart, so that each label means one thing


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One labelled interval [start_s, stop_s) of one channel; both are whole samples of that channel.

    `hard` says that the interval is unusable. `severity` is, for motion, the noise's standard deviation
    over the size of a pulse or an R wave; for clipping, the part of the samples at a rail; for mains and
    wander, the amplitude over that size; 1 for flat lines, gaps and ectopic beats.
    """

    channel: str
    start_s: float
    stop_s: float
    kind: Kind
    severity: float
    hard: bool


@dataclass(frozen=True, kw_only=True)
class Event:
    """An artefact that affects some channels at once, in s; `number` keys its random numbers."""

    number: int
    kind: Kind
    channels: tuple[str, ...]
    start_s: float
    stop_s: float
    severity: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _EventRate:
    """Events an hour of a kind on a set of channels, and their ranges of duration (s) and severity."""

    kind: Kind
    channels: tuple[str, ...]
    per_hour: float
    seconds: tuple[float, float]
    severity: tuple[float, float] = (1.0, 1.0)


_ALL = ("PPG", "ECG", *ACCELERATION)
_EVENT_RATES = (
    _EventRate(kind="motion", channels=("PPG", "ECG"), per_hour=4, seconds=(4, 25), severity=(0.8, 2.5)),
    _EventRate(kind="motion", channels=("PPG",), per_hour=5, seconds=(4, 30), severity=(0.8, 2.5)),
    _EventRate(kind="clipping", channels=("PPG",), per_hour=3, seconds=(4, 25), severity=(0.15, 0.45)),
    _EventRate(kind="clipping", channels=("ECG",), per_hour=3, seconds=(4, 25), severity=(0.10, 0.40)),
    _EventRate(kind="flat", channels=("PPG",), per_hour=2, seconds=(2, 30)),
    _EventRate(kind="flat", channels=("ECG",), per_hour=2, seconds=(2, 30)),
    _EventRate(kind="flat", channels=ACCELERATION, per_hour=1, seconds=(2, 30)),
    _EventRate(kind="gap", channels=("PPG",), per_hour=2, seconds=(0.1, 15)),
    _EventRate(kind="gap", channels=("ECG",), per_hour=2, seconds=(0.1, 15)),
    _EventRate(kind="gap", channels=ACCELERATION, per_hour=1, seconds=(0.1, 15)),
    _EventRate(kind="gap", channels=_ALL, per_hour=2, seconds=(0.1, 20)),
    _EventRate(kind="mains", channels=("ECG",), per_hour=4, seconds=(10, 90), severity=(0.02, 0.10)),
    _EventRate(kind="mains", channels=("PPG",), per_hour=2, seconds=(10, 90), severity=(0.01, 0.05)),
    _EventRate(kind="wander", channels=("ECG",), per_hour=4, seconds=(20, 90), severity=(0.1, 0.4)),
    _EventRate(kind="wander", channels=("PPG",), per_hour=4, seconds=(20, 90), severity=(0.2, 0.8)),
)


def draw_events(rng: np.random.Generator, *, duration_s: float, rate: float) -> list[Event]:
    """Draw a case's events, `rate` times as many as usual; events on one channel do not overlap."""
    events: list[Event] = []
    for event_rate in _EVENT_RATES:
        for _ in range(int(rng.poisson(event_rate.per_hour * rate * duration_s / 3600.0))):
            event = _draw_event(rng, event_rate, len(events), duration_s)
            if not any(_collide(event, other) for other in events):
                events.append(event)
    return sorted(events, key=lambda event: event.start_s)


def _draw_event(rng: np.random.Generator, event_rate: _EventRate, number: int, duration_s: float) -> Event:
    low, high = event_rate.seconds
    # Log-uniform: short ones are the most common, as in recordings.
    length = min(float(np.exp(rng.uniform(np.log(low), np.log(high)))), duration_s)
    start = rng.uniform(0.0, duration_s - length)
    return Event(
        number=number,
        kind=event_rate.kind,
        channels=event_rate.channels,
        start_s=start,
        stop_s=start + length,
        severity={channel: rng.uniform(*event_rate.severity) for channel in event_rate.channels},
    )


def _collide(one: Event, other: Event) -> bool:
    apart = one.start_s > other.stop_s + _GUARD_S or other.start_s > one.stop_s + _GUARD_S
    return not apart and bool(set(one.channels) & set(other.channels))


def samples_of(event: Event, *, samples: int, sfreq: float) -> slice:
    """The samples that an event covers in a channel of `samples` at `sfreq` Hz; at least one."""
    start = min(round(event.start_s * sfreq), samples - 1)
    return slice(start, min(max(round(event.stop_s * sfreq), start + 1), samples))


def label_of(event: Event, channel: str, *, samples: int, sfreq: float) -> Artefact:
    """The label of an event in one of its channels."""
    covered = samples_of(event, samples=samples, sfreq=sfreq)
    return Artefact(
        channel=channel,
        start_s=covered.start / sfreq,
        stop_s=covered.stop / sfreq,
        kind=event.kind,
        severity=event.severity[channel],
        hard=event.kind in HARD,
    )


def apply_event(
    signal: Floats,
    event: Event,
    channel: str,
    *,
    sfreq: float,
    size: float,
    mains_hz: float,
    stream: Callable[[int, str], np.random.Generator],
) -> None:
    """Apply `event` to `signal` (T,) in place, where it covers it.

    Args:
        signal: one channel, at `sfreq` Hz, in its physical unit.
        event: the artefact; its channels include `channel`.
        channel: the channel's name.
        sfreq: in Hz.
        size: the height of a pulse or R wave, in the signal's unit.
        mains_hz: the frequency of the mains, in Hz.
        stream: gives the generator for (event number, purpose).
    """
    covered = samples_of(event, samples=len(signal), sfreq=sfreq)
    part = signal[covered]
    severity = event.severity[channel]
    if event.kind == "motion":
        drive = motion_of(event, stream)[1]
        noise = _motion_noise(stream(event.number, channel), drive, channel, samples=len(part), sfreq=sfreq)
        part += size * severity * _fade(len(part), sfreq, seconds=0.2) * noise
    elif event.kind == "clipping":
        _clip(part, severity, both=channel == "ECG" or stream(event.number, channel).random() < 0.5)
    elif event.kind == "flat":
        part[:] = signal[max(covered.start - 1, 0)]
    elif event.kind == "gap":
        part[:] = np.nan
    else:
        rng = stream(event.number, channel)
        frequency = mains_hz if event.kind == "mains" else rng.uniform(0.05, 0.25)
        clock = np.arange(len(part)) / sfreq
        wave = np.sin(2 * np.pi * frequency * clock + rng.uniform(0, 2 * np.pi))
        part += size * severity * _fade(len(part), sfreq, seconds=2.0) * wave


def motion_of(event: Event, stream: Callable[[int, str], np.random.Generator]) -> tuple[Floats, Floats]:
    """Time (M,) in s from a burst's start, at 100 Hz, and its movement (3, M) with unit variance.

    Movement is partly rhythmic (steps, tremor, at 1 to 4 Hz) and partly irregular.
    """
    rng = stream(event.number, "movement")
    clock = np.arange(int(np.ceil((event.stop_s - event.start_s) * _MOTION_HZ)) + 2) / _MOTION_HZ
    rhythm = rng.uniform(1.0, 4.0)
    turns = rhythm * clock + 0.3 * np.cumsum(rng.standard_normal(len(clock))) / _MOTION_HZ**0.5
    phases = rng.uniform(0, 2 * np.pi, (3, 1))
    regular = np.sin(2 * np.pi * turns + phases) + 0.5 * np.sin(4 * np.pi * turns + 2 * phases)
    irregular = _band_noise(rng, (3, len(clock)), _MOTION_HZ, low=0.5, high=6.0)
    movement = rng.uniform(0.2, 1.0) * regular + irregular
    return clock, movement / movement.std(axis=1, keepdims=True)


def add_motion(
    axes: Floats, event: Event, *, sfreq: float, stream: Callable[[int, str], np.random.Generator]
) -> None:
    """Add the movement of a motion burst to the acceleration `axes` (3, T), in g."""
    covered = samples_of(event, samples=axes.shape[1], sfreq=sfreq)
    clock, movement = motion_of(event, stream)
    strength = stream(event.number, "strength").uniform(0.05, 0.4, 3)
    time = np.arange(covered.stop - covered.start) / sfreq
    for axis in range(3):
        axes[axis, covered] += strength[axis] * np.interp(time, clock, movement[axis])


def _motion_noise(
    rng: np.random.Generator, drive: Floats, channel: str, *, samples: int, sfreq: float
) -> Floats:
    """Noise (T,) of unit variance in a channel, caused by movement `drive` (3, M).

    Half is the movement itself, half a response of the channel: slow shifts of the sensor in the PPG, muscle
    and electrodes in the ECG.
    """
    mix = rng.standard_normal(3) @ drive
    time = np.arange(samples) / sfreq
    moved = np.interp(time, np.arange(drive.shape[1]) / _MOTION_HZ, mix / mix.std())
    low, high = (0.6, 6.0) if channel == "PPG" else (1.0, 30.0)
    own = _band_noise(rng, (samples,), sfreq, low=low, high=min(high, 0.4 * sfreq))
    noise = moved + own
    return np.asarray(noise / max(float(noise.std()), 1e-9))


def _band_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sfreq: float, *, low: float, high: float
) -> Floats:
    """Gaussian noise of unit variance with a spectrum that falls as 1/f from `low` and stops at `high` Hz."""
    length = shape[-1]
    frequency = np.fft.rfftfreq(length, 1 / sfreq)
    gain = np.where(frequency <= high, 1.0 / np.maximum(frequency, low), 0.0)
    gain[frequency < 0.5 * low] = 0.0
    if not gain.any():
        gain[min(1, len(gain) - 1)] = 1.0
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(shape)) * gain, length)
    return np.asarray(noise / np.maximum(noise.std(axis=-1, keepdims=True), 1e-9))


def _fade(samples: int, sfreq: float, *, seconds: float) -> Floats:
    """A gain (T,) that rises from 0 to 1 over `seconds` and falls again at the end."""
    clock = np.arange(1, samples + 1) / sfreq
    return np.minimum(1.0, np.minimum(clock, clock[::-1]) / seconds)


def _clip(part: Floats, severity: float, *, both: bool) -> None:
    """Clip `part` in place so that `severity` of its samples lie at a rail (one rail, or `both`)."""
    top, bottom = (severity / 2, severity / 2) if both else (severity, 0.0)
    low, high = np.quantile(part, [bottom, 1.0 - top])
    np.clip(part, low, high, out=part)


def ectopic_labels(
    channel: str, times: Floats, ectopic: NDArray[np.bool_], *, samples: int, sfreq: float
) -> list[Artefact]:
    """Labels around ectopic beats at `times` (N,) in s, each from 0.1 s before to 0.5 s after."""
    labels = []
    for time in times[ectopic]:
        start, stop = (int(np.clip(round((time + shift) * sfreq), 0, samples)) for shift in (-0.1, 0.5))
        if stop > start:
            labels.append(
                Artefact(
                    channel=channel,
                    start_s=start / sfreq,
                    stop_s=stop / sfreq,
                    kind="ectopic",
                    severity=1.0,
                    hard=False,
                )
            )
    return labels

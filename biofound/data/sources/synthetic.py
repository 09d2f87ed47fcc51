"""Synthetic cohort: generated PPG, ECG and acceleration of virtual subjects, with ground truth.

The channels of a subject come from one heart, and every artefact is labelled. Nothing here is measured from a
person; everything made from it must say "synthetic". A case depends on (seed, subject, case) and the
signals' settings only, not on the number of others.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.sources import (
    AbsentChannelError,
    Case,
    Recording,
    Signal,
    Source,
    Survey,
    missing_channels,
    present_channels,
    survey_recordings,
)
from biofound.data.sources.heart_signals import pulse_to_disturbance, render
from biofound.data.sources.heart_truth import Truth, truth_of
from biofound.data.sources.hearts import Heart, draw_heart
from biofound.data.sources.populations import population_named
from biofound.data.sources.registry import MAX_CASES, MAX_MINUTES, MAX_SUBJECTS, MIN_MINUTES
from biofound.data.sources.rhythms import Beat
from biofound.data.sources.synthetic_artefacts import (
    ACCELERATION,
    Artefact,
    Event,
    add_motion,
    apply_event,
    draw_events,
    ectopic_labels,
    label_of,
)
from biofound.data.sources.synthetic_heart import (
    Floats,
    Heartbeats,
    Subject,
    acceleration_of,
    draw_heartbeats,
    draw_subject,
    ecg_of,
    ppg_of,
)
from biofound.errors import DataError, SettingsError

ACCELERATION_HZ = 100.0
"""The rate of the accelerometer channels, in Hz; PPG and ECG have the source's `sfreq`."""

UNITS = {"PPG": "NU", "ECG": "mV", "ACC_X": "g", "ACC_Y": "g", "ACC_Z": "g"}
"""The tracks of every synthetic case, and their units (NU: arbitrary)."""

_GENERATOR = 1  # to be raised by whoever changes what the same seed gives
_CASE_ID = re.compile(r"syn(\d{4,})_(\d+)")


class SyntheticSource(Source):
    """A synthetic cohort: `subjects` subjects with `cases_per_subject` recordings of `minutes` each.

    Args:
        seed: seed of the cohort.
        subjects: number of subjects, named syn0001, syn0002, ...
        cases_per_subject: recordings of each, named syn0001_1, syn0001_2, ...
        minutes: length of a recording.
        sfreq: rate of PPG and ECG in Hz; acceleration has 100 Hz.
        artefacts: rate of artefacts, as a factor on the usual one; 0 gives clean signals. Ectopic
            beats belong to the heart and stay, as do a population's own noise and movements.
        population: whose hearts. `rest` is this module's own calm cohort; the others are those of
            `populations.py`, drawn and rendered as in synthetic streams.

    Raises:
        SettingsError: when a value is out of range.
    """

    name = "synthetic"

    def __init__(
        self,
        *,
        seed: int = 42,
        subjects: int = 60,
        cases_per_subject: int = 1,
        minutes: float = 10.0,
        sfreq: float = 500.0,
        artefacts: float = 1.0,
        population: str = "rest",
    ) -> None:
        _require(0 <= seed < 2**32, "seed", seed, "0 to 4,294,967,295")
        _require(1 <= subjects <= MAX_SUBJECTS, "subjects", subjects, f"1 to {MAX_SUBJECTS:,}")
        cases = cases_per_subject
        _require(1 <= cases <= MAX_CASES, "cases_per_subject", cases, f"1 to {MAX_CASES:,}")
        _require(MIN_MINUTES <= minutes <= MAX_MINUTES, "minutes", minutes, f"{MIN_MINUTES} to {MAX_MINUTES}")
        _require(60.0 <= sfreq <= 4000.0, "sfreq", sfreq, "60 to 4000 Hz")
        _require(0.0 <= artefacts <= 20.0, "artefacts", artefacts, "0 to 20")
        self.seed = seed
        self.subjects = subjects
        self.cases_per_subject = cases_per_subject
        self.minutes = float(minutes)
        self.sfreq = float(sfreq)
        self.artefacts = float(artefacts)
        self.population = population_named(population).name

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Plain JSON that opens the same cohort again."""
        description: dict[str, str | int | float | bool | None] = {
            "name": self.name,
            "seed": self.seed,
            "subjects": self.subjects,
            "cases_per_subject": self.cases_per_subject,
            "minutes": self.minutes,
            "sfreq": self.sfreq,
            "artefacts": self.artefacts,
        }
        if self.population != "rest":  # so that the calm cohort keeps its fingerprints
            description["population"] = self.population
        return description

    def version(self) -> str:
        """The generator's version and a digest of everything that shapes the cohort."""
        return f"{_GENERATOR}-{_digest(self.describe())[:12]}"

    def survey(self, channels: Sequence[Channel]) -> Survey:
        """Every case, or none when a channel is none of PPG, ECG, ACC_X, ACC_Y, ACC_Z."""
        absent = missing_channels(channels, lambda channel: _track_of(channel) is not None)
        subjects = {
            f"syn{subject:04d}_{case}": f"syn{subject:04d}"
            for subject in range(1, self.subjects + 1)
            for case in range(1, self.cases_per_subject + 1)
        }
        return survey_recordings(
            subjects,
            lambda case_id: (
                absent
                or Case(
                    case_id=case_id,
                    subject_id=subjects[case_id],
                    tracks=tuple(UNITS),
                    duration_s=self._samples(self.sfreq) / self.sfreq,
                )
            ),
        )

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """Generate one case: float32, NaN in gaps. A channel does not depend on the others asked for.

        Raises:
            DataError: when there is no such case or channel, or gaps cover a channel throughout.
        """
        case = self._case(case_id)

        def signal_of(channel: Channel) -> Signal:
            track = _track_of(channel)
            if track is None:
                raise AbsentChannelError(
                    f"case {case_id}, channel {channel.name}: expected one of the synthetic tracks "
                    f"{', '.join(UNITS)}, got {', '.join(channel.tracks) or 'no tracks'}; name one of "
                    "them in the channel's tracks"
                )
            samples = case.samples_of(track)
            if np.isnan(samples).all():
                raise AbsentChannelError(f"case {case_id}, channel {channel.name}: every sample is a gap")
            return Signal(samples=samples.astype(np.float32), sfreq=self._rate(track), unit=UNITS[track])

        return Recording(case_id=case_id, signals=present_channels(channels, signal_of))

    def fingerprint(self, case_id: str) -> str:
        """A SHA-256 over all settings that affect this case's samples."""
        self._numbers(case_id)
        shaping = {
            key: value
            for key, value in self.describe().items()
            if key not in ("subjects", "cases_per_subject")
        }
        return _digest({**shaping, "generator": _GENERATOR, "case": case_id})

    def labels(self, case_id: str) -> list[Artefact]:
        """The ground truth: every artefact of a case by channel, in order of time.

        Raises:
            DataError: when there is no such case.
        """
        case = self._case(case_id)
        labels = [
            label_of(event, track, samples=self._samples(self._rate(track)), sfreq=self._rate(track))
            for event in case.events
            for track in event.channels
        ]
        for track in ("PPG", "ECG"):
            labels += ectopic_labels(
                track,
                case.feet if track == "PPG" else case.r_peaks,
                case.ectopic,
                samples=self._samples(self.sfreq),
                sfreq=self.sfreq,
            )
        return sorted(labels, key=lambda label: (label.start_s, label.channel))

    def beats(self, case_id: str) -> Floats:
        """The times of a case's R peaks in s, as (N,): ground truth for beat detection.

        Raises:
            DataError: when there is no such case.
        """
        times = self._case(case_id).r_peaks
        return np.asarray(times[(times >= 0) & (times < self._samples(self.sfreq) / self.sfreq)])

    def truth(self, case_id: str, start_s: Floats, *, seconds: float) -> Truth:
        """The ground truth of windows of a case: rate, rhythm, breaths, beats, pulse delay, movement.

        Args:
            case_id: the case.
            start_s: (B,) starts of the windows in s.
            seconds: their length.

        Raises:
            DataError: when there is no such case, a window leaves it, or the population is `rest`, whose
                generator gives `beats` and `labels` only.
        """
        heart = self._heart_within(case_id, start_s, seconds)
        return truth_of([(heart, start) for start in start_s.tolist()], seconds=seconds)

    def pulse_to_disturbance(self, case_id: str, start_s: Floats, *, seconds: float) -> Floats:
        """(B,) power of the pulses in windows' PPG over that of all else, without artefacts; see `truth`.

        Steps, movements, noise and the heart's clipping count; `Artefact`s, which `labels` gives, do not.

        Raises:
            DataError: as `truth`.
        """
        heart = self._heart_within(case_id, start_s, seconds)
        return np.array(
            [pulse_to_disturbance(heart, start_s=start, seconds=seconds) for start in start_s.tolist()]
        )

    def _heart_within(self, case_id: str, start_s: Floats, seconds: float) -> Heart:
        """The heart of a case, if it is of a population and the windows lie within the case."""
        case = self._case(case_id)
        if not isinstance(case, _PopulationCase):
            raise DataError(
                f"case {case_id}: expected a population other than rest, whose cases have `beats` and "
                "`labels` only; ask for another population"
            )
        duration_s = case.heart.duration_s
        if np.any(start_s < 0) or np.any(start_s + seconds > duration_s + 1e-9):
            raise DataError(f"case {case_id}: expected windows within its {duration_s:g} s, got others")
        return case.heart

    def _case(self, case_id: str) -> "_Case":
        return _RestCase(self, case_id) if self.population == "rest" else _PopulationCase(self, case_id)

    def _samples(self, sfreq: float) -> int:
        return round(self.minutes * 60.0 * sfreq)

    def _rate(self, track: str) -> float:
        return ACCELERATION_HZ if track in ACCELERATION else self.sfreq

    def _numbers(self, case_id: str) -> tuple[int, int]:
        match = _CASE_ID.fullmatch(case_id)
        subject, case = (int(match[1]), int(match[2])) if match else (0, 0)
        known = 1 <= subject <= self.subjects and 1 <= case <= self.cases_per_subject
        if not known or case_id != f"syn{subject:04d}_{case}":
            raise DataError(
                f"case {case_id}: the synthetic cohort has syn0001_1 to "
                f"syn{self.subjects:04d}_{self.cases_per_subject}; ask for more subjects or cases, or make "
                "the splits again"
            )
        return subject, case


class _Case:
    """One case while it is generated: what the two kinds of case share.

    Attributes:
        events: the artefacts.
        r_peaks, feet: (N,) times of the beats' R peaks and of their pulses in s, with a margin at either end.
        ectopic: (N,) bool.
    """

    r_peaks: Floats
    feet: Floats
    ectopic: NDArray[np.bool_]

    def __init__(self, source: SyntheticSource, case_id: str) -> None:
        self._source = source
        self._subject_number, self._case_number = source._numbers(case_id)
        self._duration_s = source._samples(source.sfreq) / source.sfreq
        self.events: list[Event] = draw_events(
            self._stream("events"), duration_s=self._duration_s, rate=source.artefacts
        )
        self._axes: Floats | None = None

    def samples_of(self, track: str) -> Floats:
        """The samples (T,) of a track, with its artefacts."""
        signal, size = self._acceleration(track) if track in ACCELERATION else self._clean(track)
        for event in self.events:
            if track in event.channels:
                apply_event(
                    signal,
                    event,
                    track,
                    sfreq=self._source._rate(track),
                    size=size,
                    mains_hz=self._mains_hz(),
                    stream=self._event_stream,
                )
        return signal

    def _clean(self, track: str) -> tuple[Floats, float]:
        """The samples (T,) of PPG or ECG without artefacts, and the height of a pulse or R wave."""
        raise NotImplementedError

    def _clean_acceleration(self) -> Floats:
        """The three axes (3, T) at 100 Hz without artefacts."""
        raise NotImplementedError

    def _mains_hz(self) -> float:
        raise NotImplementedError

    def _acceleration(self, track: str) -> tuple[Floats, float]:
        """An axis (T,); the three are generated once for all of them."""
        if self._axes is None:
            self._axes = self._clean_acceleration()
            for event in self.events:
                if event.kind == "motion":
                    add_motion(self._axes, event, sfreq=ACCELERATION_HZ, stream=self._event_stream)
        return self._axes[ACCELERATION.index(track)].copy(), 1.0

    def _stream(self, purpose: str, number: int = 0) -> np.random.Generator:
        """Random numbers that depend on the case and `purpose` only, so that channels are independent."""
        return np.random.default_rng(
            [self._source.seed, self._subject_number, self._case_number, _key(purpose), number]
        )

    def _event_stream(self, number: int, purpose: str) -> np.random.Generator:
        return self._stream(f"event {purpose}", number)


class _RestCase(_Case):
    """A case of the calm cohort: its subject and beats, each from random numbers of its own."""

    def __init__(self, source: SyntheticSource, case_id: str) -> None:
        super().__init__(source, case_id)
        self.subject: Subject = draw_subject(
            np.random.default_rng([source.seed, self._subject_number, _key("subject")])
        )
        self.beats: Heartbeats = draw_heartbeats(
            self._stream("beats"), self.subject, duration_s=self._duration_s
        )
        self.r_peaks, self.ectopic = self.beats.times, self.beats.ectopic
        self.feet = self.beats.times + self.subject.arrival_time

    def _clean(self, track: str) -> tuple[Floats, float]:
        make = ppg_of if track == "PPG" else ecg_of
        size = self.subject.pulse_amplitude if track == "PPG" else self.subject.r_amplitude
        signal = make(
            self._stream(track),
            self.subject,
            self.beats,
            samples=self._source._samples(self._source.sfreq),
            sfreq=self._source.sfreq,
        )
        return signal, size

    def _clean_acceleration(self) -> Floats:
        return acceleration_of(
            self._stream("acceleration"),
            self.subject,
            self.beats,
            samples=self._source._samples(ACCELERATION_HZ),
            sfreq=ACCELERATION_HZ,
        )

    def _mains_hz(self) -> float:
        return self.subject.mains


class _PopulationCase(_Case):
    """A case of a population: a virtual heart as synthetic streams have it."""

    def __init__(self, source: SyntheticSource, case_id: str) -> None:
        super().__init__(source, case_id)
        key = int(_digest(["recordings", source.population, source.seed])[:16], 16), self._subject_number
        self.heart = draw_heart(
            population_named(source.population), key, self._duration_s, case=self._case_number
        )
        self.r_peaks, self.feet = self.heart.times, self.heart.feet
        self.ectopic = (self.heart.kinds == Beat.ATRIAL) | (self.heart.kinds == Beat.VENTRICULAR)

    def _clean(self, track: str) -> tuple[Floats, float]:
        size = self.heart.perfusion if track == "PPG" else self.heart.r_amplitude
        return self._rendered((track,), self._source.sfreq)[0], size

    def _clean_acceleration(self) -> Floats:
        return self._rendered(ACCELERATION, ACCELERATION_HZ)

    def _rendered(self, tracks: Sequence[str], sfreq: float) -> Floats:
        return render(self.heart, tracks, first=0, samples=self._source._samples(sfreq), sfreq=sfreq)

    def _mains_hz(self) -> float:
        return self.heart.mains_hz


def _track_of(channel: Channel) -> str | None:
    """The synthetic track of a channel: the first of its `tracks` that exists, else the one of its name."""
    return next((track for track in (*channel.tracks, channel.name) if track in UNITS), None)


def _key(purpose: str) -> int:
    return zlib.crc32(purpose.encode())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _require(holds: bool, setting: str, got: float, expected: str) -> None:
    if not holds:  # as for NaN, with which no comparison does
        shown = f"{got:g}" if abs(got) < 1e18 else "a number far beyond"
        raise SettingsError(f"synthetic source: {setting} must be {expected}, got {shown}")

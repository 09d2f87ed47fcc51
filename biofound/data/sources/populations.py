"""Populations of virtual hearts: which rates, rhythms, wave shapes and disturbances occur, and how often.

Every range says where it comes from. A heart's own values are drawn from these ranges by `hearts.py`.
"""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

from biofound.errors import SettingsError

PopulationName = Literal["rest", "icu", "exercise"]
"""The names a population can have."""

Rhythm = Literal[
    "sinus",
    "ectopic",
    "ventricular_run",
    "bigeminy",
    "pause",
    "atrial_fibrillation",
    "atrial_flutter",
    "av_block",
    "paced",
]
"""What a heart's beats follow: sinus rhythm, alone or broken by single early beats (`ectopic`), by three or
more ventricular beats in a row, by every second or third beat being one (`bigeminy`), or by missing beats;
or another rhythm throughout."""

RHYTHMS: tuple[Rhythm, ...] = get_args(Rhythm)


class Range(NamedTuple):
    """The lowest and the highest value; a single value where both are the same."""

    low: float
    high: float

    def overlap(self, other: "Range") -> "Range":
        """What both ranges hold; the end of this one that is nearest where they do not meet."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        if low <= high:
            return Range(low, high)
        nearest = self.low if other.high < self.low else self.high
        return Range(nearest, nearest)


@dataclass(frozen=True, kw_only=True)
class Population:
    """Whose hearts: ranges and shares. "Log-uniform" values have equal chances per octave."""

    name: str

    heart_rate: Range
    """Ventricular rate in beats a minute, log-uniform. Rest: daily means of 92,457 adults lie between 40 and
    109 (Quer et al. 2020, https://doi.org/10.1371/journal.pone.0227709). Intensive care: from extreme
    bradycardia (below 40) to extreme tachycardia (above 140) and beyond, as alarms define them (Clifford et
    al. 2015, https://doi.org/10.1109/CIC.2015.7408639). Exercise: up to 208 - 0.7 age (Tanaka et al. 2001,
    https://doi.org/10.1016/S0735-1097(00)01054-8)."""

    breathing_rate: Range
    """Breaths a minute, log-uniform. Adults at rest 10 to 20; NEWS2 (Royal College of Physicians 2017)
    scores 8 or fewer and 25 or more as critical; at maximal exercise 36 with a deviation of 9 (Blackie et
    al. 1991, https://doi.org/10.1378/chest.100.1.136)."""

    rhythms: tuple[tuple[Rhythm, float], ...]
    """Shares of the rhythms, adding up to 1. Atrial fibrillation in up to a quarter of intensive-care
    patients, by unit (Wetterslev et al. 2019, https://doi.org/10.1007/s00134-019-05633-x); the rest is chosen
    so that each is seen often enough to be learned, not by prevalence."""

    sinus_arrhythmia: Range
    """Depth of respiratory sinus arrhythmia at 66 beats a minute, relative to the rate; falls with the rate's
    square (vagal tone). Below 0.01 in sedated or septic patients, up to 0.1 in the young."""

    r_amplitude: Range
    """Height of the largest QRS deflection in mV, log-uniform: low voltage is below 0.5 in limb leads."""

    inverted_ecg: float
    """Share of hearts whose largest QRS deflection points down: leads swapped, other axes, paced hearts."""

    wide_qrs: float
    """Share of hearts with a QRS of 120 ms or more: bundle branch blocks (Surawicz et al. 2009,
    https://doi.org/10.1161/CIRCULATIONAHA.108.191095)."""

    odd_repolarisation: float
    """Share with ST shifted by more than a tenth of R, or a T wave flat, tall, biphasic or inverted."""

    stiffness: Range
    """Arterial stiffness, 0 young to 1 stiff: moves the PPG pulse from a clear dicrotic wave to one round
    hump with a late shoulder (Charlton et al. 2019, https://doi.org/10.1152/ajpheart.00218.2019)."""

    pulse_delay: Range
    """From R peak to the pulse's foot in s: pre-ejection period and transit to the finger or wrist (Mukkamala
    et al. 2015, https://doi.org/10.1109/TBME.2015.2441951)."""

    delay_drift: Range
    """How far the delay drifts within a minute or two, relative to itself, as pressure changes."""

    perfusion: Range
    """Height of a PPG pulse in NU, log-uniform. The perfusion index spans 0.3 to 10 % in patients (Lima et
    al. 2002, https://doi.org/10.1097/00003246-200206000-00006); monitors amplify, so the level says little,
    but the sensor's own noise, which is fixed, does more harm to small pulses."""

    pulse_variation: Range
    """Pulse height over a breath, relative: 0.02 at rest, above 0.13 in ventilated patients short of volume
    (Cannesson et al. 2007, Anesthesiology 106:1105)."""

    inverted_ppg: float
    """Share of hearts whose PPG points down: light transmitted, not inverted by the device."""

    ppg_noise: Range
    """Deviation of the PPG's noise between 0.5 and 8 Hz in NU, log-uniform."""

    ecg_noise: Range
    """Deviation of the ECG's noise between 0.5 and 40 Hz in mV, log-uniform: electrodes and muscle."""

    wander: Range
    """Baseline wander with the breath and slower, relative to pulse or R wave, log-uniform."""

    mains: Range
    """Amplitude of 50 or 60 Hz hum in the ECG, in mV, log-uniform, before any filter."""

    clipping: float
    """Share of hearts with a channel that saturates."""

    movements: Range
    """Irregular movements a minute: turning, care, gestures. Each lasts 2 to 10 s, in all channels."""

    movement_size: Range
    """Their deviation relative to the pulse (a third of it relative to the R wave), log-uniform."""

    pacing: float
    """Share of hearts whose owner walks or runs."""

    cadence: Range
    """Steps a second: walking 1.5 to 2.3, running 2.3 to 3.2 (Tudor-Locke et al. 2018,
    https://doi.org/10.1136/bjsports-2017-097628; van Oeveren et al. 2017,
    https://doi.org/10.1371/journal.pone.0184273)."""

    cadence_at_heart_rate: float
    """Share of those who move whose steps (or strides) come at the heart's rate, where beat counters go
    astray (Zhang, Pi & Liu 2015, https://doi.org/10.1109/TBME.2014.2359372)."""

    pacing_size: Range
    """Size of the steps' artefact relative to the pulse, log-uniform; a fifth of that on the R wave."""

    step_acceleration: Range
    """Acceleration of a step at the sensor, in g, log-uniform."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Range) and not value.low <= value.high:
                raise ValueError(f"population {self.name}: {field.name} needs low <= high, got {value}")
        if abs(sum(share for _, share in self.rhythms) - 1.0) > 1e-9:
            raise ValueError(f"population {self.name}: the shares of the rhythms must add up to 1")


REST = Population(
    name="rest",
    heart_rate=Range(45, 112),
    breathing_rate=Range(9, 20),
    rhythms=(("sinus", 0.88), ("ectopic", 0.12)),
    sinus_arrhythmia=Range(0.01, 0.08),
    r_amplitude=Range(0.5, 1.8),
    inverted_ecg=0.0,
    wide_qrs=0.03,
    odd_repolarisation=0.15,
    stiffness=Range(0, 1),
    pulse_delay=Range(0.17, 0.30),
    delay_drift=Range(0.0, 0.04),
    perfusion=Range(0.1, 0.6),
    pulse_variation=Range(0.02, 0.15),
    inverted_ppg=0.0,
    ppg_noise=Range(0.0003, 0.003),
    ecg_noise=Range(0.002, 0.015),
    wander=Range(0.01, 0.12),
    mains=Range(0.002, 0.05),
    clipping=0.0,
    movements=Range(0.0, 0.3),
    movement_size=Range(0.1, 0.8),
    pacing=0.0,
    cadence=Range(1.5, 2.3),
    cadence_at_heart_rate=0.0,
    pacing_size=Range(0.05, 0.3),
    step_acceleration=Range(0.05, 0.3),
)
"""Adults at rest, lead II upright."""

ICU = Population(
    name="icu",
    heart_rate=Range(35, 190),
    breathing_rate=Range(6, 45),
    rhythms=(
        ("sinus", 0.54),
        ("ectopic", 0.10),
        ("ventricular_run", 0.04),
        ("bigeminy", 0.04),
        ("pause", 0.03),
        ("atrial_fibrillation", 0.13),
        ("atrial_flutter", 0.03),
        ("av_block", 0.04),
        ("paced", 0.05),
    ),
    sinus_arrhythmia=Range(0.001, 0.05),
    r_amplitude=Range(0.2, 2.2),
    inverted_ecg=0.14,
    wide_qrs=0.2,
    odd_repolarisation=0.5,
    stiffness=Range(0, 1),
    pulse_delay=Range(0.10, 0.40),
    delay_drift=Range(0.0, 0.12),
    perfusion=Range(0.02, 2.0),
    pulse_variation=Range(0.02, 0.35),
    inverted_ppg=0.04,
    ppg_noise=Range(0.0002, 0.008),
    ecg_noise=Range(0.002, 0.04),
    wander=Range(0.01, 0.35),
    mains=Range(0.001, 0.15),
    clipping=0.05,
    movements=Range(0.0, 1.5),
    movement_size=Range(0.1, 2.0),
    pacing=0.0,
    cadence=Range(1.5, 2.3),
    cadence_at_heart_rate=0.0,
    pacing_size=Range(0.05, 0.3),
    step_acceleration=Range(0.05, 0.3),
)
"""Patients in intensive care: bedside monitor, finger clip."""

EXERCISE = Population(
    name="exercise",
    heart_rate=Range(55, 190),
    breathing_rate=Range(10, 45),
    rhythms=(("sinus", 0.95), ("ectopic", 0.05)),
    sinus_arrhythmia=Range(0.005, 0.06),
    r_amplitude=Range(0.3, 2.2),
    inverted_ecg=0.08,
    wide_qrs=0.03,
    odd_repolarisation=0.25,
    stiffness=Range(0, 0.8),
    pulse_delay=Range(0.10, 0.30),
    delay_drift=Range(0.0, 0.10),
    perfusion=Range(0.03, 0.8),
    pulse_variation=Range(0.02, 0.25),
    inverted_ppg=0.03,
    ppg_noise=Range(0.0005, 0.01),
    ecg_noise=Range(0.005, 0.08),
    wander=Range(0.03, 0.5),
    mains=Range(0.0005, 0.02),
    clipping=0.02,
    movements=Range(0.0, 2.0),
    movement_size=Range(0.2, 2.0),
    pacing=0.8,
    cadence=Range(1.4, 3.2),
    cadence_at_heart_rate=0.15,
    pacing_size=Range(0.08, 2.0),
    step_acceleration=Range(0.1, 1.2),
)
"""People who walk, run or recover, with a chest ECG and a PPG at wrist or finger."""

POPULATIONS = {population.name: population for population in (REST, ICU, EXERCISE)}
"""The populations by name."""


def population_named(name: str) -> Population:
    """The population of that name.

    Raises:
        SettingsError: when there is none.
    """
    if name not in POPULATIONS:
        raise SettingsError(f"population {name!r} is unknown; expected one of {', '.join(POPULATIONS)}")
    return POPULATIONS[name]

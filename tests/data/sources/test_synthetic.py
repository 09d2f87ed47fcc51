"""Synthetic cohort: one heart for all channels, and labels exactly on what they name."""

import json
import time

import numpy as np
import pytest
from scipy.signal import find_peaks

from biofound.data.channels import Channel, PassBand
from biofound.data.sources.registry import open_source
from biofound.data.sources.synthetic import ACCELERATION_HZ, SyntheticSource
from biofound.data.sources.synthetic_artefacts import ACCELERATION
from biofound.errors import DataError, SettingsError

BAND = PassBand(low_hz=0.5, high_hz=8.0, order=2)
GOLDEN_BEATS = [0.3863, 1.4051, 2.3772, 3.425, 4.5138, 5.5246]
CASES = [f"syn{number:04d}_1" for number in range(1, 9)]


def channel(name, *tracks):
    return Channel(name=name, tracks=tracks or (name,), unit="", band=BAND, quality_threshold=0.5)


def samples(source, case_id, name):
    return source.read(case_id, [channel(name)]).signals[name].samples


@pytest.fixture(scope="module")
def cohort():
    return SyntheticSource(seed=7, subjects=8, minutes=6, artefacts=3)


@pytest.fixture(scope="module")
def clean():
    return SyntheticSource(seed=7, subjects=8, minutes=6, artefacts=0)


def covered(source, case_id, name, length, sfreq, kinds):
    mask = np.zeros(length, dtype=bool)
    for label in source.labels(case_id):
        if label.channel == name and label.kind in kinds:
            start, stop = label.start_s * sfreq, label.stop_s * sfreq
            assert start == pytest.approx(round(start), abs=1e-6)  # labels are whole samples
            mask[round(start) : round(stop)] = True
    return mask


@pytest.mark.parametrize("name", ["PPG", "ECG", "ACC_Y"])
def test_a_case_does_not_depend_on_how_many_others_there_are_or_what_else_is_read(cohort, name):
    larger = SyntheticSource(seed=7, subjects=500, cases_per_subject=3, minutes=6, artefacts=3)
    everything = [channel(each) for each in ("ACC_Z", "ECG", "PPG", "ACC_Y", "ACC_X")]
    alone = samples(cohort, "syn0003_1", name)
    together = larger.read("syn0003_1", everything).signals[name].samples
    assert alone.dtype == np.float32
    assert alone.tobytes() == together.tobytes()


def test_seed_subject_and_case_each_give_another_recording():
    source = SyntheticSource(seed=7, subjects=2, cases_per_subject=2, minutes=1, artefacts=0)
    other = SyntheticSource(seed=8, subjects=2, cases_per_subject=2, minutes=1, artefacts=0)
    reads = [samples(source, each, "ECG") for each in ("syn0001_1", "syn0001_2", "syn0002_1")]
    reads.append(samples(other, "syn0001_1", "ECG"))
    for i, one in enumerate(reads):
        for two in reads[i + 1 :]:
            assert abs(np.corrcoef(one, two)[0, 1]) < 0.9


def test_the_same_seed_gives_the_same_heart_in_every_version():
    # Golden: python -c "from biofound.data.sources.synthetic import SyntheticSource as S;
    #                    print(S(seed=42, minutes=1).beats('syn0001_1')[:6].round(4).tolist())"
    beats = SyntheticSource(seed=42, minutes=1).beats("syn0001_1")
    assert beats[:6] == pytest.approx(GOLDEN_BEATS, abs=2e-4)


@pytest.mark.parametrize("case_id", CASES)
def test_every_r_peak_of_the_clean_ecg_is_one_beat(clean, case_id):
    ecg, beats = samples(clean, case_id, "ECG"), clean.beats(case_id)
    ectopic = [x for x in clean.labels(case_id) if x.kind == "ectopic" and x.channel == "ECG"]
    inner = beats[(beats > 0.5) & (beats < 359.5)]
    for beat in inner:
        if not any(x.start_s - 0.5 < beat < x.stop_s + 0.5 for x in ectopic):
            at = round(beat * 500)
            assert abs(int(np.argmax(ecg[at - 60 : at + 60])) - 60) <= 3  # within 6 ms


@pytest.mark.parametrize("case_id", CASES)
def test_every_beat_is_followed_by_one_pulse_after_a_steady_delay(clean, case_id):
    ppg, beats = samples(clean, case_id, "PPG"), clean.beats(case_id)
    peaks, _ = find_peaks(ppg, prominence=0.35 * np.ptp(ppg[:5000]), distance=150)
    after = np.searchsorted(peaks / 500, beats[:-2])
    delays = peaks[np.minimum(after, len(peaks) - 1)] / 500 - beats[:-2]
    middle = np.median(delays)
    assert 0.25 < middle < 0.6
    assert np.mean(np.abs(delays - middle) < 0.06) > 0.95  # asynchronous signals spread over a whole interval


@pytest.mark.parametrize("case_id", CASES)
def test_heart_rate_is_physiological_and_varies_with_respiration(clean, case_id):
    rr = np.diff(clean.beats(case_id))
    assert 0.45 < np.median(rr) < 1.4
    assert 0.01 < rr.std() / rr.mean() < 0.2
    even = np.interp(np.arange(0, 350, 0.25), np.cumsum(rr), rr)
    power = np.abs(np.fft.rfft((even - even.mean()) * np.hanning(len(even)))) ** 2
    frequency = np.fft.rfftfreq(len(even), 0.25)
    breathing = power[(frequency > 0.14) & (frequency < 0.42)].sum()
    assert breathing > 0.03 * power.sum()


def test_beats_of_one_subject_look_alike_and_those_of_others_do_not():
    source = SyntheticSource(seed=3, subjects=10, cases_per_subject=2, minutes=2, artefacts=0)

    def shape(case_id):
        ecg, ppg = samples(source, case_id, "ECG"), samples(source, case_id, "PPG")
        at = np.round(source.beats(case_id)[2:-3] * 500).astype(int)
        parts = [np.mean([x[i - 100 : i + 300] for i in at], axis=0) for x in (ecg, ppg)]
        return np.concatenate([(part - part.mean()) / part.std() for part in parts])

    one = np.array([shape(f"syn{i:04d}_1") for i in range(1, 11)])
    two = np.array([shape(f"syn{i:04d}_2") for i in range(1, 11)])
    distance = np.sqrt(np.mean((one[:, None] - two[None]) ** 2, axis=-1))
    same, other = np.diag(distance), distance[~np.eye(10, dtype=bool)]
    assert np.median(same) < 0.5 * np.median(other)
    assert (np.argmin(distance, axis=1) == np.arange(10)).mean() >= 0.8


def test_clean_means_clean(clean):
    for case_id in CASES:
        assert {label.kind for label in clean.labels(case_id)} <= {"ectopic"}
        assert all(np.isfinite(samples(clean, case_id, name)).all() for name in ("PPG", "ECG", "ACC_X"))


@pytest.mark.parametrize("name", ["PPG", "ECG", "ACC_X"])
def test_the_gaps_are_the_labelled_gaps_to_the_sample(cohort, name):
    sfreq = ACCELERATION_HZ if name in ACCELERATION else 500.0
    found = 0
    for case_id in CASES:
        x = samples(cohort, case_id, name)
        assert np.array_equal(np.isnan(x), covered(cohort, case_id, name, len(x), sfreq, {"gap"}))
        found += int(np.isnan(x).any())
    assert found >= 2


@pytest.mark.parametrize("name", ["PPG", "ECG"])
def test_nothing_but_what_is_labelled_differs_from_the_clean_signal(cohort, clean, name):
    for case_id in CASES:
        affected, good = samples(cohort, case_id, name), samples(clean, case_id, name)
        kinds = {"motion", "clipping", "flat", "gap", "mains", "wander"}
        inside = covered(cohort, case_id, name, len(good), 500.0, kinds)
        differs = affected != good  # NaN differs from everything
        assert not differs[~inside].any()
        additive = covered(cohort, case_id, name, len(good), 500.0, {"motion", "mains", "wander"})
        assert differs[additive].sum() >= 0.98 * additive.sum()


@pytest.mark.parametrize("name", ["PPG", "ECG"])
def test_each_hard_artefact_is_as_bad_as_its_label_says(cohort, clean, name):
    seen = set()
    for case_id in CASES:
        affected, good = samples(cohort, case_id, name), samples(clean, case_id, name)
        for label in cohort.labels(case_id):
            part = slice(round(label.start_s * 500), round(label.stop_s * 500))
            if label.channel != name:
                continue
            seen.add((label.kind, label.hard))
            if label.kind == "flat":
                assert np.ptp(affected[part]) == 0 < np.ptp(good[part])
            elif label.kind == "clipping":
                x = affected[part]
                at_rail = np.mean((x == x.max()) | (x == x.min()))
                assert at_rail == pytest.approx(label.severity, abs=0.02)
            elif label.kind == "motion":
                assert np.std(affected[part] - good[part]) > 0.4 * np.std(good[part])
                assert label.severity >= 0.8
    assert {("motion", True), ("clipping", True), ("flat", True), ("gap", True)} <= seen
    assert {("mains", False), ("wander", False)} <= seen


def test_mild_artefacts_lie_outside_the_pass_bands(cohort, clean):
    found = set()
    for case_id in CASES:
        difference = samples(cohort, case_id, "ECG").astype(float) - samples(clean, case_id, "ECG")
        for label in cohort.labels(case_id):
            if label.channel == "ECG" and label.kind in ("mains", "wander"):
                part = difference[round(label.start_s * 500) : round(label.stop_s * 500)]
                spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
                peak = np.fft.rfftfreq(len(part), 1 / 500)[np.argmax(spectrum)]
                assert round(peak) in (50, 60) if label.kind == "mains" else peak < 0.3
                found.add(label.kind)
    assert found == {"mains", "wander"}


def test_the_accelerometer_feels_gravity_and_moves_when_motion_spoils_the_ppg(cohort, clean):
    moved = 0
    for case_id in CASES:
        still = np.stack([samples(clean, case_id, name) for name in ACCELERATION])
        assert np.linalg.norm(still, axis=0) == pytest.approx(1.0, abs=0.05)
        length = still.shape[1]
        burst = covered(cohort, case_id, "PPG", length, ACCELERATION_HZ, set())
        for label in cohort.labels(case_id):
            if label.channel == "PPG" and label.kind == "motion":
                part = slice(round(label.start_s * 100) - 1, round(label.stop_s * 100) + 1)
                burst[part] = True
                moved += 1
        x = samples(cohort, case_id, "ACC_X")
        other = covered(cohort, case_id, "ACC_X", length, ACCELERATION_HZ, {"gap", "flat"})
        change = np.nan_to_num(x - still[0], nan=9.0)
        assert np.all(change[~burst & ~other] == 0)
        if (burst & ~other).any():
            assert np.std(change[burst & ~other]) > 0.02
    assert moved >= 5


def test_rates_units_and_lengths_are_stated(cohort):
    signals = cohort.read(
        "syn0001_1", [channel("PPG"), channel("ECG", "II", "ECG"), channel("ACC_Z")]
    ).signals
    assert {name: (s.sfreq, s.unit, len(s.samples)) for name, s in signals.items()} == {
        "PPG": (500.0, "NU", 180_000),
        "ECG": (500.0, "mV", 180_000),
        "ACC_Z": (100.0, "g", 36_000),
    }
    assert all(case.duration_s == 360.0 for case in cohort.cases([channel("PPG")]))


def test_cases_are_sorted_and_need_every_channel():
    source = SyntheticSource(subjects=3, cases_per_subject=2, minutes=1)
    listed = source.cases([channel("PPG"), channel("ACC_X")])
    assert [(case.case_id, case.subject_id) for case in listed][:3] == [
        ("syn0001_1", "syn0001"),
        ("syn0001_2", "syn0001"),
        ("syn0002_1", "syn0002"),
    ]
    assert len(listed) == 6
    assert source.cases([channel("PPG"), channel("EEG")]) == []


def test_a_description_opens_the_same_cohort_again():
    source = SyntheticSource(seed=9, subjects=3, minutes=1.5, sfreq=250, artefacts=2)
    again = open_source(**json.loads(json.dumps(source.describe())))
    assert again.version() == source.version()
    assert again.cases([]) == source.cases([])
    assert samples(again, "syn0002_1", "PPG").tobytes() == samples(source, "syn0002_1", "PPG").tobytes()


def test_the_fingerprint_follows_what_shapes_the_case_and_nothing_else():
    base = {"seed": 1, "subjects": 5, "minutes": 2.0, "sfreq": 500.0, "artefacts": 1.0}
    first = SyntheticSource(**base).fingerprint("syn0001_1")
    assert SyntheticSource(**{**base, "subjects": 50}).fingerprint("syn0001_1") == first
    for change in ({"seed": 2}, {"minutes": 3.0}, {"sfreq": 250.0}, {"artefacts": 0.0}):
        assert SyntheticSource(**{**base, **change}).fingerprint("syn0001_1") != first
    assert SyntheticSource(**base).fingerprint("syn0002_1") != first


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", -1),
        ("subjects", 0),
        ("cases_per_subject", 0),
        ("cases_per_subject", 10**400),
        ("subjects", 100_001),
        ("seed", 2**32),
        ("minutes", 0.0),
        ("minutes", float("nan")),
        ("sfreq", 10.0),
        ("artefacts", -0.5),
    ],
)
def test_values_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(SettingsError, match=setting):
        SyntheticSource(**{setting: value})


@pytest.mark.parametrize("case_id", ["syn0009_1", "syn0001_2", "syn0000_1", "syn00001_1", "bidmc01", ""])
def test_a_case_outside_the_cohort_is_refused(cohort, case_id):
    for ask in (lambda: cohort.read(case_id, [channel("PPG")]), lambda: cohort.fingerprint(case_id)):
        with pytest.raises(DataError, match=f"case {case_id}: .*syn0001_1.*syn0008_1"):
            ask()


def test_a_channel_the_cohort_has_not_is_refused_by_name(cohort):
    with pytest.raises(DataError, match=r"syn0001_1, channel EEG: .*PPG, ECG"):
        cohort.read("syn0001_1", [channel("EEG")])


def test_an_hour_of_ppg_and_ecg_costs_well_under_a_second():
    source = SyntheticSource(minutes=60)
    spent = []
    for _ in range(2):
        start = time.process_time()
        source.read("syn0001_1", [channel("PPG"), channel("ECG")])
        spent.append(time.process_time() - start)
    assert min(spent) < 1.0


# ---------------------------------------------------------------------------------------------------------
# Populations


@pytest.fixture(scope="module")
def ward():
    return SyntheticSource(seed=7, subjects=8, cases_per_subject=2, minutes=2, artefacts=0, population="icu")


def test_a_population_opens_again_and_rest_keeps_its_description(ward):
    again = open_source(**json.loads(json.dumps(ward.describe())))
    assert again.version() == ward.version() and again.describe()["population"] == "icu"
    assert samples(again, "syn0002_2", "ECG").tobytes() == samples(ward, "syn0002_2", "ECG").tobytes()
    calm = SyntheticSource(seed=7, subjects=8, cases_per_subject=2, minutes=2, artefacts=0)
    assert "population" not in calm.describe() and calm.version() != ward.version()
    assert calm.fingerprint("syn0001_1") != ward.fingerprint("syn0001_1")


def test_a_patients_cases_share_the_rhythm_but_not_the_beats(ward):
    starts = np.arange(0, 110, 10.0)
    first, second = (ward.truth(f"syn0003_{case}", starts, seconds=10.0) for case in (1, 2))
    assert first.stiffness == pytest.approx(second.stiffness)
    assert not np.allclose(ward.beats("syn0003_1")[:20], ward.beats("syn0003_2")[:20], atol=0.02)
    another = ward.truth("syn0004_1", starts, seconds=10.0)
    assert not np.allclose(first.stiffness, another.stiffness)


def test_the_truth_of_a_populations_case_is_in_its_recording(ward):
    for case_id in ("syn0001_1", "syn0005_1", "syn0008_2"):
        truth = ward.truth(case_id, np.array([10.0, 60.5]), seconds=10.0)
        beats = ward.beats(case_id)
        for row, start in enumerate((10.0, 60.5)):
            own = beats[(beats >= start) & (beats < start + 10)] - start
            assert truth.r_peaks[row, : len(own)] == pytest.approx(own)
        recording = ward.read(case_id, [channel(each) for each in ("PPG", "ECG", "ACC_Z")])
        lengths = {name: len(signal.samples) for name, signal in recording.signals.items()}
        assert lengths == {"PPG": 60_000, "ECG": 60_000, "ACC_Z": 12_000}
        assert all(np.isfinite(signal.samples).all() for signal in recording.signals.values())


def test_artefacts_spoil_a_populations_case_where_their_labels_say():
    spoilt = SyntheticSource(seed=3, subjects=4, minutes=20, population="exercise", artefacts=2)
    clean = SyntheticSource(seed=3, subjects=4, minutes=20, population="exercise", artefacts=0)
    pair = [samples(each, "syn0002_1", "PPG") for each in (spoilt, clean)]
    inside = covered(
        spoilt,
        "syn0002_1",
        "PPG",
        len(pair[0]),
        500.0,
        {"motion", "clipping", "flat", "gap", "mains", "wander"},
    )
    assert 0 < inside.mean() < 0.5
    assert np.array_equal(pair[0][~inside], pair[1][~inside])


def test_truth_is_refused_outside_a_case_and_for_the_calm_cohort(ward, clean):
    with pytest.raises(DataError, match="expected windows within its 120 s"):
        ward.truth("syn0001_1", np.array([115.0]), seconds=10.0)
    with pytest.raises(DataError, match="expected a population other than rest"):
        clean.truth("syn0001_1", np.array([0.0]), seconds=10.0)
    with pytest.raises(SettingsError, match="population 'night' is unknown"):
        SyntheticSource(population="night")

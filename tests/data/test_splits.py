"""Splits by patient: a patient is in one split only, and always in the same; and their file."""

import json
import random

import pytest

from biofound.data.channels import Channel, PassBand
from biofound.data.sources import Case
from biofound.data.sources.wfdb import WfdbSource
from biofound.data.splits import SPLITS, load_splits, make_splits, save_splits, split_of
from biofound.errors import DataError, SettingsError

ORIGIN = {"source": {"name": "synthetic", "seed": 1}, "dataset_version": "1-abc", "channels": ["PPG", "ECG"]}

GOLDEN = {"s01182": "train", "s03386": "train", "1": "train", "2": "val", "10": "test"}


def case(case_id, subject_id):
    return Case(case_id=case_id, subject_id=subject_id, tracks=("PPG", "ECG"), duration_s=600.0)


def hospital(patients, *, seed=0, most=4):
    """`patients` patients with one to `most` cases each, as VitalDB has them."""
    rng = random.Random(seed)
    return [case(f"{p:05d}_{k}", f"p{p}") for p in range(patients) for k in range(rng.randint(1, most))]


def split(cases, *, mode="full", seed=42, **more):
    return make_splits(cases, mode=mode, seed=seed, **ORIGIN, **more)


def membership(splits):
    return {c.case_id: name for name in SPLITS for c in splits.of(name)}


@pytest.mark.parametrize("mode", ["full", "fasttrack"])
@pytest.mark.parametrize("seed", range(8))
def test_no_patient_is_in_two_splits_and_no_case_is_torn_from_its_patient(mode, seed):
    cases = hospital(150, seed=seed)
    splits = split(cases, mode=mode, seed=seed)
    seen = [set(splits.subjects(name)) for name in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    taken = membership(splits)
    for subject in set().union(*seen):
        mine = [c.case_id for c in cases if c.subject_id == subject]
        assert len({taken.get(case_id) for case_id in mine}) == 1  # all of a patient's cases, or none


@pytest.mark.parametrize("seed", range(5))
def test_full_divides_about_80_10_10_and_leaves_no_case_out(seed):
    cases = hospital(3000, seed=seed)
    splits = split(cases, seed=seed)
    assert sum(len(splits.of(name)) for name in SPLITS) == len(cases)
    for name, part in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert len(splits.subjects(name)) / 3000 == pytest.approx(part, abs=0.025)


def test_the_order_of_the_cases_does_not_matter_and_the_seed_does():
    cases = hospital(200)
    shuffled = random.Random(3).sample(cases, len(cases))
    assert split(cases) == split(shuffled)
    assert membership(split(cases)) != membership(split(cases, seed=43))


@pytest.mark.parametrize("seed", range(5))
def test_adding_cases_and_patients_moves_no_existing_patient(seed):
    cases = hospital(400, seed=seed)
    before = membership(split(cases[:500], seed=seed))
    after = membership(split(cases, seed=seed))
    assert len(cases) > 600
    assert {case_id: after[case_id] for case_id in before} == before


@pytest.mark.parametrize("seed", range(5))
def test_fasttrack_is_part_of_full_split_by_split(seed):
    cases = hospital(600, seed=seed)
    full, fast = membership(split(cases, seed=seed)), membership(split(cases, mode="fasttrack", seed=seed))
    assert fast.items() <= full.items()


def test_fasttrack_takes_50_10_10_cases_where_patients_allow():
    counts = [len(split(hospital(600), mode="fasttrack").of(name)) for name in SPLITS]
    assert counts == [50, 10, 10]


def test_fasttrack_keeps_whole_a_patient_larger_than_its_share():
    cases = [case(f"{p}_{k}", f"p{p}") for p in range(12) for k in range(30)]
    splits = split(cases, mode="fasttrack", seed=0)
    assert [len(splits.of(name)) for name in SPLITS] == [30, 30, 30]


def test_fasttrack_takes_what_there_is_of_a_small_data_set():
    cases = hospital(40, most=1)
    assert membership(split(cases, mode="fasttrack")) == membership(split(cases))


@pytest.mark.parametrize("mode", ["full", "fasttrack"])
@pytest.mark.parametrize("patients", [3, 4, 7, 11, 20])
def test_three_patients_or_more_give_three_splits_with_somebody_in_each(patients, mode):
    cases = hospital(patients)
    for seed in range(60):
        splits = split(cases, seed=seed, mode=mode)
        assert all(splits.of(name) for name in SPLITS)
        by_hash = {c.subject_id: split_of(c.subject_id, seed=seed) for c in cases}
        empty = set(SPLITS) - set(by_hash.values())
        moved = splits.moved()
        assert sorted(moved.values()) == sorted(empty)  # one patient for each split without anybody
        if mode == "full":
            assert {s: name for name in SPLITS for s in splits.subjects(name)} == {**by_hash, **moved}


def test_in_a_small_cohort_cases_move_nobody_and_patients_nobody_once_each_split_has_its_own():
    settled = 0
    for seed in range(60):
        cases = hospital(8)
        before = split(cases, seed=seed)
        again = [case(f"{c.case_id}_again", c.subject_id) for c in cases]
        assert membership(before).items() <= membership(split([*cases, *again], seed=seed)).items()
        after = membership(split(hospital(30), seed=seed))
        if not before.moved():
            settled += 1
            assert membership(before).items() <= after.items()
    assert 10 < settled < 50


def test_the_division_is_the_published_one():
    # Golden, from `printf '42:s01182' | sha256sum`: 0.8 and 0.9 of 2**48 bound the first 12 hex digits.
    assert [split_of(s, seed=42) for s in GOLDEN] == list(GOLDEN.values())


# Refusals


def test_an_unknown_subject_is_refused_with_the_ways_to_name_it():
    cases = [*hospital(20), case("odd", None), case("other", None)]
    with pytest.raises(DataError, match=r"2 of \d+ cases \(odd, other\)") as refused:
        split(cases)
    for way in ("subjects.csv", "--subjects-csv", "--subject-pattern", "--record-is-subject"):
        assert way in str(refused.value)


def test_too_few_patients_for_the_splits_are_refused_with_what_they_can_be():
    two = [case("a", "p1"), case("b", "p2"), case("c", "p2")]
    with pytest.raises(DataError, match=r"at least 3 patients .*train, val, test, got 2; --fractions 1,0,0"):
        split(two)
    assert all(split(two, fractions=(0.5, 0, 0.5), seed=seed).of("test") for seed in range(20))
    with pytest.raises(DataError, match=r"at least 2 patients .*train, test, got 1"):
        split(two[1:], fractions=(0.5, 0, 0.5))


def test_no_cases_and_a_case_listed_twice_are_refused():
    with pytest.raises(DataError, match="PPG, ECG"):
        split([])
    with pytest.raises(DataError, match=r"\ba more than once"):
        split([case("a", "p1"), case("a", "p2"), *hospital(30)])


def test_an_unknown_mode_is_refused():
    with pytest.raises(SettingsError, match=r"mode .*full, fasttrack.*'quick'"):
        split(hospital(30), mode="quick")


# The file


@pytest.fixture
def saved(tmp_path):
    splits = split(hospital(60), mode="fasttrack", case_set="bis")
    path = tmp_path / "data" / "splits_fasttrack.json"
    save_splits(path, splits)
    return path, splits


def test_the_file_holds_everything_and_reads_back_equal(saved):
    path, splits = saved
    assert load_splits(path) == splits
    content = json.loads(path.read_text())
    assert (content["format_version"], content["kind"], content["case_set"]) == (1, "biofound-splits", "bis")
    first = splits.of("val")[0]
    assert content["splits"]["val"][0] == {"case_id": first.case_id, "subject_id": first.subject_id}
    assert list(path.parent.iterdir()) == [path]


def test_writing_it_again_gives_the_same_bytes(saved, tmp_path):
    path, splits = saved
    save_splits(tmp_path / "again.json", splits)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def changed(**changes):
    def change(content):
        content.update(changes)

    return change


def drop(key):
    return lambda content: content.pop(key)


def share_patient(content):
    content["splits"]["test"].append(
        {"case_id": "new", "subject_id": content["splits"]["train"][0]["subject_id"]}
    )


def share_case(content):
    case_id = content["splits"]["train"][0]["case_id"]
    content["splits"]["val"].append({"case_id": case_id, "subject_id": "somebody"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(format_version=2), "format_version: expected 1, got 2"),
        (changed(format_version=None), "format_version: expected 1, got None"),
        (drop("format_version"), "format_version: missing"),
        (changed(kind="biofound-windows"), "kind: expected 'biofound-splits', got 'biofound-windows'"),
        (drop("kind"), "kind: missing"),
        (drop("splits"), "splits: missing"),
        (drop("seed"), "seed: missing"),
        (changed(colour="red"), "colour: not a known key"),
        (changed(mode="quick"), "mode: expected 'full' or 'fasttrack', got 'quick'"),
        (changed(seed="42"), "seed: expected a valid integer, got '42'"),
        (changed(source={"name": float("nan")}), "source"),
        (changed(splits={"train": [], "val": []}), r"splits\.test: missing"),
        (changed(splits={"train": [1], "val": [], "test": []}), r"splits\.train\.0: "),
        (share_patient, r"patients p\d+ are in both train and test"),
        (share_case, r"cases \S+ are in both train and val"),
    ],
)
def test_a_file_that_is_not_a_sound_splits_file_is_refused_with_its_path(saved, change, message):
    path, _ = saved
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as refused:
        load_splits(path)
    assert str(path) in str(refused.value) and "`biofound prepare`" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"case,split\n", "JSON"), (b'{"kind": "biof', "JSON"), (b"\xff\xfe", "JSON"), (b"[]", "object")],
)
def test_a_file_that_is_no_json_or_cut_short_is_refused(tmp_path, content, message):
    path = tmp_path / "splits.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"splits\.json: .*{message}.*`biofound prepare`"):
        load_splits(path)


def test_a_file_that_is_missing_or_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: no such file; .*`biofound prepare`"):
        load_splits(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="no splits_<mode>"):
        load_splits(tmp_path)
    (tmp_path / "splits_full.json").write_text("{}")
    with pytest.raises(DataError, match=rf"{tmp_path}: expected a file of .*{tmp_path}/splits_full\.json"):
        load_splits(tmp_path)


# BIDMC


def test_bidmc_divides_by_patient(bidmc_dir):
    band = PassBand(low_hz=0.5, high_hz=8.0, order=2)
    channels = [
        Channel(name="PPG", tracks=("PLETH",), unit="NU", band=band, quality_threshold=0.5),
        Channel(name="ECG", tracks=("II",), unit="mV", band=band, quality_threshold=0.5),
    ]
    splits = split(WfdbSource(root=bidmc_dir).cases(channels))
    where = membership(splits)
    assert [len(splits.of(name)) for name in SPLITS] == [33, 3, 6]
    assert [len(splits.subjects(name)) for name in SPLITS] == [26, 3, 6]
    for together in (("06", "07", "08", "09"), ("20", "21", "22", "23"), ("38", "39")):
        assert len({where[f"bidmc{number}"] for number in together}) == 1


# ---- Fractions


@pytest.mark.parametrize(
    ("fractions", "filled"),
    [((1, 0, 0), ["train"]), ((0, 0, 1), ["test"]), ((0.5, 0, 0.5), ["train", "test"]), ((0, 1, 0), ["val"])],
)
def test_a_split_of_fraction_0_is_empty_and_the_others_have_their_share(fractions, filled, tmp_path):
    cases = hospital(1000)
    splits = split(cases, fractions=fractions)
    assert [name for name in SPLITS if splits.of(name)] == filled
    for name, share in zip(SPLITS, fractions, strict=True):
        assert len(splits.subjects(name)) / 1000 == pytest.approx(share, abs=0.05)
    save_splits(tmp_path / "splits.json", splits)
    assert load_splits(tmp_path / "splits.json") == splits


def test_without_fractions_the_division_is_the_one_of_the_default():
    cases = hospital(100)
    assert split(cases) == split(cases, fractions=(0.8, 0.1, 0.1))


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0, 0, 0), (0.5, 0.5)])
def test_fractions_that_do_not_add_up_are_refused(fractions):
    with pytest.raises(SettingsError, match="three numbers of 0 or more that add up to 1"):
        split(hospital(100), fractions=fractions)


def test_unknown_patients_are_taken_whole_for_training_and_only_so(tmp_path):
    cases = [case(f"a{n:03d}", None) for n in range(30)]
    splits = split(cases, fractions=(1, 0, 0))
    assert len(splits.of("train")) == 30 and splits.subjects("train") == ()
    assert {entry.subject_id for entry in splits.of("train")} == {""}
    for fractions in ((0.8, 0.1, 0.1), (0, 0, 1), (0, 1, 0)):
        with pytest.raises(DataError, match="--fractions 1,0,0"):
            split(cases, fractions=fractions)
    with pytest.raises(DataError, match="in 30 of 31 cases"):
        split([*cases, case("b", "known")], fractions=(1, 0, 0))
    path = tmp_path / "splits.json"
    save_splits(path, splits)
    said = json.loads(path.read_text())
    said["splits"]["val"] = [said["splits"]["train"].pop()]
    path.write_text(json.dumps(said))
    with pytest.raises(DataError, match="patients are unknown"):
        load_splits(path)

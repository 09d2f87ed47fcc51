"""EDF, EDF+ and BDF files: samples, units, rates, the gaps of EDF+D, and damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biofound.data.channels import Channel, PassBand
from biofound.data.sources.edf import EdfSource
from biofound.data.sources.registry import open_source
from biofound.errors import DataError

edfio = pytest.importorskip("edfio")

BAND = PassBand(low_hz=0.5, high_hz=8.0, order=2)
SECONDS = 6


def channel(name: str, *tracks: str, unit: str) -> Channel:
    return Channel(name=name, tracks=tracks, unit=unit, band=BAND, quality_threshold=0.5)


PPG, ECG = channel("PPG", "Pleth", unit="NU"), channel("ECG", "ECG II", unit="mV")
RNG = np.random.default_rng(0)
PLETH, MICROVOLTS = RNG.uniform(-1, 1, 64 * SECONDS), RNG.uniform(-2000, 2000, 256 * SECONDS)


def write(path: Path, *, kind: str = "Edf", **more: Any) -> Path:
    """Pleth at 64 Hz and ECG in uV at 256 Hz, in records of a second."""
    signal = getattr(edfio, f"{kind}Signal")
    whole = {"physical_range": (-1, 1)}, {"physical_range": (-2000, 2000)}
    if kind == "Bdf":
        whole = tuple({**one, "digital_range": (-(2**23), 2**23 - 1)} for one in whole)  # type: ignore[assignment]
    waves = [
        signal(PLETH, 64, label="pleth", physical_dimension="", **whole[0]),
        signal(MICROVOLTS, 256, label="ECG II", physical_dimension="uV", **whole[1]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    getattr(edfio, kind)(waves, data_record_duration=1, **more).write(path)
    return path


def edit(path: Path, **parts: tuple[bytes, bytes]) -> None:
    content = path.read_bytes()
    for old, new in parts.values():
        assert content.count(old) == 1 and len(old) == len(new)
        content = content.replace(old, new)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["Edf", "Bdf"])
def test_samples_come_in_the_channels_units_at_their_own_rates(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"a.{kind.lower()}", kind=kind)
    source = EdfSource(root=tmp_path)
    found = source.read("a", [PPG, ECG]).signals
    step = 2 / 2**16 if kind == "Edf" else 2 / 2**24
    assert (found["PPG"].sfreq, found["ECG"].sfreq, found["ECG"].unit) == (64.0, 256.0, "mV")
    np.testing.assert_allclose(found["PPG"].samples, PLETH, atol=step)
    np.testing.assert_allclose(found["ECG"].samples, MICROVOLTS / 1000, atol=2 * step)
    (case,) = source.cases([PPG, ECG])
    assert (case.duration_s, case.tracks) == (SECONDS, ("pleth", "ECG II"))
    listed = source.tracks().tracks["a"]
    assert [(one.name, one.sfreq, one.unit) for one in listed] == [("pleth", 64, ""), ("ECG II", 256, "uV")]


def test_missing_records_of_a_discontinuous_file_are_gaps(tmp_path: Path) -> None:
    path = write(tmp_path / "a.edf", annotations=())
    whole = EdfSource(root=tmp_path).read("a", [PPG, ECG]).signals
    moved = {f"r{k}": (b"+%d\x14\x14" % k, b"+%d\x14\x14" % (k + 3)) for k in (5, 4, 3)}
    edit(path, kind=(b"EDF+C", b"EDF+D"), **moved)
    found = EdfSource(root=tmp_path).read("a", [PPG, ECG]).signals
    for name, rate in (("PPG", 64), ("ECG", 256)):
        parts = np.split(found[name].samples, [3 * rate, 6 * rate])
        assert np.isnan(parts[1]).all()
        assert np.array_equal(np.r_[parts[0], parts[2]], whole[name].samples)
    edit(path, late=(b"+8\x14\x14", b"+7\x15\x14"))
    with pytest.raises(DataError, match=r"data record 6 of 6 has no time"):
        EdfSource(root=tmp_path).read("a", [PPG])


def test_subject_is_the_first_group_of_the_pattern_in_the_path(tmp_path: Path) -> None:
    write(tmp_path / "p07" / "night1.edf")
    source = EdfSource(root=tmp_path, subject_pattern=r"p(\d+)/")
    assert [(case.case_id, case.subject_id) for case in source.cases([PPG])] == [("p07__night1", "07")]
    assert open_source(**source.describe()).describe() == source.describe()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "no whole EDF file .*truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[: -(64 + 256) * 2]), "no whole EDF file .*6 data"),
        (lambda path: path.write_bytes(b"0       not an EDF"), "no whole EDF file"),
        (lambda path: edit(path, one=(b"2000    ", b"-2000   ")), "ECG II has no scale"),
        (
            lambda path: edit(path, one=(b"2000    ", b"1e99    ")),
            "ECG II has no scale: .* to 1e.99",
        ),
        (lambda path: edit(path, one=(b"2000    ", b"ECG     ")), "no whole EDF file .*'ECG'.*copy it again"),
        (lambda path: edit(path, one=(b"uV      ", b"mmHg    ")), "expected mV .* mmHg"),
        (lambda path: edit(path, one=(b"ECG II", b"ECG V1")), "named ECG II; .* has pleth, ECG V1"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    damage(write(tmp_path / "a.edf"))
    with pytest.raises(DataError, match=rf"case a.*{message}"):
        EdfSource(root=tmp_path).read("a", [ECG])

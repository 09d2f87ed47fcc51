import gzip
import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
from vitaldb.utils import VitalFile

from biofound.data.conditioning import condition
from biofound.data.sources.vital_file import check_complete, find_track, list_tracks, read_recording
from biofound.errors import DataError
from tests.data import cohort
from tests.data.sources.vitaldb_server import FLOAT, Wave, packets_of, write_vital

PPG = replace(cohort.PPG, tracks=("SNUADC/PLETH", "PLETH"))
ECG = replace(cohort.ECG, tracks=("SNUADC/ECG_II", "II"))
PLETH, ECG_II = "SNUADC/PLETH", "SNUADC/ECG_II"


def wander(seconds, *, seed=0, sfreq=500.0):
    """A smooth random signal within +-100, so that a shift by one sample is seen."""
    noise = np.random.default_rng(seed).normal(size=round(seconds * sfreq))
    walk = np.convolve(noise, np.hanning(25), mode="same")
    return walk / np.abs(walk).max() * 100


def with_gaps(signal, *gaps):
    holed = signal.copy()
    for start, stop in gaps:
        holed[start:stop] = np.nan
    return holed


def package(path):
    """The file as the `vitaldb` package reads it; it leaves closing the file to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return VitalFile(str(path))


def read(path, *channels, known=None):
    return read_recording(path, case_id="7", channels=channels, known=known or {})


def samples_of(path, channel=PPG):
    return read(path, channel).signals[channel.name].samples


# The traps: each first shows what the package's own conversion does.


def test_gaps_of_a_packed_integer_track_are_nan_where_the_package_gives_a_constant(tmp_path):
    signal = with_gaps(wander(20), (1000, 1001), (3000, 5000))
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=signal)], packed=True)

    naive = package(path).to_numpy([PLETH], 1 / 500)[:, 0]
    assert not np.isnan(naive).any()
    np.testing.assert_allclose(naive[3000:5000], 65535 * 0.01 - 300, rtol=1e-6)

    np.testing.assert_array_equal(np.isnan(samples_of(path)), np.isnan(signal))


def test_packets_of_a_tenth_of_a_second_keep_every_sample_in_its_place(tmp_path):
    signal = wander(60)
    waves = [Wave(name=PLETH, samples=signal, packet_s=0.1, start_s=0.03)]
    path = write_vital(tmp_path / "a.vital", waves, packed=False)

    naive = package(path).to_numpy([PLETH], 1 / 500)[15:, 0][: len(signal)]
    shifted = np.abs(np.nan_to_num(naive, nan=1e3) - signal) > 0.01
    assert shifted.mean() > 0.1  # `ceil` moves a good part of the packets by one sample

    ours = samples_of(path)
    assert len(ours) == len(signal)
    assert np.abs(ours - signal).max() <= 0.5 * 0.01 + 1e-4


def test_a_tone_above_the_new_nyquist_rate_does_not_come_back_as_another(tmp_path):
    time = np.arange(60 * 500) / 500
    path = write_vital(
        tmp_path / "a.vital", [Wave(name=ECG_II, samples=100 * np.sin(2 * np.pi * 120 * time))]
    )

    naive = package(path).to_numpy([ECG_II], 1 / 125)[:, 0]
    assert np.abs(naive).max() > 90  # every fourth sample taken: 120 Hz has become 5 Hz

    clean = condition(read(path, ECG), [ECG], sfreq=125.0, max_gap_seconds=0.2)
    # Not within 50 ms of the ends, where the tone starts and stops: that is a click, not an alias.
    assert np.abs(clean.samples[:, 6:-6]).max() < 1.0
    assert np.abs(clean.samples[:, 250:-250]).max() < 0.02


def test_a_file_cut_short_is_refused_where_the_package_reads_on_in_silence(tmp_path):
    waves = [Wave(name=PLETH, samples=wander(60), packet_s=1.0)]
    whole = write_vital(tmp_path / "a.vital", waves, packed=False)
    content = whole.read_bytes()
    cut = tmp_path / "b.vital"
    cut.write_bytes(content[: len(content) // 2])

    assert 0 < len(package(cut).trks[PLETH].recs) < 60

    with pytest.raises(DataError, match=r"case 7: .*b\.vital"):
        check_complete(cut, what="case 7")


def test_a_missing_track_is_named_where_the_package_gives_a_column_of_nan(tmp_path):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(5))])

    naive = package(path).to_numpy([PLETH, ECG_II], 1 / 500)
    assert np.isnan(naive[:, 1]).all()

    expected = r"case 7, channel ECG: expected one of the tracks SNUADC/ECG_II, II; .* has .*SNUADC/PLETH"
    with pytest.raises(DataError, match=expected):
        read(path, PPG, ECG)


def test_values_once_a_second_cannot_pass_as_500_hz(tmp_path):
    beats = [(float(second), np.array([60.0 + second])) for second in range(30)]
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, packets=beats, sfreq=500.0)], packed=False)

    naive = package(path).to_numpy([PLETH], 1 / 500)
    assert len(naive) > 14_000  # the package takes the header's word

    with pytest.raises(DataError, match=r"track SNUADC/PLETH: .* 500 Hz.* 1 samples"):
        read(path, PPG)


def test_a_packed_track_at_another_rate_than_the_data_set_has_is_refused(tmp_path):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(30, sfreq=1), sfreq=1.0)])
    with pytest.raises(DataError, match=r"PLETH: .* 500 Hz.* 1 Hz"):
        read(path, PPG, known={PLETH: {"srate": 500.0}})
    # Nothing known beforehand: the rate comes along, so that nobody can take it for another.
    assert read(path, PPG).signals["PPG"].sfreq == 1.0


# Round trips.


@pytest.mark.parametrize(
    ("packed", "fmt", "gain", "offset"),
    [
        (packed, *form)
        for form in [
            (3, 1.0, 0.0),
            (4, 1.0, -120.0),
            (5, 0.01, 0.0),
            (6, 0.01, -300.0),
            (7, 1e-4, 0.0),
            (8, 1e-4, -300.0),
            (1, 1.0, 0.0),
            (2, 1.0, 0.0),
        ]
        for packed in (True, False)
        if form[0] not in (7, 8) or not packed  # the package packs them as 64 bits
    ],
)
def test_what_is_written_comes_back_within_one_step_and_with_the_same_gaps(
    tmp_path, packed, fmt, gain, offset
):
    rng = np.random.default_rng(fmt)
    starts = rng.integers(1, 20_000, 12)
    gaps = [(start, start + length) for start, length in zip(starts, rng.integers(1, 900, 12), strict=True)]
    signal = with_gaps(wander(45, seed=fmt), *gaps)
    wave = Wave(name=PLETH, samples=signal, fmt=fmt, gain=gain, offset=offset, packet_s=0.37)
    back = samples_of(write_vital(tmp_path / "a.vital", [wave], packed=packed))
    np.testing.assert_array_equal(np.isnan(back), np.isnan(signal))
    step = gain if fmt > 2 else 1e-5
    assert np.nanmax(np.abs(back - signal)) <= step


def test_a_sentinel_inside_an_unpacked_packet_is_a_gap_too(tmp_path):
    signal = wander(4)
    holed = with_gaps(signal, (700, 720))
    packets = [(second, holed[500 * second : 500 * (second + 1)]) for second in range(4)]
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, packets=packets)], packed=False)
    np.testing.assert_array_equal(np.isnan(samples_of(path)), np.isnan(holed))


def test_floats_that_are_no_signal_are_gaps(tmp_path):
    signal = wander(2)
    signal[10:14] = [np.inf, -np.inf, 4294967295.0, -1e30]
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=signal, fmt=FLOAT)])
    assert np.flatnonzero(np.isnan(samples_of(path))).tolist() == [10, 11, 12, 13]


def test_packets_out_of_order_repeated_and_overlapping_give_one_signal(tmp_path):
    signal = wander(10)
    wave = Wave(name=PLETH, samples=signal, packet_s=0.5)
    packets = packets_of(wave)
    packets[3] = (packets[3][0], signal[750:1100])  # reaches 100 samples into its follower
    half_empty = with_gaps(signal, (2000, 2100))[2000:2250]
    order = np.random.default_rng(1).permutation(len(packets))
    shuffled = [packets[i] for i in order] + [packets[5], (4.0, half_empty)]
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, packets=shuffled)], packed=False)
    back = samples_of(path)
    assert len(back) == len(signal)
    assert np.abs(back - signal).max() <= 0.01  # and the repeated packet's gap wiped out nothing


def test_both_tracks_start_at_the_earliest_packet_of_either_at_their_own_rates(tmp_path):
    pleth, ecg = wander(10, sfreq=100.0), wander(10, seed=1)
    waves = [
        Wave(name=PLETH, samples=pleth, sfreq=100.0, start_s=2.0),
        Wave(name=ECG_II, samples=ecg, start_s=0.4013),
    ]
    recording = read(write_vital(tmp_path / "a.vital", waves), PPG, ECG)
    got_pleth, got_ecg = recording.signals["PPG"], recording.signals["ECG"]
    assert (got_pleth.sfreq, got_ecg.sfreq) == (100.0, 500.0)
    assert np.abs(got_ecg.samples - ecg).max() <= 0.01
    late = round((2.0 - 0.4013) * 100)
    assert np.isnan(got_pleth.samples[:late]).all()
    assert np.abs(got_pleth.samples[late:] - pleth).max() <= 0.01


def test_the_device_decides_between_tracks_of_one_name(tmp_path):
    mine, other = wander(3), wander(3, seed=9)
    waves = [
        Wave(name="BSNUADC/PLETH", samples=other, sfreq=500.0),
        Wave(name=PLETH, samples=mine),
        Wave(name="Intellivue/PLETH", samples=other),
    ]
    path = write_vital(tmp_path / "a.vital", waves)
    assert np.abs(samples_of(path) - mine).max() <= 0.01


def test_a_track_name_without_its_device_must_be_unique():
    assert find_track(("PLETH",), ["X/PLETH", "X/PLETH_HR"], what="case 7") == "X/PLETH"
    assert find_track(("A/PLETH", "PLETH"), ["X/PLETH"], what="case 7") == "X/PLETH"
    assert find_track(("A/PLETH",), ["BA/PLETH", "PLETH"], what="case 7") is None
    with pytest.raises(DataError, match=r"case 7: .*PLETH.*X/PLETH, Y/PLETH"):
        find_track(("PLETH",), ["Y/PLETH", "X/PLETH"], what="case 7")


def test_units_are_converted_to_the_channels(tmp_path):
    signal = wander(3)
    path = write_vital(tmp_path / "a.vital", [Wave(name=ECG_II, samples=signal, unit="uV")])
    recorded = read(path, ECG).signals["ECG"]
    assert recorded.unit == "mV"
    assert np.abs(recorded.samples - signal / 1000).max() <= 1e-5
    path = write_vital(tmp_path / "b.vital", [Wave(name=ECG_II, samples=signal, unit="mmHg")])
    with pytest.raises(DataError, match=r"track SNUADC/ECG_II: .*mV.*mmHg"):
        read(path, ECG)


# Files that cannot be used.


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (Wave(name=PLETH, samples=wander(2), gain=0.0, fmt=6), "gain.* 0:"),
        (Wave(name=PLETH, samples=wander(2), sfreq=500.0, fmt=FLOAT), None),
        (Wave(name=PLETH, samples=np.full(500, np.nan), fmt=FLOAT), "no samples"),
        (Wave(name=PLETH, packets=[(0.0, np.full(500, np.nan))]), "gaps"),
        (Wave(name=PLETH, packets=[(0.0, wander(1)), (1e6, wander(1))]), "278 h.* 48 h"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_track_without_a_signal_is_refused(tmp_path, wave, words):
    path = write_vital(tmp_path / "a.vital", [wave], packed=False)
    if words is None:
        assert np.isfinite(samples_of(path)).all()
        return
    with pytest.raises(DataError, match=rf"case 7, channel PPG, track SNUADC/PLETH: .*{words}"):
        read(path, PPG)


def test_tracks_too_far_apart_in_time_are_refused(tmp_path):
    waves = [Wave(name=PLETH, samples=wander(2)), Wave(name=ECG_II, samples=wander(2), start_s=1e6)]
    with pytest.raises(DataError, match=r"channel ECG, track SNUADC/ECG_II: .* 48 h"):
        read(write_vital(tmp_path / "a.vital", waves), PPG, ECG)


def test_a_numeric_track_is_no_wave(tmp_path):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(2))])
    rate = replace(PPG, name="HR", tracks=("Solar8000/HR",))
    with pytest.raises(DataError, match=r"channel HR, track Solar8000/HR: .*wave"):
        read(path, rate)


@pytest.mark.parametrize("packed", [True, False])
def test_every_track_is_listed_with_its_rate_and_its_seconds_of_signal(tmp_path, packed):
    waves = [
        Wave(name=PLETH, samples=with_gaps(wander(12), (500, 5500)), unit="%"),
        Wave(name=ECG_II, samples=with_gaps(wander(7, sfreq=250.0), (0, 250)), sfreq=250.0, fmt=FLOAT),
    ]
    listed = list_tracks(write_vital(tmp_path / "a.vital", waves, packed=packed), what="case 7")
    assert {(track.name, track.sfreq, track.unit, track.duration_s) for track in listed} == {
        (PLETH, 500.0, "%", 2.0),
        (ECG_II, 250.0, "mV", 6.0),
        ("Solar8000/HR", None, "", None),
    }


def test_every_cut_and_every_damaged_part_is_noticed(tmp_path):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(3))])
    content = path.read_bytes()
    for length in [0, 1, 9, 10, 100, len(content) // 2, len(content) - 8, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="case 7"):
            check_complete(path, what="case 7")
    for place in [100, 1000, len(content) // 2, len(content) - 6, len(content) - 2]:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="case 7"):
            check_complete(path, what="case 7")


def test_a_recording_that_ends_inside_a_packet_is_refused_though_its_gzip_is_whole(tmp_path):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(3))])
    body = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(body[:-100]))
    with pytest.raises(DataError, match=f"case 7: .*{len(body) - 100} bytes"):
        check_complete(path, what="case 7")
    path.write_bytes(gzip.compress(b"RIFF" + body[4:]))
    with pytest.raises(DataError, match=r"case 7: .*RIFF"):
        check_complete(path, what="case 7")


@pytest.mark.parametrize("fmt", [7, 8])
def test_32_bit_integers_that_the_package_packed_as_64_bits_are_refused(tmp_path, fmt):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(3), fmt=fmt)])
    with pytest.raises(DataError, match=r"case 7, track SNUADC/PLETH: .* 6000 bytes, but has 12000"):
        read(path, PPG)


def test_packets_over_a_megabyte_are_read_where_the_package_stops_without_a_word(tmp_path):
    long, short = wander(1100), wander(4, seed=1)
    waves = [
        Wave(name="Other/LONG", packets=[(0.0, long)]),
        Wave(name=PLETH, packets=[(0.0, short)]),
        Wave(name=ECG_II, packets=[(0.0, long)]),
    ]
    path = write_vital(tmp_path / "a.vital", waves, packed=False)
    assert [len(package(path).trks[name].recs) for name in (PLETH, ECG_II)] == [0, 0]
    signals = read(path, PPG, ECG).signals
    assert np.abs(signals["PPG"].samples - short).max() <= 0.01
    assert np.abs(signals["ECG"].samples - long).max() <= 0.01
    assert {track.name: track.duration_s for track in list_tracks(path, what="case 7")} == {
        "Other/LONG": 1100.0,
        PLETH: 4.0,
        ECG_II: 1100.0,
        "Solar8000/HR": None,
    }


def test_a_track_that_is_defined_twice_is_refused_only_where_its_packets_would_mix(tmp_path):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(3))], packed=False)
    body = gzip.decompress(path.read_bytes())
    at = body.index(b"PLETH") - 13  # the packet that defines the track
    definition = body[at : at + 5 + int.from_bytes(body[at + 1 : at + 5], "little")]
    faster = definition.replace(struct.pack("<f", 500.0), struct.pack("<f", 250.0))
    assert faster != definition
    path.write_bytes(gzip.compress(body + definition))
    assert len(samples_of(path)) == 1500
    path.write_bytes(gzip.compress(body[:at] + faster + body[at:]))
    assert len(samples_of(path)) == 1500
    path.write_bytes(gzip.compress(body + faster))
    with pytest.raises(DataError, match=r"track SNUADC/PLETH: .*twice"):
        read(path, PPG)


@pytest.mark.parametrize("part", ["name length", "sample count", "track length", "header length"])
def test_a_length_that_cannot_be_is_one_error(tmp_path, part):
    path = write_vital(tmp_path / "a.vital", [Wave(name=PLETH, samples=wander(3))])
    body = bytearray(gzip.decompress(path.read_bytes()))
    name = body.index(b"PLETH")
    record = body.rindex(struct.pack("<L", 1500))
    place, value = {
        "name length": (name - 4, struct.pack("<L", 2**31)),
        "sample count": (record, struct.pack("<L", 2**32 - 1)),
        "track length": (name - 12, struct.pack("<L", 6)),
        "header length": (8, b"\xff\xff"),
    }[part]
    body[place : place + len(value)] = value
    path.write_bytes(gzip.compress(body))
    with pytest.raises(DataError, match=r"case 7.*a\.vital"):
        read(path, PPG)


def bomb(path, packet, *, copies):
    """A gzip of many copies of one packet; gzip packs two parts of a gzip behind each other as one."""
    write_vital(path, [Wave(name=PLETH, samples=wander(1))])
    with gzip.open(path, "ab") as file:
        for _ in range(copies):
            file.write(packet)
    return path


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("biofound.data.sources.vital_format.LARGEST_UNZIPPED", 1 << 22)
    path = bomb(tmp_path / "a.vital", struct.pack("<BL", 77, 1 << 20) + bytes(1 << 20), copies=5)
    with pytest.raises(DataError, match=r"case 7: .*a\.vital is larger .*4194304"):
        check_complete(path, what="case 7")
    path = bomb(tmp_path / "b.vital", struct.pack("<BL", 77, 2**32 - 1), copies=1)
    with pytest.raises(DataError, match=r"case 7: .*b\.vital is larger"):
        check_complete(path, what="case 7")
    monkeypatch.setattr("biofound.data.sources.vital_format.MOST_PACKETS", 100)
    path = bomb(tmp_path / "c.vital", bytes([77, 0, 0, 0, 0]), copies=100)
    with pytest.raises(DataError, match=r"case 7: .*c\.vital is larger .*100 packets"):
        check_complete(path, what="case 7")


def test_memory_is_taken_for_wanted_tracks_only_and_not_without_end(tmp_path, monkeypatch):
    waves = [Wave(name=PLETH, samples=wander(20)), Wave(name=ECG_II, samples=wander(2))]
    path = write_vital(tmp_path / "a.vital", waves)
    monkeypatch.setattr("biofound.data.sources.vital_format.LARGEST_SELECTION", 5000)
    assert len(samples_of(path, ECG)) == 1000
    with pytest.raises(DataError, match=r"case 7: .*5000 samples"):
        read(path, PPG)

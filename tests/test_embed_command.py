"""`biofound embed` and `embed_array`, through the real command line on the small cohort."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import biofound
from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.embed import WindowEmbedder
from biofound.core.readout import embed_windows
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.store import StoreWindows
from biofound.data.windows import ArrayWindows
from biofound.settings import resolve_channels
from tests.chain import Chain, answer, chain, code_of, done, run, write_plain

SYNTHETIC = ("--source", "synthetic", "--subjects", 12, "--minutes", 0.6, "--seed", 1)
"""The recordings of which the chain's windows are."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def checkpoint(small: Chain) -> Path:
    return small.output / "best_model.pt"


@pytest.fixture(scope="module")
def embedded(small: Chain, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.parquet"
    told = answer("embed", "--checkpoint", checkpoint, "--data-dir", small.store, "--output", path)
    assert told["windows"] == pq.read_metadata(path).num_rows > 20
    assert (told["cases"], told["subjects"], told["vector_length"]) == (12, 12, 64)
    assert told["hours"] == pytest.approx(told["windows"] * 10 / 3600)
    return path


@pytest.fixture(scope="module")
def of_recordings(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.parquet"
    done("embed", "--checkpoint", checkpoint, *SYNTHETIC, "--output", path)
    return path


def rows_of(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).sort_values(["case_id", "start_s"], ignore_index=True)


def matrix(rows: pd.DataFrame) -> np.ndarray:
    return np.stack(list(rows["vector"]))


# ---- Windows of a store


def test_a_script_of_ten_lines_gives_the_same_vectors(small, checkpoint, embedded) -> None:
    encoder = biofound.load_checkpoint(checkpoint).build().encoder
    layers = []
    encoder.backbone.encoder.mlp_mixer_encoder.mixers[-1].register_forward_hook(
        lambda module, inputs, output: layers.append(output)
    )
    rows = pd.read_parquet(embedded)
    for path in small.store.glob("*/*.npz"):
        with np.load(path) as case, torch.no_grad():
            encoder(torch.from_numpy(case["x"].astype(np.float32)))
            expected = torch.cat([layers[-1].mean(2), layers[-1].std(2, correction=0)], -1).flatten(1)
            of_case = rows[rows["case_id"] == json.loads(path.with_suffix(".json").read_text())["case_id"]]
            np.testing.assert_allclose(matrix(of_case), expected.numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(of_case["start_s"], case["start_s"])
            np.testing.assert_array_equal(of_case[["quality_PPG", "quality_ECG"]], case["quality"])


def test_an_npz_agrees_and_the_batch_size_and_the_order_of_channels_do_not_matter(
    small, checkpoint, embedded, tmp_path
) -> None:
    parts = [StoreWindows(small.store / split) for split in ("train", "val")]
    plain = tmp_path / "plain"
    plain.mkdir()
    for windows in parts:
        everything = np.arange(len(windows))
        info = windows.info(everything)
        np.savez(
            plain / f"{windows.index.split}_windows.npz",
            x=windows.read(everything)[:, ::-1],
            channels=["ECG", "PPG"],
            quality=np.where(everything[:, None] == 0, np.nan, info.quality[:, ::-1]),  # not known
            sfreq=125.0,
            case_ids=info.case_id,
            start_s=info.start_s,
        )
    path = tmp_path / "v.npz"
    done("embed", "--checkpoint", checkpoint, "--data-dir", plain, "--output", path, "--batch-size", 3)
    rows = pd.read_parquet(embedded)
    with np.load(path) as arrays:
        count = len(arrays["vector"])  # test comes last, and is not in the plain form
        assert count == sum(map(len, parts))
        np.testing.assert_allclose(arrays["vector"], matrix(rows[:count]), rtol=1e-4, atol=1e-5)
        quality = rows[["quality_PPG", "quality_ECG"]][:count].to_numpy(copy=True)
        quality[[0, len(parts[0])]] = np.nan
        np.testing.assert_array_equal(arrays["quality"], quality)
        assert arrays["case_id"].tolist() == rows["case_id"][:count].tolist()
        assert arrays["channels"].tolist() == ["PPG", "ECG"] and set(arrays["subject_id"]) == {""}


def test_the_file_says_how_it_was_made(small, checkpoint, embedded) -> None:
    header = json.loads(pq.read_schema(embedded).metadata[b"biofound"])
    origin = header["origin"]
    assert (header["sfreq"], header["window_samples"], header["channels"]) == (125.0, 1250, ["PPG", "ECG"])
    assert origin["checkpoint"] == str(checkpoint) and origin["readout"] == "channels_mean_std"
    assert origin["checkpoint_sha256"] == biofound.files.sha256_of(checkpoint)
    fingerprints = {name: StoreWindows(small.store / name).fingerprint for name in ("train", "val", "test")}
    assert origin["data"] == {"data_dir": str(small.store), "fingerprints": fingerprints}


# ---- Recordings and arrays


def test_recordings_give_the_vectors_of_their_windows(
    small, checkpoint, embedded, of_recordings, tmp_path
) -> None:
    windows, recordings = rows_of(embedded), rows_of(of_recordings)
    for column in ("case_id", "subject_id", "start_s", "quality_PPG", "quality_ECG"):
        assert windows[column].tolist() == recordings[column].tolist(), column
    # not rounded to float16, the store's samples are the same
    done("windows", "--split-file", small.splits, "--split", "val", "--dtype", "float32", "--workers", 1,
         "--outdir", tmp_path)  # fmt: skip
    path = tmp_path / "v.parquet"
    done("embed", "--checkpoint", checkpoint, "--data-dir", tmp_path, "--output", path)
    exact = rows_of(path)
    same = recordings[recordings["case_id"].isin(exact["case_id"])]
    np.testing.assert_allclose(matrix(exact), matrix(same), rtol=1e-4, atol=1e-5)


def test_an_array_gives_the_vectors_of_the_recording(checkpoint, of_recordings) -> None:
    channels = resolve_channels(None, "pretrain").channels
    source = SyntheticSource(seed=1, subjects=12, minutes=0.6)
    rows = rows_of(of_recordings)
    case = rows["case_id"][0]
    signals = source.read(case, channels).signals
    x = np.stack([signals["ECG"].samples, np.zeros_like(signals["ECG"].samples), signals["PPG"].samples])
    found = biofound.embed_array(
        checkpoint, x, sfreq=signals["ECG"].sfreq, channels=["ECG", "ACC_X", "PPG"], batch_size=2
    )
    of_case = rows[rows["case_id"] == case]
    np.testing.assert_allclose(found.vectors, matrix(of_case), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.start_s, of_case["start_s"])
    np.testing.assert_array_equal(found.quality, of_case[["quality_PPG", "quality_ECG"]])


def test_the_gate_is_the_checkpoints_and_can_be_left_out(checkpoint) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 35 * 250))
    noise[0, 5 * 250 : 6 * 250] = np.nan  # a gap in the first window
    known = {"sfreq": 250.0, "channels": ["PPG", "ECG"]}
    kept = biofound.embed_array(checkpoint, noise, **known)
    assert kept.vectors.shape == (0, 64) and kept.quality.shape == (0, 2)
    everything = biofound.embed_array(checkpoint, noise, gate=False, **known)
    assert everything.start_s.tolist() == [10.0, 20.0]
    loaded = load_checkpoint(checkpoint)
    bridging = replace(loaded, data=replace(loaded.data, max_gap_seconds=2.0))
    assert biofound.embed_array(bridging, noise, gate=False, **known).start_s.tolist() == [0.0, 10.0, 20.0]
    lenient = replace(loaded, data=replace(loaded.data, quality_thresholds={"PPG": 0.0, "ECG": 0.0}))
    np.testing.assert_array_equal(biofound.embed_array(lenient, noise, **known).vectors, everything.vectors)


def test_a_channel_that_a_table_lacks_and_need_not_have_is_unobserved(checkpoint, tmp_path) -> None:
    table = resolve_channels(None, "pretrain")
    source = SyntheticSource(subjects=3, minutes=0.6, seed=1)
    ppg = source.read(source.cases(table.channels)[0].case_id, table.channels[:1]).signals["PPG"]
    recordings, channels, output = tmp_path / "tables", tmp_path / "channels.yaml", tmp_path / "v.npz"
    recordings.mkdir()
    np.savez(recordings / "p1.npz", PPG=ppg.samples, sfreq=ppg.sfreq)
    known = ("--source", "table", "--root", recordings, "--channels-yaml", channels, "--output", output)
    channels.write_text("pretrain: {PPG: {}, ECG: {}}\n")
    assert "Their tracks: PPG" in run("embed", "--checkpoint", checkpoint, *known).stderr
    channels.write_text("pretrain: {PPG: {}, ECG: {required: false}}\n")
    done("embed", "--checkpoint", checkpoint, *known, "--record-is-subject")
    with np.load(output) as found:
        assert len(found["vector"]) and np.isfinite(found["vector"]).all()
        assert np.isfinite(found["quality"][:, 0]).all() and np.isnan(found["quality"][:, 1]).all()
        assert set(found["case_id"]) == set(found["subject_id"]) == {"p1"}


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((2, 5000), {"channels": ["PPG", "ACC_X"]}, ("no ECG", "there is PPG, ACC_X")),
        ((2, 5000), {"channels": ["PPG", "PPG"]}, ("a different name",)),
        ((5000, 2), {}, ("(channels, samples)", "(5000, 2)")),
        ((2, 5000), {"sfreq": 50.0}, ("ECG", "50 Hz", "needs at least 80 Hz")),
        ((2, 5000), {"sfreq": 0.0}, ("above 0",)),
        ((2, 5000), {"readout": "middle"}, ("channels_mean_std", "'middle'")),
    ],
)
def test_an_array_that_cannot_be_embedded_is_refused(checkpoint, shape, changes, words) -> None:
    given = {"sfreq": 250.0, "channels": ["PPG", "ECG"], **changes}
    with pytest.raises((ValueError, biofound.errors.DataError)) as refused:
        biofound.embed_array(checkpoint, np.zeros(shape), **given)
    assert all(word in str(refused.value) for word in words), refused.value


# ---- A subset of the checkpoint's channels


@pytest.fixture(scope="module")
def with_dropout(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as if it had been trained with channel dropout."""
    path = tmp_path_factory.mktemp("dropout") / "model.pt"
    known = load_checkpoint(checkpoint)
    save_checkpoint(path, replace(known, settings={**known.settings, "channel_dropout": 0.5}))
    return path


def header_of(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"biofound"])


def test_windows_that_lack_a_channel_have_the_vectors_of_one_that_is_unobserved(
    small, checkpoint, with_dropout, tmp_path
) -> None:
    stored = [StoreWindows(small.store / split) for split in ("train", "val")]
    x = np.concatenate([windows.read(np.arange(len(windows))) for windows in stored])
    plain = tmp_path / "plain"
    plain.mkdir()
    for windows in stored:
        np.savez(
            plain / f"{windows.index.split}_windows.npz",
            x=windows.read(np.arange(len(windows)))[:, :1],
            channels=["PPG"],
            sfreq=125.0,
        )
    output = tmp_path / "v.parquet"
    given = ("--data-dir", plain, "--output", output)
    refused = run("embed", "--checkpoint", checkpoint, *given)
    assert refused.exit_code == 1 and "but no ECG. It was trained without channel dropout" in refused.stderr
    said = done("embed", "--checkpoint", with_dropout, *given).stderr
    assert f"{plain} has no ECG" in said
    x[:, 1] = np.nan
    expected = embed_windows(load_checkpoint(checkpoint).build().encoder, x)
    rows = pd.read_parquet(output)
    np.testing.assert_allclose(matrix(rows), expected, rtol=1e-5, atol=1e-6)
    header = header_of(output)
    assert header["channels"] == ["PPG", "ECG"] and header["present_channels"] == ["PPG"]
    x[:, 1] = 1e30  # whatever else stands there
    windows = ArrayWindows(x, channels=("PPG", "ECG"), sfreq=125.0)
    embedder = WindowEmbedder(load_checkpoint(with_dropout), available=["PPG"])
    np.testing.assert_array_equal(embedder.rows_in_memory(windows).vectors, matrix(rows))


def test_recordings_and_arrays_may_lack_a_channel_too(checkpoint, with_dropout, tmp_path) -> None:
    table, output = tmp_path / "channels.yaml", tmp_path / "v.parquet"
    table.write_text("pretrain: {PPG: {}}\n")
    source = ("--source", "synthetic", "--subjects", 3, "--minutes", 0.6, "--seed", 1)
    given = (*source, "--channels-yaml", table, "--output", output)
    refused = run("embed", "--checkpoint", checkpoint, *given)
    assert refused.exit_code == 1 and "there is PPG, but no ECG" in refused.stderr
    told = answer("embed", "--checkpoint", with_dropout, *given)
    rows, header = pd.read_parquet(output), header_of(output)
    assert told["channels"] == header["present_channels"] == header["origin"]["data"]["channels"] == ["PPG"]
    assert rows["quality_PPG"].min() >= 0.5 and rows["quality_ECG"].isna().all()
    channels = resolve_channels(None, "pretrain").channels[:1]
    case = rows["case_id"][0]
    ppg = SyntheticSource(seed=1, subjects=3, minutes=0.6).read(case, channels).signals["PPG"]
    known = {"sfreq": ppg.sfreq, "channels": ["PPG"]}
    found = biofound.embed_array(with_dropout, ppg.samples[None], **known)
    np.testing.assert_allclose(found.vectors, matrix(rows[rows["case_id"] == case]), rtol=1e-4, atol=1e-5)
    assert found.quality.shape == (len(found.vectors), 2) and np.isnan(found.quality[:, 1]).all()
    short = biofound.embed_array(with_dropout, np.zeros((1, 3000)), **known)
    assert short.vectors.shape == (0, 64) and short.quality.shape == (0, 2)
    with pytest.raises(biofound.errors.DataError, match="trained without channel dropout"):
        biofound.embed_array(checkpoint, ppg.samples[None], **known)
    with pytest.raises(biofound.errors.DataError, match="at least one of its channels"):
        biofound.embed_array(with_dropout, ppg.samples[None], sfreq=ppg.sfreq, channels=["pleth"])


# ---- Refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sfreq": 100.0}, ("1250 samples at 125 Hz", "1250 samples at 100 Hz")),
        ({"x": np.zeros((4, 2, 1000)), "sfreq": 125.0}, ("1000 samples at 125 Hz",)),
        (
            {"channels": ["PPG", "ACC_X"], "sfreq": 125.0},
            ("takes PPG, ECG", "there is PPG, ACC_X, but no ECG"),
        ),
        ({}, ("no key `sfreq`",)),
    ],
)
def test_other_windows_are_refused_by_name(small, checkpoint, tmp_path, changes, words) -> None:
    plain = write_plain(tmp_path / "plain", small.store, **changes)
    output = tmp_path / "v.parquet"
    result = run("embed", "--checkpoint", checkpoint, "--data-dir", plain, "--output", output)
    assert result.exit_code == 1 and all(word in result.stderr for word in words), result.stderr
    assert not output.exists()


def test_other_filters_are_refused_in_windows_and_in_a_given_channel_table(
    small, checkpoint, tmp_path
) -> None:
    known = load_checkpoint(checkpoint)
    bands = {**known.data.filters, "ECG": {**known.data.filters["ECG"], "high_hz": 15.0}}
    other = tmp_path / "other.pt"
    save_checkpoint(other, replace(known, data=replace(known.data, filters=bands)))
    output = tmp_path / "v.parquet"
    windows = run("embed", "--checkpoint", other, "--data-dir", small.store, "--output", output)
    assert windows.exit_code == 1 and "filter of ECG" in windows.stderr
    table = tmp_path / "channels.yaml"
    table.write_text("pretrain: {PPG: {}, ECG: {}}\n")
    given = run("embed", "--checkpoint", other, *SYNTHETIC, "--channels-yaml", table, "--output", output)
    assert given.exit_code == 2 and "the filter of ECG" in given.stderr and str(table) in given.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--output", "v.csv"), 2, (".parquet or .npz",)),
        (("--output", "v.npz"), 2, ("either data_dir",)),
        (("--output", "v.npz", "--data-dir", "x", "--source", "synthetic"), 2, ("either data_dir",)),
        (("--output", "v.npz", "--data-dir", "x", "--root", "y"), 2, ("root", "give source too")),
        (("--output", "v.npz", "--data-dir", "x", "--no-gate"), 2, ("have passed theirs",)),
        (("--output", "v.npz", "--source", "wfdb"), 2, ("needs root",)),
        (("--output", "v.npz", "--data-dir", "x", "--readout", "middle"), 2, ("channels_mean_std",)),
        (("--output", "v.npz", *SYNTHETIC, "--section", "finetune"), 0, ()),
    ],
)
def test_settings_that_do_not_fit_are_refused(checkpoint, arguments, code, words) -> None:
    result = run("embed", "--checkpoint", checkpoint, *arguments, "--dry-run")
    assert result.exit_code == code, result.output
    assert all(word in result.stderr for word in words), result.stderr


def test_another_runs_file_is_replaced_only_when_told(small, checkpoint, tmp_path) -> None:
    path = tmp_path / "v.npz"
    given = ("embed", "--checkpoint", checkpoint, "--data-dir", small.store, "--output", path)
    path.write_text("mine")
    refused = run(*given)
    assert refused.exit_code == 1 and "--overwrite" in refused.stderr and path.read_text() == "mine"
    done(*given, "--overwrite")
    before = path.read_bytes()
    done(*given)  # the same again
    assert path.read_bytes() == before
    other = run(*given, "--readout", "mean")
    assert other.exit_code == 1 and "(readout)" in other.stderr and path.read_bytes() == before


def test_recordings_that_cannot_be_read_are_left_out_when_told(checkpoint, tmp_path, monkeypatch) -> None:
    read = SyntheticSource.read

    def failing(self, case_id, channels):
        if case_id.startswith("syn0002"):
            raise OSError(5, "Input/output error", "x.dat")
        return read(self, case_id, channels)

    monkeypatch.setattr(SyntheticSource, "read", failing)
    path = tmp_path / "v.parquet"
    given = ("embed", "--checkpoint", checkpoint, "--source", "synthetic", "--subjects", 3, "--minutes", 0.4)
    refused = run(*given, "--output", path)
    assert refused.exit_code == 1 and "syn0002" in refused.stderr and "--skip-failed" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    told = answer(*given, "--output", path, "--skip-failed")
    (name,) = told["failed"]
    assert name.startswith("syn0002") and told["cases"] == 2
    assert not any(case.startswith("syn0002") for case in pd.read_parquet(path)["case_id"])


def test_a_file_that_cannot_be_written_is_said(small, checkpoint, tmp_path) -> None:
    (tmp_path / "file").touch()
    given = ("embed", "--checkpoint", checkpoint, "--data-dir", small.store, "--output")
    below = run(*given, tmp_path / "file" / "v.npz")
    assert below.exit_code == 1 and "--output" in below.stderr
    (tmp_path / "v.npz").mkdir()
    directory = run(*given, tmp_path / "v.npz")
    assert directory.exit_code == 2 and "a directory" in directory.stderr


# ---- The guide


def test_the_guides_join_with_labels_is_right_to_a_sample(embedded, tmp_path) -> None:
    rows = rows_of(embedded)
    case, other = rows["case_id"].iloc[0], rows["case_id"].iloc[-1]
    first, second = rows.loc[rows["case_id"] == case, "start_s"].tolist()[:2]
    (tmp_path / "vectors.parquet").write_bytes(embedded.read_bytes())
    for late, early, expected in (
        (0, 0, {first: "a", second: "b"}),
        (1, 0, {first: "a"}),  # the second interval begins a sample after its window
        (0, 1, {second: "b"}),  # the first interval ends a sample before its window
    ):
        (tmp_path / "labels.csv").write_text(
            "case_id,start_s,end_s,label\n"
            f"{case},{first},{first + 10 - early / 125},a\n"
            f"{case},{second + late / 125},{second + 10},b\n"
            f"{other},{first},{first + 9},c\n"
        )
        found: dict = {}
        with contextlib.chdir(tmp_path):
            exec(code_of("embed.md", "merge_asof"), found)
        assert dict(zip(found["joined"]["start_s"], found["y"], strict=True)) == expected
        assert set(found["joined"]["case_id"]) == {case}
        assert found["x"].shape == (len(expected), 64) and len(found["groups"]) == len(expected)


def test_the_guides_three_lines_embed_an_array(checkpoint, tmp_path, capsys) -> None:
    (tmp_path / "best_model.pt").symlink_to(checkpoint)
    source = SyntheticSource(seed=1, subjects=3, minutes=0.4)
    channels = resolve_channels(None, "pretrain").channels
    signals = source.read(source.cases(channels)[0].case_id, channels).signals
    np.save(tmp_path / "recording.npy", np.stack([signals[n].samples[::2] for n in ("ECG", "PPG")]))
    assert signals["ECG"].sfreq == signals["PPG"].sfreq == 500.0
    with contextlib.chdir(tmp_path):
        exec(code_of("embed.md", "embed_array"), {})
    assert capsys.readouterr().out.startswith("(2, 64) [ 0. 10.]")

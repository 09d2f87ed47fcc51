"""`biofound export`, the encoders that it makes, and their card."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import biofound
from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.models import build_model
from biofound.core.onnx_file import save_onnx
from biofound.core.pretrained import BiofoundEncoder, load_pretrained
from biofound.core.safetensors_file import load_safetensors, portable, save_safetensors
from biofound.data.sources.synthetic import SyntheticSource
from biofound.errors import CheckpointError, DataError
from biofound.model_card import NOT_MEASURED, CardFacts, model_card
from biofound.settings import resolve_channels
from tests.chain import Chain, answer, chain, done, files_end_at, run

RATE = 250.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def best(small: Chain) -> Path:
    return small.output / "best_model.pt"


@pytest.fixture(scope="module")
def directory(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "hub"
    told = answer("export", "--checkpoint", best, "--to", "huggingface", "--output", path)
    assert told["channels"] == ["PPG", "ECG"]
    assert told["bytes"] == sum(file.stat().st_size for file in path.iterdir())
    return path


@pytest.fixture(scope="module")
def known(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint `best`, as if it had been trained with channel dropout."""
    checkpoint, path = load_checkpoint(best), tmp_path_factory.mktemp("known") / "known.pt"
    checkpoint.settings["channel_dropout"] = 0.5
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="module")
def onnx_file(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "encoder.onnx"
    done("export", "--checkpoint", known, "--to", "onnx", "--output", path)
    return path


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """PPG and ECG (2, 60 s at 250 Hz) of a synthetic heart, with a gap of 3 s."""
    channels = resolve_channels(None, "pretrain").channels
    source = SyntheticSource(subjects=3, minutes=1.0, seed=5, artefacts=0.0)
    case = source.survey(channels).cases[0].case_id
    signals = source.read(case, channels).signals
    times = np.arange(int(60 * RATE)) / RATE
    rows = [
        np.interp(times, np.arange(len(one.samples)) / one.sfreq, one.samples)
        for one in (signals[channel.name] for channel in channels)
    ]
    x = np.stack(rows).astype(np.float32)
    x[1, int(20 * RATE) : int(23 * RATE)] = np.nan
    return x


# ---- The same vectors from every form


def test_every_form_gives_the_same_vectors_in_three_lines(best, directory, onnx_file, recording) -> None:
    expected = biofound.embed_array(best, recording, sfreq=RATE, channels=("PPG", "ECG"))
    assert len(expected.vectors) >= 3
    for encoder in (
        load_pretrained(best),
        load_pretrained(directory),
        BiofoundEncoder.from_pretrained(directory),
        biofound.OnnxEncoder(onnx_file),
    ):
        windows = encoder.preprocess(recording, sfreq=RATE)
        vectors = encoder.embed(windows.x)
        np.testing.assert_array_equal(windows.start_s, expected.start_s)
        np.testing.assert_array_equal(windows.quality, expected.quality)
        largest = np.abs(expected.vectors).max()
        assert np.abs(vectors - expected.vectors).max() <= 1e-4 * largest
    swapped = biofound.OnnxEncoder(onnx_file).preprocess(recording[::-1], sfreq=RATE, channels=("ECG", "PPG"))
    np.testing.assert_array_equal(swapped.x, windows.x)


def test_onnx_takes_any_number_of_windows_and_reads_nan_as_gaps(best, onnx_file) -> None:
    exported, encoder = biofound.OnnxEncoder(onnx_file), load_checkpoint(best).build().encoder
    x = np.random.default_rng(3).standard_normal((7, 2, 1250)).astype(np.float32)
    x[2, 0, 300:900] = np.nan
    x[3, 1] = np.nan
    for count in (1, 2, 7):
        with torch.no_grad():
            expected = encoder(torch.from_numpy(x[:count])).numpy()
        latents, _ = exported.run(x[:count])
        assert np.abs(latents - expected).max() <= 1e-4 * np.abs(expected).max()
    filled = x.copy()
    filled[2, 0, 300:900] = 5.0
    # 5 is a signal, NaN is not
    assert np.abs(exported.run(filled)[0][2] - exported.run(x)[0][2]).max() > 1e-3
    with pytest.raises(ValueError, match="expected windows of shape"):
        exported.run(x[:, :1])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [("PPG",), ("ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG")])
def test_onnx_of_the_default_model_with_other_channels(best, tmp_path, channels) -> None:
    checkpoint = load_checkpoint(best)
    config = replace(checkpoint.model, channels=channels)
    model, data = build_model(config, seed=2), checkpoint.data
    described = {
        field: {name: next(iter(getattr(data, field).values())) for name in channels}
        for field in ("filters", "units", "quality_thresholds")
    }
    path = tmp_path / "model.pt"
    save_checkpoint(
        path,
        replace(
            checkpoint,
            model=config,
            encoder=model.encoder.state_dict(),
            decoder=model.decoder.state_dict(),
            data=replace(data, **described),
            optimizer=None,
            resume=None,
        ),
    )
    told = answer("export", "--checkpoint", path, "--to", "onnx", "--output", tmp_path / "model.onnx")
    assert float(told["compared"].split(": ")[1].split(" ")[0]) <= 1e-4


def test_an_onnx_file_that_computes_something_else_is_not_written(best, tmp_path, monkeypatch) -> None:
    run_exported = biofound.OnnxEncoder.run
    monkeypatch.setattr(
        biofound.OnnxEncoder, "run", lambda self, x: [y * 1.001 for y in run_exported(self, x)]
    )
    with pytest.raises(CheckpointError, match="onnxruntime and torch differ by 1"):
        save_onnx(tmp_path / "encoder.onnx", portable(load_checkpoint(best)))
    assert list(tmp_path.iterdir()) == []


def test_what_was_exported_works_as_a_checkpoint(directory, small, tmp_path) -> None:
    done("embed", "--checkpoint", directory, "--data-dir", small.store, "--output", tmp_path / "v.parquet")
    done("inflate", "--checkpoint", directory / "model.safetensors", "--to", 5, "--output", tmp_path / "5.pt")
    assert len(load_checkpoint(tmp_path / "5.pt").model.channels) == 5


# ---- The files


def test_a_safetensors_file_comes_back_bit_for_bit_without_private_things(best, tmp_path) -> None:
    path = tmp_path / "encoder.safetensors"
    done("export", "--checkpoint", best, "--to", "safetensors", "--output", path)
    before, after = load_checkpoint(best), load_checkpoint(path)
    for part in ("encoder", "decoder"):
        assert getattr(before, part).keys() == getattr(after, part).keys()
        assert all(
            torch.equal(getattr(before, part)[k], getattr(after, part)[k]) for k in getattr(before, part)
        )
    assert load_file(path).keys() == {
        *(f"encoder.{name}" for name in before.encoder),
        *(f"decoder.{name}" for name in before.decoder),
    }
    assert (after.optimizer, after.resume, after.data.subjects) == (None, None, ())
    assert before.data.subjects
    content = path.read_bytes()
    private = [*before.data.subjects, str(best.parent.parent)]
    assert [text for text in private if text.encode() in content] == []
    assert after.data == replace(portable(before).data)


@pytest.mark.parametrize(
    ("to", "name"), [("safetensors", "a.safetensors"), ("huggingface", "hub"), ("onnx", "a.onnx")]
)
def test_subjects_travel_where_they_are_asked_for_into_a_new_directory(best, tmp_path, to, name) -> None:
    output = tmp_path / "new" / name
    done("export", "--checkpoint", best, "--to", to, "--subjects", "--output", output)
    wanted = load_checkpoint(best).data.subjects
    if to == "onnx":
        assert tuple(biofound.OnnxEncoder(output).config["subjects"]) == wanted
    else:
        assert load_checkpoint(output).data.subjects == wanted


def test_damage_to_a_safetensors_file_is_noticed(best, tmp_path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_safetensors(path, portable(load_checkpoint(best)))
    whole, draw = path.read_bytes(), random.Random(1)
    header = int.from_bytes(whole[:8], "little") + 8
    places = [draw.randrange(header) for _ in range(30)] + [
        draw.randrange(header, len(whole)) for _ in range(20)
    ]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match=r"encoder\.safetensors"):
            load_safetensors(path)
    for length in (0, 7, 100, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            load_safetensors(path)


def test_a_directory_says_what_is_wrong_with_it(directory, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    config = json.loads((other / "config.json").read_text())
    config["channels"] = ["ECG", "PPG"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: channels is \['ECG', 'PPG'\], but model"):
        load_pretrained(other)
    assert "config.json: channels" in run("verify", "--checkpoint", other).stderr

    (other / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, other / "pytorch_model.bin")
    for load in (load_pretrained, BiofoundEncoder.from_pretrained):
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load(other)


def test_other_safetensors_and_onnx_files_are_refused_by_name(onnx_file, directory, tmp_path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        from safetensors.torch import save_file

        save_file({name: file.get_tensor(name) for name in file.keys()}, foreign)  # noqa: SIM118 -- no mapping
    with pytest.raises(CheckpointError, match="without a description by biofound"):
        load_pretrained(foreign)

    model = onnx.load(onnx_file)
    model.opset_import[0].version = 12
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(CheckpointError, match="opset 12, expected 18"):
        biofound.OnnxEncoder(tmp_path / "old.onnx")
    del model.metadata_props[:]
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="without a description"):
        biofound.OnnxEncoder(tmp_path / "foreign.onnx")
    whole = bytearray(onnx_file.read_bytes())
    whole[len(whole) // 2] ^= 1  # in a weight
    (tmp_path / "damaged.onnx").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"damaged\.onnx: damaged, its graph, weights"):
        biofound.OnnxEncoder(tmp_path / "damaged.onnx")
    (tmp_path / "no.onnx").write_bytes(b"\x00no model")
    with pytest.raises(CheckpointError, match="cannot be read as ONNX"):
        biofound.OnnxEncoder(tmp_path / "no.onnx")


@pytest.mark.parametrize(("to", "name"), [("huggingface", "hub"), ("safetensors", "a.safetensors")])
def test_nothing_is_replaced_and_nothing_half_written_stays(best, tmp_path, to, name) -> None:
    output = tmp_path / name
    output.write_text("mine")
    refused = run("export", "--checkpoint", best, "--to", to, "--output", output)
    assert (refused.exit_code, "is not replaced" in refused.stderr) == (2, True)
    assert output.read_text() == "mine"
    output.unlink()
    with files_end_at(20_000):
        full = run("export", "--checkpoint", best, "--to", to, "--output", output)
    assert (full.exit_code, "cannot be written" in full.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_was_trained_further_saves_its_own_weights_without_old_results(
    best, tmp_path
) -> None:
    encoder = load_pretrained(best)
    encoder.save_pretrained(tmp_path / "same")
    assert load_checkpoint(tmp_path / "same").metrics == load_checkpoint(best).metrics
    with torch.no_grad():
        encoder.encoder.fusion_bias += 1.0
    encoder.save_pretrained(tmp_path / "further")
    saved = load_checkpoint(tmp_path / "further")
    assert torch.equal(saved.encoder["fusion_bias"], encoder.encoder.fusion_bias.detach())
    assert (saved.metrics, saved.best_val_loss) == ({}, None)
    with pytest.raises(DataError, match=r"holds model\.safetensors"):
        encoder.save_pretrained(tmp_path / "further")


# ---- The card


def write_probe(path: Path, encoder: Path, *, mae: float) -> Path:
    """What `biofound probe --json` prints, of an encoder with that error."""
    rows = [
        {"name": "training median", "mae": 9.5, "mae_interval": None},
        {"name": str(encoder), "mae": mae, "mae_interval": [1.5, 3.25]},
    ]
    shared = {"rmse": 3.0, "rmse_interval": None, "r2": 0.5, "r2_interval": None}
    content = {
        "target": "HR",
        "encoders": {str(encoder): load_checkpoint(encoder).encoder_sha256},
        "rows": [
            {**shared, **row, "subjects": 34, "windows": 50, "subjects_in_pretraining": None} for row in rows
        ],
        "channels": ["PPG", "ECG"],
        "differences": [
            {
                "name": str(encoder),
                "against": "training median",
                "score": "mae",
                "difference": mae - 9.5,
                "interval": [-8.0, -6.0],
            }
        ],
        "windows_without_label": 0,
    }
    path.write_text(json.dumps(content))
    return path


def write_verification(path: Path, encoder: Path) -> Path:
    checks = [{"name": name, "passed": name == "a", "measured": "1"} for name in "ab"]
    digest = load_checkpoint(encoder).encoder_sha256
    path.write_text(json.dumps({"passed": False, "encoder_sha256": digest, "checks": checks}))
    return path


def test_the_card_says_what_the_files_say_and_changes_with_them(best, tmp_path) -> None:
    metrics = load_checkpoint(best).metrics
    said = json.loads((best.parent / "training_config.json").read_text())["data"]["train"][0]
    given = (
        *("--verify", write_verification(tmp_path / "verify.json", best)),
        *("--data-license", "ODC-By 1.0", "--probe-data", "34 patients of BIDMC"),
    )

    def card(name: str, mae: float) -> str:
        probe = write_probe(tmp_path / "probe.json", best, mae=mae)
        output = tmp_path / name
        done(
            "export",
            "--checkpoint",
            best,
            "--to",
            "huggingface",
            "--output",
            output,
            *given,
            "--probe",
            probe,
        )
        return (output / "README.md").read_text()

    first = card("first", 2.345)
    errors = [*metrics["val"]["msm_by_channel"].values(), *metrics["monitor"]["constant_guess_msm"].values()]
    assert [error for error in errors if f"{error:.3f}" not in first] == []
    assert f"{said['windows']:,} windows, {said['hours']:.1f} h of {said['subjects']} subjects" in first
    assert "| this encoder | 2.35 [1.50, 3.25] | 3.00 | 0.50 | 34 | not known |" in first
    assert "| training median | 9.50 |" in first
    assert "Target HR, from PPG, ECG;" in first
    assert "in mean absolute error, this encoder minus training median -7.15 [-8.00, -6.00]." in first
    assert "2 checks, 1 failed: b" in first
    assert "ODC-By 1.0" in first and "34 patients of BIDMC" in first
    assert yaml.safe_load(first.split("---")[1])["library_name"] == "biofound"
    second = card("second", 9.876)
    assert ("9.88" in second, "2.35" in second) == (True, False)


def test_results_of_other_weights_are_refused(best, tmp_path) -> None:
    other = load_checkpoint(best)
    other.encoder["fusion_bias"] += 1.0
    save_checkpoint(tmp_path / "other.pt", other)
    for option, path in (
        ("--probe", write_probe(tmp_path / "probe.json", tmp_path / "other.pt", mae=1.0)),
        ("--verify", write_verification(tmp_path / "verify.json", tmp_path / "other.pt")),
    ):
        arguments = ("--checkpoint", best, "--to", "huggingface", "--output", tmp_path / "hub", option, path)
        refused = run("export", *arguments)
        assert (refused.exit_code, "not about the encoder's weights" in refused.stderr) == (1, True)
    assert not (tmp_path / "hub").exists()


def test_a_card_invents_nothing(best, tmp_path) -> None:
    checkpoint = portable(replace(load_checkpoint(best), metrics={}))
    text = model_card(checkpoint, CardFacts(title="<b>|`evil`"))
    for heading in ("Masked reconstruction", "Probe", "Verification"):
        assert NOT_MEASURED in text.split(f"## {heading}")[1].split("##")[0]
    assert "synthetic hearts alone" in text
    assert "# &lt;b>\\|'evil'" in text
    arguments = ("export", "--checkpoint", best, "--output", tmp_path / "x")
    missing = run(*arguments, "--to", "huggingface", "--probe", tmp_path / "no.json")
    assert (missing.exit_code, "no such file; expected what `biofound probe" in missing.stderr) == (1, True)
    wordless = run(*arguments[:-1], tmp_path / "x.onnx", "--to", "onnx", "--license", "mit")
    assert (wordless.exit_code, "which only huggingface has" in wordless.stderr) == (2, True)


# ---- Channels and origins


def test_every_form_serves_a_channel_alone_only_after_channel_dropout(
    best, known, onnx_file, recording
) -> None:
    expected = biofound.embed_array(known, recording[:1], sfreq=RATE, channels=("PPG",)).vectors
    for encoder in (load_pretrained(known), biofound.OnnxEncoder(onnx_file)):
        windows = encoder.preprocess(recording[:1], sfreq=RATE, channels=("PPG",))
        assert np.isnan(windows.x[:, 1]).all() and np.isnan(windows.quality[:, 1]).all()
        assert np.abs(encoder.embed(windows.x) - expected).max() <= 1e-4 * np.abs(expected).max()
    with pytest.raises(DataError, match="trained without channel dropout"):
        load_pretrained(best).preprocess(recording[:1], sfreq=RATE, channels=("PPG",))


def test_origins_travel_without_places_and_people(best) -> None:
    checkpoint = load_checkpoint(best)
    child = replace(checkpoint, parent=checkpoint.as_parent(best))
    shared = portable(replace(checkpoint, parent=child.as_parent(best))).parent
    for ancestor in shared.chain():
        assert (ancestor.path, ancestor.subjects) == ("best_model.pt", ())
    assert len(list(shared.chain())) == 2
    named = portable(replace(checkpoint, parent=checkpoint.as_parent(best)), with_subjects=True).parent
    assert named.subjects == checkpoint.data.subjects

"""From recordings to a verified, inflated encoder: the commands in their order, as a user calls them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from biofound.commands.pretrain import epoch_line
from biofound.core import verify as checks
from biofound.core.checkpoint import FORMAT_VERSION, load_checkpoint
from biofound.core.history import EpochMetrics, Losses
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.store import read_index
from biofound.settings import PretrainSettings
from tests.chain import (
    HARDLY_TRAINED,
    SMALL_RUN,
    TRAINS,
    Chain,
    answer,
    done,
    failed,
    run,
    start,
    verify,
    write_plain,
)
from tests.data.cohort import change_sealed


@pytest.fixture(autouse=True)
def _cheap_runs(all_done: Chain, same_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the one run that is looked at, no pictures, which take most of the time."""
    monkeypatch.setattr("biofound.commands.pretrain.draw_figures", lambda *_: None)


LISTS = [f"{split}_{name}" for split in ("train", "val") for name in ("loss", "msm", "stft")]
"""The lists of `training_history.json` that every version has had."""


def checkpoints(output: Path) -> dict[str, dict]:
    return {path.name: torch.load(path, weights_only=True) for path in output.glob("*.pt")}


def losses(output: Path) -> dict[str, dict]:
    history = json.loads((output / "training_history.json").read_text())
    return {name: history[name] for name in LISTS}


# ---- What the commands leave


def test_each_checkpoint_describes_itself_in_plain_values(all_done: Chain) -> None:
    found = checkpoints(all_done.output)
    assert found.keys() == {"best_model.pt", "last_model.pt", "best_model_5ch.pt"}
    index = read_index(all_done.store / "train")
    for name, content in found.items():
        channels = (
            ["PPG", "ECG"] if name != "best_model_5ch.pt" else ["ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG"]
        )
        assert content["format_version"] == FORMAT_VERSION
        assert content["channels"] == content["model"]["channels"] == channels
        assert content["filters"].keys() == content["units"].keys() == set(channels)
        assert content["filters"]["PPG"] == {"low_hz": 0.5, "high_hz": 8.0, "order": 4}
        assert content["sfreq"] == 125.0
        assert content["data_fingerprint"] == index.fingerprint
        assert content["synthetic"] is True
        assert content["model"]["d_model"] == 16
        assert (content["epoch"], content["step"]) == (2, 4)
        assert content["settings"].keys() == PretrainSettings.model_fields.keys()
        assert content["settings"]["d_model"] == 16
        assert content["versions"].keys() == {"biofound", "torch", "granite-tsfm", "numpy", "python"}
        described = {key: value for key, value in content.items() if not key.endswith("_state_dict")}
        json.dumps({**described, "resume": None}, allow_nan=False)
        load_checkpoint(all_done.output / name).build()


def test_best_checkpoint_holds_the_best_losses_of_the_history(all_done: Chain) -> None:
    history = json.loads((all_done.output / "training_history.json").read_text())
    best = torch.load(all_done.output / "best_model.pt", weights_only=True)
    assert history["epoch"] == [1, 2]
    for name in LISTS:
        split, loss = name.split("_")
        assert len(history[name]) == 2
        assert best["metrics"][split][loss] == history[name][history["best_epoch"] - 1]
    assert best["best_val_loss"] == min(history["val_loss"])


def test_whatever_is_made_from_synthetic_recordings_says_so(all_done: Chain) -> None:
    assert {name for name, text in all_done.said.items() if "synthetic" not in text} == set()
    assert "source synthetic" in all_done.said["prepare"]
    assert "(synthetic recordings)" in all_done.said["windows"]
    assert "pretrained on synthetic data" in all_done.said["inflate"]
    assert json.loads(all_done.splits.read_text())["source"]["name"] == "synthetic"
    for split in ("train", "val", "test"):
        assert read_index(all_done.store / split).synthetic is True
    assert json.loads((all_done.output / "training_history.json").read_text())["synthetic"] is True
    written = json.loads((all_done.output / "training_config.json").read_text())
    assert written["resolved"]["data"].startswith("synthetic windows")


def test_a_run_notes_what_it_was_trained_on_and_how_it_ended(all_done: Chain) -> None:
    written = json.loads((all_done.output / "training_config.json").read_text())
    assert written["data"]["directories"] == [str(all_done.store)]
    for split in ("train", "val"):
        index = read_index(all_done.store / split)
        (part,) = written["data"][split]
        assert part == {
            "name": str(all_done.store),
            "windows": index.totals.windows,
            "hours": pytest.approx(index.totals.hours),
            "subjects": index.totals.subjects,
            "synthetic": True,
            "fingerprint": index.fingerprint,
        }
    outcome = written["outcome"]
    assert (outcome["ended"], outcome["message"]) == ("finished", "after step 4 of 4")
    assert 1e8 < outcome["peak_memory_bytes"]["process"] < 1e11
    assert outcome["peak_memory_bytes"]["gpu"] is None


def test_every_setting_of_a_run_is_written_with_its_origin(all_done: Chain) -> None:
    written = json.loads((all_done.output / "training_config.json").read_text())["settings"]
    assert written.keys() == PretrainSettings.model_fields.keys()
    assert written["d_model"] == {"value": 16, "origin": "option --d-model"}
    assert written["lr"] == {"value": 0.0005, "origin": "default"}


def test_pictures_are_pictures(all_done: Chain) -> None:
    for name in ("loss_curves.png", "reconstructions.png"):
        content = (all_done.output / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 10_000


def test_nothing_temporary_is_left(all_done: Chain) -> None:
    root = all_done.splits.parent
    assert [path for path in root.rglob("*") if path.name.startswith(".")] == []


# ---- Verified and inflated


@pytest.fixture
def no_checks_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks that train, which test_documents.py runs through the command line."""
    for name in TRAINS:
        monkeypatch.delitem(checks.CHECKS, name)


def test_checkpoint_and_store_are_verified(all_done: Chain, no_checks_that_train: None) -> None:
    found = verify("--checkpoint", all_done.output / "best_model.pt", "--data-dir", all_done.store)
    assert failed(found) == [HARDLY_TRAINED]
    for name in ("checkpoint learned", "inflation is exact", "train: checksums", "splits: no subject in two"):
        assert name in found
    assert "windows of train" in found["windows to check on"]["measured"]


@pytest.mark.slow  # most of a minute
def test_inflated_checkpoint_is_verified(all_done: Chain) -> None:
    found = verify("--checkpoint", all_done.inflated, "--data-dir", all_done.store)
    assert failed(found) == [HARDLY_TRAINED]
    for words in ("probe windows", "ACC_X"):
        assert words in found["windows to check on"]["measured"]


def test_inflated_encoder_computes_what_the_original_does(all_done: Chain) -> None:
    original = load_checkpoint(all_done.output / "best_model.pt").build().encoder
    inflated = load_checkpoint(all_done.inflated).build().encoder
    x = torch.randn(4, 5, 1250, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    other = torch.cat([1e6 * x[:, :3].flip(-1), x[:, 3:]], dim=1)
    with torch.no_grad():
        expected, got, disturbed = original(x[:, 3:]), inflated(x), inflated(other)
    assert torch.equal(got, disturbed)
    assert (got - expected).abs().max() <= 1e-6


# ---- The same run twice, the plain form, what a store says


def test_same_command_gives_the_same_losses_and_sets_the_earlier_run_aside(
    all_done: Chain, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    command = ("pretrain", "--data-dir", all_done.store, "--output-dir", output, *SMALL_RUN)
    done(*command)
    assert losses(output) == losses(all_done.output)
    again = done(*command)
    assert losses(output) == losses(output / "earlier_1") == losses(all_done.output)
    assert f"moved to {output / 'earlier_1'}" in " ".join(again.stderr.split())


def test_plain_npz_trains_alike_and_says_what_it_took_for_granted(
    all_done: Chain, tmp_path: Path, no_checks_that_train: None
) -> None:
    plain = write_plain(tmp_path / "plain", all_done.store)
    output = tmp_path / "output"
    result = done("pretrain", "--data-dir", plain, "--output-dir", output, *SMALL_RUN, "--no-random-crop")
    for words in ("125 Hz: the npz has no `sfreq`", "built-in channel table", "share patients"):
        assert words in result.stderr
    reference = tmp_path / "reference"
    done("pretrain", "--data-dir", all_done.store, "--output-dir", reference, *SMALL_RUN, "--no-random-crop")
    assert losses(output) == losses(reference)
    found = verify("--checkpoint", output / "best_model.pt", "--data-dir", plain)
    assert failed(found) == [HARDLY_TRAINED]
    resolved = json.loads((output / "training_config.json").read_text())["resolved"]
    assert resolved["assumed rate"].startswith("125 Hz")


def test_plain_npz_in_the_other_layout_that_says_all_takes_nothing_for_granted(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((12, 1250, 2)).cumsum(axis=1)
    for split in ("train", "val"):
        said = {"sfreq": 125.0, "subjects": [f"{split}{row}" for row in range(12)], "synthetic": True}
        np.savez(tmp_path / f"{split}_windows.npz", data=x, channels=["PPG", "ECG"], **said)
    output = tmp_path / "output"
    result = done("pretrain", "--data-dir", tmp_path, "--output-dir", output, *SMALL_RUN, "--epochs", 1)
    assert "assumed rate" not in result.stderr
    assert "12 windows of 12 subjects" in result.stderr
    content = torch.load(output / "best_model.pt", weights_only=True)
    assert (content["channels"], content["synthetic"]) == (["PPG", "ECG"], True)


def test_channels_in_another_order_are_read_by_their_names(all_done: Chain, tmp_path: Path) -> None:
    """What is scored without a model depends on the signal alone: each name must have its own signal's."""
    scored = {}
    for order in ("PPG,ECG", "ECG,PPG"):
        arguments = ("--data-dir", all_done.store, "--output-dir", tmp_path / order, "--channels", order)
        result = answer("pretrain", *arguments, *SMALL_RUN, "--epochs", 1)
        scored[order] = result["constant_guess"]["msm_by_channel"]
    assert scored["PPG,ECG"]["PPG"] != pytest.approx(scored["PPG,ECG"]["ECG"], rel=0.01)
    assert scored["ECG,PPG"] == pytest.approx(scored["PPG,ECG"], rel=1e-5)


def test_checkpoint_takes_units_and_filters_from_the_store_and_channels_in_the_order_asked(
    all_done: Chain, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(all_done.store, store)

    def change(index):
        index["units"]["ECG"], index["filters"]["ECG"]["high_hz"] = "V", 35.0

    for split in ("train", "val"):
        change_sealed(store / split / "index.json", change)
    output = tmp_path / "output"
    arguments = ("--data-dir", store, "--output-dir", output, "--channels", "ECG,PPG", "--epochs", 1)
    assert answer("pretrain", *SMALL_RUN, *arguments)["synthetic"] is True
    content = torch.load(output / "best_model.pt", weights_only=True)
    assert content["channels"] == ["ECG", "PPG"]
    assert content["units"] == {"ECG": "V", "PPG": "NU"}
    assert content["filters"]["ECG"]["high_hz"] == 35.0


def test_with_nothing_said_it_trains_on_the_embedded_cohort_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SyntheticSource.__init__.__kwdefaults__, "minutes", 0.2)
    monkeypatch.setattr("biofound.data.build.cpu_count", lambda: 1)
    result = done("pretrain", "--fast", "--seed", 7, "--output-dir", "out", *SMALL_RUN, "--epochs", 1)
    assert "warning: no --data-dir was given" in result.stderr
    assert "SYNTHETIC" in result.stderr
    assert "synthetic windows in out/embedded_cohort" in result.stderr
    assert torch.load("out/best_model.pt", weights_only=True)["synthetic"] is True
    assert not Path("data").exists()
    again = ("--fast", "--seed", 8, "--output-dir", "again", *SMALL_RUN, "--epochs", 1)
    assert answer("pretrain", *again)["synthetic"] is True
    first, second = (read_index(Path(out) / "embedded_cohort" / "train") for out in ("out", "again"))
    assert first.fingerprint == second.fingerprint  # --seed is the training's, not the data's


# ---- While it runs


def when(path: Path, act) -> threading.Thread:
    """Call `act` from a thread as soon as `path` is there."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_saves_the_run_and_says_so_in_one_line(
    all_done: Chain, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    output, handlers = tmp_path / "output", [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    sent = when(output / "best_model.pt", lambda: os.kill(os.getpid(), number))
    result = run(
        "pretrain", "--data-dir", all_done.store, "--output-dir", output, *SMALL_RUN, "--epochs", 5000
    )
    sent.join()
    assert result.exit_code == exit_code, result.output
    last = torch.load(output / "last_model.pt", weights_only=True)
    assert 0 < last["step"] < 10_000
    line = result.stderr.splitlines()[-1]
    for fact in (number.name, f"step {last['step']} of 10000", output / "last_model.pt", "--resume"):
        assert str(fact) in line
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_history_grows_while_a_process_runs_which_a_signal_then_ends(all_done: Chain, tmp_path: Path) -> None:
    output, said = tmp_path / "output", tmp_path / "stderr"
    arguments = ("--data-dir", all_done.store, "--output-dir", output, *SMALL_RUN, "--epochs", 5000)
    process = start("pretrain", *arguments, stderr=said)
    history, seen = output / "training_history.json", set()
    deadline = time.monotonic() + 120
    while len(seen) < 4 and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
        if history.is_file():
            content = json.loads(history.read_text())  # whole whenever it is looked at
            assert {len(content[name]) for name in LISTS} == {len(content["epoch"])}
            seen.add(len(content["epoch"]))
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    text = said.read_text()
    assert process.exitcode == 0, text
    assert len(seen) == 4
    assert "SIGTERM" in text.splitlines()[-1]
    assert "Traceback" not in text and "\x1b" not in text
    load_checkpoint(output / "last_model.pt").build()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_build_with_its_workers_and_says_that_it_can_go_on(
    tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    done("prepare", "--source", "synthetic", "--subjects", 40, "--minutes", 60, "--output", tmp_path)
    outdir = tmp_path / "windows"
    command = ["windows", "--split-file", tmp_path / "splits_fasttrack.json", "--outdir", outdir]
    process = subprocess.Popen(
        [sys.executable, "-m", "biofound", *map(str, command), "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(outdir.rglob("*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    # The workers hold standard error open too: it ends when they have ended.
    _, said = process.communicate(timeout=60)
    assert process.returncode == exit_code, said
    assert "resume" in said
    assert "Traceback" not in said


# ---- What pretrain says


def test_the_line_of_an_epoch_fits_80_columns_or_goes_on_in_the_next() -> None:
    def line(*channels: str, epochs: int, seconds: float) -> str:
        losses = Losses(
            loss=12.3456, msm=1.0, stft=1.0, msm_by_channel=dict.fromkeys(channels, 1.0312), further={}
        )
        epoch = EpochMetrics(
            epoch=7, train=losses, val=losses, monitor={"r_peak_recall": 1.0}, lr=0.0, seconds=seconds,
            windows_per_second=1.0, best=True,
        )  # fmt: skip
        return epoch_line(epoch, epochs)

    assert line("PPG", "ECG", epochs=8, seconds=12) == (
        "epoch 7/8  train 12.346  val 12.346  PPG 1.031  ECG 1.031  R peaks 100%  12 s *"
    )
    five = line("ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG", epochs=10_000, seconds=12_345.6)
    assert max(map(len, five.splitlines())) <= 80
    parts = "epoch     7/10000  train 12.346  val 12.346  ACC_X 1.031  ACC_Y 1.031  ACC_Z 1.031"
    assert " ".join(five.split()) == " ".join(
        f"{parts}  PPG 1.031  ECG 1.031  R peaks 100%  12346 s *".split()
    )

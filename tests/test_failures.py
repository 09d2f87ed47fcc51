"""Whatever goes wrong: one clear message, the right exit code, and nothing half-written."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biofound.core.checkpoint import FORMAT_VERSION
from biofound.data.sources.synthetic import SyntheticSource
from biofound.settings import resolve_channels
from tests.chain import SMALL_RUN, Chain, answer, done, failed, run, tree, verify, write_plain
from tests.data.cohort import change_sealed

DATA, USAGE = 1, 2
"""Exit codes."""


pytestmark = pytest.mark.usefixtures("empty_place")


def refused(*arguments: object, exit_code: int, nothing_new_in: Path) -> str:
    """The one message with which the command ends, leaving every file as it was."""
    before = tree(nothing_new_in)
    result = run(*arguments)
    after = tree(nothing_new_in)
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.count("error: ") == 1
    for trace in ("Traceback", 'File "', "bug in biofound"):
        assert trace not in result.stderr
    assert after.keys() == before.keys()
    assert after == before
    return result.stderr[result.stderr.index("error: ") + len("error: ") :]


def says(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message, message


# ---- Settings files


def test_all_mistakes_of_a_file_are_told_with_line_and_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "epochs: 0\nlr: fast\nbatchsize: 3\nmask_ratio: 1.5\nchannels: [PPG, PPG]\npatch_size: 33\n"
    )
    message = refused(
        "pretrain", "--config", path, "--output-dir", "out", exit_code=USAGE, nothing_new_in=tmp_path
    )
    first, *problems = message.splitlines()
    assert first.startswith("6 ")
    assert sorted(problem.split(": ")[0].strip() for problem in problems) == [
        f"{path}:{line}" for line in range(1, 7)
    ]
    says(message, "3: batchsize: ", "batch_size?", "33", "1250")


@pytest.mark.parametrize(
    ("command", "option", "text", "parts"),
    [
        ("windows", "--windows-yaml", "sfreq: 0\ndtyp: float16\n", ("windows.yaml:1", "dtype?")),
        ("windows", "--channels-yaml", "pretrain:\n  EDA: {unit: uS}\n", (":2: pretrain.EDA.tracks ",)),
        ("prepare", "--channels-yaml", "pretrian: {}\n", (":1: pretrian: ", "pretrain?")),
        ("pretrain", "--config", "epochs: 3\nepochs: 4\n", (":2: epochs ", "line 1")),
    ],
)
def test_mistakes_of_every_file_are_found_before_anything_else(
    all_done: Chain, tmp_path: Path, command: str, option: str, text: str, parts: tuple[str, ...]
) -> None:
    path = tmp_path / f"{command}.yaml"
    path.write_text(text)
    required = {"prepare": ("--source", "synthetic"), "windows": ("--split-file", all_done.splits)}
    arguments = (command, option, path, *required.get(command, ()))
    says(refused(*arguments, exit_code=USAGE, nothing_new_in=tmp_path), path, *parts)


# ---- prepare and windows


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (None, ("no such file", "`biofound prepare`")),
        ({"format_version": 2}, ("format_version: expected 1, got 2", "`biofound prepare`")),
        ({"kind": "biofound-windows"}, ("kind", "'biofound-windows'", "`biofound prepare`")),
        ({"splits": {}}, ("splits.train: missing", "`biofound prepare`")),
    ],
)
def test_splits_that_cannot_be_used(
    all_done: Chain, tmp_path: Path, change: dict[str, Any] | None, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "splits.json"
    if change is not None:
        path.write_text(json.dumps({**json.loads(all_done.splits.read_text()), **change}))
    message = refused(
        "windows", "--split-file", path, "--outdir", "store", exit_code=DATA, nothing_new_in=tmp_path
    )
    says(message, path, *parts)


def write_record(
    directory: Path, name: str, columns: dict[str, np.ndarray], *, promised: int | None = None
) -> None:
    """A WFDB record of format 16 at 125 Hz, 1000 steps a unit; NaN becomes the format's invalid sample."""
    samples = len(next(iter(columns.values())))
    lines = [f"{name} {len(columns)} 125 {samples if promised is None else promised}"]
    units = {"PLETH": "NU", "II": "mV"}
    stored = np.stack([np.nan_to_num(1000 * x, nan=-32768).round() for x in columns.values()], axis=1)
    lines += [
        f"{name}.dat 16 1000/{units.get(key, 'pm')} 16 0 {samples[0]:.0f} {samples.sum() % 65536:.0f} 0 {key}"
        for key, samples in zip(columns, stored.T, strict=True)
    ]
    (directory / f"{name}.hea").write_text("\n".join(lines) + "\n")
    stored.astype("<i2").tofile(directory / f"{name}.dat")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good records of half a minute, and their splits in `splits_full.json`."""
    directory = tmp_path_factory.mktemp("records")
    source = SyntheticSource(subjects=8, minutes=0.5, sfreq=125.0, artefacts=0.0)
    channels = resolve_channels(None, "pretrain").channels
    for number, case in enumerate(source.cases(channels)):
        signals = source.read(case.case_id, channels).signals
        columns = {"PLETH": signals["PPG"].samples / 100, "II": signals["ECG"].samples}
        write_record(directory, f"r{number}", columns)
    prepare(directory, directory)
    return directory


def prepare(records: Path, output: Path) -> Any:
    rule = ("--record-is-subject", "--mode", "full", "--seed", 2)
    return run("prepare", "--source", "wfdb", "--root", records, *rule, "--output", output)


def record_of_train(records: Path) -> str:
    return json.loads((records / "splits_full.json").read_text())["splits"]["train"][0]["case_id"]


NOISE = np.random.default_rng(0).standard_normal(3750)
BROKEN: dict[str, tuple[Callable[[Path, str], None], tuple[str, ...]]] = {
    "channel missing": (
        lambda root, name: write_record(root, name, {"PLETH": NOISE, "RESP": NOISE}),
        ("channel ECG: ", "PLETH, RESP"),
    ),
    "channel all NaN": (
        lambda root, name: write_record(root, name, {"PLETH": np.full(3750, np.nan), "II": NOISE}),
        ("channel PPG: ", "3750 samples", "NaN"),
    ),
    "file too short": (
        lambda root, name: write_record(root, name, {"PLETH": NOISE, "II": NOISE}, promised=9000),
        ("9000 samples", "3750 samples"),
    ),
    "one sample": (
        lambda root, name: write_record(root, name, {"PLETH": NOISE[:1], "II": NOISE[:1]}),
        ("1 sample(s)", "transposed?"),
    ),
    "no signal file": (lambda root, name: (root / f"{name}.dat").unlink(), (".dat ",)),
    "no header": (lambda root, name: (root / f"{name}.hea").write_text("\x00"), ("WFDB header",)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_record_is_named_and_the_others_are_built(records: Path, tmp_path: Path, kind: str) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    shutil.copytree(records, root)
    splits = json.loads((root / "splits_full.json").read_text())
    splits["source"]["root"] = str(root)
    (root / "splits_full.json").write_text(json.dumps(splits))
    name, (break_it, parts) = record_of_train(root), BROKEN[kind]
    break_it(root, name)
    command = ("windows", "--split-file", root / "splits_full.json", "--outdir", store, "--workers", 1)
    result = run(*command, "--split", "train")
    assert result.exit_code == DATA
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    assert result.stderr.count(parts[0]) == 1  # told once
    says(result.stderr, "error: split train: 1 of 6 cases ", f"case {name}", "--skip-failed", *parts)
    # What is there is whole, and is no store yet.
    left = sorted(path.name for path in (store / "train").iterdir())
    others = [case["case_id"] for case in splits["splits"]["train"] if case["case_id"] != name]
    assert left == sorted(f"{case}.{suffix}" for case in others for suffix in ("json", "npz"))
    assert refused("windows", "--inspect", store, exit_code=DATA, nothing_new_in=tmp_path)

    skipping = run(*command, "--split", "train", "--skip-failed")
    assert skipping.exit_code == 0
    says(skipping.stderr, "left out", name, *parts)
    assert answer("windows", "--inspect", store)["train"]["failed_cases"] == [name]


@pytest.mark.parametrize("kind", ["file too short", "one sample", "no signal file", "no header"])
def test_prepare_refuses_records_that_are_not_what_they_say(records: Path, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    shutil.copytree(records, root)
    BROKEN[kind][0](root, "r1")
    rule = ("--root", root, "--record-is-subject", "--mode", "full", "--output", "out")
    message = refused("prepare", "--source", "wfdb", *rule, exit_code=DATA, nothing_new_in=tmp_path)
    says(message, "1 of 8 recordings ", "case r1", *BROKEN[kind][1])


def test_prepare_lists_what_it_leaves_out_and_why(records: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(records, root)
    write_record(root, "r7", {"PLETH": NOISE, "RESP": NOISE})
    write_record(root, "r1n", {"HR": NOISE})  # the numerics companion of r1
    (root / "r3.hea").write_text("\x00")
    (root / "RECORDS").write_text("\n".join([*(f"r{number}" for number in range(8)), "r1n", "gone"]))
    rule = ("--root", root, "--record-is-subject", "--mode", "full", "--output", out)
    message = refused("prepare", "--source", "wfdb", *rule, exit_code=DATA, nothing_new_in=tmp_path)
    says(message, "2 of 9 recordings ", "--skip-failed", "case r3: r3.hea", "case gone: ", "gone.hea")
    result = run("prepare", "--source", "wfdb", *rule, "--skip-failed")
    assert result.exit_code == 0, result.stderr
    says(result.stderr, "left out: 3 recordings", "no ECG", "gone.hea")
    found = answer("prepare", "--source", "wfdb", *rule, "--skip-failed")
    assert found["left_out"] == {"r7": ["ECG"]}
    assert list(found["refused"]) == ["gone", "r3"]
    assert sum(split["cases"] for split in found["splits"].values()) == 6


def test_prepare_replaces_splits_of_other_settings_only_when_told(tmp_path: Path) -> None:
    command = ("prepare", "--source", "synthetic", "--subjects", 12, "--mode", "full", "--output", tmp_path)
    answer(*command)
    answer(*command)  # the same again replaces nothing
    for change, words in (
        (("--section", "finetune"), "channels: "),
        (("--seed", 7), "seed: 42, not 7"),
        (("--minutes", 3), "source minutes: "),
    ):
        message = refused(*command, *change, exit_code=DATA, nothing_new_in=tmp_path)
        says(message, tmp_path / "splits_full.json", words, "--output", "--overwrite")
    answer(*command, "--section", "finetune", "--overwrite")
    (tmp_path / "splits_full.json").write_text("mine")
    refused(*command, exit_code=DATA, nothing_new_in=tmp_path)


def test_windows_of_the_other_cases_are_shown_when_one_failed(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biofound.commands.windows.PICTURE_ROWS", 2)  # drawing takes time
    root, store, picture = tmp_path / "root", tmp_path / "store", tmp_path / "windows.png"
    shutil.copytree(records, root)
    splits = json.loads((root / "splits_full.json").read_text())
    splits["source"]["root"] = str(root)
    (root / "splits_full.json").write_text(json.dumps(splits))
    name = record_of_train(root)
    (root / f"{name}.dat").unlink()
    command = ("windows", "--split-file", root / "splits_full.json", "--outdir", store, "--workers", 1)
    result = run(*command, "--picture", picture, "--json")
    assert result.exit_code == DATA
    found = json.loads(result.stdout)
    assert list(found) == ["train", "val", "test"]
    assert (found["train"]["cases"], found["train"]["failed_cases"]) == (5, [name])
    assert found["train"]["windows"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.parent.name for path in store.rglob("index.json")) == ["test", "val"]


def test_unknown_subjects_and_missing_directories(records: Path, tmp_path: Path) -> None:
    for arguments, parts in [
        (("--root", records), ("8 of 8 cases", "--record-is-subject")),
        (("--root", tmp_path / "no"), (tmp_path / "no",)),
    ]:
        command = ("prepare", "--source", "wfdb", *arguments, "--mode", "full", "--output", "out")
        says(refused(*command, exit_code=DATA, nothing_new_in=tmp_path), *parts)


# ---- pretrain


def pretrain_refused(tmp_path: Path, *arguments: object, exit_code: int = DATA) -> str:
    command = ("pretrain", *SMALL_RUN, "--output-dir", tmp_path / "output", *arguments)
    return refused(*command, exit_code=exit_code, nothing_new_in=tmp_path)


def test_data_dir_that_is_missing_or_holds_no_windows(all_done: Chain, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    missing = pretrain_refused(tmp_path, "--data-dir", tmp_path / "no")
    says(missing, f"{tmp_path / 'no'}: ", "biofound windows")
    message = pretrain_refused(tmp_path, "--data-dir", all_done.store / "train")
    says(message, all_done.store / "train", f", {all_done.store}")
    message = pretrain_refused(tmp_path, "--data-dir", tmp_path / "empty")
    says(message, "train/index.json", "train_windows.npz", "x or windows or data", "`channels`")


def test_default_store_that_is_not_whole_is_no_reason_to_train_on_something_else(
    all_done: Chain, tmp_path: Path
) -> None:
    shutil.copytree(all_done.store, "data/windows")
    Path("data/windows/val/index.json").unlink()
    says(pretrain_refused(tmp_path), "data/windows/val", "biofound windows")


def test_options_that_the_store_does_not_suit(all_done: Chain, tmp_path: Path) -> None:
    store = ("--data-dir", all_done.store)
    message = pretrain_refused(tmp_path, *store, "--context-length", 1000)
    says(message, all_done.store, "1250 samples", "1000", "--context-length 1250")
    message = pretrain_refused(tmp_path, *store, "--channels", "PPG,ACC_X")
    says(message, all_done.store, "PPG, ECG", "ACC_X")
    message = pretrain_refused(tmp_path, *store, "--channels", "ppg,ECG")
    says(message, all_done.store, "did you mean PPG?")


def test_cuda_without_cuda(all_done: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for more in (("--data-dir", all_done.store), ()):
        message = pretrain_refused(tmp_path, *more, "--device", "cuda", exit_code=USAGE)
        says(message, "--device cuda", "--device cpu")


STORES: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "channels": (
        lambda index: index.update(channels=["ECG", "PPG"]),
        ("channels: PPG, ECG against ECG, PPG",),
    ),
    "rate": (lambda index: index.update(sfreq=100.0), ("sampling rate: 125.0 against 100.0",)),
    "filters": (
        lambda index: index["filters"]["PPG"].update(low_hz=0.1),
        ("filters", "PPG 0.5 to 8 Hz", "PPG 0.1 to 8 Hz"),
    ),
    "patients": (lambda index: index["cases"][0].update(subject_id="SHARED"), ("1 patient", "(SHARED)")),
    "format": (lambda index: index.update(format_version=9), ("format_version: expected 4, got 9",)),
    "nothing": (lambda index: index.update(cases=[]), ("val holds no window",)),
    "file gone": (lambda index: index["cases"][0].update(file="gone.npz"), ("1 of the 2 files", "gone.npz")),
    "file cut short": (lambda index: None, ("1 of the 2 files in index.json are truncated",)),
    "incomplete": (
        lambda index: index.pop("filters"),
        ("index.json: filters: missing", "`biofound windows`"),
    ),
}


@pytest.mark.parametrize("kind", STORES)
def test_store_that_cannot_be_trained_on(all_done: Chain, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    shutil.copytree(all_done.store, store)
    change, parts = STORES[kind]
    change_sealed(store / "train" / "index.json", lambda index: index["cases"][0].update(subject_id="SHARED"))
    change_sealed(store / "val" / "index.json", change)
    if kind == "file cut short":
        path = next((store / "val").glob("*.npz"))
        path.write_bytes(path.read_bytes()[:3000])
        parts = (*parts, path.name)
    says(pretrain_refused(tmp_path, "--data-dir", store), store, *parts)


X = np.random.default_rng(0).standard_normal((12, 2, 1250))
PLAIN: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "no channels": ({"channels": None}, ("`channels`",)),
    "no array": ({"x": None, "signals": X}, ("x or windows or data", "`signals`")),
    "objects": ({"x": np.array([{}, {}])}, ("Python objects",)),
    "shared patients": ({"subjects": ["a", "b"] * 6, "x": X}, ("2 patient",)),
    "only NaN": ({"x": X * np.nan}, ("train: channel PPG, ECG ",)),
    "one channel infinite": ({"x": X * [[1], [np.inf]]}, ("train: channel ECG ",)),
    "synthetic?": ({"synthetic": "maybe"}, ("`synthetic`",)),
    "unknown channel": ({"channels": ["EDA", "ECG"]}, ("EDA, ECG", "PPG")),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_npz_that_cannot_be_trained_on(all_done: Chain, tmp_path: Path, kind: str) -> None:
    changes, parts = PLAIN[kind]
    plain = write_plain(tmp_path / "plain", all_done.store, **changes)
    says(pretrain_refused(tmp_path, "--data-dir", plain), plain, *parts)


def test_channel_of_a_plain_npz_that_no_table_describes(all_done: Chain, tmp_path: Path) -> None:
    plain = write_plain(tmp_path / "plain", all_done.store, channels=["EDA", "ECG"])
    arguments = ("--data-dir", plain, "--channels", "EDA,ECG")
    message = pretrain_refused(tmp_path, *arguments, exit_code=USAGE)
    says(message, "channel EDA: ", "PPG, ECG", "--channels-yaml")


# ---- Output that cannot be written


def unwritable_places(tmp_path: Path) -> list[Path]:
    file, locked = tmp_path / "file", tmp_path / "locked"
    file.write_text("")
    locked.mkdir(mode=0o555)
    places = [file, file / "below"]
    places += [Path("/proc/biofound")] if Path("/proc").is_dir() else []
    return places + ([locked] if os.geteuid() else [])  # root may write anywhere


def test_output_that_cannot_be_written_is_said_before_the_work(all_done: Chain, tmp_path: Path) -> None:
    best = all_done.output / "best_model.pt"
    for place in unwritable_places(tmp_path):
        for option, arguments in [
            ("--output", ("prepare", "--source", "synthetic", "--subjects", 40)),
            ("outdir", ("windows", "--split-file", all_done.splits, "--workers", 1, "--split", "val")),
            ("--output-dir", ("pretrain", "--data-dir", all_done.store, *SMALL_RUN)),
            ("--output-dir", ("pretrain", *SMALL_RUN)),  # the embedded cohort is not built first
            ("--output", ("inflate", "--checkpoint", best, "--to", 5)),
        ]:
            to = place / "x.pt" if arguments[0] == "inflate" else place
            name = "--outdir" if option == "outdir" else option
            message = refused(*arguments, name, to, exit_code=DATA, nothing_new_in=tmp_path)
            says(message, place, option)
            assert ".partial" not in message
            assert message.count("\n") == 1


def test_full_disk_leaves_nothing_and_names_the_file(
    all_done: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/.x.partial")

    monkeypatch.setattr(os, "fsync", full)
    best, output = all_done.output / "best_model.pt", tmp_path / "x.pt"
    for path, command in [
        (output, ("inflate", "--checkpoint", best, "--to", 5, "--output", output)),
        (Path("splits_full.json"), ("prepare", "--source", "synthetic", "--mode", "full", "--output", ".")),
    ]:
        message = refused(*command, exit_code=DATA, nothing_new_in=tmp_path)
        assert message.startswith(f"{path}: ") and os.strerror(errno.ENOSPC) in message


def test_inflate_writes_neither_onto_its_checkpoint_nor_onto_a_directory(
    all_done: Chain, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "m.pt"
    shutil.copy(all_done.output / "best_model.pt", checkpoint)
    for output, words in ((checkpoint, checkpoint), (tmp_path, tmp_path / "m_5ch.pt")):
        command = ("inflate", "--checkpoint", checkpoint, "--to", 5, "--output", output)
        says(refused(*command, exit_code=USAGE, nothing_new_in=tmp_path), "--output", words)


def test_inflate_replaces_its_own_earlier_result_and_no_other_file_unless_told(
    all_done: Chain, tmp_path: Path
) -> None:
    """Without any path it reads the default place's `best_model.pt`."""
    default = Path("artifacts/foundation_model")
    default.mkdir(parents=True)
    shutil.copy(all_done.output / "best_model.pt", default)
    command = ("inflate", "--to", 5)
    done(*command)
    inflated = default / "best_model_5ch.pt"
    whole = inflated.read_bytes()
    done(*command)  # again: the same result
    assert inflated.read_bytes() == whole
    for other in (b"mine", (all_done.output / "last_model.pt").read_bytes()):
        inflated.write_bytes(other)
        message = refused(*command, exit_code=USAGE, nothing_new_in=tmp_path)
        says(message, inflated, default / "best_model.pt", "--overwrite")
    done(*command, "--overwrite")
    assert inflated.read_bytes() == whole


# ---- Checkpoints and inflation


def saved(**changes: object) -> Callable[[Path, Path], None]:
    """The checkpoint with other content for some of its keys."""
    return lambda whole, path: torch.save({**torch.load(whole, weights_only=True), **changes}, path)


def with_encoder(change: Callable[[torch.Tensor], object]) -> Callable[[Path, Path], None]:
    """The checkpoint with its encoder's tensors changed."""

    def damage(whole: Path, path: Path) -> None:
        content = torch.load(whole, weights_only=True)
        state = content["encoder_state_dict"]
        torch.save({**content, "encoder_state_dict": {name: change(x) for name, x in state.items()}}, path)

    return damage


KIND = "biofound-checkpoint"
CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], object], tuple[str, ...]]] = {
    "missing": (lambda whole, path: None, ("best_model.pt",)),
    "directory": (lambda whole, path: path.mkdir(), ("directory", "best_model.pt")),
    "truncated": (lambda whole, path: path.write_bytes(whole.read_bytes()[:9000]), ("truncated",)),
    "empty": (lambda whole, path: path.write_bytes(b""), ("0 bytes",)),
    "text": (lambda whole, path: path.write_text("time,ppg\n"), ("9 bytes",)),
    "runs code": (lambda whole, path: torch.save({"kind": KIND, "x": print}, path), ()),
    "someone else's": (lambda whole, path: torch.save({"state_dict": {}}, path), ()),
    "future": (saved(format_version=99), ("99", f"reads format {FORMAT_VERSION}")),
    "half": (lambda _, path: torch.save({"kind": KIND, "format_version": FORMAT_VERSION}, path), ()),
    "tensor missing": (saved(decoder_state_dict={}), ("decoder_state_dict.", "missing")),
    "another rate": (saved(sfreq=100.0), ("damaged", "values")),
    "NaN": (with_encoder(lambda x: torch.full_like(x, torch.nan)), ("encoder_state_dict.", "NaN")),
    "another weight": (with_encoder(lambda x: x * 2), ("encoder_state_dict.", "damaged")),
    "another dtype": (with_encoder(lambda x: x.double()), ("encoder_state_dict.", "float64")),
    "no tensor": (with_encoder(lambda x: x.tolist()), ("encoder_state_dict.", "list")),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoint_that_cannot_be_used(all_done: Chain, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    damage, parts = CHECKPOINTS[kind]
    damage(all_done.output / "best_model.pt", path)
    messages = {
        refused(*command, "--checkpoint", path, exit_code=DATA, nothing_new_in=tmp_path)
        for command in (("inflate", "--to", 5), ("verify",))
    }
    (message,) = messages  # the same from both
    assert message.startswith(f"{path}: ")
    says(message, *parts)
    assert message.count("\n") == 1
    assert "weights_only" not in message


def test_run_is_not_resumed_from_what_is_no_checkpoint(all_done: Chain, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "last_model.pt").write_text("no")
    message = pretrain_refused(tmp_path, "--data-dir", all_done.store, "--resume")
    says(message, output / "last_model.pt", "2 bytes")


TABLE = "{tracks: [x], unit: NU, filter: {low_hz: 0.5, high_hz: 8.0, order: 4}, quality_threshold: 0.5}"


@pytest.mark.parametrize(
    ("arguments", "table", "parts"),
    [
        (("--to", 2), None, ("--to 2", "2 channels (PPG, ECG)", "--to 3")),
        (("--to", 0), None, ("option --to", "at least 1")),
        (("--to", 4), None, ("--to 4", "5 channels", "--channels")),
        (("--to", 5), f"pretrain: {{PPG: {TABLE}}}\n", ("channels.yaml", "finetune")),
        (("--to", 5), f"finetune: {{PPG: {TABLE}, ECG: {TABLE}}}\n", ("2 channels", "--channels")),
        (("--to", 3, "--channels", "PPG,ECG"), None, ("option --channels", "PPG, ECG", "3")),
        (("--to", 3, "--channels", "PPG,ECG,EDA"), None, ("channel EDA: ", "--channels-yaml")),
        (("--to", 3, "--channels", "PPG,ACC_X,ACC_Y"), None, ("channel ECG ",)),
        (("--to", 3, "--channels", "PPG,ECG,ECG"), None, ("option --channels: ", "ECG")),
        (("--to", 3, "--channels", "PPG,ECG,A B"), None, ("option --channels: ", "'A B'")),
    ],
)  # fmt: skip
def test_channels_to_which_nothing_can_be_inflated(
    all_done: Chain, tmp_path: Path, arguments: tuple[object, ...], table: str | None, parts: tuple[str, ...]
) -> None:
    checkpoint = tmp_path / "m.pt"
    shutil.copy(all_done.output / "best_model.pt", checkpoint)
    if table is not None:
        (tmp_path / "channels.yaml").write_text(table)
        arguments = (*arguments, "--channels-yaml", tmp_path / "channels.yaml")
    command = ("inflate", "--checkpoint", checkpoint, *arguments)
    says(refused(*command, exit_code=USAGE, nothing_new_in=tmp_path), *parts)


# ---- verify


def test_verify_fails_on_a_split_whose_build_did_not_finish(
    all_done: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biofound.commands.verify.verify", lambda target: [])  # the store's checks alone
    shutil.copytree(all_done.store, tmp_path / "store")
    (tmp_path / "store" / "val" / "index.json").unlink()
    best = all_done.output / "best_model.pt"
    found = verify("--checkpoint", best, "--data-dir", tmp_path / "store")
    assert failed(found) == ["val: readable"]


def test_verify_refuses_a_store_that_is_not_the_checkpoints(all_done: Chain, tmp_path: Path) -> None:
    best = ("--checkpoint", all_done.output / "best_model.pt")
    other = write_plain(tmp_path / "other", all_done.store, channels=["EDA", "ECG"])
    message = refused("verify", *best, "--data-dir", other, exit_code=DATA, nothing_new_in=tmp_path)
    says(message, other, "EDA, ECG", "PPG, ECG")
    for place in (tmp_path / "no", tmp_path / "here"):
        refused("verify", *best, "--data-dir", place, exit_code=DATA, nothing_new_in=tmp_path)

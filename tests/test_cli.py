"""The command line: help at once, one clear message a failure, exit codes, and where output goes."""

import importlib
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import typer
from pydantic import BeforeValidator
from typer.testing import CliRunner

import biofound.commands
import biofound.settings
from biofound import console
from biofound.errors import DataError, SettingsError, VerificationError
from biofound.options import Invocation, Terminated, add_command, help_text
from biofound.settings import COMMANDS, PretrainSettings
from biofound.settings.base import Settings, setting, split_commas
from biofound.settings.resolve import environment_name
from tests.chain import run
from tests.settings_reads import recorded_reads

HEAVY = ("torch", "tsfm_public", "transformers", "scipy", "wfdb", "matplotlib", "joblib", "soxr", "vitaldb")
PROGRAM = (sys.executable, "-m", "biofound")


def start(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, env={**clean, **environ}, timeout=60
    )


def words(text: str) -> str:
    return " ".join(text.split())


# ---- Options


class ListSettings(Settings):
    """Show lists."""

    command = "lists"
    file_option = "config"
    config: Path | None = setting(None, "Settings.", in_file=False)
    paths: Annotated[tuple[Path, ...], BeforeValidator(split_commas)] = setting((), "Paths.", repeatable=True)


@pytest.mark.parametrize(
    ("arguments", "environ", "text", "expected"),
    [
        (["--paths", "a", "--paths", "b"], "", "", ["a", "b"]),
        (["--paths", "a, b", "--paths", "c"], "d", "", ["a", "b", "c"]),
        ([], "a,b", "paths: [c]", ["a", "b"]),
        ([], "", "paths: [c, d]", ["c", "d"]),
        ([], "", "paths: c", ["c"]),
        ([], "", "", []),
    ],
)
def test_a_repeatable_option_gathers_a_list_and_outranks_other_places_whole(
    arguments: list[str], environ: str, text: str, expected: list[str], tmp_path: Path
) -> None:
    lists = typer.Typer(rich_markup_mode=None)
    add_command(lists, ListSettings, lambda invocation: None)
    lists.callback()(lambda: None)
    config = tmp_path / "lists.yaml"
    config.write_text(text)
    result = CliRunner().invoke(
        lists,
        ["lists", *arguments, "--config", str(config), "--dry-run", "--json"],
        env={"BIOFOUND_LISTS_PATHS": environ},
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["paths"]["value"] == expected
    assert "--paths <path>" in CliRunner().invoke(lists, ["lists", "--help"]).stdout


# ---- Help


AT_ONCE: dict[str, tuple[list[str], int]] = {
    "help": (["--help"], 0),
    **{f"{model.command} help": ([model.command, "--help"], 0) for model in COMMANDS},
    "dry run": (["pretrain", "--fast", "--dry-run"], 0),
    "wrong settings": (["pretrain", "--epochs", "0", "--patch-size", "33"], 2),
    "wrong option": (["verify", "--chekpoint", "x.pt"], 2),
}


def test_help_dry_run_and_wrong_settings_are_answered_at_once_and_import_nothing_heavy() -> None:
    code = (
        "import contextlib, io, json, sys, time, biofound.cli\n"
        "before = 0.0\n"  # the first answer includes Python's start and the imports
        "for arguments in json.loads(sys.argv[1]):\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        try:\n"
        "            biofound.cli.app(arguments, prog_name='biofound')\n"
        "        except SystemExit as done:\n"
        "            exit_code = done.code\n"
        "    now = time.process_time()\n"
        "    print(json.dumps([exit_code, now - before, list(sys.modules)]))\n"
        "    before = now\n"
    )
    asked = json.dumps([arguments for arguments, _ in AT_ONCE.values()])
    # CPU time: what the machine does beside us is not the program's doing.
    done = subprocess.run([sys.executable, "-c", code, asked], capture_output=True, text=True, check=True)
    for (case, (_, expected)), line in zip(AT_ONCE.items(), done.stdout.splitlines(), strict=True):
        exit_code, seconds, modules = json.loads(line)
        assert exit_code == expected, case
        assert seconds < 1.0, case
        heavy = [name for name in modules if name in HEAVY or name.startswith("biofound.commands")]
        assert heavy == [], case


def test_wrong_paths_and_windows_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    here, prime, model = tmp_path / "npz", tmp_path / "prime", tmp_path / "model.pt"
    for place, samples in ((here, 1250), (prime, 937)):
        place.mkdir()
        for split in ("train", "val"):
            signal = np.random.default_rng(0).normal(size=(4, 2, samples))
            about = {"subjects": [f"{split}{n}" for n in range(4)], "case_ids": list("abcd")}
            about |= {"start_s": range(4), "channels": ["PPG", "ECG"], "sfreq": 125.0}
            np.savez(place / f"{split}_windows.npz", x=signal, **about)
    model.touch()
    table = tmp_path / "labels.csv"
    table.write_text("case_id,start_s,end_s,HR\na,0,10,60\n")
    nowhere, below = tmp_path / "nowhere", model / "below.png"
    target, embed = ("--target", "HR"), ("embed", "--data-dir", here)
    predict = ("predict", "--data-dir", here)
    refused: list[tuple[tuple[object, ...], tuple[object, ...]]] = [
        (("pretrain", "--data-dir", nowhere), (nowhere, "no such directory")),
        (("pretrain", "--data-dir", here, "--context-length", 250), (here, "1250 samples")),
        (("pretrain", "--data-dir", prime), (prime, "937 samples", "is 1250; build windows of 10 s")),
        (("pretrain", "--data-dir", here, "--channels", "PPG,EDA"), (here, "EDA")),
        (("pretrain", "--data-dir", here, "--channels-yaml", nowhere), (nowhere, "cannot be read")),
        (("pretrain", "--data-dir", here, "--output-dir", below), (model, "--output-dir")),
        (("pretrain", "--data-dir", here, "--resume-from", nowhere), (nowhere, "no such file")),
        (("pretrain", "--data-dir", here, "--init-from", nowhere), (nowhere, "no such file")),
        (("pretrain", "--data-dir", nowhere, "--init-from", model), (nowhere, "no such directory")),
        (
            ("pretrain", "--data-dir", here, "--init-from", model, "--output-dir", tmp_path),
            ("output directory",),
        ),
        (("pretrain", "--channels", "PPG,EDA"), ("EDA", "--channels-yaml")),
        (("pretrain", "--data-dir", here, "--probe-labels", nowhere), (nowhere, "no file")),
        (("pretrain", "--data-dir", here, "--probe-labels", table), ("3 subjects", "1 windows of 1")),
        (("verify", "--checkpoint", nowhere), (nowhere, "no such file")),
        (("verify", "--data-dir", nowhere), (nowhere, "no such directory")),
        (("inflate", "--checkpoint", nowhere, "--to", 5), (nowhere, "no such file")),
        (("inflate", "--checkpoint", tmp_path, "--to", 5), (tmp_path, "a directory")),
        (("inflate", "--checkpoint", model, "--to", 5, "--output", model), ("the checkpoint itself",)),
        (("inflate", "--checkpoint", model, "--to", 5, "--output", below), (model, "--output")),
        (("inflate", "--checkpoint", model, "--to", 5, "--channels-yaml", nowhere), (nowhere,)),
        ((*embed, "--checkpoint", nowhere, "--output", "v.npz"), (nowhere, "no such file")),
        ((*embed, "--checkpoint", model, "--output", below.with_suffix(".npz")), (model, "--output")),
        ((*embed, "--checkpoint", model, "--output", here / "train_windows.npz"), ("--overwrite",)),
        ((*embed[:2], nowhere, "--checkpoint", model, "--output", "v.npz"), (nowhere, "no such directory")),
        ((*predict, "--model", nowhere, "--output", "p.npz"), (nowhere, "no such file")),
        ((*predict, "--model", model, "--output", here / "train_windows.npz"), ("--overwrite",)),
        ((*predict, "--model", model, "--output", "p.npz", "--labels", nowhere), (nowhere, "no such file")),
        (("probe", "--data-dir", nowhere, "--labels", "numerics", *target), (nowhere, "no such directory")),
        (("probe", "--data-dir", here, "--labels", nowhere, *target), (nowhere, "cannot be read")),
        (("probe", "--data-dir", here, "--labels", "numerics", *target), ("--labels numerics", "plain npz")),
        (("probe", "--data-dir", here, "--test-data-dir", nowhere, "--labels", "x", *target), ("x",)),
        (("probe", "--data-dir", here, "--labels", "x", *target, "--checkpoint", nowhere), (nowhere,)),
        (("probe", "--data-dir", here, "--labels", "x", *target, "--picture", below), (model, "--picture")),
    ]
    code = (
        "import contextlib, io, json, sys, biofound.cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        "        biofound.cli.app(arguments, prog_name='biofound')\n"
        "    print(json.dumps([said.getvalue(), 'torch' in sys.modules]))\n"
    )
    asked = json.dumps([[str(word) for word in arguments] for arguments, _ in refused])
    done = subprocess.run(
        [sys.executable, "-c", code, asked], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    for (arguments, expected), line in zip(refused, done.stdout.splitlines(), strict=True):
        said, imported = json.loads(line)
        assert said.startswith("error: "), (arguments, said)
        assert [str(word) for word in expected if str(word) not in said] == [], (arguments, said)
        assert not imported, arguments
    assert sorted(tmp_path.iterdir()) == sorted([here, prime, model, table])


@pytest.mark.parametrize("model", COMMANDS)
def test_every_command_is_registered_and_its_help_says_all_about_every_option(model: type[Settings]) -> None:
    result = run(model.command, "--help")
    assert result.exit_code == 0, result.output
    text = words(result.stdout)
    assert words(model.__doc__ or "") in text
    for name, info in model.model_fields.items():
        assert words(help_text(model, name, info)) in text
        assert environment_name(model, name) in text


def test_a_new_command_is_its_module_and_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What CONTRIBUTING.md promises: nothing else has to be edited."""
    (tmp_path / "empty.py").write_text(
        "from biofound import console\n\n\n"
        "def execute(invocation):\n"
        "    console.print_json({'level': invocation.settings.level})\n"
    )

    class EmptySettings(Settings):
        """Do nothing."""

        command = "empty"
        level: float = setting(1.0, "Level.", ge=0)

    monkeypatch.setattr(biofound.settings, "COMMANDS", (*COMMANDS, EmptySettings))
    monkeypatch.setattr(biofound.commands, "__path__", [*biofound.commands.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "biofound.cli")
    anew = importlib.import_module("biofound.cli").app
    monkeypatch.setattr(biofound, "cli", sys.modules["biofound.cli"])
    result = CliRunner().invoke(anew, ["empty", "--level", "2"], env={"BIOFOUND_EMPTY_LEVEL": "3"})
    assert json.loads(result.stdout) == {"level": 2.0}
    assert "Do nothing." in CliRunner().invoke(anew, ["--help"]).stdout


def test_help_is_the_same_on_build_servers_and_with_colour() -> None:
    plain = start("prepare", "--help").stdout
    for environ in ({"GITHUB_ACTIONS": "true", "FORCE_COLOR": "1", "PY_COLORS": "1"}, {"NO_COLOR": "1"}):
        assert start("prepare", "--help", **environ).stdout == plain
    assert "\x1b" not in plain


def test_completion_knows_commands_options_and_choices() -> None:
    def completed(line: str) -> list[str]:
        environ = {
            "_BIOFOUND_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        return start(**environ).stdout.split()

    assert completed("biofound prep") == ["prepare"]
    assert set(completed("biofound prepare --mode ")) == {"fasttrack", "full"}
    assert "--subject-pattern" in completed("biofound prepare --subj")


def test_version() -> None:
    assert start("--version").stdout == f"biofound {biofound.__version__}\n"


# ---- A command of our own, to see what the frame around all commands does


class ToySettings(Settings):
    """Do [something]."""

    command = "toy"
    level: float = setting(1.0, "Level of the signal in [mV], as in data[0].", unit="mV", ge=0)
    kind: Literal["a", "b"] = setting("a", "Which.")
    loud: bool = setting(False, "Loud.", off_name="quiet")
    place: Path | None = setting(None, "Where.")


def toy(failure: BaseException | None = None) -> typer.Typer:
    def execute(invocation: Invocation[ToySettings]) -> None:
        if failure is not None:
            raise failure
        console.print_json({"level": invocation.settings.level, "loud": invocation.settings.loud})

    toy_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    toy_app.callback()(lambda: None)
    add_command(toy_app, ToySettings, execute)
    return toy_app


def test_square_brackets_in_help_stay() -> None:
    text = words(CliRunner().invoke(toy(), ["toy", "--help"]).stdout)
    assert "Do [something]." in text
    assert "Level of the signal in [mV], as in data[0]. [in mV; at least 0; default: 1.0;" in text


def test_switch_has_its_own_opposite() -> None:
    for option, value in (("--loud", True), ("--quiet", False)):
        result = CliRunner().invoke(toy(), ["toy", option])
        assert json.loads(result.stdout)["loud"] is value


@pytest.mark.parametrize(
    ("failure", "exit_code", "message"),
    [
        (DataError("case [c1], channel PPG: bad"), 1, "error: case [c1], channel PPG: bad\n"),
        (SettingsError("first\n  second"), 2, "error: first\n  second\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "error: /x/y: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (KeyboardInterrupt("saved: x"), 130, "error: saved: x\n"),
        (Terminated(), 143, "SIGTERM"),
        (VerificationError("2 of 3"), 1, "error: 2 of 3\n"),
        (ZeroDivisionError("x"), 1, "ZeroDivisionError: x (--debug shows the traceback)"),
        (ZeroDivisionError("x"), 1, "bug in biofound"),
    ],
)
def test_failure_is_one_message_and_an_exit_code(
    failure: BaseException, exit_code: int, message: str
) -> None:
    result = CliRunner().invoke(toy(failure), ["toy"])
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(toy(DataError("bad")), ["toy", "--debug"])
    assert isinstance(result.exception, DataError)
    missing = ("windows", "--split-file", "missing.json")
    for arguments in (("--debug", *missing), (*missing, "--debug")):
        assert isinstance(run(*arguments).exception, DataError)
    assert "Traceback" not in run(*missing).stderr
    done = start(*missing, "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_long_messages_are_not_broken_into_lines() -> None:
    text = "x" * 300 + " " + "y" * 300
    assert CliRunner().invoke(toy(DataError(text)), ["toy"]).stderr == f"error: {text}\n"


def test_wrong_settings_are_told_by_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    wrong, broken = (CliRunner().invoke(toy(f), ["toy"]) for f in (SettingsError("s"), DataError("d")))
    assert (wrong.exit_code, wrong.stderr) == (2, "")
    assert (broken.exit_code, broken.stderr) == (1, "error on rank 1: d\n")
    assert CliRunner().invoke(toy(), ["toy"]).stdout == ""


def test_dry_run_shows_settings_with_origin_and_does_nothing() -> None:
    never = toy(AssertionError("the body ran"))
    result = CliRunner().invoke(never, ["toy", "--dry-run", "--level", "2"], env={"BIOFOUND_TOY_KIND": "b"})
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in result.stderr.splitlines() if "│" in line
    ]
    assert rows == [
        ["level", "2.0", "mV", "option --level"],
        ["kind", "b", "", "environment BIOFOUND_TOY_KIND"],
        ["loud", "False", "", "default"],
        ["place", "-", "", "default"],
    ]
    as_json = CliRunner().invoke(never, ["toy", "--dry-run", "--json", "--level", "2"])
    assert json.loads(as_json.stdout)["settings"]["level"] == {"value": 2.0, "origin": "option --level"}
    assert as_json.stderr == ""


def test_wrong_values_are_told_together() -> None:
    result = CliRunner().invoke(toy(), ["toy", "--level", "-1", "--kind", "c"])
    assert result.exit_code == 2
    first, level, kind = result.stderr.splitlines()
    assert first.startswith("error: 2 ")
    for line, words in ((level, ("option --level: ", "0", "mV", "'-1'")), (kind, ("option --kind: ", "'c'"))):
        assert [word for word in words if word not in line] == []


def test_unknown_option_and_command_come_with_a_suggestion() -> None:
    for arguments, suggestion in ((["prepare", "--sourc", "x"], "--source"), (["prepar"], "prepare")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert suggestion in result.stderr


def test_reads_of_settings_are_recorded() -> None:
    with recorded_reads() as reads:
        settings = PretrainSettings(epochs=20)
        assert reads == set()
        assert settings.epochs == 20
    assert reads == {("PretrainSettings", "epochs")}
    assert settings.lr == 5e-4
    assert len(reads) == 1


# ---- Output


def test_closed_pipe_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*PROGRAM, "prepare", "--source", "synthetic", "--dry-run", "--json"]
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 1


def test_closed_standard_streams_are_no_fault_and_no_file_takes_their_number(tmp_path: Path) -> None:
    code = (
        "import os, biofound.cli\n"
        "app, biofound.cli.app = biofound.cli.app, lambda prog_name: None\n"
        "biofound.cli.main()\n"  # opens the streams
        "with open('mine', 'w') as file:\n"
        "    for more in (['--json'], [], ['--nope']):\n"
        "        try:\n"
        "            app(['verify', '--dry-run', *more])\n"
        "        except SystemExit as done:\n"
        "            file.write(f'{done.code} ')\n"
        "    os.write(1, b'what a library prints')\n"
    )
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(shell, cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine").read_text() == "0 0 2 "


def test_progress_without_a_terminal_is_a_few_plain_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("work", total=500, unit="cases") as progress:
        for done in range(500):
            progress.advance(text=f"{done + 1} kept")
        progress.line("[done]")
    captured = capfd.readouterr()
    assert captured.err == "work: 500/500 cases  500 kept\n[done]\n"
    assert captured.out == ""


def test_progress_speaks_up_now_and_then(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with console.progress("work", total=100, unit="cases") as progress:
        for _ in range(30):
            now += 1.0
            progress.advance()
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["work: 10/100 cases", "work: 20/100 cases", "work: 30/100 cases"]


def test_progress_is_a_bar_on_a_terminal() -> None:
    code = (
        "from biofound import console\n"
        "with console.progress('work', total=2, unit='cases') as progress:\n"
        "    progress.line('epoch [1]')\n"
        "    progress.advance(2)\n"
    )
    parent, child = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", code], stderr=child, env=environ, check=True, timeout=60)
    os.close(child)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert "epoch [1]" in shown
    assert "2/2" in shown
    assert "\x1b[" in shown


# ---- prepare and windows


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    result = run(
        "prepare", "--source", "synthetic", "--subjects", 12, "--minutes", 0.6, "--mode", "full", "--seed", 1,
        "--output", directory, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    counts = json.loads(result.stdout)["splits"]
    assert sum(split["cases"] for split in counts.values()) == 12
    assert sum(split["hours"] for split in counts.values()) == pytest.approx(12 * 0.01)
    return directory / "splits_full.json"


def test_windows_builds_every_split_and_accounts_for_every_window(prepared: Path, tmp_path: Path) -> None:
    arguments = ("--split-file", prepared, "--outdir", tmp_path / "store", "--workers", 1)
    result = run("windows", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert list(summary) == ["train", "val", "test"]
    for split in summary.values():
        dropped = sum(count for by_channel in split["dropped"].values() for count in by_channel.values())
        assert split["windows"] + dropped == split["candidates"] == 3 * split["cases"]
        assert split["synthetic"] is True
    inspected = run("windows", "--inspect", tmp_path / "store", "--json")
    assert json.loads(inspected.stdout) == summary
    one = run("windows", "--inspect", tmp_path / "store" / "val")
    assert one.exit_code == 0
    assert "synthetic recordings" in one.stderr


def test_windows_says_what_does_not_fit_and_leaves_nothing(prepared: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for arguments, exit_code, word in [
        (("--split-file", prepared, "--section", "finetune"), 1, "ACC_X, ACC_Y, ACC_Z"),
        (("--split-file", prepared, "--sfreq", 50), 2, "channel ECG: "),
        (("--split-file", prepared, "--windows-yaml", tmp_path / "no.yaml"), 2, f"{tmp_path / 'no.yaml'}: "),
        (("--inspect", tmp_path / "nothing"), 1, f"{tmp_path / 'nothing'}: "),
    ]:
        result = run("windows", *arguments, "--outdir", store)
        assert result.exit_code == exit_code, result.stderr
        assert word in result.stderr
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
        assert not store.exists()

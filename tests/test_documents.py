"""The documents say what is so: their code runs, their commands are accepted, their links lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from biofound.cli import app
from biofound.core.checkpoint import Checkpoint, DataDescription, save_checkpoint
from biofound.core.history import EpochMetrics, Losses, history_json
from biofound.core.inflate import inflate, inflated_checkpoint
from biofound.core.models import ModelConfig, PretrainingModel, build_model, parameter_count
from biofound.data.build import build_windows
from biofound.data.channels import FINETUNE_CHANNELS
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.splits import SPLITS, make_splits
from biofound.files import write_json
from biofound.settings import PretrainSettings, resolve_channels

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
GUIDE = ROOT / "docs" / "ssl_pretraining_guide.md"
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
NOT_OURS = {"--help", "--nproc-per-node", "--num-workers"}
"""Options a text may name although no command declares them; the last is explained not to exist."""
ABOUT_BENCHMARKS = {"benchmarks.md", "signal_quality.md"}
"""Pages that name options of `tests.benchmarks`."""


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """The language and text of every fenced block, those inside lists included."""
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(encoding="utf-8"), re.S | re.M):
        yield match[2], re.sub(rf"^{match[1]}", "", match[3], flags=re.M)


def spans(page: Path) -> list[str]:
    """What stands between single backticks, outside fenced blocks."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of biofound in the blocks that are commands."""
    for language, text in fences(page):
        if language not in ("", "bash", "console"):
            continue
        for line in re.split(r"\n|&&", text.replace("\\\n", " ")):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "biofound" in words:
                yield words[words.index("biofound") + 1 :]


def options_of(command: str) -> set[str]:
    return {option for param in COMMANDS[command].params for option in (*param.opts, *param.secondary_opts)}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def model() -> PretrainingModel:
    return build_model(PretrainSettings().fill(ModelConfig), seed=0)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, model: PretrainingModel) -> Path:
    """A directory in which a run has been: a store, checkpoints and a history, with the default names."""
    place = tmp_path_factory.mktemp("workplace")
    source = SyntheticSource(subjects=8, minutes=2.0)
    channels = resolve_channels(None, "pretrain").channels
    splits = make_splits(
        source.cases(channels),
        mode="full",
        seed=1,
        source=source.describe(),
        dataset_version=source.version(),
        channels=model.config.channels,
    )
    for split in SPLITS:
        results = build_windows(
            source=source,
            entries=splits.of(split),
            split=split,
            channels=channels,
            sfreq=125.0,
            window_seconds=10.0,
            max_gap_seconds=0.1,
            dtype="float16",
            outdir=place / "data" / "windows",
            workers=1,
        )
        assert all(result.status == "built" for result in results)
    write_run(place / "artifacts" / "foundation_model", model, channels)
    return place


def write_run(directory: Path, model: PretrainingModel, channels: list) -> None:
    losses = Losses(loss=1.3, msm=1.0, stft=1.0, msm_by_channel=dict.fromkeys(model.config.channels, 1.0))
    report = EpochMetrics(
        epoch=1, train=losses, val=losses, lr=1e-4, seconds=1.0, windows_per_second=1.0, best=True
    )
    data = DataDescription(
        sfreq=125.0,
        filters={channel.name: channel.band.as_json() for channel in channels},
        units={channel.name: channel.unit for channel in channels},
        fingerprint="0",
        synthetic=True,
    )
    checkpoint = Checkpoint(
        model=model.config,
        encoder=model.encoder.state_dict(),
        decoder=model.decoder.state_dict(),
        data=data,
        settings={},
        epoch=1,
        step=1,
        best_val_loss=1.3,
        metrics={},
    )
    best = directory / "best_model.pt"
    save_checkpoint(best, checkpoint)
    inflation = inflate(checkpoint, channels=FINETUNE_CHANNELS)
    save_checkpoint(
        best.with_name("best_model_5ch.pt"),
        inflated_checkpoint(checkpoint, inflation, path=best, filters={}, units={}),
    )
    write_json(directory / "training_history.json", history_json([report], synthetic=True))


@pytest.mark.parametrize("page", [p for p in PAGES if any(f[0] == "python" for f in fences(p))], ids=name_of)
def test_python_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    for language, text in fences(page):
        if language == "python":
            exec(compile(text, name_of(page), "exec"), {})


@pytest.mark.parametrize("page", [p for p in PAGES if any(commands(p))], ids=name_of)
def test_commands_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        dry = [] if {"--help", "--version"} & set(words) else ["--dry-run"]
        result = CliRunner().invoke(app, [*words, *dry])
        assert result.exit_code == 0, f"biofound {' '.join(words)}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_named_in_the_text_exist(page: Path) -> None:
    for span in spans(page):
        of_command = re.match(r"biofound (\w+) ", span)
        if of_command and of_command[1] in COMMANDS:
            known = options_of(of_command[1])
        elif span.startswith("--") and page.name not in ABOUT_BENCHMARKS:
            known = {option for name in COMMANDS for option in options_of(name)}
        else:
            continue
        assert not set(re.findall(r"--[a-z][a-z-]*", span)) - known - NOT_OURS, span


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_of_the_repository_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"(biofound|configs|docs|tests)/[\w./]*", span):
            assert (ROOT / span).exists(), span


def test_sizes_of_the_model_are_those_of_the_default(model: PretrainingModel) -> None:
    encoder, mixer, decoder = (
        f"{parameter_count(part):,}" for part in (model.encoder, model.encoder.backbone, model.decoder)
    )
    said = f"The encoder has {encoder} parameters ({mixer} of them in the mixer), the decoder {decoder}."
    assert said in " ".join(GUIDE.read_text(encoding="utf-8").split())


def test_table_of_the_stft_is_that_of_the_default(model: PretrainingModel) -> None:
    config: ModelConfig = model.config
    bands = {c.name: c.band for c in resolve_channels(None, "pretrain").channels}
    for n in PretrainSettings().stft_windows:
        hz = np.arange(n // 2 + 1) * 125 / n
        bins = [int(((bands[c].low_hz <= hz) & (hz <= bands[c].high_hz)).sum()) for c in config.channels]
        row = f"| {n} | {n / 125:.2f} | {config.context_length // (n // 4) + 1} | {bins[0]} | {bins[1]} |"
        assert row in GUIDE.read_text(encoding="utf-8")

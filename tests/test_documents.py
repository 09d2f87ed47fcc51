"""Documents: commands and code run, printed output is as documented, links lead somewhere, names exist."""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

import biofound
from biofound.cli import app
from biofound.core import checkpoint, task, verify
from biofound.core.models import ModelConfig, PretrainingModel, build_model, parameter_count
from biofound.data.labels import WindowTimes, labels_from_csv
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.splits import Splits
from biofound.data.store import IndexedCase, Sidecar, StoreIndex, Totals
from biofound.data.window_table import PredictionsHeader, VectorsHeader
from biofound.settings import PretrainSettings, resolve_channels
from tests.chain import SMALL_MODEL
from tests.data.sources.test_wfdb import write

SPEC = importlib.util.spec_from_file_location("printed", Path(__file__).parent.parent / "docs" / "printed.py")
assert SPEC is not None and SPEC.loader is not None
printed = sys.modules["printed"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(printed)

CHECK_LINKS = runpy.run_path(str(printed.ROOT / "docs" / "check_links.py"))
ROOT, PAGES = printed.ROOT, printed.PAGES
EXPERIMENTS, GUIDE = printed.EXPERIMENTS, ROOT / "docs" / "ssl_pretraining_guide.md"
FORMATS = ROOT / "docs" / "data_formats.md"
POINTERS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
HYPOTHETICAL = {"biofound/settings/probe.py", "biofound/commands/probe.py", "tests/test_probe.py"}
"""Files of the command that CONTRIBUTING adds as an example."""
GENERATED = "cli.md"
SITE = [page for page in PAGES if page.parent.name == "docs" and page.name != GENERATED]
RUNNABLE, DATA = ("bash", "python", "yaml"), ("json", "csv")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
NOT_OURS = {"--help", "--nproc-per-node", "--num-workers", "--bidmc", "--write"}
"""Options a text may name although no command declares them; `--num-workers` is explained not to exist."""
ABOUT_TESTS = {"benchmarks.md", "reliability.md", "signal_quality.md"}
"""Pages that name options of `tests.benchmarks`, `tests.fuzz` and `tests.mutants`."""
PRINTED = printed.printed_blocks()
RTOL = 0.05
SUBJECTS, SECONDS = 12, 40.0
FIRST_SUBJECT = 128
"""From this patient on, twelve of them make three splits under the default seed."""


def spans(page: Path) -> list[str]:
    """What stands between single backticks, outside fenced blocks."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of biofound in the blocks that are commands."""
    for block in printed.blocks(page):
        if block.language not in ("bash", "console"):
            continue
        for line in re.split(r"\n|&&", block.text.replace("\\\n", " ")):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if ">" in words:
                words = words[: words.index(">")]  # what follows is the shell's
            if "biofound" in words:
                yield words[words.index("biofound") + 1 :]


def options_of(command: str) -> set[str]:
    return {option for param in COMMANDS[command].params for option in (*param.opts, *param.secondary_opts)}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def block_name(block) -> str:
    return f"{name_of(block.page)}:{'code' if block.is_code else block.printed_by}"


@pytest.fixture(scope="module")
def model() -> PretrainingModel:
    return build_model(PretrainSettings().fill(ModelConfig), seed=0)


# ---- Printed output


@pytest.fixture(scope="module")
def small_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few short recordings; after `printed_small` also what the documented commands write."""
    directory = tmp_path_factory.mktemp("documents")
    write_recordings(directory / "recordings")
    return directory


@pytest.fixture(scope="module")
def printed_small(small_directory: Path) -> dict[str, str]:
    """What the documented commands and code print on a few short recordings, trained on for a moment."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("biofound.data.build.cpu_count", lambda: 1)
        found = printed.run_all(small_directory, bidmc=small_directory / "recordings", run=run_small)
    torch.set_num_threads(threads)
    return found


def write_recordings(directory: Path) -> None:
    """Synthetic recordings as WFDB records with the headers of BIDMC."""
    channels = resolve_channels(None, "pretrain").channels
    source = SyntheticSource(seed=5, subjects=SUBJECTS, minutes=SECONDS / 60)
    for number, case in enumerate(source.cases(channels), start=1):
        signals = source.read(case.case_id, channels).signals
        x = np.stack([signals[name].samples[::4] for name in ("PPG", "ECG")], axis=1)
        comments = [f"mimic2wdb/matched/s{number + FIRST_SUBJECT:05}"]
        write(directory, f"bidmc{number:02}", x=x.astype(np.float64), comments=comments)
        rates = np.full((int(SECONDS), 1), 60.0 + number)
        write(directory, f"bidmc{number:02}n", x=rates, names=("HR, ",), units=("bpm",), fs=1, fmt=["32"])


def run_small(arguments: Sequence[str], directory: Path) -> tuple[int, str]:
    """Run in this process, with training cut short."""
    with contextlib.chdir(directory):
        if arguments[0] == "-c":
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said):
                    exec(compile(arguments[1], "document", "exec"), {})
            except Exception:
                return 1, traceback.format_exc()
            return 0, said.getvalue()
        words = list(arguments[2:])
        if words[0] == "pretrain" and "many" not in words:  # code in the guide expects the default width
            words += map(
                str, SMALL_MODEL if "--fast" in words else ("--num-layers", 1, "--expansion-factor", 2)
            )
        if {"--fast", "--epochs"} & set(words):
            words += ["--epochs", "2", "--save-interval", "1", "--threads", "1"]
            words += [] if "--batch-size" in words else ["--batch-size", "8"]
        elif words[0] == "pretrain" and "many" not in words:  # a recipe with a number of steps
            words += ["--steps", "4", "--save-interval", "1", "--threads", "1", "--batch-size", "8"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(verify.CHECKS, "better than a constant guess", whether_or_not_it_is)
            if "--fast" in words:
                patch.setitem(SyntheticSource.__init__.__kwdefaults__, "minutes", 0.2)
            done = CliRunner().invoke(app, words, prog_name="biofound")
        return done.exit_code, done.output


def whether_or_not_it_is(target: verify.VerificationTarget) -> str:
    """What the check measures: after so little training a model need not be better than a constant guess."""
    try:
        return verify.better_than_a_constant_guess(target)
    except verify.Failed as failure:
        return str(failure).split(";")[0]


@pytest.mark.parametrize("block", PRINTED, ids=block_name)
def test_output_has_the_documented_words(block, printed_small: dict[str, str]) -> None:
    printed.align(block.text, printed_small[block.printed_by], rtol=None, repeats=False)


@pytest.fixture(scope="module")
def printed_by_bidmc(tmp_path_factory: pytest.TempPathFactory, bidmc_dir: Path) -> dict[str, str]:
    return printed.run_all(tmp_path_factory.mktemp("bidmc"), bidmc=bidmc_dir, run=printed.run_process)


@pytest.mark.slow
@pytest.mark.parametrize("block", PRINTED, ids=block_name)
def test_output_has_the_documented_words_and_numbers(block, printed_by_bidmc: dict[str, str]) -> None:
    printed.align(block.text, printed_by_bidmc[block.printed_by], rtol=RTOL)


@pytest.mark.parametrize(
    "other",
    [
        "loss 0.75 of PPG",
        "loss 0.52 of ECG",
        "loss 0.52 of PPG\n1,409 windows",
        "nothing\nloss 0.52 of PPG\nend",
    ],
)
def test_another_output_is_told_from_the_documented_one(other: str) -> None:
    printed.align("loss 0.50 of PPG\n", "loss 0.52 of PPG\n", rtol=RTOL)
    printed.align("…\nloss 0.50 of PPG\n…\n1,408 windows", "a\nloss 0.52 of PPG\nb\n1,408 windows", rtol=RTOL)
    with pytest.raises(ValueError, match="documented"):
        printed.align("loss 0.50 of PPG\n", other, rtol=RTOL)


def test_whole_numbers_are_compared_exactly_and_times_not_at_all() -> None:
    assert not printed.same("1,408 windows", "1,409 windows", rtol=RTOL)
    assert printed.same("lr 5.00e-04  4 s  * best", "lr 5.00e-04  71 s", rtol=RTOL)
    assert printed.same("440 steps  545 windows/s", "440 steps  61 windows/s", rtol=RTOL)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != GENERATED], ids=name_of)
def test_every_block_of_output_says_what_prints_it(page: Path) -> None:
    for block in printed.blocks(page):
        assert block.language != "text" or block.printed_by, block.text


def test_pages_have_the_same_chain_of_commands() -> None:
    chains = [
        block.text.splitlines()
        for page in PAGES
        for block in printed.blocks(page)
        if block.text.startswith("biofound prepare --source wfdb")
    ]
    assert len(chains) == 4
    for each in chains:
        assert each == printed.chain()


# ---- Commands and code


def to_run(page: Path) -> list:
    """The blocks of a page that are commands, code or files, and that no other test runs."""
    return [
        block
        for block in printed.blocks(page)
        if block.language in RUNNABLE and not block.run_by and not block.not_run
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in SITE if to_run(page)], ids=name_of)
def test_blocks_of_a_page_run_one_after_the_other(
    page: Path,
    printed_small: dict[str, str],
    small_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_threads: None,
) -> None:
    """In the directory that the chain of commands leaves; in an empty one where the page has its own."""
    chosen, directory = to_run(page), tmp_path / "here"
    if any("biofound prepare" in block.text for block in chosen):
        directory.mkdir()
        (directory / "bidmc").symlink_to(small_directory / "recordings")
    else:
        shutil.copytree(small_directory, directory, symlinks=True)
    (directory / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr("biofound.data.build.cpu_count", lambda: 1)
    for block in chosen:
        for arguments in steps_of(block, directory):
            exit_code, said = run_small(arguments, directory)
            assert exit_code == 0, f"{name_of(page)}: {arguments}\n{said}"


def steps_of(block, directory: Path) -> Iterator[list[str]]:
    """Arguments of Python that run a block; one that begins with the name of a file is written, other YAML
    is left to `test_channel_tables_are_accepted`."""
    file = re.match(r"# (\w+\.\w+)\n", block.text)
    if file:
        (directory / file[1]).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        yield ["-c", block.text]
    elif block.language == "bash":
        for line in filter(None, block.text.replace("\\\n", " ").splitlines()):
            words = shlex.split(line, comments=True)
            assert words[:1] in ([], ["biofound"]), f"mark this block as run by a test, or as not run: {line}"
            yield from [["-m", *words]] if words else []


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in printed.blocks(page):
        assert block.language in {"text", "", *RUNNABLE, *DATA}, block.text
        if block.language in DATA:
            assert block.run_by, f"name the test that reads this:\n{block.text}"
        if block.run_by:
            file, _, test = block.run_by.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {test}(" in text, block.run_by
            assert page.name in text or ROOT / file == Path(__file__), f"{file} does not name {page.name}"
        for file in re.findall(r"tests/[\w/]+\.py", block.not_run):
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_channel_tables_are_accepted(page: Path, tmp_path: Path) -> None:
    for block in printed.blocks(page):
        if block.language == "yaml":
            (tmp_path / "channels.yaml").write_text(block.text)
            section = "pretrain" if "pretrain:" in block.text else "finetune"
            assert resolve_channels(tmp_path / "channels.yaml", section).channels


# ---- The site


def test_navigation_has_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = [
        name for text in re.findall(r"^:::{toctree}\n(.*?)^:::$", index, re.S | re.M) for name in text.split()
    ]
    pages = {path.stem for pattern in ("*.md", "*.rst") for path in (ROOT / "docs").glob(pattern)} - {"index"}
    assert pages - set(listed) == set(), "list them in the navigation of docs/index.md"


def test_python_reference_has_what_is_public_and_what_the_pages_import() -> None:
    reference = (ROOT / "docs" / "python_api.rst").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. autoapi\w+:: (\S+)$", reference, re.M))
    wanted = {f"{home}.{name}" for name, home in biofound._HOMES.items()}
    for page in SITE:
        for block in printed.blocks(page):
            if block.language == "python":
                imports = [
                    node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.ImportFrom)
                ]
                wanted |= {f"{node.module}.{a.name}" for node in imports for a in node.names}
    ours = {name for name in wanted if re.match(r"biofound\.\w+\.", name)}
    assert len(ours) > 8 and ours - named == set()
    for name in named:
        resolve(name)


@pytest.mark.parametrize(
    ("content", "dead"),
    [
        ('<a href="b.html#there">', []),
        ('<a href="b.html">', []),
        ('<a href="https://host/nothing">', []),
        ('<a href="b.html#gone">', ["b.html#gone"]),
        ('<img src="gone.png">', ["gone.png"]),
        ('<a href="#here"><p id="here">', []),
        ('<a href="../out.html">', ["../out.html"]),
    ],
)
def test_dead_links_of_a_built_page_are_found(content: str, dead: list[str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "out.html").write_text("")
    (site / "b.html").write_text('<p id="there">')
    (site / "a.html").write_text(content)
    assert CHECK_LINKS["dead_links"](site / "a.html", site) == dead


# ---- Commands, options, links, names


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
        elif span.startswith("--") and page.name not in ABOUT_TESTS:
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
        if re.fullmatch(r"(biofound|configs|docs|tests)/[\w./]*", span) and span not in HYPOTHETICAL:
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("page", POINTERS, ids=name_of)
def test_names_of_the_package_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"biofound(\.\w+)+", span) and not span.endswith((".py", ".json")):
            resolve(span)


def resolve(dotted: str) -> object:
    """The module, class, function or method of that name."""
    names = dotted.split(".")
    found, at = importlib.import_module(names[0]), 1
    while at < len(names) and importlib.util.find_spec(".".join(names[: at + 1])):
        at += 1
        found = importlib.import_module(".".join(names[:at]))
        if not hasattr(found, "__path__"):
            break
    for name in names[at:]:
        found = getattr(found, name)
    return found


def test_names_that_do_not_exist_are_found() -> None:
    for wrong in (
        "biofound.core.models.Encoder.nothing",
        "biofound.nothing",
        "biofound.core.nothing.Encoder",
    ):
        with pytest.raises(AttributeError):
            resolve(wrong)


def test_sizes_of_the_model_are_those_of_the_default(model: PretrainingModel) -> None:
    encoder, mixer, decoder = (
        f"{parameter_count(part):,}" for part in (model.encoder, model.encoder.backbone, model.decoder)
    )
    said = f"The encoder has {encoder} parameters ({mixer} of them in the mixer), the decoder {decoder}."
    assert said in " ".join(GUIDE.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_millions_of_parameters_are_those_of_the_encoder(page: Path, model: PretrainingModel) -> None:
    said = re.findall(r"(\S+) million\s+parameters", page.read_text(encoding="utf-8"))
    assert said == [f"{parameter_count(model.encoder) / 1e6:.1f}"]


def test_format_versions_are_those_of_the_code() -> None:
    versions = {
        each.model_fields["kind"].default: each.model_fields["format_version"].default
        for each in (Splits, StoreIndex, Sidecar, VectorsHeader, PredictionsHeader)
    }
    for module in (checkpoint, task):
        versions[module.KIND] = module.FORMAT_VERSION
    rows = re.findall(r"\| `(biofound-[\w-]+)` \| (\d+) \|", FORMATS.read_text(encoding="utf-8"))
    assert {kind: int(version) for kind, version in rows} == versions


@pytest.mark.parametrize("model", [Splits, StoreIndex, Sidecar, IndexedCase, Totals])
def test_every_key_of_the_formats_is_documented(model: type[BaseModel]) -> None:
    assert model.model_fields.keys() - set(spans(FORMATS)) == set()


def test_example_of_the_splits_can_be_read() -> None:
    (example,) = [block.text for block in printed.blocks(FORMATS) if block.language == "json"]
    assert Splits.model_validate_json(example).of("val")[0].case_id == "bidmc05"


def test_example_of_the_label_file_can_be_read(tmp_path: Path) -> None:
    (example,) = [block.text for block in printed.blocks(FORMATS) if block.language == "csv"]
    (tmp_path / "labels.csv").write_text(example)
    windows = WindowTimes(
        case_id=np.array(["bidmc01", "bidmc01", "bidmc02"]),
        start_s=np.array([0.0, 60.0, 0.0]),
        window_seconds=10.0,
    )
    for target, values in (("HR", [93.5, 95.0]), ("rhythm", ["SINUS", "AFIB", "SINUS"])):
        labels = labels_from_csv(tmp_path / "labels.csv", target, windows=windows)
        assert labels.values[labels.known].tolist() == values


def test_short_table_of_results_has_numbers_of_the_log() -> None:
    text = EXPERIMENTS.read_text(encoding="utf-8")
    short, entries = text.split("<!-- first page: from here -->")[1].split("<!-- first page: to here -->")
    numbers = re.findall(r"\d\.\d\d", short)
    assert len(numbers) > 10
    assert [number for number in numbers if number not in entries] == []


def test_table_of_the_stft_is_that_of_the_default(model: PretrainingModel) -> None:
    config: ModelConfig = model.config
    bands = {c.name: c.band for c in resolve_channels(None, "pretrain").channels}
    for n in PretrainSettings().stft_windows:
        hz = np.arange(n // 2 + 1) * 125 / n
        bins = [int(((bands[c].low_hz <= hz) & (hz <= bands[c].high_hz)).sum()) for c in config.channels]
        row = f"| {n} | {n / 125:.2f} | {config.context_length // (n // 4) + 1} | {bins[0]} | {bins[1]} |"
        assert row in GUIDE.read_text(encoding="utf-8")

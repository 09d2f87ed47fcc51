"""`biofound report`: what the page says in every state of a run; hostile names; files not to be replaced."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from biofound.files import write_json
from biofound.report_data import read_runs
from tests.chain import Chain, answer, done, run
from tests.data.cohort import build, cohort, entries_of
from tests.report_runs import GUESS, STATES, run_in_state, write_run

CSS = Path(__file__).parent.parent / "biofound" / "templates" / "report.css"
HOSTILE = "<script>alert('x')</script>&\"'"
VOID = {"meta", "link", "img", "br", "rect", "circle", "path"}
VERIFICATION = {
    "passed": False,
    "checks": [
        {"name": "masks do not leak", "passed": True, "measured": "0 of 16 windows"},
        {"name": "patients", "passed": False, "measured": HOSTILE},
    ],
}
PROBE = {
    "target": "HR",
    "classes": [],
    "windows_without_label": 3,
    "rows": [
        {
            "name": name,
            "target": "HR",
            "mae": 2.5,
            "mae_interval": [2.0, 3.0],
            "r2": None,
            "r2_interval": None,
            "subjects": 34,
            "windows": 900,
            "subjects_in_pretraining": seen,
        }
        for name, seen in (("training median", []), (HOSTILE, ["a", "b"]), ("other", None))
    ],
    "differences": [
        {"name": "other", "against": "x", "score": "mae", "difference": -0.5, "interval": [-1.0, 0.1]}
    ],
}


class Page(HTMLParser):
    """The elements of a page with their attributes and text; complains of tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("store")
    source = cohort(subjects=3)
    *train, val = entries_of(source)
    build(directory, source=source, entries=train)
    build(directory, source=source, entries=[val], split="val")
    return directory


def page_of(*arguments: object, output: Path, code: int = 0) -> Page:
    result = run("report", *arguments, "--output", output)
    assert result.exit_code == code, result.output
    return Page(output.read_text(encoding="utf-8"))


def refused(*arguments: object, code: int = 1) -> str:
    result = run("report", *arguments)
    assert result.exit_code == code, result.output
    return result.output


# ---- What it says


@pytest.mark.parametrize("state", STATES)
def test_a_run_in_every_state_has_a_page_that_says_it(state: str, tmp_path: Path) -> None:
    with run_in_state(tmp_path / "run", state) as directory:
        page = page_of("--run", directory, "--no-examples", output=tmp_path / "report.html")
    words = {
        "running": ("running: process", "2 of 4 done"),
        "finished": ("finished: after step 30 of 30", "4 of 4 done", "1.5 GB"),
        "resumed": ("resumed", "after step 5 of 30"),
        "failed": ("failed: the loss is not finite", "No epoch is done yet", "cases <b>x</b>"),
        "unknown": ("ended, how is not known", "it was killed, or is of an earlier version"),
    }
    for word in words[state]:
        assert word in page.text


def test_facts_are_those_of_the_files(store: Path, tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", epochs=3, store=store, lr=0.002)
    write_run(directory / "earlier_1", epochs=2)
    told = answer("report", "--run", directory, "--no-examples", "--output", tmp_path / "report.html")
    assert told["bytes"] == (tmp_path / "report.html").stat().st_size
    (facts,) = told["runs"]
    assert (facts["state"], facts["epochs_done"], facts["epochs_set"], facts["best_epoch"]) == (
        *("finished", 3, 3, 3),
    )
    assert facts["best_val_loss"] == pytest.approx(2 / 3)
    assert facts["best_val_msm_by_channel"] == pytest.approx({"PPG": 1 / 3, "ECG": 1 / 3 + 1})
    assert facts["constant_guess_msm_by_channel"] == {"PPG": GUESS, "ECG": GUESS}
    assert (facts["seconds"], facts["windows_per_second"], facts["data_wait"]) == (60.0, 100.0, 0.25)
    assert facts["peak_memory_bytes"] == {"process": 1_500_000_000, "gpu": None}
    assert facts["settings"]["lr"] == {"value": 0.002, "origin": "option --lr"}
    assert facts["earlier_runs"] == ["earlier_1"]
    (train,) = facts["data"]["train"]
    index = json.loads((store / "train" / "index.json").read_text())
    assert (train["windows"], train["subjects"]) == (index["totals"]["windows"], 2)
    assert train["hours"] == pytest.approx(index["totals"]["hours"])
    stored = {one["split"]: one for one in facts["stores"]}
    assert stored["train"]["dropped"] == index["dropped"] != {}
    assert stored["train"]["same"] is stored["val"]["same"] is True
    page = Page((tmp_path / "report.html").read_text())
    for reason, row in index["dropped"].items():
        assert reason.replace("_", " ") in page.text
        assert all(str(count) in page.text for count in row.values())
    assert "earlier_1" in page.text and "epochs 2 → 3" in page.text
    assert any("earlier" in (path.get("class") or "") for path in page.all("path"))


def test_windows_that_are_gone_or_made_anew_are_said_to_be_so(store: Path, tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", epochs=2, store=store)
    config = json.loads((directory / "training_config.json").read_text())
    config["data"]["train"][0]["fingerprint"] = "0" * 64
    write_json(directory / "training_config.json", config)
    output = tmp_path / "report.html"
    text = page_of("--run", directory, "--no-examples", output=output).text
    assert "other windows than the run's" in text
    config["data"]["directories"] = [str(tmp_path / "gone")]
    write_json(directory / "training_config.json", config)
    text = page_of("--run", directory, "--no-examples", output=output).text
    assert "the windows are not there any more" in text and "Not measured" in text


def test_dropped_windows_are_drawn_and_missing_reconstructions_explained(store: Path, tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", epochs=2, store=store)
    told = answer("report", "--run", directory, "--output", tmp_path / "report.html")
    (facts,) = told["runs"]
    dropped = json.loads((store / "train" / "index.json").read_text())["dropped"]
    found = {(one["reason"], one["channel"]) for one in facts["dropped_examples"]}
    assert found == {(reason, channel) for reason, row in dropped.items() for channel in row}
    assert "best_model.pt: no such file" in facts["reconstructions_absent"]


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", epochs=3)
    two = write_run(tmp_path / "two", epochs=5, lr=0.01)
    page = page_of("--run", one, "--run", two, "--no-examples", output=tmp_path / "report.html")
    assert "Settings in which the runs differ" in page.text
    assert "one, validation" in page.text and "two, constant guess" in page.text
    kinds = {word for path in page.all("path") for word in (path.get("class") or "").split()}
    assert {"a", "b"} <= kinds


def test_answers_of_verify_and_probe_are_shown(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", epochs=2, probe=True)
    for name, content in (("verify", VERIFICATION), ("probe", PROBE)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page = page_of(
        *("--run", directory, "--no-examples", "--verify", tmp_path / "verify.json"),
        *("--probe", tmp_path / "probe.json"),
        output=tmp_path / "report.html",
    )
    assert "1 of 2 checks passed" in page.text and "Checks that failed" in page.text
    assert "MAE" in page.text and "2.5 [2, 3]" in page.text and "-0.5 [-1, 0.1]" in page.text
    assert "Error of the probe of HR" in page.text


def test_measures_and_results_that_nobody_foresaw_are_shown_under_their_names(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    write_json(
        directory / "training_history.json",
        {
            "epoch": [1, 2],
            "val_mae": [9.0, 8.0],
            "train_mae": [7.0, None],
            "fold": {"first": [0.1, 0.2]},
            "table": [[1], [2]],
        },
    )
    write_json(directory / "results.json", {"mae": {"mean": 8.5, "by_fold": [8, 9]}, "name": HOSTILE})
    page = page_of("--run", directory, "--no-examples", output=tmp_path / "report.html")
    titles = " ".join(attributes.get("aria-label") or "" for attributes in page.all("svg"))
    assert (
        "Line chart of mae by epoch. validation: 9 at epoch 1, 8 at epoch 2; train: 7 at epoch 1." in titles
    )
    assert "Line chart of fold: first by epoch" in titles
    assert "mae.mean 8.5" in page.text and "mae.by_fold 8, 9" in page.text
    assert "Not shown" in page.text and "table" in page.text


def test_results_in_the_form_of_a_probe_are_shown_as_its_table(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", epochs=2, outcome=None)
    write_json(directory / "results.json", {**PROBE, "task": "regression", "folds": 5})
    page = page_of("--run", directory, "--no-examples", output=tmp_path / "report.html")
    assert "finished: its results.json is there" in page.text
    assert "MAE" in page.text and "2.5 [2, 3]" in page.text and "rows.1" not in page.text


# ---- Safe, self-contained, accessible


def test_hostile_names_are_text(store: Path, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    directory = write_run(tmp_path / name, epochs=2, store=store, resolved={"data": HOSTILE})
    (tmp_path / "verify.json").write_text(json.dumps(VERIFICATION))
    (tmp_path / "probe.json").write_text(json.dumps(PROBE))
    write_json(directory / "results.json", {HOSTILE: HOSTILE})
    page = page_of(
        *("--run", directory, "--no-examples", "--verify", tmp_path / "verify.json"),
        *("--probe", tmp_path / "probe.json"),
        output=tmp_path / "report.html",
    )
    assert page.all("script", "iframe", "object") == []
    assert page.text.count(HOSTILE) >= 5
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_a_name_that_is_not_utf8_is_written(tmp_path: Path) -> None:
    directory = write_run(Path(f"{tmp_path}/caf\udce9"), epochs=1)
    page_of("--run", directory, "--no-examples", output=tmp_path / "report.html")


@pytest.mark.parametrize("state", STATES)
def test_the_page_asks_for_nothing_and_can_be_read_without_seeing_it(state: str, tmp_path: Path) -> None:
    with run_in_state(tmp_path / "run", state) as directory:
        page = page_of("--run", directory, "--no-examples", output=tmp_path / "report.html")
    for tag, attributes in page.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in CSS.read_text() and "@import" not in CSS.read_text()
    (policy,) = [meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policy["content"])
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    assert all(image.get("alt") for image in page.all("img"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"] for link in page.all("a")}
    assert targets <= {f"#{name}" for name in ids}


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_dark_and_print() -> None:
    blocks = re.findall(r":root \{(.+?)\}", CSS.read_text(), re.S)
    assert len(blocks) == 3
    for block in blocks:
        colors = {
            name: value if len(value) == 7 else "#" + "".join(2 * digit for digit in value[1:])
            for name, value in re.findall(r"--(\w+): (#\w+);", block)
        }
        for back in ("bg", "panel"):
            for name in ("text", "muted", "link", "ok", "bad"):
                assert contrast(colors[name], colors[back]) >= 4.5, (name, back, block)
            for name in ("a", "b", "earlier", "signal"):
                assert contrast(colors[name], colors[back]) >= 3, (name, back, block)
        for name in ("signal", "b"):
            assert contrast(colors[name], colors["hidden"]) >= 3, (name, block)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


# ---- Refused


def test_another_file_is_not_replaced_and_a_report_is(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", epochs=1)
    output = tmp_path / "report.html"
    output.write_text("<html>mine</html>")
    arguments = ("--run", directory, "--no-examples", "--output", output)
    assert "no report of biofound" in refused(*arguments)
    assert output.read_text() == "<html>mine</html>"
    done("report", *arguments, "--overwrite")
    first = output.read_bytes()
    done("report", *arguments)
    assert output.read_bytes() == first
    assert "is a directory" in refused(*arguments[:-1], _directory(tmp_path / "x.html"), code=2)


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    output = ("--no-examples", "--output", tmp_path / "report.html")
    assert "holds no run" in refused("--run", tmp_path, *output)
    assert "no such directory" in refused("--run", tmp_path / "absent", *output)
    run_directory = write_run(tmp_path / "run", epochs=1)
    assert "given twice" in refused("--run", run_directory, "--run", run_directory, *output, code=2)
    three = [word for name in "abc" for word in ("--run", tmp_path / name)]
    assert "one or two" in refused(*three, *output, code=2)
    assert "ends in .html" in refused("--run", run_directory, "--output", tmp_path / "report.png", code=2)
    for option, command in (("--verify", "verify"), ("--probe", "probe")):
        answered = refused("--run", run_directory, option, run_directory / "training_config.json", *output)
        assert f"biofound {command} --json" in answered and option in answered
        assert "no such file" in refused("--run", run_directory, option, tmp_path / "absent.json", *output)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("training_config.json", b"{", "training_config.json"),
        ("training_config.json", b'{"settings": {"lr": 3}}', "settings.lr"),
        ("training_config.json", b'{"outcome": {"ended": "perhaps"}}', "outcome"),
        ("training_history.json", b"[1, 2]", "expected a JSON object"),
        ("training_history.json", b'{"epoch": ["a"]}', "`epoch`"),
        ("training_history.json", b'{"epoch": [1], "loss": [NaN]}', "not JSON"),
        ("training_history.json", b"[" * 100_000, "not JSON"),
        ("metrics.jsonl", b'{"step": 1}\n{"loss": 2}\n', "metrics.jsonl:2"),
        ("metrics.jsonl", b'{"step": 1, "loss": 1}\n{"step": 2, "loss": "x"}\n', "loss is a number in some"),
        ("results.json", b"\xff\xfe", "not JSON"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    directory = write_run(tmp_path / "run", epochs=2)
    (directory / name).write_bytes(content)
    said = refused("--run", directory, "--no-examples", "--output", tmp_path / "report.html")
    assert words in said and "a bug in biofound" not in said
    assert not (tmp_path / "report.html").exists()


def test_a_line_that_is_being_written_is_left_out_and_said(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", epochs=2, steps=3)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (data,) = read_runs([directory])
    assert data.steps["step"] == (1, 2, 3)
    assert any("last line was not whole" in file.note for file in data.files)


# ---- With a model


def test_best_median_and_worst_reconstruction_of_a_real_run(all_done: Chain, tmp_path: Path) -> None:
    told = answer("report", "--run", all_done.output, "--output", tmp_path / "report.html")
    (facts,) = told["runs"]
    assert facts["state"] == "finished" and facts["state_said"] == "after step 4 of 4"
    made = facts["reconstructions"]
    ranked = [made["examples"][rank]["msm"] for rank in ("best", "median", "worst")]
    assert ranked == sorted(ranked)
    assert made["windows_scored"] == facts["data"]["val"][0]["windows"]
    quantiles = made["msm_quantiles"]
    assert quantiles.keys() == {"all", "PPG", "ECG"}
    assert ranked[0] <= quantiles["all"][0] and quantiles["all"][-1] <= ranked[2]
    page = Page((tmp_path / "report.html").read_text())
    assert len([path for path in page.all("path") if path.get("class") == "made"]) == 3 * 2 + 1
    assert told["bytes"] < 5e6

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import biofound

ROOT = Path(__file__).parent.parent
PUBLIC = [
    "BiofoundEncoder",
    "OnnxEncoder",
    "__version__",
    "embed_array",
    "load_checkpoint",
    "load_pretrained",
    "load_pretrained_with_channel_inflate",
    "predict_array",
]
"""Names that others' programs import: none is taken away or renamed without a word in CHANGELOG.md."""

SCRIPT = """
import logging, sys, biofound
import biofound.commands.inputs
assert "torch" not in sys.modules and "scipy" not in sys.modules
biofound.load_checkpoint
assert "torch" in sys.modules
logging.getLogger("matplotlib.font_manager").info("stray")
logging.basicConfig(level=logging.DEBUG, format="user: %(message)s", stream=sys.stdout)
logging.debug("mine")

import torch
torch.set_num_threads(2)
from biofound.core.micro_batches import ThreadedMicroBatches
def run():
    with ThreadedMicroBatches(threads=2).sharing_threads():
        yield
unfinished = run()  # a run that the script leaves unfinished
next(unfinished)
"""


def test_a_script_imports_torch_when_it_is_used_keeps_its_logging_and_ends_quietly():
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("user: mine\n", "")


def test_every_name_it_offers_is_there():
    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.inflate import load_pretrained_with_channel_inflate

    assert biofound.load_checkpoint is load_checkpoint
    assert biofound.load_pretrained_with_channel_inflate is load_pretrained_with_channel_inflate
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = biofound.load_model


def test_public_names_are_those_agreed_on():
    assert sorted(biofound.__all__) == sorted(PUBLIC)
    assert sorted(biofound._HOMES) == sorted(set(PUBLIC) - {"__version__"})


def test_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_ci_calls_sessions_that_there_are():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.M))
    called = set(re.findall(r"session: (\w+)", workflow)) | set(
        re.search(r"session: \[(.+)\]", workflow)[1].split(", ")
    )
    assert called == {"lint", "typecheck", "docs", "tests", "tests_slow", "package"} <= sessions
    assert "run: uvx nox -s ${{ matrix.session }}" in workflow

"""The example of docs/own_recordings.md: from CSV files to windows, by the documented code and commands."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from biofound.cli import app
from biofound.data.store import StoreWindows

PAGE = (Path(__file__).parent.parent / "docs" / "own_recordings.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.S | re.M)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the example's files and `channels.yaml` were written."""
    directory = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        exec(compile(blocks("python")[0], "own_recordings.md", "exec"), {})
    (directory / "channels.yaml").write_text(blocks("yaml")[0])
    return directory


def run(directory: Path, command: str, *more: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        done = CliRunner().invoke(app, [*shlex.split(command)[1:], *more])
    assert done.exit_code == 0, done.output
    return done.output


def test_example_makes_windows_of_csv_files(recordings: Path) -> None:
    listing, prepare, windows = blocks("bash")[0].splitlines()
    assert re.search(r"Pulse +│ 500 +│ +│ +4", run(recordings, listing))
    run(recordings, prepare)
    run(recordings, windows, "--workers", "1")
    stores: Any = [StoreWindows(recordings / "data" / "windows" / name) for name in ("train", "val", "test")]
    assert len({subject for store in stores for subject in store.subjects}) == 4
    assert sum(len(store) for store in stores) >= 12

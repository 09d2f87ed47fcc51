"""The example of docs/own_recordings.md: from CSV files to windows, by the documented code and commands."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from biofound.cli import app
from biofound.core.models import ModelConfig, build_model
from biofound.data.integrity import check_store
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
    return done.stdout if "--json" in more else done.output


def test_example_makes_windows_of_csv_files(recordings: Path) -> None:
    listing, prepare, windows = blocks("bash")[0].splitlines()
    assert re.search(r"Pulse +│ 500 +│ +│ +4", run(recordings, listing))
    run(recordings, prepare)
    run(recordings, windows, "--workers", "1")
    stores: Any = [StoreWindows(recordings / "data" / "windows" / name) for name in ("train", "val", "test")]
    assert len({subject for store in stores for subject in store.subjects}) == 4
    assert sum(len(store) for store in stores) >= 12


def test_missing_channel_is_unobserved_from_the_store_to_the_encoder(
    recordings: Path, tmp_path: Path
) -> None:
    """One of four people has no ECG: left out where it is required, else NaN in the store, and unobserved."""
    shutil.copytree(recordings / "recordings", tmp_path / "recordings")
    lacking = sorted((tmp_path / "recordings").rglob("*.csv"))[0]
    lines = [line.rpartition(",")[0] for line in lacking.read_text().splitlines()]
    lacking.write_text("\n".join(lines) + "\n")
    (tmp_path / "channels.yaml").write_text(blocks("yaml")[0])
    _, prepare, windows = blocks("bash")[0].splitlines()
    assert json.loads(run(tmp_path, prepare, "--json"))["left_out"] == {
        f"{lacking.parent.name}__morning": ["ECG"]
    }
    (tmp_path / "channels.yaml").write_text(blocks("yaml")[1])
    assert json.loads(run(tmp_path, prepare, "--json", "--overwrite"))["left_out"] == {}
    run(tmp_path, windows, "--workers", "1")
    assert [check.name for check in check_store(tmp_path / "data" / "windows") if not check.passed] == []
    stores = [StoreWindows(tmp_path / "data" / "windows" / name) for name in ("train", "val", "test")]
    (store,) = [store for store in stores if lacking.parent.name in store.subjects]
    info = store.info(np.arange(len(store)))
    x = store.read(np.flatnonzero(info.subject_id == lacking.parent.name))
    assert len(x) and np.isfinite(x[:, 0]).all() and np.isnan(x[:, 1]).all()
    config = ModelConfig(
        channels=store.channels,
        context_length=1250,
        patch_size=125,
        d_model=16,
        num_layers=1,
        expansion_factor=2,
        dropout=0.0,
    )
    encoder = build_model(config, seed=0).encoder.eval()
    as_read = torch.from_numpy(x)
    observed = torch.isfinite(as_read)
    noise = torch.where(observed, as_read, torch.randn(as_read.shape))
    zeros = torch.where(observed, as_read, 0.0)
    with torch.no_grad():
        expected = encoder(as_read)
        assert torch.isfinite(expected).all()
        assert torch.equal(encoder(noise, observed=observed), expected)
        assert not torch.allclose(encoder(zeros), expected)

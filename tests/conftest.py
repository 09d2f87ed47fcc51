"""What all tests share: real recordings where there are any, and no network."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.offline import stay_offline

os.environ["HF_HUB_OFFLINE"] = "1"
# OpenMP's threads spin while they wait: two of them beside another busy process can take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A developer's own settings must not reach the tests.
for variable in [name for name in os.environ if name.startswith("BIOFOUND_") and "_TEST_" not in name]:
    del os.environ[variable]

BIDMC = Path(__file__).parent.parent.parent / "shared" / "data" / "bidmc"


@pytest.fixture(scope="session")
def bidmc_dir() -> Path:
    """The BIDMC recordings: where BIOFOUND_TEST_BIDMC says, else beside the repository."""
    said = os.environ.get("BIOFOUND_TEST_BIDMC")
    path = Path(said) if said else BIDMC
    if not (path / "bidmc01.hea").is_file():
        pytest.skip(f"needs the BIDMC recordings in {path} (or where BIOFOUND_TEST_BIDMC says)")
    return path


@pytest.fixture(scope="session")
def all_done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The files of one run of all commands, a `tests.chain.Chain`."""
    from tests.chain import chain

    return chain(tmp_path_factory.getbasetemp())


@pytest.fixture
def same_threads() -> Iterator[None]:
    """PyTorch's number of threads, put back after a command has set it."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_threads: None) -> None:
    """An empty working directory, so that default paths lead nowhere."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine in no test; the loopback stays open for test servers."""
    stay_offline(monkeypatch)

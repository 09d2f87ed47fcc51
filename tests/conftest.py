"""What all tests share: real recordings where there are any, and no network."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections leave this machine in no test; the loopback stays open for test servers."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def refuse_outside(address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host not in ("localhost", "::1") and not str(host).startswith("127."):
            raise AssertionError(f"a test tried to reach {host}: tests are offline")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse_outside(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse_outside(address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        # Names are asked of a server too: `host` None means this machine.
        if host not in (None, "", b"", "0.0.0.0", "::", socket.gethostname()):
            refuse_outside((host.decode() if isinstance(host, bytes) else host,))
        return getaddrinfo(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
    yield

"""Network guard of the tests: the loopback is open, everything else is closed."""

import socket

import pytest


def test_loopback_is_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid", "2001:db8::1"])
def test_other_machines_cannot_be_reached(host: str) -> None:
    with pytest.raises(AssertionError, match="tests are offline"):
        socket.create_connection((host, 80), timeout=1)

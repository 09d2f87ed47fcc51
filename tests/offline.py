"""No network: connections to other machines are refused, the loopback stays open for test servers."""

import socket
from typing import Any

import pytest


def stay_offline(patch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine, until `patch` is undone."""
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

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)

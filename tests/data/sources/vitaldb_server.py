"""A loopback server that plays the VitalDB API, and misbehaves when told to.

Files are written by the `vitaldb` package's own writer. `misbehave(path, *faults)` gives the next answers
for a path, one fault an answer; then it behaves again.
"""

import contextlib
import gzip
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vitaldb.utils import FMT_NAN, Device, Track, VitalFile

START = 4102444800.0
"""2100-01-01, where VitalDB's anonymised recordings start; a float there resolves half a microsecond."""

FORMATS = {1: "<f4", 2: "<f8", 3: "i1", 4: "u1", 5: "<i2", 6: "<u2", 7: "<i4", 8: "<u4"}
WORD = 6
FLOAT = 1


@dataclass(frozen=True, kw_only=True)
class Wave:
    """A track to write: samples in physical units (NaN in gaps), cut into packets, or given as packets."""

    name: str
    samples: NDArray[np.float64] | None = None
    packets: Sequence[tuple[float, NDArray[np.float64]]] = ()
    sfreq: float = 500.0
    packet_s: float = 1.0
    unit: str = "mV"
    fmt: int = WORD
    gain: float = 0.01
    offset: float = -300.0
    start_s: float = 0.0


def raw_of(wave: Wave, samples: NDArray[np.float64]) -> NDArray[Any]:
    """Physical samples as the file stores them; NaN becomes the package's sentinel."""
    dtype = np.dtype(FORMATS[wave.fmt])
    if wave.fmt <= 2:
        return samples.astype(dtype)
    scaled = np.round((samples - wave.offset) / wave.gain)
    return np.where(np.isnan(scaled), FMT_NAN[wave.fmt], scaled).astype(dtype)


def packets_of(wave: Wave) -> list[tuple[float, NDArray[np.float64]]]:
    """Seconds after START and samples of each packet; a packet ends where a gap begins."""
    if wave.samples is None:
        return list(wave.packets)
    length = round(wave.packet_s * wave.sfreq)
    missing = np.isnan(wave.samples)
    cuts = np.flatnonzero(np.diff(missing)) + 1
    edges = sorted({*range(0, len(missing), length), *cuts.tolist(), len(missing)})
    return [
        (wave.start_s + start / wave.sfreq, wave.samples[start:stop])
        for start, stop in pairwise(edges)
        if not missing[start]
    ]


def write_vital(path: Path, waves: Sequence[Wave], *, packed: bool = True, numbers: bool = True) -> Path:
    """Write a `.vital` file with the package's writer, wave tracks and (optionally) a numeric one."""
    file = VitalFile()
    file.dtstart, file.dtend, file.dgmt = START, START, 0
    for wave in waves:
        device, _, name = wave.name.rpartition("/")
        file.devs.setdefault(device, Device(device))
        recs = [{"dt": START + at, "val": raw_of(wave, samples)} for at, samples in packets_of(wave)]
        file.trks[wave.name] = Track(
            name, 1, col=0, dname=device, unit=wave.unit, fmt=wave.fmt, srate=wave.sfreq,
            gain=wave.gain, offset=wave.offset, recs=recs,
        )  # fmt: skip
        for rec in recs:
            file.dtend = max(file.dtend, rec["dt"] + len(rec["val"]) / wave.sfreq)
    if numbers:
        file.devs["Solar8000"] = Device("Solar8000")
        beats = [{"dt": START + 2.0 * i, "val": 60.0 + i} for i in range(5)]
        file.trks["Solar8000/HR"] = Track("HR", 2, col=0, dname="Solar8000", fmt=1, recs=beats)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert file.to_vital(str(path), packed=packed, compresslevel=1)
    return path


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One wrong answer: see `Server.answer` for the kinds."""

    kind: str
    value: float | str = 0


class Server:
    """The files it serves, what it was asked for, and how it is to misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.encodings: dict[str, str] = {}
        self.faults: dict[str, deque[Fault]] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[Mapping[str, str]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.delay_s = 0.0
        self.url = ""
        self.lock = threading.Lock()

    def misbehave(self, path: str, *faults: Fault) -> None:
        """The next answers for `path` go wrong, in this order."""
        self.faults[path] = deque(faults)

    def add_case(self, case_id: int, content: bytes, version: str = "1.0.1") -> str:
        """Serve a `.vital` file; gives its path on the server."""
        path = f"/{version}/{case_id}.vital"
        self.files[path] = content
        return path

    def add_tables(
        self, subjects: Mapping[int, int], tracks: Mapping[int, Sequence[str]], *, compressed: bool = False
    ) -> None:
        """Serve the clinical table and the track list."""
        clinical = "".join(f"{c},{s},0,{100 + c}\r\n" for c, s in subjects.items())
        listed = "".join(
            f"{c},{name},{c:04d}{i:036d}\r\n" for c, n in tracks.items() for i, name in enumerate(n)
        )
        tables = {
            "/cases": "\ufeffcaseid,subjectid,casestart,caseend\r\n" + clinical,
            "/trks": "caseid,tname,tid\r\n" + listed,
        }
        for path, text in tables.items():
            self.files[path] = gzip.compress(text.encode()) if compressed else text.encode()
            if compressed:
                self.encodings[path] = "gzip"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one GET, with the next fault of its path if there is one."""
        path = handler.path
        with self.lock:
            self.asked[path] += 1
            self.headers.append(dict(handler.headers))
            waiting = self.faults.get(path)
            fault = waiting.popleft() if waiting else Fault(kind="none")
        time.sleep(self.delay_s)
        if fault.kind == "status":
            handler.send_error(int(fault.value))
        elif fault.kind == "retry-after":
            handler.send_response(503)
            handler.send_header("Retry-After", str(fault.value))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif fault.kind == "redirect":
            handler.send_response(302)
            handler.send_header("Location", str(fault.value))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif path not in self.files:
            handler.send_error(404)
        else:
            self.send_body(handler, path, fault)

    def send_body(self, handler: BaseHTTPRequestHandler, path: str, fault: Fault) -> None:
        """Send a file whole, or broken as the fault says."""
        body = self.files[path]
        promised: int | None = len(body)
        if fault.kind == "cut":  # the connection goes down in the middle
            body = body[: len(body) // 2]
        elif fault.kind == "cut-unnoticed":  # cut before it got here: length and body agree
            body = body[: len(body) // 2]
            promised = len(body)
        elif fault.kind == "corrupt":
            middle = len(body) // 2
            body = (
                body[:middle] + bytes(255 - byte for byte in body[middle : middle + 64]) + body[middle + 64 :]
            )
        elif fault.kind == "short-length":
            promised = len(body) - 10
        elif fault.kind == "no-length":
            promised = None
        elif fault.kind == "not-the-file":
            body = b"<html>Sign in to this network</html>"
            promised = len(body)
        handler.send_response(200)
        if promised is not None:
            handler.send_header("Content-Length", str(promised))
        if path in self.encodings:
            handler.send_header("Content-Encoding", self.encodings[path])
        handler.end_headers()
        if fault.kind == "silent":
            time.sleep(float(fault.value))
        elif fault.kind == "crawl":
            for byte in body[:100]:
                handler.wfile.write(bytes([byte]))
                time.sleep(float(fault.value))
            handler.wfile.write(body[100:])
        else:
            handler.wfile.write(body)


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A running server on a free loopback port; https with a TLS context."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with server.lock:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                # A client that gave up is what some tests are about.
                with contextlib.suppress(ConnectionError):
                    server.answer(self)
            finally:
                with server.lock:
                    server.at_once -= 1

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    if tls is not None:
        http.socket = tls.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()

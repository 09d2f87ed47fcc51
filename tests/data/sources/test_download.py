import gzip
import re
import shutil
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests
from urllib3 import Retry

from biofound.data.sources.download import MAX_REDIRECTS, fetch
from biofound.errors import DataError
from tests.data.sources.vitaldb_server import Fault, serving

BODY = gzip.compress(bytes(range(256)) * 40, compresslevel=0)
FILE = "/1.0.1/7.vital"


@pytest.fixture
def server():
    with serving() as running:
        running.files[FILE] = BODY
        yield running


def check(path):
    try:
        gzip.decompress(path.read_bytes())
    except (EOFError, OSError) as error:
        raise DataError(f"case 7: damaged ({error})") from error


def get(
    server,
    cache,
    *,
    path=FILE,
    retries=2,
    backoff_s=0.01,
    longest_wait_s=60.0,
    timeout_s=5.0,
    at_once=4,
    on_retry=None,
):
    target = cache / path.lstrip("/")
    fetch(
        f"{server.url}{path}",
        target,
        cache_dir=cache,
        what="case 7",
        check=check,
        retry=Retry(total=retries, backoff_factor=backoff_s, backoff_max=longest_wait_s),
        timeout_s=timeout_s,
        at_once=at_once,
        on_retry=on_retry,
    )
    return target


@pytest.fixture
def no_retry(monkeypatch):
    """Fails where a download waits for its next attempt."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))


def files_in(directory):
    return sorted(p.name for p in directory.rglob("*") if p.is_file() and ".locks" not in p.parts)


def test_a_file_arrives_whole_and_is_never_asked_for_twice(server, tmp_path):
    for _ in range(3):
        assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked[FILE] == 1
    assert files_in(tmp_path) == ["7.vital"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", value=500),
        Fault(kind="status", value=502),
        Fault(kind="status", value=429),
        Fault(kind="retry-after", value="0"),
        Fault(kind="cut"),
        Fault(kind="cut-unnoticed"),
        Fault(kind="corrupt"),
        Fault(kind="short-length"),
        Fault(kind="not-the-file"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.value}",
)
def test_a_fault_that_passes_costs_a_retry_and_nothing_else(server, tmp_path, fault):
    server.misbehave(FILE, fault, fault)
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked[FILE] == 3
    assert files_in(tmp_path) == ["7.vital"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(kind="status", value=500), " 500"),
        (Fault(kind="cut"), f"{len(BODY) // 2} .* {len(BODY) - len(BODY) // 2} "),
        (Fault(kind="cut-unnoticed"), "damaged"),
        (Fault(kind="corrupt"), "damaged"),
        (Fault(kind="short-length"), "damaged"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_fault_that_stays_ends_in_one_error_and_leaves_nothing_behind(server, tmp_path, fault, reason):
    server.misbehave(FILE, fault, fault, fault)
    with pytest.raises(DataError, match=rf"case 7: .*{server.url}.* 3 .*{reason}"):
        get(server, tmp_path)
    assert server.asked[FILE] == 3
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_final(server, tmp_path, status):
    server.misbehave(FILE, Fault(kind="status", value=status))
    with pytest.raises(DataError, match=rf"case 7: .*{status}"):
        get(server, tmp_path)
    assert server.asked[FILE] == 1
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fault", [Fault(kind="silent", value=1.5), Fault(kind="crawl", value=0.02)])
def test_a_server_that_keeps_silent_or_crawls_is_given_up(server, tmp_path, fault):
    server.misbehave(FILE, fault)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"timed out|crawls"):
        get(server, tmp_path, timeout_s=0.3, retries=0)
    assert time.monotonic() - started < 1.2


def test_a_dead_server_is_reported_with_its_address(server, tmp_path):
    server.url = "http://127.0.0.1:9"
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/1\.0\.1/7\.vital .* 2 attempts.*refused"):
        get(server, tmp_path, retries=1)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://:x"])
def test_an_address_that_cannot_be_used_is_final(server, tmp_path, url, no_retry):
    server.url = url
    with pytest.raises(DataError, match=url) as caught:
        get(server, tmp_path)
    assert isinstance(caught.value.__cause__, requests.RequestException)


def test_retry_after_is_obeyed_in_seconds_and_as_a_date(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", lambda wait: waits.append(wait) if wait else None)  # the server's: 0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server.misbehave(
        FILE,
        Fault(kind="retry-after", value="7"),
        Fault(kind="retry-after", value=date),
        Fault(kind="retry-after", value="soon"),
        Fault(kind="retry-after", value="86400"),
    )
    get(server, tmp_path, retries=4, backoff_s=0.5, longest_wait_s=60.0)
    assert waits[0] == 7.0
    assert 15 <= waits[1] <= 20
    assert waits[2:] == [2.0, 60.0]  # the back-off, where the header is not readable; never over the limit


@pytest.mark.parametrize(
    "value", ["\u00b2", "9" * 5000, "Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "-1"]
)
def test_a_retry_after_that_cannot_be_is_passed_over(server, tmp_path, value):
    server.misbehave(FILE, Fault(kind="retry-after", value=value))
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_download_that_is_tried_again_says_so_at_once_and_until_when(server, tmp_path, monkeypatch):
    said, waits = [], []
    monkeypatch.setattr(time, "sleep", lambda wait: waits.append((len(said), wait)) if wait else None)
    server.misbehave(FILE, *[Fault(kind="status", value=503)] * 4)
    before = datetime.now().astimezone().replace(microsecond=0)
    get(server, tmp_path, retries=4, backoff_s=1.0, timeout_s=30.0, on_retry=said.append)
    assert len(said) == 1 and waits[0][0] == 1  # before the first wait, and not again
    assert said[0].startswith(f"case 7: {server.url}{FILE} could not be downloaded (")
    assert "503" in said[0] and " up to 4 times" in said[0]
    until = datetime.strptime(re.search(r"until (\d\d:\d\d:\d\d)", said[0])[1], "%H:%M:%S")
    expected = before + timedelta(seconds=0 + 2 + 4 + 8 + 4 * 30)
    assert (until - expected.replace(tzinfo=None)).total_seconds() % 86400 <= 5


def test_an_answer_without_end_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr("biofound.data.sources.download.LARGEST_BYTES", 5000)
    with pytest.raises(DataError, match=rf"case 7: {server.url}{FILE} sends more than 5000 bytes"):
        get(server, tmp_path)
    assert server.asked[FILE] == 1
    assert files_in(tmp_path) == []


def test_waits_double_up_to_the_longest(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", lambda wait: waits.append(wait) if wait else None)  # the server's: 0
    server.misbehave(FILE, *[Fault(kind="status", value=503)] * 5)
    get(server, tmp_path, retries=5, backoff_s=1.0, longest_wait_s=6.0)
    assert waits == [2.0, 4.0, 6.0, 6.0]  # the first retry is at once


def test_an_answer_whose_end_cannot_be_known_is_taken_only_if_it_is_gzip(server, tmp_path):
    server.misbehave(FILE, Fault(kind="no-length"))
    assert get(server, tmp_path).read_bytes() == BODY
    server.files["/cases"] = b"caseid,subjectid\n1,1\n"
    server.misbehave("/cases", Fault(kind="no-length"))
    with pytest.raises(DataError, match=r"/cases .*Content-Length"):
        get(server, tmp_path, path="/cases")


def test_what_a_killed_download_left_is_removed(server, tmp_path):
    directory = tmp_path / "1.0.1"
    directory.mkdir()
    for name in (".7.vital.4711.partial", ".7.json.a1b2.partial", ".71.vital.4711.partial"):
        (directory / name).write_bytes(b"half")
    get(server, tmp_path)
    assert files_in(tmp_path) == [".71.vital.4711.partial", "7.vital"]  # of this file only


@pytest.fixture
def https(server, monkeypatch):
    """Sends requests for https://secure.test to the loopback server in the clear."""

    class InTheClear(requests.adapters.HTTPAdapter):
        def send(self, request, **kwargs):
            sent = request.copy()
            sent.url = request.url.replace("https://secure.test", server.plain_url)
            response = super().send(sent, **kwargs)
            response.url = request.url
            return response

    by_scheme = {"https": InTheClear(), "http": requests.adapters.HTTPAdapter()}
    monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: by_scheme[url.partition(":")[0]])
    server.plain_url, server.url = server.url, "https://secure.test"


@pytest.mark.usefixtures("https")
def test_a_redirect_from_https_to_http_is_not_followed(server, tmp_path):
    server.files["/elsewhere"] = BODY
    server.misbehave(FILE, Fault(kind="redirect", value=f"{server.plain_url}/elsewhere"))
    with pytest.raises(DataError, match=rf"case 7: .*{server.plain_url}/elsewhere"):
        get(server, tmp_path)
    assert server.asked == {FILE: 1}
    assert files_in(tmp_path) == []


@pytest.mark.usefixtures("https")
def test_a_redirect_within_https_is_followed(server, tmp_path):
    server.files["/elsewhere"] = BODY
    server.misbehave(FILE, Fault(kind="redirect", value="/elsewhere"))
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_loop_of_redirects_ends(server, tmp_path):
    server.misbehave(FILE, *[Fault(kind="redirect", value=FILE)] * (MAX_REDIRECTS + 1))
    with pytest.raises(DataError, match=f"case 7: .*{MAX_REDIRECTS} times"):
        get(server, tmp_path)
    assert server.asked[FILE] == MAX_REDIRECTS + 1


def test_no_credentials_are_sent(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.files["/elsewhere"] = BODY
    server.misbehave(FILE, Fault(kind="redirect", value="/elsewhere"))
    get(server, tmp_path / "cache")
    assert len(server.headers) == 2
    assert not [headers for headers in server.headers if "Authorization" in headers or "Cookie" in headers]


def test_a_certificate_that_does_not_verify_is_final(tmp_path, no_retry):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate = tmp_path / "self_signed.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(
        [*command, "-keyout", certificate, "-out", tmp_path / "certificate"], check=True, capture_output=True
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certificate", certificate)
    with serving(context) as server:
        with pytest.raises(DataError, match=r"case 7: .*https://127.*CERTIFICATE_VERIFY_FAILED"):
            get(server, tmp_path / "cache")
        assert not server.asked


def test_a_cache_that_cannot_be_written_is_one_error(server, tmp_path):
    blocked = tmp_path / "cache"
    blocked.write_text("a file")
    with pytest.raises(DataError, match=f"case 7: .*{blocked}"):
        get(server, blocked)


def test_threads_that_want_one_file_share_its_download(server, tmp_path):
    server.delay_s = 0.1
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: get(server, tmp_path), range(6)))
    assert {path.read_bytes() for path in paths} == {BODY}
    assert server.asked[FILE] == 1


def test_no_more_than_the_limit_is_under_way_at_once(server, tmp_path):
    paths = [f"/1.0.1/{case}.vital" for case in range(10)]
    server.files |= dict.fromkeys(paths, BODY)
    server.delay_s = 0.05
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda path: get(server, tmp_path, path=path, at_once=3), paths))
    assert server.most_at_once <= 3
    assert sum(server.asked.values()) == 10


DOWNLOADER = """
import sys
from pathlib import Path
from urllib3 import Retry
from biofound.data.sources.download import fetch
url, cache = sys.argv[1], Path(sys.argv[2])
fetch(
    url, cache / "7.vital", cache_dir=cache, what="case 7", check=lambda path: None, retry=Retry(total=0),
    timeout_s=30.0, at_once=4,
)
"""


def test_processes_that_want_one_file_share_its_download(server, tmp_path):
    server.delay_s = 1.0
    command = [sys.executable, "-c", DOWNLOADER, server.url + FILE, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert server.asked[FILE] == 1
    assert (tmp_path / "7.vital").read_bytes() == BODY

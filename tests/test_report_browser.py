"""Reports in a real browser: no console message, no request, no overflow on a phone, contrast of texts."""

import html
import json
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chain import Chain, done
from tests.report_runs import STATES, run_in_state, write_run
from tests.test_report import PROBE, VERIFICATION

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--no-first-run", "--allow-file-access-from-files", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"),
)
PHONE, DESKTOP = 390, 1280
CONTROL = "http://127.0.0.1:9/control.png"
"""A request of the measuring page itself, and a message `CONTROL`: both must be noticed."""

# Loads each page in a frame of each width and measures it: the page itself may have no script.
MEASURE = """
<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><body style="margin:0">
<script>
function channels(color) {
  const numbers = color.match(/[0-9.]+/g).map(Number);
  return numbers.length < 4 ? [...numbers, 1] : numbers;
}
function luminance(c) {
  const linear = c.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
function contrast(element, window) {
  const style = window.getComputedStyle(element);
  const ink = channels(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
  let at = element, ground = null;
  while (at && !ground) {
    const found = channels(window.getComputedStyle(at).backgroundColor);
    if (found[3] === 1) ground = found;
    at = at.parentElement;
  }
  const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function measure(frame, width) {
  const window = frame.contentWindow, page = window.document, least = {ratio: 99, text: ''};
  for (const details of page.querySelectorAll('details')) details.open = true;
  for (const element of page.body.querySelectorAll('*')) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
    if (!text || ['style', 'script'].includes(element.localName)) continue;
    const ratio = contrast(element, window);
    if (ratio < least.ratio) Object.assign(least, {ratio, text});
  }
  const small = [...page.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height);
  const unfocusable = [...page.querySelectorAll('a, summary, [tabindex="0"]')].filter(
    e => { e.focus(); return page.activeElement !== e; });
  return {
    page: frame.src.split('/').pop(), width, title: page.title, height: page.documentElement.scrollHeight,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    least, smallest: Math.min(...small), unfocusable: unfocusable.length,
    ground: window.getComputedStyle(page.documentElement).backgroundColor,
  };
}
async function all() {
  const results = [];
  for (const page of PAGES) for (const width of WIDTHS) {
    const frame = document.createElement('iframe');
    frame.style = `border:0;height:900px;width:${width}px`;
    const loaded = new Promise(resolve => { frame.onload = resolve; });
    frame.src = page;
    document.body.append(frame);
    await loaded;
    results.push(measure(frame, width));
    frame.remove();
  }
  const out = document.createElement('pre');
  out.id = 'out';
  out.textContent = JSON.stringify(results);
  document.body.append(out);
}
all();
console.log('CONTROL');
</script>
<img src="http://127.0.0.1:9/control.png">
"""


@pytest.fixture(scope="module")
def pages(all_done: Chain, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report of a run in every state, of one epoch, of two runs, and of a real one with all there is."""
    directory = tmp_path_factory.mktemp("pages")
    answers = []
    for name, content in (("verify", VERIFICATION), ("probe", PROBE)):
        (directory / f"{name}.json").write_text(json.dumps(content))
        answers += [f"--{name}", directory / f"{name}.json"]
    with ExitStack() as stack:
        runs = {state: [stack.enter_context(run_in_state(directory / state, state))] for state in STATES}
        runs["one_epoch"] = [write_run(directory / "one", epochs=1)]
        runs["two_runs"] = [write_run(directory / "first", epochs=30, probe=True), runs["finished"][0]]
        runs["real"] = [all_done.output]
        for name, shown in runs.items():
            given = [word for path in shown for word in ("--run", path)]
            done("report", *given, *answers, "--output", directory / f"{name}.html")
    return [directory / f"{name}.html" for name in runs]


@pytest.fixture(scope="module", params=["light", "dark"])
def browsed(request: pytest.FixtureRequest, pages: list[Path], tmp_path_factory: pytest.TempPathFactory):
    """What the browser measured, printed to its console, and requested."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (`apt-get install chromium`) to open the reports")
    place = tmp_path_factory.mktemp("browser")
    script = MEASURE.replace("PAGES", json.dumps([page.as_uri() for page in pages]))
    (place / "measure.html").write_text(script.replace("WIDTHS", json.dumps([PHONE, DESKTOP])))
    scheme = {"light": 1, "dark": 0}[request.param]
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={place / 'profile'}",
        f"--log-net-log={place / 'net.json'}",
    ]
    command += [f"--blink-settings=preferredColorScheme={scheme}", (place / "measure.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-3000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    # The browser asks for things of its own; requests of pages carry the same annotation as the control's.
    requests = re.findall(r'"traffic_annotation":(\d+),"url":"([^"]+)"', (place / "net.json").read_text())
    (of_pages,) = {annotation for annotation, url in requests if url == CONTROL}
    urls = {url for annotation, url in requests if annotation == of_pages}
    return request.param, json.loads(html.unescape(found[1])), console, urls


@pytest.mark.slow
def test_reports_open_without_a_message_or_a_request(browsed, pages: list[Path]) -> None:
    _, measured, console, urls = browsed
    assert {result["page"] for result in measured} == {page.name for page in pages}
    assert len(console) == 1 and "CONTROL" in console[0]
    assert urls == {CONTROL}
    assert all(page.stat().st_size < 5_000_000 for page in pages)


@pytest.mark.slow
def test_reports_fit_a_phone_and_can_be_read_in_light_and_dark(browsed) -> None:
    scheme, measured, _, _ = browsed
    assert len(measured) == 2 * 8
    for result in measured:
        assert result["overflow"] == 0, result
        assert result["least"]["ratio"] >= 4.5, result
        assert result["smallest"] >= 9, result
        assert result["unfocusable"] == 0, result
        assert (result["ground"] == "rgb(255, 255, 255)") == (scheme == "light")

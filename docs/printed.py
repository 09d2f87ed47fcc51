"""Printed output in the documents: rewrite it from real runs of the commands.

    python docs/printed.py --bidmc DIR

A ```text block shows what a command prints, if `<!-- printed by: biofound inflate -->` stands on the line
above it, or what the ```python block above it prints. A line `…` stands for lines left out. Commands run in
the order of the BIDMC chain in docs/experiments.md. tests/test_documents.py compares every block.

It also runs every block of commands and code in docs/, but those below `<!-- not run: why -->` or
`<!-- run by: tests/test_x.py::test_y -->`, a test of their own. A block that begins with `# name.py` or
`# name.yaml` is that file.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXPERIMENTS = ROOT / "docs" / "experiments.md"
FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>printed by|run by|not run): (?P<said>.+?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.S | re.M,
)
LEFT_OUT = "…"
QUICK = "biofound pretrain --fast"
NUMBER = re.compile(r"(?:(?<![^\s\[])[+-])?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
FREE = re.compile(rf"{NUMBER.pattern} (?=s\b|MB\b|windows/s)|(?<=device │ ).*|  \* best")
"""What may differ from machine to machine: times, rates, sizes, the device, and which epochs were best."""
UNFINISHED = re.compile(r"[\w ]+: (\d+)/(?!\1 )\d+ (cases|steps|rows)")
"""Progress lines before the last one: how many there are depends on the machine's speed."""
Run = Callable[[Sequence[str], Path], tuple[int, str]]
"""Runs Python with these arguments in this directory: the exit code, and what was printed."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text without indent, where that text stands.

    `printed_by`, of a text block, is the command or the Python code that prints it; "" where nothing is said.
    `run_by` is the test that runs it, `not_run` the reason why none does; "" where it is run with its page.
    """

    page: Path
    language: str
    text: str
    printed_by: str
    run_by: str
    not_run: str
    is_code: bool
    span: tuple[int, int]
    indent: str


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, those inside lists included."""
    content = page.read_text(encoding="utf-8")
    code, end = "", 0
    for match in FENCE.finditer(content):
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M)
        follows = bool(code) and not content[end : match.start()].strip()
        said = {match["mark"]: match["said"]}
        printed_by = said.get("printed by") or (code if follows else "")
        yield Block(
            page=page,
            language=match["language"],
            text=text,
            printed_by=printed_by if match["language"] == "text" else "",
            run_by=said.get("run by", ""),
            not_run=said.get("not run", ""),
            is_code=follows and "printed by" not in said,
            span=match.span("text"),
            indent=match["indent"],
        )
        code, end = (text if match["language"] == "python" else ""), match.end()


def printed_blocks() -> list[Block]:
    """The text blocks of all pages that a command or Python code prints."""
    return [block for page in PAGES for block in blocks(page) if block.printed_by]


def chain() -> list[str]:
    """The commands from recordings to an inflated checkpoint, as the log of experiments has them."""
    return next(
        block.text.splitlines() for block in blocks(EXPERIMENTS) if block.text.startswith("biofound prepare")
    )


def full_command(short: str) -> str:
    """The command of the chain that begins with `short`, else `short` itself."""
    return next((command for command in chain() if command.startswith(f"{short} ")), short)


def run_all(directory: Path, *, bidmc: Path, run: Run) -> dict[str, str]:
    """What every documented command and code block prints, by `Block.printed_by`.

    Args:
        directory: an empty directory to run them in.
        bidmc: the recordings, found as `bidmc` there.
        run: how Python is run.

    Raises:
        RuntimeError: when a command of the chain fails.
    """
    quick = directory / "quick"
    quick.mkdir()
    (directory / "bidmc").symlink_to(bidmc)
    printed = {}

    def keep(key: str, arguments: Sequence[str]) -> None:
        exit_code, printed[key] = run(arguments, quick if key == QUICK else directory)
        if exit_code and key in chain():
            raise RuntimeError(f"{key}\n{printed[key]}\nended with exit code {exit_code}")

    found = printed_blocks()
    named = [full_command(block.printed_by) for block in found if not block.is_code]
    for command in dict.fromkeys([*chain(), *named]):
        keep(command, ["-m", *shlex.split(command)])
    for block in found:
        if block.is_code:
            keep(block.printed_by, ["-c", block.printed_by])
    return {
        block.printed_by: printed[full_command(block.printed_by)].replace(f"{directory}/", "")
        for block in found
    }


def run_process(arguments: Sequence[str], directory: Path) -> tuple[int, str]:
    """Run Python in a process of its own; its standard output and standard error together."""
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**kept, "PYTHONPATH": str(ROOT)},  # this working tree, wherever another is installed
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    return done.returncode, done.stdout


# ---------------------------------------------------------------------------------------------------------
# Comparison


@dataclass
class Line:
    """A line as it is compared: `words` without the table's rules and widths, `raw` as it was printed."""

    words: str
    raw: str


def lines_of(text: str) -> list[Line]:
    """The lines of an output; the lines over which a table's row is wrapped are one."""
    lines: list[Line] = []
    for raw in text.splitlines():
        stripped = raw.strip()
        if UNFINISHED.match(stripped):
            continue
        cells = [cell.strip() for cell in re.split("[│┃]", stripped)[1:-1]]
        if cells and not cells[0] and lines:
            above = lines[-1].words.split(" │ ")
            words = " │ ".join(f"{a} {b}".strip() for a, b in zip(above, cells, strict=True))
            lines[-1] = Line(words, f"{lines[-1].raw}\n{raw}")
        elif cells:
            lines.append(Line(" │ ".join(cells), raw))
        else:
            lines.append(Line("---" if stripped[:1] in "┏┡└" and stripped else stripped, raw))
    return lines


def same(documented: str, printed: str, *, rtol: float | None) -> bool:
    """Whether two lines have the same words, whole numbers, and other numbers within `rtol`.

    With `rtol` None numbers are not compared.
    """
    one, other = FREE.sub("", documented), FREE.sub("", printed)
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return rtol is None or all(_close(a.replace(",", ""), b.replace(",", ""), rtol) for a, b in pairs)


def _close(one: str, other: str, rtol: float) -> bool:
    if one.isdecimal() and other.isdecimal():
        return int(one) == int(other)
    a, b = float(one), float(other)
    return abs(a - b) <= rtol * max(abs(a), abs(b)) + 1e-5


def align(documented: str, printed: str, *, rtol: float | None, repeats: bool = True) -> list[Line]:
    """The printed line for each documented one, `…` standing for any.

    With `repeats` False, lines that differ only in numbers from the one before (such as epochs) are dropped.

    Raises:
        ValueError: when a line was not printed, or one that was printed is not documented.
    """
    wanted, there = lines_of(documented), lines_of(printed)
    if not repeats:
        wanted, there = _without_repeats(wanted), _without_repeats(there)
    taken: list[Line] = []
    at, skipping = 0, False
    for line in wanted:
        if line.words == LEFT_OUT:
            skipping = True
            taken.append(line)
            continue
        while skipping and at < len(there) and not same(line.words, there[at].words, rtol=rtol):
            at += 1
        if at == len(there) or not same(line.words, there[at].words, rtol=rtol):
            came = there[at].words if at < len(there) else "the end"
            raise ValueError(f"documented: {line.words}\n   printed: {came}")
        taken.append(there[at])
        at, skipping = at + 1, False
    if at < len(there) and not skipping:
        raise ValueError(f"documented: the end\n   printed: {there[at].words}")
    return taken


def _without_repeats(lines: list[Line]) -> list[Line]:
    kept: list[Line] = []
    for line in lines:
        if not kept or not same(kept[-1].words, line.words, rtol=None):
            kept.append(line)
    return kept


# ---------------------------------------------------------------------------------------------------------
# Writing


def refreshed(block: Block, printed: str) -> str:
    """The block's text as it is printed now; where lines are left out, the lines with the same words."""
    if any(line == LEFT_OUT for line in block.text.splitlines()):
        lines = [line.raw for line in align(block.text, printed, rtol=None)]
    else:
        lines = [line.raw for line in lines_of(printed)]
    return "".join(f"{line.rstrip()}\n" for raw in lines for line in raw.splitlines())


def main() -> int:
    """Run everything, then rewrite the pages; 1 when a line with other words has to be edited by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bidmc", type=Path, required=True, help="directory of the BIDMC records")
    bidmc = parser.parse_args().bidmc.resolve(strict=True)
    with tempfile.TemporaryDirectory() as name:
        printed = run_all(Path(name), bidmc=bidmc, run=run_process)
    by_hand = 0
    for block in reversed(printed_blocks()):  # from a page's end, so that the spans before stay true
        try:
            if "Traceback" in printed[block.printed_by]:
                raise ValueError(printed[block.printed_by])
            text = refreshed(block, printed[block.printed_by])
        except ValueError as problem:
            by_hand += 1
            sys.stdout.write(f"{block.page.relative_to(ROOT)}: edit by hand:\n{problem}\n")
            continue
        indented = re.sub("^(?=.)", block.indent, text, flags=re.M)
        content = block.page.read_text(encoding="utf-8")
        start, stop = block.span
        block.page.write_text(content[:start] + indented + content[stop:], encoding="utf-8")
    return 1 if by_hand else 0


if __name__ == "__main__":
    sys.exit(main())

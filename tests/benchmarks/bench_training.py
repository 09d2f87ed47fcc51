"""Training speed of our loop, against `transformers.Trainer`, and against the machine's matrix products."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from biofound.core.devices import AUTOCAST_DTYPE
from biofound.core.losses import masked_squared_error, msm_loss
from biofound.core.models import build_model
from tests.benchmarks.contenders import CONTENDERS, contend, hidden_samples
from tests.benchmarks.ours import BATCH, MODEL, SAMPLES, WIDTH, long_store
from tests.benchmarks.timing import MB, Cost, Row, TurnTaker, in_turns, median, ratio, seconds, spread, timed

AGAINST = {
    "a": ("granite", "transformers.Trainer, granite's default TinyTimeMixer (fp32)", 4.0),
    "a2": ("granite, our shape", "the same, in our depth and expansion", None),
    "b": ("ours in Trainer", "transformers.Trainer, our model, losses and precision", 1.1),
    "b2": ("ours in Trainer, memory kept", "the same, and it keeps the memory it frees as we do", None),
    "c": ("TSPulse", "transformers.Trainer, TSPulseForReconstruction as published (fp32)", 6.0),
    "c2": ("TSPulse, our patches", "the same, in our patches and width, time only", None),
}
"""Row: the contender, what it is, and the factor by which our loop should be faster."""
PRODUCTS = 40


def training_rows(only: set[str], *, directory: Path, precision: str, threads: int, rounds: int) -> list[Row]:
    """Rows a to d, and what the STFT term costs, from one set of turns."""
    wanted = {AGAINST[key][0] for key in only & AGAINST.keys()}
    wanted |= {"ours without STFT"} if "stft" in only else set()
    wanted |= {"ours"} if wanted else set()
    wanted |= {"ours, one thread"} if "d" in only else set()
    if not wanted:
        return []
    long_store(directory / "store")
    names = [name for name in CONTENDERS if name in wanted]
    costs, peaks = measure(names, directory, precision, threads, rounds, products="d" in only)
    # On one thread processor time is what a step costs; other processes on the machine disturb it least.
    one = {"ours, one thread", *_shapes()}
    by_name = {
        name: seconds(cost, clock="cpu" if threads == 1 or name in one else "wall")
        for name, cost in costs.items()
    }
    rows = [_against(key, by_name, peaks) for key in AGAINST if key in only]
    if "d" in only:
        rows.append(_products(by_name, peaks, precision))
    if "stft" in only:
        rows.append(_stft(by_name, peaks))
    return rows


def measure(
    names: list[str], directory: Path, precision: str, threads: int, rounds: int, *, products: bool
) -> tuple[dict[str, list[Cost]], dict[str, float]]:
    """Seconds a step of each contender, in turns, and its peak of anonymous memory (bytes).

    With `products` seconds of the two matrix products too.
    """
    torch.set_num_threads(1)  # of the products
    with ExitStack() as stack:
        takers = {}
        for name in names:
            takers[name] = TurnTaker(contend, name, directory, precision, threads)
            stack.callback(takers[name].close)
        turns = {name: _a_step(taker, CONTENDERS[name].steps) for name, taker in takers.items()}
        if products:
            turns |= {shape: _product(shape, precision) for shape in _shapes()}
        costs = in_turns(turns, rounds=rounds)
    return costs, {name: taker.peak for name, taker in takers.items()}


def _a_step(taker: TurnTaker, steps: int) -> Callable[[], Cost]:
    def turn() -> Cost:
        cost = taker.turn()
        return Cost(cost.wall / steps, cost.cpu / steps)

    return turn


def _against(key: str, by_name: dict[str, list[float]], peaks: dict[str, float]) -> Row:
    name, what, target = AGAINST[key]
    theirs, ours = by_name[name], by_name["ours"]
    value = ratio(theirs, ours)
    return Row(
        key=key,
        what=f"our loop against {what}",
        value=f"{value:.2f} ×",
        spread=spread(theirs, ours),
        measured=f"{1e3 * median(ours):.0f} against {1e3 * median(theirs):.0f} ms a step",
        target="" if target is None else f"≥ {target:g} ×",
        met=None if target is None else value >= target,
        memory=_beside(peaks, "ours", name),
    )


def _stft(by_name: dict[str, list[float]], peaks: dict[str, float]) -> Row:
    ours, without = by_name["ours"], by_name["ours without STFT"]
    extra = [a - b for a, b in zip(ours, without, strict=True)]
    share = 1 - median(without) / median(ours)
    return Row(
        key="stft",
        what="share of a step that the STFT term takes",
        value=f"{share:.1%}",
        spread=spread(extra, ours, "{:.1%}"),
        measured=f"{1e3 * median(ours):.0f} ms with, {1e3 * median(without):.0f} ms without",
        target="≤ 16.7 %",
        met=share <= 1 / 6,
        memory=_beside(peaks, "ours", "ours without STFT"),
    )


# ---------------------------------------------------------------------------------------------------------
# Matrix products


def _shapes() -> dict[str, tuple[int, int, int]]:
    """Products (m, k) by (k, n): the one our model makes most of, and a large square one."""
    rows = BATCH * len(MODEL.channels) * MODEL.patches
    return {"model": (rows, WIDTH, MODEL.expansion_factor * WIDTH), "square": (2048, 2048, 2048)}


def _product(shape: str, precision: str) -> Callable[[], Cost]:
    m, k, n = _shapes()[shape]
    dtype = AUTOCAST_DTYPE.get(precision, torch.float32)
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    out = torch.empty(m, n, dtype=dtype)  # given, so that no fresh pages are paid for

    def work() -> None:
        for _ in range(PRODUCTS if shape == "model" else 4):
            torch.mm(a, b.T, out=out)

    return lambda: timed(work, steps=PRODUCTS if shape == "model" else 4)


def step_flops() -> int:
    """Floating-point operations of one step's matrix products, forward and backward, without the STFT's."""
    model = build_model(MODEL, seed=0)
    with FlopCounterMode(display=False) as counter:
        out = model(torch.randn(BATCH, len(MODEL.channels), SAMPLES), hidden_samples(BATCH))
        torch.autograd.backward(msm_loss(masked_squared_error(out.values, out.target, out.loss_mask)))
    return counter.get_total_flops()


def _products(by_name: dict[str, list[float]], peaks: dict[str, float], precision: str) -> Row:
    flops = step_flops()
    rates = {}
    for shape, (m, k, n) in _shapes().items():
        rates[shape] = [2 * m * k * n / s for s in by_name[shape]]
    best = max(rates, key=lambda shape: median(rates[shape]))
    ours = [flops / s for s in by_name["ours, one thread"]]
    share = ratio(ours, rates[best])
    both = ", ".join(f"{median(rate) / 1e9:.0f} ({shape})" for shape, rate in rates.items())
    return Row(
        key="d",
        what=f"on one thread, our step's share of the rate of matrix products in {precision}",
        value=f"{share:.0%}",
        spread=spread(ours, rates[best], "{:.0%}"),
        measured=f"{median(ours) / 1e9:.0f} of {both} GFLOP/s; {flops / 1e9:.1f} GFLOP a step",
        target="≥ 40 %",
        met=share >= 0.4,
        memory=_beside(peaks, "ours, one thread"),
    )


def _beside(peaks: dict[str, float], *names: str) -> str:
    return " / ".join(f"{peaks[name] / MB:.0f}" for name in names)

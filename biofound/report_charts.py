"""Geometry of a report's pictures: line charts and signals as SVG paths, ticks and texts.

Sizes are in units of the SVG's view box, of which a narrow phone shows about one a pixel. The template draws
what is here; colours and dashes are its style sheet's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 36
SIGNAL_HEIGHT, SIGNAL_TOP, SIGNAL_BOTTOM = 104, 6, 30
EDGES = {
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "top": TOP,
    "bottom": HEIGHT - BOTTOM,
    "signal_top": SIGNAL_TOP,
    "signal_bottom": SIGNAL_HEIGHT - SIGNAL_BOTTOM,
}
"""Where the axes are, for the template."""
MAX_POINTS = 300
"""Points of a line by step; more are averaged."""
SIGNAL_BINS = 300
"""Columns of a signal with more samples than that: each is drawn from its lowest to its highest sample."""
DOTTED_UP_TO = 20
"""Points of a strong line up to which each also has a dot; a point without neighbours always has one."""

Numbers = Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values `y` at `x`, None where nothing was measured; `kind` are classes of the style sheet."""

    label: str
    kind: str
    x: Sequence[float]
    y: Numbers

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points with a value."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A drawn series: `last` is its last value as text."""

    label: str
    kind: str
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark at `at` on an axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line chart; `description` says in words what it shows, `mark` is where a dotted line stands."""

    title: str
    note: str
    x_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    mark: float | None
    description: str


@dataclass(frozen=True, kw_only=True)
class SignalPlot:
    """Signals over seconds: `paths` are (kind, path), `hidden` (left, width) the spans that are shaded."""

    title: str
    unit: str
    paths: tuple[tuple[str, str], ...]
    hidden: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    description: str


def number(value: float | None) -> str:
    """A number in four digits; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, note: str = "", mark: float | None = None
) -> Chart | None:
    """Draw series over a common axis, from 0 where no value is below; None where nothing was measured."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    every = [point for one in drawn for point in one.points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x_ticks = nice_ticks(min(xs), max(xs), 6, whole=True)
    y_ticks = nice_ticks(min(0.0, *ys), max(0.0, *ys), 5)
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, min(xs) + 0.5)
    y_range = (y_ticks[0], y_ticks[-1])

    def at_x(x: float) -> float:
        return round(LEFT + (x - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(
            HEIGHT - BOTTOM - (y - y_range[0]) / (y_range[1] - y_range[0]) * (HEIGHT - BOTTOM - TOP), 1
        )

    lines = []
    for one in drawn:
        placed = [None if y is None else (at_x(x), at_y(y)) for x, y in zip(one.x, one.y, strict=True)]
        few = len(one.points) <= DOTTED_UP_TO and one.kind.endswith("strong")
        dots = tuple(
            point
            for before, point, after in zip([None, *placed], placed, [*placed[1:], None], strict=False)
            if point is not None and (few or (before is None and after is None))
        )
        lines.append(
            Line(
                label=one.label,
                kind=one.kind,
                path=_path(placed),
                dots=dots,
                last=number(one.points[-1][1]),
            )
        )
    in_words = "; ".join(_in_words(one, x_label) for one in drawn)
    return Chart(
        title=title,
        note=note,
        x_label=x_label,
        lines=tuple(lines),
        x_ticks=tuple(Tick(at=at_x(x), text=f"{x:g}") for x in x_ticks if x_range[0] <= x <= x_range[1]),
        y_ticks=tuple(Tick(at=at_y(y), text=f"{y:g}") for y in y_ticks),
        mark=None if mark is None or not x_range[0] <= mark <= x_range[1] else at_x(mark),
        description=f"Line chart of {title} by {x_label}. {in_words}.",
    )


def _in_words(series: Series, x_label: str) -> str:
    (x, y), (last_x, last_y) = series.points[0], series.points[-1]
    label = series.label or "value"
    if len(series.points) == 1:
        return f"{label}: {number(y)} at {x_label} {number(x)}"
    return f"{label}: {number(y)} at {x_label} {number(x)}, {number(last_y)} at {x_label} {number(last_x)}"


def by_bins(values: Numbers, take: Literal["mean", "largest"]) -> tuple[list[int], list[float | None], int]:
    """At most `MAX_POINTS` values: the mean or the largest (`take`) of as many neighbours each.

    Returns:
        the place of the last neighbour of each; the values; the number of neighbours.
    """
    width = math.ceil(len(values) / MAX_POINTS)
    bins = [values[start : start + width] for start in range(0, len(values), max(width, 1))]
    known = [[value for value in one if value is not None] for one in bins]
    places = [min(len(values), (place + 1) * width) - 1 for place in range(len(bins))]
    reduced = [None if not one else max(one) if take == "largest" else sum(one) / len(one) for one in known]
    return places, reduced, width


def nice_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """At most `most` round numbers, and a few more, that reach from `low` or below to `high` or above."""
    if high <= low:
        low, high = (low, low + 1) if whole or low >= 0 else (low, 0.0)
    raw = (high - low) / max(most - 1, 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """An SVG path through the points, with a gap at each None."""
    words = []
    pen_down = False
    for point in points:
        if point is not None:
            words.append(f"{'L' if pen_down else 'M'}{point[0]:g} {point[1]:g}")
        pen_down = point is not None
    return "".join(words)


def signal_plot(
    title: str,
    lines: Sequence[tuple[str, NDArray[np.float32]]],
    *,
    unit: str,
    seconds: float,
    hidden: NDArray[np.bool_] | None = None,
) -> SignalPlot:
    """Draw signals that all last `seconds`.

    Args:
        title: the name of the channel.
        lines: kind and samples (T,) of each signal, NaN in gaps; T may differ, and be 0.
        unit: the unit of the samples.
        seconds: their length.
        hidden: (T,) bool, True where the encoder did not see the samples.
    """
    every = np.concatenate([samples for _, samples in lines])
    known = every[np.isfinite(every)].astype(np.float64)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    bottom, height = SIGNAL_HEIGHT - SIGNAL_BOTTOM, SIGNAL_HEIGHT - SIGNAL_BOTTOM - SIGNAL_TOP
    width = WIDTH - LEFT - RIGHT

    def at_y(y: float) -> float:
        return round(bottom - (y - low) / (high - low) * height, 1)

    paths = []
    for kind, samples in lines:
        x, y = _columns(samples)
        placed = [
            (round(LEFT + float(u) * width, 1), at_y(float(v))) if np.isfinite(v) else None
            for u, v in zip(x, y, strict=True)
        ]
        paths.append((kind, _path(placed)))
    gaps = "" if len(known) else " No sample was recorded in it."
    return SignalPlot(
        title=title,
        unit=unit,
        paths=tuple(paths),
        hidden=() if hidden is None else tuple(_spans(hidden, width)),
        x_ticks=tuple(
            Tick(at=round(LEFT + x / seconds * width, 1), text=number(x))
            for x in nice_ticks(0.0, seconds, 3)
            if x <= seconds
        ),
        y_ticks=tuple(Tick(at=at_y(y), text=f"{y:.3g}") for y in (low, high)) if len(known) else (),
        description=f"{title} over {seconds:g} seconds, from {number(low)} to {number(high)} {unit}.{gaps}",
    )


def _columns(samples: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples (T,) at their place in [0, 1]; of many the lowest and highest of each column, in order."""
    place = (np.arange(len(samples)) + 0.5) / max(len(samples), 1)
    if len(samples) <= 2 * SIGNAL_BINS:
        return place, samples.astype(np.float64)
    kept = []
    for column in np.array_split(np.arange(len(samples)), SIGNAL_BINS):
        values = samples[column]
        if np.isfinite(values).all():
            kept += sorted({int(column[values.argmin()]), int(column[values.argmax()])})
        else:  # a gap ends the line here
            known = column[np.isfinite(values)]
            kept += [*known[:1].tolist(), int(column[~np.isfinite(values)][0])]
    kept = sorted(set(kept))
    return place[kept], samples[kept].astype(np.float64)


def _spans(hidden: NDArray[np.bool_], width: float) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hidden, [False]]).astype(np.int8)))
    scale = width / len(hidden)
    return [
        (round(LEFT + start * scale, 1), round((stop - start) * scale, 1))
        for start, stop in edges.reshape(-1, 2).tolist()
    ]

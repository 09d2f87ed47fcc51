"""Charts of the report: points where they belong, gaps left open, extremes kept, ticks round."""

import re

import numpy as np
import pytest

from biofound import report_charts as charts
from biofound.report_charts import Series, by_bins, line_chart, nice_ticks, signal_plot


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([\d.-]+)", path)]


def drawn(y, **more):
    return line_chart(
        "t", [Series(label="a", kind="a", x=range(1, len(y) + 1), y=y)], x_label="epoch", **more
    )


def test_points_lie_between_the_corners_of_the_axes() -> None:
    chart = drawn([2.0, 0.0, 1.0])
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    assert points(chart.lines[0].path) == [
        (left, top),
        ((left + right) / 2, bottom),
        (right, (top + bottom) / 2),
    ]
    assert [tick.text for tick in chart.y_ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert [tick.text for tick in chart.x_ticks] == ["1", "2", "3"]
    assert chart.description == "Line chart of t by epoch. a: 2 at epoch 1, 1 at epoch 3."


def test_what_was_not_measured_is_a_gap_and_a_lonely_point_is_a_dot() -> None:
    path = drawn([1.0, 2.0, None, 3.0, 4.0]).lines[0].path
    assert path.count("M") == 2 and len(points(path)) == 4
    many = [1.0] * 30 + [None, 5.0, None]
    assert len(drawn(many).lines[0].dots) == 1
    assert drawn([1.0, 2.0]).lines[0].dots == ()
    one = drawn([0.7])
    assert len(one.lines[0].dots) == 1
    assert one.description == "Line chart of t by epoch. a: 0.7 at epoch 1."
    assert drawn([None, None]) is None


def test_a_mark_outside_of_the_axis_is_not_drawn() -> None:
    assert drawn([1.0, 2.0], mark=1).mark == charts.LEFT
    assert drawn([1.0, 2.0], mark=7).mark is None


@pytest.mark.parametrize("bounds", [(0, 1), (0, 2.81), (-3, 0.2), (0, 1e-7), (0, 123456), (5, 5), (0, 0)])
def test_ticks_are_even_and_reach_around_the_values(bounds: tuple[float, float]) -> None:
    ticks = nice_ticks(*bounds, 5)
    assert ticks[0] <= bounds[0] + 1e-12 and ticks[-1] >= bounds[1] - 1e-12
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)
    whole = nice_ticks(*bounds, 5, whole=True)
    assert all(tick == int(tick) for tick in whole)


def test_many_steps_are_reduced_without_losing_the_largest() -> None:
    values = np.random.default_rng(0).random(10_000).tolist()
    places, largest, width = by_bins(values, "largest")
    assert len(places) <= charts.MAX_POINTS and places[-1] == 9_999
    assert max(largest) == max(values)
    _, means, _ = by_bins(values, "mean")
    assert means[0] == pytest.approx(np.mean(values[:width]))
    assert by_bins([], "mean") == ([], [], 0)


def test_a_long_signal_keeps_its_extremes_and_its_gaps() -> None:
    samples = np.zeros(5000, np.float32)
    samples[1234], samples[4321] = 3.0, -2.0
    place, kept = charts._columns(samples)
    assert (kept.max(), kept.min()) == (3.0, -2.0)
    assert len(kept) <= 2 * charts.SIGNAL_BINS and (np.diff(place) > 0).all()
    samples[2000:3000] = np.nan
    plot = signal_plot("ECG", [("signal", samples)], unit="mV", seconds=10.0)
    assert plot.paths[0][1].count("M") == 2
    assert plot.description == "ECG over 10 seconds, from -2 to 3 mV."


def test_hidden_spans_are_where_the_mask_is() -> None:
    hidden = np.zeros(100, np.bool_)
    hidden[:10] = hidden[50:] = True
    plot = signal_plot("PPG", [("signal", np.ones(100, np.float32))], unit="", seconds=1.0, hidden=hidden)
    width = charts.WIDTH - charts.LEFT - charts.RIGHT
    expected = [(charts.LEFT, 0.1 * width), (charts.LEFT + 0.5 * width, 0.5 * width)]
    np.testing.assert_allclose(plot.hidden, expected, atol=0.06)


def test_a_window_without_a_sample_says_so() -> None:
    plot = signal_plot("ECG", [("signal", np.full(10, np.nan, np.float32))], unit="mV", seconds=1.0)
    assert plot.paths == (("signal", ""),) and "No sample was recorded" in plot.description

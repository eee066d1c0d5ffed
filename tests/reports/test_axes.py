"""The frame that figures are drawn on: places and lengths are those of the numbers."""

from __future__ import annotations

import re

import polars as pl
import pytest

from recsys.reports.axes import RIGHT, TOP, Axes, around, tick_words, ticks
from recsys.reports.figures import forest, line_panel, metric_by_k, slice_bars
from recsys.reports.style import PANEL_WIDTH


def points(svg: str) -> list[tuple[float, float]]:
    """The corners of the only line."""
    (found,) = re.findall(r'polyline points="([^"]+)"', svg)
    return [(float(x), float(y)) for x, y in (point.split(",") for point in found.split())]


def test_a_line_goes_from_corner_to_corner() -> None:
    """On scales from 0 to 10 and 0 to 1, a frame from 20 to 312 across and 8 to 76 down: (5, .5) is its middle."""
    axes = Axes.of(100, (0.0, 10.0), (0.0, 1.0), left=20.0, bottom=24.0)
    axes.line([0, 5, 10], [0.0, 0.5, 1.0], "#123456", dots=False)
    assert points(axes.svg("")) == [(20.0, 76.0), (166.0, 42.0), (PANEL_WIDTH - RIGHT, TOP)]


def test_equal_ratios_are_equal_steps_where_the_scale_is_logarithmic() -> None:
    axes = Axes.of(100, (1.0, 100.0), (0.0, 1.0), log_x=True)
    axes.line([1, 10, 100], [0.0, 0.0, 0.0], "#123456", dots=False)
    first, middle, last = (x for x, _ in points(axes.svg("")))
    assert middle == pytest.approx((first + last) / 2, abs=0.06)


def test_an_unknown_number_leaves_a_gap_in_line_and_band() -> None:
    axes = Axes.of(100, (0.0, 4.0), (0.0, 1.0))
    axes.line([0, 1, 2, 3, 4], [0.1, 0.2, None, float("nan"), 0.3], "#123456", dots=False)
    axes.band([0, 1, 2], [0.1, 0.1, None], [0.2, 0.2, 0.2], "#123456")
    svg = axes.svg("")
    assert len(points(svg)) == 2
    assert svg.count("<circle") == 1
    (band,) = re.findall(r'polygon points="([^"]+)"', svg)
    assert len(band.split()) == 4


def test_bars_are_as_long_as_their_numbers_and_as_thick_as_they_should_be() -> None:
    """A frame of 292 across for 0 to 10, of 68 down for two rows: 5 is half as long, and .5 of a row is 17 thick."""
    axes = Axes.of(100, (0.0, 10.0), (2.0, 0.0), left=20.0, bottom=24.0)
    axes.bar(0.5, 0.5, 10.0, "#123456")
    axes.bar(1.5, 0.5, 5.0, "#123456")
    found = re.findall(r'<rect x="20.0" y="([0-9.]+)" width="([0-9.]+)" height="([0-9.]+)"', axes.svg(""))
    assert found == [("16.5", "292.0", "17.0"), ("50.5", "146.0", "17.0")]


def test_an_interval_without_an_end_is_not_drawn() -> None:
    axes = Axes.of(100, (0.0, 1.0), (0.0, 1.0))
    axes.interval(0.5, None, 0.4, "#123456")
    assert not axes.parts
    axes.interval(0.5, 0.0, 1.0, "#123456")
    assert f"M16.0 42.0H{PANEL_WIDTH - RIGHT:.1f}" in axes.parts[0]


def test_words_are_escaped() -> None:
    axes = Axes.of(100, (0.0, 1.0), (0.0, 1.0))
    axes.text(0, 0, "<b> & c", "start")
    assert "&lt;b&gt; &amp; c" in axes.svg("a < b")
    assert 'aria-label="a &lt; b"' in axes.svg("a < b")


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (-3e-9, 2e-9), (0.1693, 0.1699), (0.0, 123456.0), (-5.0, 5.0), (1e8, 2e8)]
)
def test_ticks_are_round_inside_and_told_apart(ends: tuple[float, float]) -> None:
    places = ticks(*ends)
    assert 2 <= len(places) <= 6
    assert all(ends[0] - 1e-9 * abs(ends[0]) <= place <= ends[1] * (1 + 1e-9) for place in places)
    assert len(set(tick_words(places))) == len(places)


def test_whole_ticks_and_ends_of_one_number() -> None:
    assert ticks(0.8, 3.2, whole=True) == [1.0, 2.0, 3.0]
    assert around([10.0], log=True) == (10.0 / 1.5, 15.0)
    assert around([float("nan"), None]) == (0.0, 1.0)
    low, high = around([2.0, 2.0])
    assert low < 2.0 < high


METRICS = pl.DataFrame(
    {
        "system": ["a", "b", "a", "b"],
        "slice": ["all", "all", "new", "new"],
        "metric": ["ndcg@10"] * 4,
        "exclude_seen": [True] * 4,
        "rows": [10, 10, 3, 3],
        "mean": [0.2, 0.1, None, float("nan")],
        "low": [0.1, None, None, None],
        "high": [0.3, None, None, None],
    }
)


def test_a_bar_is_twice_as_long_for_twice_the_mean_and_an_unknown_one_says_so() -> None:
    svg = slice_bars(METRICS, ["a", "b"], "ndcg@10", True)
    first, second = (float(width) for width in re.findall(r'<rect [^>]*width="([0-9.]+)"', svg))
    assert first == pytest.approx(2 * second, abs=0.11)
    assert svg.count("not measured") == 2
    assert "new, 3 rows" in svg


def test_lines_by_cut_off_leave_out_what_is_not_known() -> None:
    svg = metric_by_k(METRICS, ["a", "b"], True)
    assert svg.count("<circle") == 2  # one for each system with a number, all cut-offs being one
    assert svg.count("<svg role") == 4


def test_a_difference_right_of_the_dashed_line_is_positive() -> None:
    comparisons = pl.DataFrame(
        {
            "system": ["b", "c"],
            "metric": ["ndcg@10"] * 2,
            "exclude_seen": [True] * 2,
            "difference": [0.1, None],
            "low": [-0.1, None],
            "high": [0.3, None],
        }
    )
    svg = forest(comparisons, ["ndcg@10"], ["a", "b", "c"])
    (zero,) = re.findall(r'<line x1="([0-9.]+)" x2="\1"[^>]*dasharray', svg)
    (place,) = re.findall(r'<circle cx="([0-9.]+)"', svg)
    assert float(place) > float(zero)
    assert svg.count("v6M") == 1


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [float("nan")] * 2, [1e-7, 2e-7]])
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    line = pl.DataFrame({"step": range(len(values)), "value": values}, schema={"step": pl.Int64, "value": pl.Float64})
    svg = line_panel("loss", "", {"x": line, "y": line}, "step")
    assert svg.count('class="legend"') == 1
    assert "nan" not in svg.lower().replace("nanmean", "")

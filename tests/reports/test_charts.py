"""Charts written by hand: places and lengths are those of the numbers."""

from __future__ import annotations

import re

import pytest

from recsys.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, line_chart, row_chart
from recsys.reports.style import PANEL_WIDTH


def test_a_line_goes_from_corner_to_corner() -> None:
    """0, 5, 10 on an axis that ends at 10: from the lower left to the upper right."""
    svg = line_chart("Events", "", {"events": [0, 5, 10]}, ["a", "b", "c"])
    (points,) = re.findall(r'polyline points="([^"]+)"', svg)
    assert [tuple(float(x) for x in point.split(",")) for point in points.split()] == [
        (LEFT, HEIGHT - BOTTOM),
        pytest.approx(((LEFT + PANEL_WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2), abs=0.06),
        (PANEL_WIDTH - RIGHT, TOP),
    ]


def test_a_gap_breaks_the_line_and_one_point_alone_is_a_dot() -> None:
    svg = line_chart("Rate", "", {"rate": [0.1, 0.2, None, 0.3]}, ["a", "b", "c", "d"], percent=True)
    assert svg.count("<polyline") == 1
    assert svg.count("<circle") == 1


def test_several_lines_have_a_legend_and_names_are_escaped() -> None:
    svg = line_chart("A & B", "", {"<x>": [1.0], "y": [2.0]}, ["a"])
    assert "&lt;x&gt;" in svg
    assert "<x>" not in svg
    assert "A &amp; B" in svg


def test_bars_are_as_long_as_their_numbers_and_empty_ends_are_left_out() -> None:
    svg = row_chart("Lengths", "", [("0", 0), ("1", 50), ("2–3", 0), ("4–7", 100), ("8–15", 0)])
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([0-9.]+)"', svg)]
    assert len(widths) == 3
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.1)
    assert ">0<" not in svg.replace('text-anchor="end">0', "").replace(">0</text>", "", 1)


@pytest.mark.parametrize("values", [[], [None, None], [0.0]])
def test_nothing_to_draw_is_no_error(values: list[float | None]) -> None:
    assert "<svg" in line_chart("Empty", "", {"x": values}, [str(place) for place in range(len(values))])
    assert "<svg" in row_chart("Empty", "", [])

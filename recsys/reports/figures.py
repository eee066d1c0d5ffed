"""Figures of the reports as inline SVG: no files, no scripts, readable on light and dark pages, from 320 pixels up.

Reads the tables that :func:`~recsys.evaluation.evaluate.evaluate` wrote, and curves. A figure is a grid of panels, each an
``<svg>`` of its own with its heading and a word on how to read it, so that a narrow page stacks them and no letter gets
smaller. What a panel is drawn with: :mod:`recsys.reports.axes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import polars as pl

from recsys.reports.axes import Axes, Number, around, room_for, tick_words, ticks
from recsys.reports.html import as_panel, grid
from recsys.reports.style import PALETTE

DASHES: Final = ("", "6 3", "2 3")
"""With more lines than colours the colours come again, dashed."""
INK: Final = "currentColor"
"""The page's text colour."""
HEIGHT: Final = 210.0
UNDER: Final = 40.0
"""Room under a frame whose axis has a label."""


def colours(systems: Sequence[str]) -> dict[str, str]:
    """Give every system the same colour in all figures."""
    return {system: PALETTE[place % len(PALETTE)] for place, system in enumerate(systems)}


def dashes(systems: Sequence[str]) -> dict[str, str]:
    """The dash pattern of every system's line, as SVG writes it; empty for a whole line."""
    return {system: DASHES[place // len(PALETTE) % len(DASHES)] for place, system in enumerate(systems)}


def legend_of(systems: Sequence[str]) -> str:
    """Return a legend that wraps like text."""
    pattern = dashes(systems)
    entries = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="{colour}" '
        f'stroke-width="3.5" stroke-dasharray="{pattern[name]}"/></svg>{escape(name)}</li>'
        for name, colour in colours(systems).items()
    )
    return f'<ul class="legend">{entries}</ul>'


FILTERS: Final = {True: "seen items filtered", False: "seen items kept"}


def forest(comparisons: pl.DataFrame, metrics: Sequence[str], systems: Sequence[str]) -> str:
    """Draw paired differences (reference minus system) with their intervals, one panel per metric."""
    rows = [system for system in systems if system in set(comparisons["system"])]
    filters = [exclude for exclude in FILTERS if exclude in set(comparisons["exclude_seen"])]
    colour_of = colours([FILTERS[exclude] for exclude in filters])

    def drawn(metric: str) -> str:
        part = comparisons.filter(pl.col("metric") == metric)
        known = [number for name in ("difference", "low", "high") for number in _numbers(part, name)]
        axes = Axes.of(50 + 44.0 * len(rows), around([0.0, *known]), (len(rows) - 0.4, -0.6))
        places = ticks(axes.x.low, axes.x.high, 4)
        axes.x_ticks(places, tick_words(places))
        axes.upright(0.0)
        for offset, exclude in zip((0.08, 0.3) if len(filters) > 1 else (0.15,), filters, strict=True):
            colour = colour_of[FILTERS[exclude]]
            for found in part.filter(pl.col("exclude_seen") == exclude).iter_rows(named=True):
                if found["difference"] is not None:
                    place = rows.index(found["system"]) + offset
                    axes.interval(place, found["low"], found["high"], colour)
                    axes.dot(found["difference"], place, colour)
        for row, system in enumerate(rows):
            axes.text(axes.left + 4, axes.y(row - 0.2) + 4, system, "start", halo=True)
        heading = f"{metric}: reference minus system"
        return as_panel(heading, "", axes.svg(heading))

    return grid([drawn(metric) for metric in metrics], legend_of(list(colour_of)))


METRIC_WORDS: Final = {
    "hr": "Share of rows with at least one right item among the first k.",
    "recall": "Share of the right items that stand among the first k.",
    "ndcg": "Like recall, but a right item counts more the higher it stands.",
    "mrr": "One divided by the place of the first right item.",
}


def metric_by_k(metrics: pl.DataFrame, systems: Sequence[str], exclude_seen: bool) -> str:
    """Draw hit rate, recall, NDCG and MRR against k, one line per system."""
    part = metrics.filter((pl.col("slice") == "all") & (pl.col("exclude_seen") == exclude_seen)).with_columns(
        base=pl.col("metric").str.split("@").list.first(),
        k=pl.col("metric").str.split("@").list.last().cast(pl.Int64),
    )
    ks = sorted(set(part["k"]))
    colour_of, dash_of = colours(systems), dashes(systems)

    def drawn(name: str, words: str) -> str:
        own = part.filter((pl.col("base") == name) & pl.col("system").is_in(systems)).sort("k")
        known = [number for column in ("mean", "low", "high") for number in _numbers(own, column)]
        axes = _frame(around(ks, log=True), around(known), log_x=True)
        axes.x_ticks(ks, [str(k) for k in ks], label="k")
        for system in systems:
            line = own.filter(pl.col("system") == system)
            mean, low, high = (_numbers(line, column) for column in ("mean", "low", "high"))
            axes.band(line["k"].to_list(), low, high, colour_of[system])
            axes.line(line["k"].to_list(), mean, colour_of[system], dash_of[system], dots=True)
        return as_panel(f"{name}@k", words, axes.svg(f"{name}@k"))

    return grid([drawn(name, words) for name, words in METRIC_WORDS.items()], legend_of(systems))


def slice_bars(metrics: pl.DataFrame, systems: Sequence[str], metric: str, exclude_seen: bool) -> str:
    """Draw one metric in every slice that has rows: a panel per slice, a bar with its interval per system."""
    part = metrics.filter(
        (pl.col("metric") == metric) & (pl.col("exclude_seen") == exclude_seen) & (pl.col("rows") > 0)
    )
    slices = {row["slice"]: row["rows"] for row in part.iter_rows(named=True)}
    known = [number for column in ("mean", "high") for number in _numbers(part, column) if number is not None]
    longest = max(known, default=0.0) * 1.05 or 1.0

    def drawn(name: str) -> str:
        values = {row["system"]: row for row in part.filter(pl.col("slice") == name).iter_rows(named=True)}
        axes = Axes.of(40 + 35.0 * len(systems), (0.0, longest), (len(systems) - 0.4, -0.6))
        places = ticks(0.0, longest, 4)
        axes.x_ticks(places, tick_words(places))
        for place, (system, colour) in enumerate(colours(systems).items()):
            mean, low, high = (_number(values[system][key]) for key in ("mean", "low", "high"))
            if mean is not None:
                axes.bar(place + 0.22, 0.36, mean, colour)
                axes.interval(place + 0.22, low, high, INK)
            said = "not measured" if mean is None else f"{mean:.4f}"
            axes.text(axes.left + 4, axes.y(place - 0.2) + 4, f"{system} · {said}", "start", halo=True)
        heading = f"{name.replace('_', ' ')}, {slices[name]:,} rows"
        return as_panel(heading, "", axes.svg(heading))

    return grid([drawn(name) for name in slices])


def line_panel(heading: str, words: str, lines: Mapping[str, pl.DataFrame], axis: str, label: str = "") -> str:
    """Draw curves that share an axis.

    Args:
        lines: By name: columns ``axis`` and ``value``.
        axis: Column for the horizontal axis.
        label: Text under it; the column's name where empty.
    """
    names = list(lines)
    colour_of, dash_of = colours(names), dashes(names)
    across = around([number for line in lines.values() for number in _numbers(line, axis)])
    axes = _frame(across, around([number for line in lines.values() for number in _numbers(line, "value")]))
    places = ticks(*across, whole=axis != "epoch" or across[1] - across[0] > 1)
    axes.x_ticks(places, tick_words(places), label=label or axis)
    for name, line in lines.items():
        ordered = line.sort(axis)
        numbers, dots = _numbers(ordered, "value"), len(ordered) <= 40
        axes.line(ordered[axis].to_list(), numbers, colour_of[name], dash_of[name], dots=dots)
    drawn = as_panel(heading, words, axes.svg(heading))
    return drawn.replace("</figcaption>", f"{legend_of(names)}</figcaption>", 1) if len(names) > 1 else drawn


def _frame(x: tuple[float, float], y: tuple[float, float], *, log_x: bool = False) -> Axes:
    """A frame with level grid lines, as far to the right as their numbers need."""
    places = ticks(*y)
    axes = Axes.of(HEIGHT, x, y, left=room_for(tick_words(places)), bottom=UNDER, log_x=log_x)
    axes.y_ticks(places)
    return axes


def _numbers(table: pl.DataFrame, column: str) -> list[Number]:
    return [_number(value) for value in table[column].cast(pl.Float64).to_list()]


def _number(value: float | None) -> Number:
    return None if value is None or value != value else float(value)

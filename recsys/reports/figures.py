"""Figures of the reports as inline SVG: no files, no scripts, readable on light and dark pages, from 320 pixels up.

Reads the tables that :func:`~recsys.evaluation.evaluate.evaluate` wrote, and curves. A figure is a grid of panels, each an
``<svg>`` of its own with its heading and a word on how to read it, so that a narrow page stacks them and no letter gets
smaller. Text and axes take the colour of the page (``currentColor``); the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recsys.reports.html import as_panel, grid
from recsys.reports.style import PALETTE, PANEL_WIDTH

INK: Final = "#010203"
"""Stands for the page's text colour until the figure is written."""

PAPER: Final = "#010204"
"""Stands for the colour of the card behind the figure."""

DASHES: Final = ("", "6 3", "2 3")
"""With more lines than colours the colours come again, dashed."""

STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "recsys",
    "font.family": ["sans-serif"],
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#8888884d",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def panel(heading: str, words: str, draw: Callable[[Axes], None], height: float = 210) -> str:
    """Draw one panel: heading, how to read it, and the figure.

    Args:
        heading: Plain text.
        words: Plain text, may be empty.
        draw: Draws on the axes.
        height: In the units of :data:`PANEL_WIDTH`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PANEL_WIDTH / 72, height / 72), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        svg = inline_svg(figure, heading)
    return as_panel(heading, words, svg)


def inline_svg(figure: Figure, label: str) -> str:
    """Return the figure as an ``<svg>`` element that scales with the page.

    Args:
        label: What it shows, for readers who cannot see it; plain text.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return _own_names(text.replace(INK, "currentColor").replace(PAPER, "var(--card)").strip(), label)


def _own_names(svg: str, label: str) -> str:
    """Keep names that the figure refers to, made its own; drop the others, which every figure has alike."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    own = hashlib.sha256((label + svg).encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{own}-{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{own}-", svg)


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


def _line_style(pattern: str) -> Any:
    return (0, tuple(float(part) for part in pattern.split())) if pattern else "-"


FILTERS: Final = {True: "seen items filtered", False: "seen items kept"}


def forest(comparisons: pl.DataFrame, metrics: Sequence[str], systems: Sequence[str]) -> str:
    """Draw paired differences (reference minus system) with their intervals, one panel per metric."""
    rows = [system for system in systems if system in set(comparisons["system"])]
    filters = [exclude for exclude in FILTERS if exclude in set(comparisons["exclude_seen"])]
    colour_of = colours([FILTERS[exclude] for exclude in filters])

    def draw(axes: Axes, metric: str) -> None:
        for offset, exclude in zip((0.08, 0.3) if len(filters) > 1 else (0.15,), filters, strict=True):
            part = comparisons.filter((pl.col("metric") == metric) & (pl.col("exclude_seen") == exclude))
            place = np.array([rows.index(system) for system in part["system"]], float) + offset
            middle, low, high = (part[name].cast(pl.Float64).to_numpy() for name in ("difference", "low", "high"))
            spread = np.nan_to_num(np.abs(np.stack([low, high]) - middle))
            axes.errorbar(middle, place, xerr=spread, fmt="o", ms=5, capsize=3, color=colour_of[FILTERS[exclude]])
        axes.axvline(0.0, color=INK, lw=1, ls="--")
        for row, system in enumerate(rows):
            _row_label(axes, row - 0.2, system)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x")

    panels = [
        panel(f"{metric}: reference minus system", "", partial(draw, metric=metric), 50 + 44 * len(rows))
        for metric in metrics
    ]
    return grid(panels, legend_of(list(colour_of)))


def _row_label(axes: Axes, place: float, text: str) -> None:
    """Write above a row, at the left, on a ground that hides the lines behind."""
    ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
    axes.text(0.012, place, text, transform=axes.get_yaxis_transform(), va="center", bbox=ground)


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

    def draw(axes: Axes, name: str) -> None:
        for system in systems:
            line = part.filter((pl.col("base") == name) & (pl.col("system") == system)).sort("k")
            mean, low, high = (
                line[c].cast(pl.Float64).fill_null(float("nan")).to_numpy() for c in ("mean", "low", "high")
            )
            style = {"color": colour_of[system], "ls": _line_style(dash_of[system])}
            axes.plot(line["k"], mean, marker="o", ms=3.5, **style)
            axes.fill_between(line["k"], low, high, color=colour_of[system], alpha=0.15, lw=0)
        axes.set_xscale("log")
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.minorticks_off()
        axes.set_xlabel("k")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid()

    return grid(
        [panel(f"{name}@k", words, partial(draw, name=name)) for name, words in METRIC_WORDS.items()],
        legend_of(systems),
    )


def slice_bars(metrics: pl.DataFrame, systems: Sequence[str], metric: str, exclude_seen: bool) -> str:
    """Draw one metric in every slice that has rows: a panel per slice, a bar with its interval per system."""
    part = metrics.filter(
        (pl.col("metric") == metric) & (pl.col("exclude_seen") == exclude_seen) & (pl.col("rows") > 0)
    )
    slices = {row["slice"]: row["rows"] for row in part.iter_rows(named=True)}
    numbers = part.select(pl.max_horizontal("mean", "high")).to_series().drop_nulls().drop_nans()
    longest = float(numbers.max() or 0.0) if len(numbers) else 0.0  # type: ignore[arg-type]

    def draw(axes: Axes, name: str) -> None:
        values = {row["system"]: row for row in part.filter(pl.col("slice") == name).iter_rows(named=True)}
        for place, (system, colour) in enumerate(colours(systems).items()):
            mean, low, high = (_number(values[system][key]) for key in ("mean", "low", "high"))
            axes.barh(place + 0.22, mean, 0.36, color=colour)
            spread = np.nan_to_num(np.array([[mean - low], [high - mean]]).clip(min=0.0))
            axes.errorbar(mean, place + 0.22, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
            said = "not measured" if np.isnan(mean) else f"{mean:.4f}"
            _row_label(axes, place - 0.2, f"{system} · {said}")
        axes.set_xlim(0.0, longest * 1.05 or 1.0)
        axes.set_ylim(len(systems) - 0.4, -0.6)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x")

    panels = [
        panel(f"{name.replace('_', ' ')}, {rows:,} rows", "", partial(draw, name=name), 40 + 35 * len(systems))
        for name, rows in slices.items()
    ]
    return grid(panels)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def line_panel(heading: str, words: str, lines: Mapping[str, pl.DataFrame], axis: str, label: str = "") -> str:
    """Draw curves that share an axis.

    Args:
        lines: By name: columns ``axis`` and ``value``.
        axis: Column for the horizontal axis.
        label: Text under it; the column's name where empty.
    """
    names = list(lines)
    colour_of, dash_of = colours(names), dashes(names)

    def draw(axes: Axes) -> None:
        for name, line in lines.items():
            ordered = line.sort(axis)
            style = {"color": colour_of[name], "ls": _line_style(dash_of[name])}
            few = len(ordered) <= 40
            axes.plot(ordered[axis], ordered["value"], lw=1.8, marker="o" if few else None, ms=3, **style)
        axes.set_xlabel(label or axis)
        if axis != "epoch":
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid()

    drawn = panel(heading, words, draw)
    return drawn.replace("</figcaption>", f"{legend_of(names)}</figcaption>", 1) if len(names) > 1 else drawn

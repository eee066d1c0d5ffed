"""Figures of the report as inline SVG: no files, no scripts, readable on light and dark pages.

Reads the tables that :func:`~recsys.evaluation.evaluate.evaluate` wrote, and training curves; each function produces
one ``<svg>`` element. Text and axes take the colour of the page (``currentColor``); the same input gives the same
bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#010203"
"""Stands for the page's text colour until the figure is written."""

PALETTE: Final = ("#3b7dd8", "#e08e0b", "#23a26d", "#c2599d", "#d5542b", "#8b6fd1", "#4db1c9", "#909090")

STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "recsys",
    "font.family": ["sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "grid.color": "#8888884d",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def inline_svg(figure: Figure, label: str) -> str:
    """Return the figure as an ``<svg>`` element that scales with the page.

    Args:
        label: What it shows, for readers who cannot see it; plain text without quotes or angle brackets.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return text.replace(INK, "currentColor").strip()


def colours(systems: Sequence[str]) -> dict[str, str]:
    """Give every system the same colour in all figures."""
    return {system: PALETTE[place % len(PALETTE)] for place, system in enumerate(systems)}


def forest(comparisons: pl.DataFrame, metrics: Sequence[str], systems: Sequence[str]) -> str:
    """Plot paired differences (reference minus system) with their intervals, one panel per metric."""
    with matplotlib.rc_context(STYLE):
        rows = [system for system in systems if system in set(comparisons["system"])]
        figure = Figure(figsize=(10, 1.2 + 0.42 * len(rows)))
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for offset, exclude, colour, label in (
                (-0.13, True, PALETTE[0], "seen items filtered"),
                (0.13, False, PALETTE[1], "seen items kept"),
            ):
                part = comparisons.filter((pl.col("metric") == metric) & (pl.col("exclude_seen") == exclude))
                if part.is_empty():
                    continue
                place = np.array([rows.index(system) for system in part["system"]]) + offset
                middle = part["difference"].to_numpy()
                spread = np.abs(np.stack([part["low"].to_numpy(), part["high"].to_numpy()]) - middle)
                axes.errorbar(middle, place, xerr=spread, fmt="o", ms=5, capsize=3, color=colour, label=label)
            axes.axvline(0.0, color=INK, lw=1, ls="--")
            axes.set_title(metric)
            axes.set_yticks(range(len(rows)), rows)
            axes.grid(axis="x")
        panels[0].invert_yaxis()
        _legend(figure, panels[0])
        return inline_svg(figure, "Paired differences from the reference with intervals")


def metric_by_k(metrics: pl.DataFrame, systems: Sequence[str], exclude_seen: bool) -> str:
    """Plot hit rate, recall, NDCG and MRR against k, one line per system."""
    names = ("hr", "recall", "ndcg", "mrr")
    part = metrics.filter((pl.col("slice") == "all") & (pl.col("exclude_seen") == exclude_seen)).with_columns(
        base=pl.col("metric").str.split("@").list.first(),
        k=pl.col("metric").str.split("@").list.last().cast(pl.Int64),
    )
    ks = sorted(set(part["k"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 3.4))
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for system, colour in colours(systems).items():
                line = part.filter((pl.col("base") == name) & (pl.col("system") == system)).sort("k")
                axes.plot(line["k"], line["mean"], marker="o", ms=3.5, color=colour, label=system)
                axes.fill_between(line["k"], line["low"], line["high"], color=colour, alpha=0.15, lw=0)
            axes.set_xscale("log")
            axes.set_xticks(ks, [str(k) for k in ks])
            axes.minorticks_off()
            axes.set_title(f"{name}@k")
            axes.set_xlabel("k")
            axes.grid()
        _legend(figure, panels[0])
        return inline_svg(figure, "Metrics against the cut-off k")


def slice_bars(metrics: pl.DataFrame, systems: Sequence[str], metric: str, exclude_seen: bool) -> str:
    """Plot one metric in every slice that has rows, one bar per system with its interval."""
    part = metrics.filter(
        (pl.col("metric") == metric) & (pl.col("exclude_seen") == exclude_seen) & (pl.col("rows") > 0)
    )
    slices = {row["slice"]: row["rows"] for row in part.iter_rows(named=True)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 3.6))
        axes = figure.subplots()
        height = 0.8 / max(1, len(systems))
        for place, (system, colour) in enumerate(colours(systems).items()):
            values = {row["slice"]: row for row in part.filter(pl.col("system") == system).iter_rows(named=True)}
            x = np.arange(len(slices)) - 0.4 + height * (place + 0.5)
            mean, low, high = (np.array([values[s][key] for s in slices], float) for key in ("mean", "low", "high"))
            spread = np.nan_to_num(np.stack([mean - low, high - mean]).clip(min=0.0))
            axes.bar(x, mean, height * 0.92, color=colour, label=system)
            axes.errorbar(x, mean, yerr=spread, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
        labels = [f"{name.replace('_', ' ')}\n{rows:,} rows" for name, rows in slices.items()]
        axes.set_xticks(range(len(slices)), labels)
        axes.set_ylabel(metric)
        axes.grid(axis="y")
        _legend(figure, axes)
        return inline_svg(figure, f"{metric} per slice")


def training_curves(curves: pl.DataFrame) -> str:
    """Plot curves, one panel per quantity.

    Args:
        curves: ``name``, ``value``, and ``step`` or ``epoch``; names such as ``sasrec/train_loss`` share the panel of
            ``train_loss`` with other systems' lines.
    """
    axis = "step" if "step" in curves.columns else "epoch"
    named = curves.with_columns(quantity=pl.col("name").str.split("/").list.last())
    quantities = named["quantity"].unique(maintain_order=True).to_list()
    columns = min(3, max(1, len(quantities)))
    rows = -(-len(quantities) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * columns, 2.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, quantity in zip(panels, quantities, strict=False):
            part = named.filter(pl.col("quantity") == quantity)
            lines = part["name"].unique(maintain_order=True).to_list()
            for name, colour in colours(lines).items():
                line = part.filter(pl.col("name") == name).sort(axis)
                axes.plot(line[axis], line["value"], color=colour, marker="o", ms=2.5, label=name)
            axes.set_title(quantity)
            axes.set_xlabel(axis)
            axes.grid()
            if len(lines) > 1:
                axes.legend(fontsize=8)
        for axes in panels[len(quantities) :]:
            axes.set_visible(False)
        return inline_svg(figure, "Training curves")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=min(4, max(1, len(labels))))

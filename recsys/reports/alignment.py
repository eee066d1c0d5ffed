"""The page of an alignment: what every round measured, what the guard said, and curves over rounds and steps.

Reads ``alignment_report.json`` and ``curves.parquet`` of an `align` artefact; writes one HTML file that loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import matplotlib
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recsys.alignment.rounds.report import CURVES_NAME, REPORT_NAME
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json
from recsys.reports.figures import STYLE, colours, inline_svg
from recsys.reports.html import facts, page, paragraph

PAGE_NAME: Final = "alignment.html"
_POINTS: Final = 200
_PANELS: Final = (
    ("hit rate, beam order", "beam_hr@"),
    ("NDCG, beam order", "beam_ndcg@"),
    ("NDCG, served order", "served_ndcg@"),
    ("reward, in deviations of the start", "reward|held_out"),
    ("entropy per level, nats", "entropy_level_"),
    ("divergence from the start, nats", "kl_to_start"),
    ("coverage", "coverage@"),
)
"""Heading of a panel, and how the names of its lines begin."""


def write_alignment_page(folder: Path, title: str, lineage: Mapping[str, Any]) -> None:
    """Write ``alignment.html`` beside the report it draws.

    Raises:
        ArtifactError: Report or curves are missing or damaged.
    """
    report = read_json(folder / REPORT_NAME)
    try:
        curves = pl.read_parquet(folder / CURVES_NAME)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"'{folder / CURVES_NAME}' cannot be read: {error}; run `align` again") from error
    measured = curves.filter(pl.col("name").str.starts_with("measured/")).with_columns(
        name=pl.col("name").str.strip_prefix("measured/")
    )
    training = curves.filter(pl.col("name").str.starts_with("training/")).with_columns(
        name=pl.col("name").str.strip_prefix("training/")
    )
    rounds = report["rounds"]
    sections = [
        ("rounds", "Rounds", _rounds_table(report)),
        ("measured", "Before and after every round", _measured_figure(measured)),
        ("training", "Updates", _training_figure(training) if not training.is_empty() else paragraph("none yet")),
        ("changes", "Against the start", _changes(rounds[report["kept_round"]])),
        ("settings", "Settings", facts({"method": report["settings"], "guard": report["guard"]})),
        ("lineage", "Lineage", facts(dict(lineage))),
    ]
    outcome = f"kept round {report['kept_round']} of {len(rounds) - 1}"
    if report["stopped"]:
        outcome += f"; stopped after {report['stopped']}"
    (folder / PAGE_NAME).write_text(page(title, f"{report['method']}: {outcome}.", sections), encoding="utf-8")


def _rounds_table(report: Mapping[str, Any]) -> str:
    """One row per round: a few figures, pairs or groups, and the guard's words."""
    recall = f"beam_recall@{report['guard']['recall_at']}"
    shown = [
        "beam_hr@1",
        "beam_ndcg@10",
        recall,
        "served_ndcg@10",
        "coverage@10",
        "kl_to_start",
        "reward",
        "held_out_reward",
    ]
    shown = [name for name in shown if name in report["rounds"][0]["measured"]]
    trained = ["gradient_norm", "clip_share"]
    head = "".join(f"<th>{escape(name)}</th>" for name in ["round", *shown, *trained, "guard"])
    body = ""
    for entry in report["rounds"]:
        figures = [entry["measured"][name] for name in shown]
        figures += [entry.get("training", {}).get(name) for name in trained]
        cells = "".join(f"<td>{'–' if value is None else f'{value:.4f}'}</td>" for value in figures)
        broken = entry.get("verdict", {}).get("broken", [])
        said = escape("; ".join(broken)) if broken else ("the start" if entry["round"] == 0 else "good")
        css = ' class="reference"' if entry["round"] == report["kept_round"] else ""
        mark = ' class="worse"' if broken else ""
        body += f"<tr{css}><td>{entry['round']}</td>{cells}<td{mark}>{said}</td></tr>"
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    counts = {f"round {e['round']}": _counts(e) for e in report["rounds"][1:]}
    return table + paragraph("The kept round is shaded.") + (facts(counts) if counts else "")


def _counts(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = ("samples", "requests", "pairs", "skipped_indistinguishable", "reward_gap", "zero_signal_share")
    return {**{name: entry[name] for name in names if name in entry}, **entry.get("counts", {})}


def _changes(entry: Mapping[str, Any]) -> str:
    """Paired differences of the kept round with their intervals."""
    changes = entry.get("verdict", {}).get("changes", {})
    if not changes:
        return paragraph("The start is kept: nothing changed.")
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{c['difference']:+.4f} <small>[{c['low']:+.4f}, {c['high']:+.4f}]</small></td></tr>"
        for name, c in changes.items()
    )
    return (
        '<div class="scroll"><table class="facts">'
        + rows
        + "</table></div>"
        + paragraph("Kept round minus start on the same validation rows; paired bootstrap over users.")
    )


def _measured_figure(measured: pl.DataFrame) -> str:
    panels = []
    for heading, start in _PANELS:
        lines = measured.filter(pl.col("name").str.contains(f"^({start})"))
        lines = lines.filter(~pl.col("name").str.ends_with("_deviation"))
        if start == "reward|held_out":  # the towers' own values have other scales
            lines = lines.filter(
                pl.col("name").is_in(["reward", "reward_best", "held_out_reward", "held_out_reward_best"])
            )
        if not lines.is_empty():
            panels.append((heading, lines))
    return _figure(panels, "round", "What the rounds measured")


def _training_figure(training: pl.DataFrame) -> str:
    last = int(training.select(pl.col("step").max()).item())
    width = max(1, -(-(last + 1) // _POINTS))
    binned = (
        training.group_by(pl.col("step") // width * width, "name", maintain_order=True)
        .agg(pl.col("value").mean())
        .sort("step")
    )
    names = binned["name"].unique(maintain_order=True).to_list()
    panels = [(name, binned.filter(pl.col("name") == name)) for name in names]
    note = paragraph(f"Means over {width} updates.") if width > 1 else ""
    return note + _figure(panels, "update", "Figures of the updates")


def _figure(panels: Sequence[tuple[str, pl.DataFrame]], axis: str, label: str) -> str:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * columns, 2.9 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (heading, lines) in zip(grid, panels, strict=False):
            names = lines["name"].unique(maintain_order=True).to_list()
            for name, colour in colours(names).items():
                line = lines.filter(pl.col("name") == name).sort("step")
                axes.plot(line["step"], line["value"], color=colour, marker="o", ms=2.5, label=name)
            axes.set_title(heading)
            axes.set_xlabel(axis)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid()
            if len(names) > 1:
                axes.legend(fontsize=8)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        return inline_svg(figure, label)

"""The page of an alignment: what came of it, what every round measured, what the guard said, curves over rounds and steps.

Reads ``alignment_report.json`` and ``curves.parquet`` of an `align` artefact; writes one HTML file that loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

import polars as pl

from recsys.alignment.rounds.measurement import HELD_OUT_REWARD, HR1
from recsys.alignment.rounds.report import CURVES_NAME, REPORT_NAME
from recsys.contracts.manifest import explain_write_errors, read_json
from recsys.contracts.table_checks import read_table
from recsys.contracts.tables import StepCurvesTable
from recsys.evaluation.table import is_unknown
from recsys.reports.conclusion import SAID, changed, interval, signed, standing_of
from recsys.reports.curves import training_panels
from recsys.reports.figures import line_panel
from recsys.reports.html import NO_BREAK, Conclusion, details, facts, grid, key, page, paragraph

PAGE_NAME: Final = "alignment.html"
_PANELS: Final = (
    (
        "Hit rate, beam order",
        r"^beam_hr@",
        "The policy's own order. Should rise, or at least hold; all cut-offs together, else one is bought with another.",
    ),
    (
        "Recall, beam order",
        r"^beam_recall@",
        "Watch the deepest cut-off: a fall there while the first place rises is the alignment tax.",
    ),
    ("NDCG, beam order", r"^beam_ndcg@", "Should rise with the hit rate."),
    ("NDCG, served order", r"^served_ndcg@", "What users get after the dense head; it matters more than the beam's."),
    (
        "Reward",
        r"^(held_out_)?reward(_steered)?(_best)?$",
        "In deviations of the start. The held-out reward must follow the reward: where the two part, the policy has learnt "
        "the reward model's mistakes.",
    ),
    (
        "Entropy per level, nats",
        r"^entropy_level_",
        "Should fall slowly. A collapse says that the policy answers everybody alike.",
    ),
    (
        "Divergence from the start, nats",
        r"^kl_to_start",
        "Should grow slowly, at every place of a session; much divergence for little reward is drift.",
    ),
    ("Coverage", r"^coverage@", "Share of the catalogue that is answered at all: should not fall much."),
)
"""Heading of a panel, the names of its lines, and what to look for."""


def write_alignment_page(folder: Path, title: str, lineage: Mapping[str, Any]) -> None:
    """Write ``alignment.html`` beside the report it draws.

    Raises:
        ArtifactError: Report or curves are missing or damaged, or the page cannot be written.
    """
    report = read_json(folder / REPORT_NAME)
    curves = read_table(folder / CURVES_NAME, StepCurvesTable, "run `align` again")
    measured, training = (
        curves.filter(pl.col("name").str.starts_with(f"{kind}/")).with_columns(
            name=pl.col("name").str.strip_prefix(f"{kind}/")
        )
        for kind in ("measured", "training")
    )
    rounds = report["rounds"]
    sections = [
        ("rounds", "Rounds", _rounds(report)),
        ("changes", "Against the start", _changes(rounds[report["kept_round"]])),
        ("measured", "Before and after every round", _measured_figure(measured)),
        ("training", "Updates", training_panels(training) if not training.is_empty() else paragraph("None yet.")),
        ("settings", "Settings", details("Method and guard", facts(_settings(report)))),
        ("lineage", "Lineage", details("Digests of what it was made from", facts(dict(lineage)))),
    ]
    outcome = f"Method {report['method']}; kept round {report['kept_round']} of {len(rounds) - 1}."
    html = page(title, alignment_conclusion(report), outcome, sections)
    with explain_write_errors(folder):
        (folder / PAGE_NAME).write_text(html, encoding="utf-8")


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": report["settings"], "guard": report["guard"]}


def alignment_conclusion(report: Mapping[str, Any]) -> Conclusion:
    """Hold the kept round against the start: by the held-out reward model if there is one, else by the first place's hits.

    Args:
        report: ``alignment_report.json``.
    """
    rounds, kept = report["rounds"], report["kept_round"]
    stopped = (f"Stopped after {report['stopped']}.",) if report["stopped"] else ()
    if kept == 0:
        broken = [words for entry in rounds[1:] for words in entry.get("verdict", {}).get("broken", [])]
        why = f": the guard found that {broken[0]}" if broken else ""
        tried = f"none of {len(rounds) - 1} rounds was kept" if len(rounds) > 1 else "no round has run"
        return Conclusion("unknown", f"Alignment changed nothing, {tried}{why}.", stopped)
    verdict = rounds[kept].get("verdict", {})
    changes, broken = verdict.get("changes", {}), verdict.get("broken", [])
    measured_by = HELD_OUT_REWARD if HELD_OUT_REWARD in changes else HR1
    if measured_by not in changes:
        return Conclusion("unknown", f"Round {kept} was kept; nothing was compared with the start.", stopped)
    by = {
        HELD_OUT_REWARD: "by a reward model that alignment never trained on",
        HR1: "by the hit rate of the first place",
    }[measured_by]
    change, standing = changes[measured_by], standing_of(changes[measured_by])
    unit = " deviations of the start" if measured_by == HELD_OUT_REWARD else ""
    sure = f"{report['guard']['confidence'] * 100:g}{NO_BREAK}% interval, paired on the same validation rows"
    sentence = f"The aligned policy (round {kept} of {len(rounds) - 1}) {SAID[standing]} the start {by}"
    if standing != "unknown":
        bounds = f"between {signed(change['low'])} and {signed(change['high'])}"
        sentence += f": a difference of {signed(change['difference'])}{unit}, {bounds} ({sure})"
    others = [
        f"{name} {changed(change)} ({signed(change['difference'])} {interval(change)})"
        for name, change in changes.items()
        if name != measured_by
    ]
    notes = [f"Elsewhere: {'; '.join(others)}."] if others else []
    notes.append(
        f"The guard objects: {'; '.join(broken)}." if broken else "The guard found nothing that speaks against it."
    )
    return Conclusion(standing, f"{sentence}.", (*notes, *stopped))


def _rounds(report: Mapping[str, Any]) -> str:
    """One row per round: a few figures, the guard's words, and folded away what the round consisted of."""
    recall = f"beam_recall@{report['guard']['recall_at']}"
    shown = [
        "beam_hr@1",
        "beam_ndcg@10",
        recall,
        "served_ndcg@10",
        "coverage@10",
        "kl_to_start",
        "reward",
        HELD_OUT_REWARD,
    ]
    shown = [name for name in shown if name in report["rounds"][0]["measured"]]
    trained = ["gradient_norm", "clip_share"]
    trained = [name for name in trained if any(name in entry.get("training", {}) for entry in report["rounds"])]
    head = "".join(f"<th>{key(name)}</th>" for name in [*shown, *trained])
    body = ""
    for entry in report["rounds"]:
        values = {name: entry["measured"].get(name) for name in shown}
        values |= {name: entry.get("training", {}).get(name) for name in trained}
        cells = "".join(f'<td data-label="{escape(name)}">{_number(value)}</td>' for name, value in values.items())
        broken = entry.get("verdict", {}).get("broken", [])
        said = "; ".join(broken) if broken else ("the start" if entry["round"] == 0 else "good")
        css = ' class="reference"' if entry["round"] == report["kept_round"] else ""
        mark = "words worse" if broken else "words"
        body += (
            f'<tr{css}><td>round {entry["round"]}</td>{cells}<td class="{mark}" data-label="guard">'
            f"<span>{escape(said)}</span></td></tr>"
        )
    table = (
        f'<div class="scroll"><table class="cards"><thead><tr><th>round</th>{head}<th class="words">guard</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    counts = {f"round {entry['round']}": _counts(entry) for entry in report["rounds"][1:]}
    note = paragraph("Round 0 is the start; the kept round is shaded. Measured on the same validation rows every time.")
    return table + note + (details("Samples, pairs and groups of every round", facts(counts)) if counts else "")


def _number(value: float | None) -> str:
    return "–" if value is None or is_unknown(value) else f"{value:.4f}"


def _counts(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = ("samples", "requests", "pairs", "skipped_indistinguishable", "reward_gap", "zero_signal_share")
    return {**{name: entry[name] for name in names if name in entry}, **entry.get("counts", {})}


def _changes(entry: Mapping[str, Any]) -> str:
    """Paired differences of the kept round with their intervals."""
    changes = entry.get("verdict", {}).get("changes", {})
    if not changes:
        return paragraph("The start is kept: nothing changed.")
    rows = "".join(
        f'<tr><td>{key(name)}</td><td data-label="difference">{signed(change["difference"])}</td>'
        f'<td data-label="interval">{interval(change)}</td><td class="words" data-label="so it">{changed(change)}</td></tr>'
        for name, change in changes.items()
    )
    return (
        '<div class="scroll"><table class="cards"><thead><tr><th>figure</th><th>difference</th><th>interval</th>'
        f'<th class="words">so it</th></tr></thead><tbody>{rows}</tbody></table></div>'
    ) + paragraph("Kept round minus start on the same validation rows; paired bootstrap over users.")


def _measured_figure(measured: pl.DataFrame) -> str:
    panels = []
    for heading, pattern, words in _PANELS:
        names = measured.filter(pl.col("name").str.contains(pattern))["name"].unique(maintain_order=True)
        lines = {name: measured.filter(pl.col("name") == name).select("step", "value") for name in names}
        if lines:
            panels.append(line_panel(heading, words, lines, "step", "round"))
    return grid(panels)

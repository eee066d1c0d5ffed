"""The HTML report: one file that can be mailed, with the numbers, the figures, and where they come from.

Reads an evaluation folder (``metrics.json``, ``metrics.parquet``, ``comparisons.parquet``), training curves, the
reports of the tokenizer and of the data, and the lineage; produces one page that loads nothing from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import Artifact, explain_write_errors, read_json
from recsys.evaluation.evaluate import COMPARISONS_FILE, METRICS_FILE, SUMMARY_FILE
from recsys.evaluation.rankings import CURVES_FILE
from recsys.evaluation.table import ranked_systems, verdict
from recsys.reports import figures
from recsys.reports.html import facts, page, paragraph

_FILTER_TITLES = {"filtered": "seen items filtered", "unfiltered": "seen items kept"}


def write_report(
    out_file: Path,
    *,
    title: str,
    evaluation_dir: Path,
    curves: pl.DataFrame | None,
    tokenizer_report: dict[str, Any] | None,
    data_report: dict[str, Any] | None,
    lineage: dict[str, Any],
) -> None:
    """Write the report.

    Args:
        evaluation_dir: Folder that :func:`~recsys.evaluation.evaluate.evaluate` wrote.
        curves: ``name``, ``value``, and ``step`` or ``epoch``; ``None`` leaves the section out, as for the next two.
        lineage: Digests, code revision, seed, configuration: anything nested; shown as it is.

    Raises:
        ArtifactError: A file of the evaluation is missing or damaged, or the report cannot be written.
        DataError: The curves lack a column.
    """
    summary = read_json(evaluation_dir / SUMMARY_FILE)
    metrics = _read(evaluation_dir / METRICS_FILE)
    comparisons = _read(evaluation_dir / COMPARISONS_FILE)
    systems = ranked_systems(summary)
    sections = [("results", "Results", _results(summary, systems))]
    if not comparisons.is_empty():
        sections.append(("paired", "Paired differences", _paired(summary, comparisons, systems)))
    sections.append(("cutoffs", "Metrics by cut-off", _by_cutoff(summary, metrics, systems)))
    sections.append(("slices", "Slices", _slices(summary, metrics, systems)))
    if curves is not None and not curves.is_empty():
        sections.append(("curves", "Training", _curves(curves)))
    if tokenizer_report is not None:
        sections.append(("tokenizer", "Semantic IDs", facts(tokenizer_report)))
    if data_report is not None:
        sections.append(("data", "Data", facts(data_report)))
    opened = "<details open><summary>digests, settings, versions</summary>"
    sections.append(("lineage", "Lineage and settings", f"{opened}{facts(lineage)}</details>"))
    lead = (
        f"{summary['rows']:,} rows of {summary['users']:,} users in the {summary['split']} split; item level, full "
        f"catalogue, no sampled negatives; brackets hold {summary['confidence'] * 100:g} % bootstrap intervals over users."
    )
    with explain_write_errors(out_file.parent):
        out_file.parent.mkdir(parents=True, exist_ok=True)
        out_file.write_text(page(title, lead, sections), encoding="utf-8")


def _results(summary: Mapping[str, Any], systems: list[str]) -> str:
    filters = [name for name in _FILTER_TITLES if name in summary["systems"][systems[0]]]
    headline, reference = summary["headline"], summary["reference"]
    extra = [m for m in (headline[1].replace("ndcg", "coverage"),) if m in summary["systems"][systems[0]][filters[0]]]
    shown = [*headline, *extra]
    top = "".join(f'<th colspan="{len(shown)}">{_FILTER_TITLES[name]}</th>' for name in filters)
    second = "".join(f"<th>{escape(metric)}</th>" for _ in filters for metric in shown)
    body = ""
    for system in systems:
        cells = "".join(_cell(summary, system, name, metric) for name in filters for metric in shown)
        css = ' class="reference"' if system == reference else ""
        body += f"<tr{css}><td>{escape(system)}</td>{cells}</tr>"
    table = (
        f'<div class="scroll"><table><thead><tr><th></th>{top}</tr><tr><th>system</th>{second}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    if reference is None:
        return table
    return table + paragraph(
        f"▲ better and ▼ worse than {reference} on the same users (the paired interval does not hold 0), ≈ not "
        "distinguishable. Compare filtered with filtered only: leaving seen items out helps every system."
    )


def _cell(summary: Mapping[str, Any], system: str, filter_name: str, metric: str) -> str:
    value = summary["systems"][system][filter_name][metric]
    if value["low"] is None:
        return f"<td>{value['mean']:.4f}</td>"
    text = f"{value['mean']:.4f} <small>[{value['low']:.4f}, {value['high']:.4f}]</small>"
    comparison = summary["comparisons"].get(system, {}).get(filter_name, {}).get(metric)
    if comparison is None:
        return f"<td>{text}</td>"
    found = verdict(comparison)
    mark = {"better": "▲", "worse": "▼", "equal": "≈"}[found]
    return f'<td>{text} <span class="{found}" title="{found}, p = {comparison["p_value"]:.3f}">{mark}</span></td>'


def _paired(summary: Mapping[str, Any], comparisons: pl.DataFrame, systems: list[str]) -> str:
    note = paragraph(
        f"{summary['reference']} minus each system, on the same users: right of the line the reference is better. "
        "Intervals are not corrected for the number of comparisons."
    )
    return note + figures.forest(comparisons, summary["headline"], systems)


def _by_cutoff(summary: Mapping[str, Any], metrics: pl.DataFrame, systems: list[str]) -> str:
    html = ""
    for name, heading in _FILTER_TITLES.items():
        if name in summary["systems"][systems[0]]:
            html += f"<h3>{heading}</h3>" + figures.metric_by_k(metrics, systems, name == "filtered")
    return html


def _slices(summary: Mapping[str, Any], metrics: pl.DataFrame, systems: list[str]) -> str:
    metric = summary["headline"][1]
    exclude = "filtered" in summary["systems"][systems[0]]
    empty = [name for name, rows in summary["slices"].items() if rows == 0]
    note = f"{metric}, {_FILTER_TITLES['filtered' if exclude else 'unfiltered']}; head and tail by train traffic."
    if empty:
        note += f" Without rows: {', '.join(empty)}."
    return paragraph(note) + figures.slice_bars(metrics, systems, metric, exclude)


def _curves(curves: pl.DataFrame) -> str:
    missing = [name for name in ("name", "value") if name not in curves.columns]
    if missing or not {"step", "epoch"} & set(curves.columns):
        raise DataError(f"curves have columns {curves.columns}, expected 'name', 'value', and 'step' or 'epoch'")
    return figures.training_curves(curves)


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}; run `evaluate` again") from error


def report_on(out_file: Path, title: str, evaluation_dir: Path, inputs: Mapping[str, Artifact]) -> None:
    """Write the HTML report of an evaluation.

    Args:
        inputs: Opened artefacts of the evaluation's parents, by stage name.
    """
    curves = inputs["train"].path / CURVES_FILE
    lineage = {
        name: {
            "digest": artifact.digest,
            "seed": artifact.manifest.seed,
            "code_version": artifact.manifest.code_version,
            "config": artifact.manifest.config,
        }
        for name, artifact in inputs.items()
    }
    write_report(
        out_file,
        title=title,
        evaluation_dir=evaluation_dir,
        curves=pl.read_parquet(curves) if curves.exists() else None,
        tokenizer_report=_optional_json(inputs["tokenize"].path / "tokenizer_report.json"),
        data_report=_optional_json(inputs["prepare"].path / "data_report.json"),
        lineage=lineage,
    )


def _optional_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values: dict[str, Any] = read_json(path)
    return values

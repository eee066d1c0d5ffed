"""The HTML report of an evaluation: one file that can be mailed, with its conclusion, numbers, figures and lineage.

Reads an evaluation folder (``metrics.json``, ``metrics.parquet``, ``comparisons.parquet``, ``examples.json``), training
curves, semantic IDs with titles, the reports of the tokenizer and of the data, and the lineage; produces one page that
loads nothing from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import Artifact, explain_write_errors, read_json
from recsys.contracts.table_checks import read_table
from recsys.contracts.tables import ComparisonsTable, CurvesTable, MetricsTable
from recsys.evaluation.evaluate import COMPARISONS_FILE, METRICS_FILE, SUMMARY_FILE
from recsys.evaluation.examples import EXAMPLES_FILE
from recsys.evaluation.rankings import CURVES_FILE
from recsys.evaluation.second_stage import SOURCES_FILE
from recsys.evaluation.table import is_unknown, ranked_systems, verdict
from recsys.reports import figures
from recsys.reports.conclusion import FILTER_WORDS, evaluation_conclusion
from recsys.reports.curves import training_panels
from recsys.reports.examples import example_users
from recsys.reports.html import NO_BREAK, details, facts, page, paragraph
from recsys.reports.second_stage import second_stage_section
from recsys.reports.semantic_ids import IdCatalogue, semantic_id_section
from recsys.semantic_ids.versions import SemanticIds


def write_report(
    out_file: Path,
    *,
    title: str,
    evaluation_dir: Path,
    curves: pl.DataFrame | None,
    tokenizer_report: dict[str, Any] | None,
    data_report: dict[str, Any] | None,
    lineage: Mapping[str, Mapping[str, Any]],
    catalogue: IdCatalogue | None = None,
    ranked: Mapping[str, Any] | None = None,
) -> None:
    """Write the report.

    Args:
        evaluation_dir: Folder that :func:`~recsys.evaluation.evaluate.evaluate` wrote; example users are shown where
            ``examples.json`` lies beside its files.
        curves: ``name``, ``value``, and ``step`` or ``epoch``; ``None`` leaves the section out, as for the next two.
        lineage: Per stage its digest, code version, seed, configuration: anything nested.
        catalogue: Semantic IDs and titles; ``None`` leaves out the picture.
        ranked: Summary of the `rank` stage; ``None`` leaves the section out.

    Raises:
        ArtifactError: A file of the evaluation is missing or damaged, or the report cannot be written.
        DataError: The curves lack a column.
    """
    summary = read_json(evaluation_dir / SUMMARY_FILE)
    metrics = read_table(evaluation_dir / METRICS_FILE, MetricsTable, "run `evaluate` again")
    comparisons = read_table(evaluation_dir / COMPARISONS_FILE, ComparisonsTable, "run `evaluate` again")
    examples = _optional_json(evaluation_dir / EXAMPLES_FILE)
    systems = ranked_systems(summary)
    sections = [("results", "Results", _results(summary, systems))]
    if not comparisons.is_empty():
        sections.append(("paired", "Paired differences", _paired(summary, comparisons, systems)))
    if examples is not None and examples["users"]:
        sections.append(("examples", "Example users", example_users(examples)))
    if ranked is not None:
        sources = _optional_json(evaluation_dir / SOURCES_FILE)
        sections.append(("ranker", "Candidates and ranker", second_stage_section(ranked, sources)))
    if (beyond := _beyond_hits(summary, systems)) is not None:
        sections.append(("lists", "Lists beyond hits", beyond))
    sections.append(("cutoffs", "Metrics by cut-off", _by_cutoff(summary, metrics, systems)))
    sections.append(("slices", "Slices", _slices(summary, metrics, systems)))
    if curves is not None and not curves.is_empty():
        sections.append(("curves", "Training", training_panels(curves)))
    if tokenizer_report is not None:
        sections.append(("tokenizer", "Semantic IDs", semantic_id_section(tokenizer_report, catalogue)))
    if data_report is not None:
        sections.append(("data", "Data", _data(data_report)))
    sections.append(("lineage", "Lineage and settings", lineage_section(lineage)))
    lead = (
        f"{summary['rows']:,} rows of {summary['users']:,} users in the {summary['split']} split; item level, full "
        f"catalogue, no sampled negatives; brackets hold {summary['confidence'] * 100:g}{NO_BREAK}% bootstrap intervals "
        "over users."
    )
    html = page(title, evaluation_conclusion(summary), lead, sections)
    with explain_write_errors(out_file.parent):
        out_file.parent.mkdir(parents=True, exist_ok=True)
        out_file.write_text(html, encoding="utf-8")


def lineage_section(lineage: Mapping[str, Any]) -> str:
    """Return where a result comes from, a folded part per stage; what is not nested stands first."""
    plain = {name: value for name, value in lineage.items() if not isinstance(value, Mapping)}
    stages = {name: value for name, value in lineage.items() if isinstance(value, Mapping)}
    html = facts(plain) if plain else ""
    for name, values in stages.items():
        digest = str(values.get("digest", ""))[:12]
        html += details(f"{name} · {digest}" if digest else name, facts(values))
    return details("Digests, settings, code versions", html)


def _results(summary: Mapping[str, Any], systems: list[str]) -> str:
    filters = [name for name in FILTER_WORDS if name in summary["systems"][systems[0]]]
    headline, reference = summary["headline"], summary["reference"]
    extra = [m for m in (headline[1].replace("ndcg", "coverage"),) if m in summary["systems"][systems[0]][filters[0]]]
    shown = [*headline, *extra]
    top = "".join(f'<th colspan="{len(shown)}">{FILTER_WORDS[name]}</th>' for name in filters)
    second = "".join(f"<th>{escape(metric)}</th>" for _ in filters for metric in shown)
    best = {(name, metric): _best(summary, systems, name, metric) for name in filters for metric in shown}
    body = ""
    for system in systems:
        cells = "".join(
            _cell(summary, system, name, metric, best[name, metric]) for name in filters for metric in shown
        )
        css = ' class="reference"' if system == reference else ""
        body += f"<tr{css}><td>{escape(system)}</td>{cells}</tr>"
    table = (
        f'<div class="scroll"><table class="cards"><thead><tr><th></th>{top}</tr><tr><th>system</th>{second}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    note = (
        "The highest value of each column is bold. Compare filtered with filtered only: leaving seen items out helps every "
        "system."
    )
    notes = "".join(paragraph(said) for said in summary.get("notes", ()))
    if reference is None:
        return table + paragraph(note) + notes
    return (
        table
        + paragraph(
            f"The reference, {reference}, is shaded; ▲ better and ▼ worse than it on the same users (the paired interval "
            f"does not hold 0), ≈ not distinguishable. {note}"
        )
        + notes
    )


def _best(summary: Mapping[str, Any], systems: list[str], filter_name: str, metric: str) -> float | None:
    means = [summary["systems"][system][filter_name][metric]["mean"] for system in systems]
    return max((mean for mean in means if not is_unknown(mean)), default=None)


def _cell(summary: Mapping[str, Any], system: str, filter_name: str, metric: str, best: float | None) -> str:
    label = f' data-label="{escape(metric)}, {FILTER_WORDS[filter_name].removeprefix("seen items ")}"'
    value = summary["systems"][system][filter_name][metric]
    if is_unknown(value["mean"]):
        return f"<td{label}>–</td>"
    text = f"{value['mean']:.4f}"
    text = f"<b>{text}</b>" if value["mean"] == best else text
    comparison = summary["comparisons"].get(system, {}).get(filter_name, {}).get(metric)
    if comparison is not None:
        found = verdict(comparison)
        mark = {"better": "▲", "worse": "▼", "equal": "≈", "unknown": "?"}[found]
        told = found if is_unknown(comparison["p_value"]) else f"{found}, p = {comparison['p_value']:.3f}"
        text += f' <span class="{found}" title="{told}">{mark}</span>'
    if not is_unknown(value["low"]) and not is_unknown(value["high"]):
        text += f" <small>[{value['low']:.4f}, {value['high']:.4f}]</small>"
    return f"<td{label}><span>{text}</span></td>"


def _paired(summary: Mapping[str, Any], comparisons: pl.DataFrame, systems: list[str]) -> str:
    note = paragraph(
        f"{summary['reference']} minus each system, on the same users: right of the dashed line the reference is better, "
        "and clearly so where the whole interval is. Intervals are not corrected for the number of comparisons."
    )
    return note + figures.forest(comparisons, summary["headline"], systems)


_BEYOND = {
    "coverage": "share of the catalogue that somebody gets",
    "gini": "how unequally places are spread over the catalogue, 0 evenly",
    "novelty": "mean self-information of the items, bits: more is less popular",
    "diversity": "mean cosine distance of the pairs of a list",
    "vendi": "effective number of different items in a list",
    "calibration": "distance of the list's categories from the history's, nats: less is closer",
}


def _beyond_hits(summary: Mapping[str, Any], systems: list[str]) -> str | None:
    """What the lists are like beside their hits; nothing is best here, so nothing is marked."""
    name = next(name for name in FILTER_WORDS if name in summary["systems"][systems[0]])
    k = summary["headline"][0].rpartition("@")[2]
    found = {system: summary["systems"][system][name] for system in systems}
    shown = [metric for metric in _BEYOND if f"{metric}@{k}" in found[systems[0]]]
    if not set(shown) - {"coverage", "gini"}:
        return None
    head = "".join(f"<th>{escape(metric)}@{k}</th>" for metric in shown)
    body = ""
    for system in systems:
        values = [found[system][f"{metric}@{k}"]["mean"] for metric in shown]
        cells = "".join(
            f'<td data-label="{escape(metric)}@{k}">{"–" if is_unknown(value) else f"{value:.3f}"}</td>'
            for metric, value in zip(shown, values, strict=True)
        )
        body += f"<tr><td>{escape(system)}</td>{cells}</tr>"
    said = "; ".join(f"{metric}: {_BEYOND[metric]}" for metric in shown)
    return (
        f'<div class="scroll"><table class="cards"><thead><tr><th>system</th>{head}</tr></thead><tbody>{body}</tbody>'
        f"</table></div>{paragraph(f'The first {k} places, {FILTER_WORDS[name]}. {said}.')}"
    )


def _by_cutoff(summary: Mapping[str, Any], metrics: pl.DataFrame, systems: list[str]) -> str:
    html = ""
    for name, heading in FILTER_WORDS.items():
        if name in summary["systems"][systems[0]]:
            drawn = figures.metric_by_k(metrics, systems, name == "filtered")
            html += f"<h3>{heading[0].upper()}{heading[1:]}</h3>{drawn}"
    return html


def _slices(summary: Mapping[str, Any], metrics: pl.DataFrame, systems: list[str]) -> str:
    metric = summary["headline"][1]
    exclude = "filtered" in summary["systems"][systems[0]]
    empty = [name.replace("_", " ") for name, rows in summary["slices"].items() if rows == 0]
    note = (
        f"{metric}, {FILTER_WORDS['filtered' if exclude else 'unfiltered']}; head and tail by train traffic. Look for a "
        "slice where the order of the systems turns: there the mean hides something."
    )
    if empty:
        note += f" Without rows: {', '.join(empty)}."
    return paragraph(note) + figures.slice_bars(metrics, systems, metric, exclude)


def _data(report: Mapping[str, Any]) -> str:
    counts = [f"{report[name]:,} {name}" for name in ("users", "items") if isinstance(report.get(name), int)]
    if isinstance(report.get("kept"), int):
        counts.append(f"{report['kept']:,} events")
    if isinstance(report.get("positive_events"), int):
        counts.append(f"{report['positive_events']:,} of them positive")
    said = paragraph(f"{', '.join(counts)}.") if counts else ""
    return said + details("The whole report of the data", facts(report))


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
    items = Dataset.open(inputs["prepare"].path).items
    write_report(
        out_file,
        title=title,
        evaluation_dir=evaluation_dir,
        curves=read_table(curves, CurvesTable, "run `train` again") if curves.exists() else None,
        tokenizer_report=_optional_json(inputs["tokenize"].path / "tokenizer_report.json"),
        data_report=_optional_json(inputs["prepare"].path / "data_report.json"),
        lineage=lineage,
        catalogue=IdCatalogue(
            SemanticIds.load(inputs["tokenize"].path),
            items.select(Columns.ITEM_ID, Columns.TITLE, Columns.TRAIN_COUNT),
        ),
        ranked=inputs["rank"].manifest.summary if "rank" in inputs else None,
    )


def _optional_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values: dict[str, Any] = read_json(path)
    return values

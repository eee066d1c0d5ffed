"""The section of the second stage: what is served and why, what decides the order, which source found the hits, the cost.

Reads the summary of the `rank` stage and ``sources.json`` of an evaluation; produces HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from recsys.reports.conclusion import FILTER_WORDS
from recsys.reports.html import details, paragraph, percent, table

SHOWN: Final = 12
"""Features in the table; the others are folded away."""


def second_stage_section(ranked: Mapping[str, Any], sources: Mapping[str, Any] | None) -> str:
    """Return the section.

    Args:
        ranked: Summary that :func:`~recsys.decoding.second_stage.fit.fit_second_stage` returned.
        sources: What :func:`~recsys.evaluation.second_stage.rank_with_second_stage` counted, by filter; ``None``: nothing.
    """
    html = paragraph(f"{ranked['verdict'][0].upper()}{ranked['verdict'][1:]}.")
    if sources:
        html += "<h3>Which source found the hits</h3>" + _sources(sources)
    html += "<h3>Weights of the scorers</h3>" + _weights(ranked)
    if ranked["features"]:
        html += f"<h3>What decides the order</h3>{_features(ranked)}"
    return html + "<h3>Cost</h3>" + _cost(ranked)


def _sources(sources: Mapping[str, Any]) -> str:
    rows = []
    for name, heading in FILTER_WORDS.items():
        found = sources.get(name)
        if found is None:
            continue
        for source, counts in found["sources"].items():
            shares = [percent(counts[key] / found["hits"], 1) if found["hits"] else "–" for key in ("found", "alone")]
            rows.append([heading, source, f"{found['hits']:,}", *shares])
    k = next(iter(sources.values()))["k"]
    note = paragraph(
        f"Of the items among the first {k} served that were really taken next: the share that each source had brought as a "
        "candidate, and the share that no other source had."
    )
    return note + table(["", "source", "hits", "found", "found alone"], rows)


def _weights(ranked: Mapping[str, Any]) -> str:
    rows = [[name, f"{weight:g}"] for name, weight in ranked["weights"].items()]
    note = paragraph(
        f"The fused score is the sum of the scorers with these weights, the dense head's being 1; it guides the search with "
        f"the weight {ranked['guidance']:g}. Scorers are counted on train events, weights chosen on validation rows."
    )
    left_out = "".join(paragraph(f"{note}.") for note in ranked["left_out"])
    return note + table(["scorer", "weight"], rows) + left_out


def _features(ranked: Mapping[str, Any]) -> str:
    kind, features = ranked["learned"], ranked["features"]
    word = "gain" if kind == "lightgbm" else "weight"
    told = (
        "the gain of all splits by it, in per cent of all gains"
        if kind == "lightgbm"
        else "its weight once it is scaled to a standard deviation of 1, so that weights compare"
    )
    total = sum(abs(value) for _, value in features) or 1.0
    rows = [[name, percent(value / total, 1) if kind == "lightgbm" else f"{value:+.3f}"] for name, value in features]
    html = paragraph(f"Features of the learned order, each with {told}.") + table(["feature", word], rows[:SHOWN])
    rest = rows[SHOWN:]
    return html + (details(f"{len(rest)} more features", table(["feature", word], rest)) if rest else "")


def _cost(ranked: Mapping[str, Any]) -> str:
    said = (
        f"{ranked['candidates_per_row']:g} candidates per user, among which {percent(ranked['rows_with_target'], 1)} of "
        f"{ranked['rows']:,} validation rows find a target. The stage took "
        f"{', '.join(f'{seconds:.0f} s for {part}' for part, seconds in ranked['seconds'].items())}."
    )
    return paragraph(said)

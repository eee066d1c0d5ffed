"""The comparison table as plain text: filtered and unfiltered side by side, intervals, and the paired verdict.

Reads the summary that :func:`~recsys.evaluation.evaluate.evaluate` returns; produces lines for a terminal or a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any


def format_table(summary: Mapping[str, Any]) -> str:
    """Format the headline metrics of all systems, best first.

    A mark after a number is the paired comparison on the same users: ``+`` the system is better than the reference,
    ``-`` worse, ``=`` the interval of the difference holds 0. Below stands what the evaluation's notes say.

    Example:
        >>> cell = {"mean": 0.05, "low": 0.04, "high": 0.06}
        >>> print(format_table({
        ...     "split": "test", "rows": 100, "users": 100, "confidence": 0.95, "reference": None,
        ...     "headline": ["hr@10"], "systems": {"markov": {"filtered": {"hr@10": cell}}}, "comparisons": {}}))
        test split, 100 rows of 100 users, full catalogue, 95 % bootstrap intervals
                  seen items filtered
        system    hr@10
        markov    .0500 [.0400, .0600]
    """
    reference = summary["reference"]
    head = (
        f"{summary['split']} split, {summary['rows']} rows of {summary['users']} users, full catalogue, "
        f"{summary['confidence'] * 100:g} % bootstrap intervals"
    )
    lines = [head, *_block(summary, list(summary["headline"]))]
    if summary.get("headline_by_id"):
        lines += ["by semantic ID: items that share the target's ID count as hits, and have one place together"]
        lines += _block(summary, list(summary["headline_by_id"]))
    if reference is not None:
        lines += [f"* reference; paired on the same users: + better than {reference}, - worse, = not distinguishable"]
    return "\n".join([*lines, *summary.get("notes", ())])  # evaluations of before have none


def _block(summary: Mapping[str, Any], metrics: list[str]) -> list[str]:
    """Two lines of heads, then a line per system."""
    filters = [name for name in ("filtered", "unfiltered") if name in next(iter(summary["systems"].values()))]
    titles = {"filtered": "seen items filtered", "unfiltered": "seen items kept"}
    rows = [
        ["", *[titles[name] if metric == metrics[0] else "" for name in filters for metric in metrics]],
        ["system", *[metric for _ in filters for metric in metrics]],
    ]
    for system in ranked_systems(summary):
        label = f"{system} *" if system == summary["reference"] else system
        cells = [_cell(summary, system, name, metric) for name in filters for metric in metrics]
        rows.append([label, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[0] = max(widths[0], 8)
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def ranked_systems(summary: Mapping[str, Any]) -> list[str]:
    """Return the systems by the last headline metric of the first filter, best first; ties by name, unknown means last."""
    metric = summary["headline"][-1]

    def key(system: str) -> tuple[bool, float, str]:
        by_filter = summary["systems"][system]
        mean = by_filter["filtered" if "filtered" in by_filter else "unfiltered"][metric]["mean"]
        return is_unknown(mean), 0.0 if is_unknown(mean) else -mean, system

    return sorted(summary["systems"], key=key)


def is_unknown(value: float | None) -> bool:
    """Whether a number was never measured: missing, or NaN."""
    return value is None or isnan(value)


def verdict(comparison: Mapping[str, float | None]) -> str:
    """Say how a system stands against the reference: ``better``, ``worse``, ``equal`` (the interval holds 0), ``unknown``.

    Args:
        comparison: Interval of reference minus system.

    Example:
        >>> verdict({"low": -0.2, "high": -0.1}), verdict({"low": -0.1, "high": 0.1}), verdict({"low": None, "high": None})
        ('better', 'equal', 'unknown')
    """
    low, high = comparison["low"], comparison["high"]
    if low is None or high is None or isnan(low) or isnan(high):
        return "unknown"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "equal"


_MARKS = {"better": " +", "worse": " -", "equal": " =", "unknown": " ?"}


def _cell(summary: Mapping[str, Any], system: str, filter_name: str, metric: str) -> str:
    value = summary["systems"][system][filter_name][metric]
    text = f"{_short(value['mean'])} [{_short(value['low'])}, {_short(value['high'])}]"
    comparison = summary["comparisons"].get(system, {}).get(filter_name, {}).get(metric)
    return text if comparison is None else text + _MARKS[verdict(comparison)]


def _short(value: float | None) -> str:
    """Write a share with four digits and no leading zero, as in the field's tables; a dash where it was not measured."""
    if value is None or isnan(value):
        return "–"
    text = f"{value:.4f}"
    return text[1:] if text.startswith("0.") else text

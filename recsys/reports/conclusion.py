"""The one sentence on top of an evaluation: better, worse or not to be told apart, by how much, and how sure that is.

Reads the summary of an evaluation; produces a :class:`~recsys.reports.html.Conclusion`.
"Better" is said only where the paired interval lies wholly above 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any, Final

from recsys.evaluation.rankings import OWN_SYSTEMS, UNALIGNED_SERVED
from recsys.evaluation.table import ranked_systems, verdict
from recsys.reports.html import NO_BREAK, Conclusion, Standing, percent

FILTER_WORDS: Final = {"filtered": "seen items filtered", "unfiltered": "seen items kept"}

SAID: Final = {
    "better": "is better than",
    "worse": "is worse than",
    "equal": "cannot be told apart from",
    "unknown": "cannot be compared with",
}
_OF_REFERENCE: Final[dict[str, Standing]] = {
    "better": "worse",
    "worse": "better",
    "equal": "equal",
    "unknown": "unknown",
}


def evaluation_conclusion(summary: Mapping[str, Any]) -> Conclusion:
    """Hold the reference system against the best baseline, by the last headline metric (NDCG).

    The best baseline is the one with the highest mean under the same filter on the same rows, which favours the
    baselines a little: it is chosen after looking.

    Args:
        summary: What :func:`~recsys.evaluation.evaluate.evaluate` returned.
    """
    reference, metric = summary["reference"], summary["headline"][-1]
    filters = [name for name in FILTER_WORDS if name in next(iter(summary["systems"].values()))]
    if reference is None:
        best = ranked_systems(summary)[0]
        return Conclusion(
            "unknown",
            f"No system was named as the reference, so nothing was compared; {best} has the highest {metric}, "
            f"{_number(_mean(summary, best, filters[0], metric))}.",
        )
    name = "the model" if reference in OWN_SYSTEMS else f"the reference system, {reference},"
    if not _baselines(summary, reference):
        return Conclusion(
            "unknown",
            f"No baseline was ranked on these rows, so whether {name.rstrip(',')} is any good cannot be said: its {metric} "
            f"is {_number(_mean(summary, reference, filters[0], metric))} with {FILTER_WORDS[filters[0]]}.",
        )
    standing, sentence = _against_best(summary, name, filters[0])
    notes = [_of_hundred(summary, filters[0]), *_ahead_elsewhere(summary, name, filters[0])]
    for other in filters[1:]:
        said = _against_best(summary, name, other)[1]
        notes.append(f"With {FILTER_WORDS[other]}, {said[0].lower()}{said[1:]}")
    before = summary["comparisons"].get(UNALIGNED_SERVED, {}).get(filters[0], {}).get(metric)
    if before is not None:
        notes.append(
            f"Against the same list before alignment, {metric} {changed(before)} ({signed(before['difference'])} "
            f"{interval(before)})."
        )
    return Conclusion(standing, sentence, tuple(note for note in notes if note))


def _baselines(summary: Mapping[str, Any], reference: str) -> list[str]:
    return [name for name in summary["systems"] if name not in OWN_SYSTEMS and name != reference]


def _against_best(summary: Mapping[str, Any], name: str, filter_name: str) -> tuple[Standing, str]:
    reference, metric = summary["reference"], summary["headline"][-1]
    best = _best_baseline(summary, filter_name)
    mine, other = _mean(summary, reference, filter_name, metric), _mean(summary, best, filter_name, metric)
    comparison = summary["comparisons"].get(best, {}).get(filter_name, {}).get(metric)
    standing: Standing = "unknown" if comparison is None else _OF_REFERENCE[verdict(comparison)]
    opening = f"{name[0].upper()}{name[1:]} {SAID[standing]} the best baseline, {best}"
    if comparison is None or standing == "unknown":
        return "unknown", f"{opening}: there is no interval for the difference in {metric}."
    relative = f" ({percent(abs(mine / other - 1))} {'more' if mine > other else 'less'})" if other else ""
    sure = f"{summary['confidence'] * 100:g}{NO_BREAK}% interval, paired on the same users"
    bounds = f"between {signed(comparison['low'])} and {signed(comparison['high'])} ({sure})"
    if standing == "equal":
        return standing, (
            f"{opening}: {metric} is {_number(mine)} against {_number(other)}, and the true difference may be anything "
            f"{bounds}."
        )
    return standing, (
        f"{opening}: {metric} is {_number(mine)} against {_number(other)}{relative}, a difference of "
        f"{signed(comparison['difference'])} that lies {bounds}."
    )


def _ahead_elsewhere(summary: Mapping[str, Any], name: str, filter_name: str) -> list[str]:
    """Name the baselines that are clearly ahead by another headline metric than the one the conclusion speaks of."""
    notes = []
    for metric in summary["headline"][:-1]:
        compared = {
            system: summary["comparisons"].get(system, {}).get(filter_name, {}).get(metric)
            for system in _baselines(summary, summary["reference"])
        }
        ahead = [system for system, change in compared.items() if change and _OF_REFERENCE[verdict(change)] == "worse"]
        if ahead:
            notes.append(f"By {metric}, {name.rstrip(',')} is clearly behind {' and '.join(ahead)}.")
    return notes


def _best_baseline(summary: Mapping[str, Any], filter_name: str) -> str:
    metric = summary["headline"][-1]

    def place(system: str) -> tuple[bool, float, str]:
        mean = _mean(summary, system, filter_name, metric)
        return isnan(mean), -mean, system

    return min(_baselines(summary, summary["reference"]), key=place)


def _of_hundred(summary: Mapping[str, Any], filter_name: str) -> str:
    """Give the hit rate as a count, which more readers can picture than a share."""
    metric = summary["headline"][0]
    best = _best_baseline(summary, filter_name)
    mine = _mean(summary, summary["reference"], filter_name, metric)
    other = _mean(summary, best, filter_name, metric)
    if not metric.startswith("hr@") or isnan(mine) or isnan(other):
        return ""
    k, whom = metric.removeprefix("hr@"), "users" if summary["rows"] == summary["users"] else "rows"
    return (
        f"Of 100 {whom}, {mine * 100:.0f} find something they really took next among the first {k} items; with {best} it "
        f"is {other * 100:.0f}."
    )


def standing_of(change: Mapping[str, float | None]) -> Standing:
    """Where a difference ``now - before`` stands: its interval above 0, below 0, or around it."""
    low, high = change["low"], change["high"]
    if low is None or high is None or isnan(low) or isnan(high):
        return "unknown"
    return "better" if low > 0 else "worse" if high < 0 else "equal"


def changed(change: Mapping[str, float | None]) -> str:
    """Say in a word which way a figure went."""
    return {"better": "rose", "worse": "fell", "equal": "did not clearly change", "unknown": "is not known"}[
        standing_of(change)
    ]


def _mean(summary: Mapping[str, Any], system: str, filter_name: str, metric: str) -> float:
    mean = summary["systems"][system][filter_name][metric]["mean"]
    return float("nan") if mean is None else float(mean)


def _number(value: float | None) -> str:
    return "not known" if value is None or isnan(value) else f"{value:.4f}"


def signed(value: float | None) -> str:
    """Write a difference with its sign, a true minus.

    Example:
        >>> signed(-0.01), signed(0.01)
        ('−0.0100', '+0.0100')
    """
    return "not known" if value is None or isnan(value) else f"{value:+.4f}".replace("-", "−")


def interval(change: Mapping[str, float | None]) -> str:
    """Write the bounds of a difference."""
    return f"[{signed(change['low'])}, {signed(change['high'])}]"

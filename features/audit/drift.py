"""Drift: the last stretch of the log against the one before it.

Reads the events; produces plain numbers. Users and items are new where the log has no earlier event of them. Popularity is
compared by two distances: the population stability index (PSI) over ten groups of items that had equal traffic before, and
one of items that were not there; and the Jensen-Shannon divergence (base 2, 0 the same to 1 nothing in common) over all.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.audit.event_columns import EventColumns
from recsys.contracts.dataset import DatasetSpec

Places = npt.NDArray[np.int64]

DAY: Final = 86_400_000_000

PSI_GROUPS: Final = 10
PSI_FLOOR: Final = 1e-4
"""A group without events counts as this share, as is usual for the PSI."""

LARGE_PSI: Final = 0.25
"""From here on a population is usually said to have shifted (0.1: look at it)."""

Z: Final = 1.959964
"""Of a 95 per cent interval."""


def window_length(first: int, last: int) -> int | None:
    """Return how long the compared stretches are, in microseconds: a week, a day, or half of a shorter log.

    ``None`` where all events are at one instant.

    Example:
        >>> window_length(0, 30 * DAY) // DAY, window_length(0, 5 * DAY) // DAY, window_length(7, 7)
        (7, 1, None)
    """
    span = last - first
    if span >= 21 * DAY:
        return 7 * DAY
    if span >= 3 * DAY:
        return DAY
    return max(span // 2, 1) if span else None


def drift_at_the_end(events: EventColumns, spec: DatasetSpec) -> dict[str, Any]:
    """Compare the last stretch of the log with the one before.

    Returns:
        ``days`` of a stretch and, for ``before`` and ``now``, events, users, items; shares of new users and items; distances
        of popularity; signal rates with their difference and its interval. Empty where there are no two stretches.
    """
    width = window_length(events.first_time, events.last_time)
    if width is None:
        return {}
    border = events.last_time + 1 - width
    recent = np.flatnonzero(events.time >= border - width)
    is_now = events.time[recent] >= border
    now, before = recent[is_now], recent[~is_now]
    if not len(now) or not len(before):
        return {}
    counts = [np.bincount(events.item[part], minlength=spec.num_items) for part in (before, now)]
    known_item = events.item_counts > counts[1]
    users_now = np.unique(events.user[now])
    items_now = counts[1] > 0
    first_time = events.time[np.searchsorted(events.user, users_now)]
    return {
        "days": round(width / DAY, 4),
        "before": {
            "events": len(before),
            "users": len(np.unique(events.user[before])),
            "items": int((counts[0] > 0).sum()),
        },
        "now": {"events": len(now), "users": len(users_now), "items": int(items_now.sum())},
        "new_users": _six(float((first_time >= border).mean())),
        "new_items": _six(float((~known_item[items_now]).mean())),
        "events_on_new_items": _six(float(counts[1][~known_item].sum() / len(now))),
        "psi": _six(psi(counts[0], counts[1])),
        "jensen_shannon": _six(jensen_shannon(counts[0], counts[1])),
        "signals": {name: _rates(signal, before, now) for name, signal in events.signals.items()},
    }


def psi(before: npt.NDArray[np.integer], now: npt.NDArray[np.integer]) -> float:
    """Return the population stability index of popularity.

    Args:
        before: ``[I]`` events per item then; ``now`` likewise.

    Example:
        >>> psi(np.array([5, 5, 0]), np.array([5, 5, 0]))
        0.0
        >>> round(psi(np.array([1, 1]), np.array([3, 1])), 4)  # (.75 - .5) ln 1.5 + (.25 - .5) ln .5
        0.2747
    """
    order = np.argsort(-before, kind="stable")
    summed = np.cumsum(before[order]) / max(int(before.sum()), 1)
    group = np.minimum((summed - 1e-12) * PSI_GROUPS, PSI_GROUPS - 1).astype(np.int64)
    group[before[order] == 0] = PSI_GROUPS
    p, q = (np.bincount(group, weights=counts[order], minlength=PSI_GROUPS + 1) for counts in (before, now))
    used = (p > 0) | (q > 0)
    p, q = (np.maximum(part[used] / max(part.sum(), 1), PSI_FLOOR) for part in (p, q))
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(before: npt.NDArray[np.integer], now: npt.NDArray[np.integer]) -> float:
    """Return the Jensen-Shannon divergence of two popularities, from 0 to 1.

    Example:
        >>> jensen_shannon(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
        1.0
    """
    p, q = (counts / max(int(counts.sum()), 1) for counts in (before, now))
    middle = (p + q) / 2

    def divergence(part: npt.NDArray[np.float64]) -> float:
        has = part > 0
        return float((part[has] * np.log2(part[has] / middle[has])).sum())

    return max(0.0, (divergence(p) + divergence(q)) / 2)


def _rates(signal: pl.Series, before: Places, now: Places) -> dict[str, Any]:
    """Rates of a signal, and their difference with a 95 per cent interval (normal, unpooled)."""
    found: dict[str, Any] = {}
    variance = 0.0
    for name, places in (("before", before), ("now", now)):
        part = signal.gather(places)
        rows = len(part) - part.null_count()
        if not rows:
            return {"before": found.get("before"), "now": None}
        rate = int(part.sum()) / rows
        found[name] = _six(rate)
        variance += rate * (1 - rate) / rows
    difference = found["now"] - found["before"]
    half = Z * math.sqrt(variance)
    return {**found, "difference": _six(difference), "low": _six(difference - half), "high": _six(difference + half)}


def _six(value: float) -> float:
    return float(f"{value:.6g}")

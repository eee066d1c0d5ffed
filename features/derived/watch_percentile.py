"""A signal from watch time that does not favour long items: was it watched longer than most of its length are?

Reads watch times and durations of the kept events and the split; produces one bit per event, and per bucket of durations the
watch time from which it is true. The bounds are fitted on train events only, so an event is measured alike whatever comes
later.

Source: OneRec-V2, section 3.1.1, duration-aware reward: items are put into buckets ``floor(log_base(duration))``, and the
quantile of the watch time among the user's own watch times of the bucket decides. Departures, where the paper is silent or
asks for what a log need not have: a user with too few train events in a bucket takes the bound of all users there, a bucket
with too few of those the bound of all events; the quantile is fixed (``at_least``) and not taken anew in every batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from features.log.event_log import EventLog
from features.log.signal_bits import check_signal_count
from features.splits import SplitArray
from recsys.config import FrozenConfig
from recsys.contracts.columns import TRAIN
from recsys.contracts.errors import ConfigError, DataError

EPSILON_S: Final = 1e-6
"""Added to a duration, so that rounding puts a whole power of the base into the bucket that begins with it."""


class DerivedSignal(FrozenConfig):
    """A signal that `prepare` computes; it stands behind the source's own in the behaviour code.

    It cannot decide which events are positive: the split needs to know those, and the bounds need the split.

    Attributes:
        name: What it is called.
        derived: ``watch_percentile``: the watch time is in the upper part of those of similar durations.
        at_least: Quantile of the watch time from which it is true; 0.75 takes about the upper quarter.
        base: A bucket of durations ends at this multiple of where it begins.
        within: Whose watch times an event is measured by: the ``user``'s own (the paper's), or those of ``all`` users.
        min_user_events: A user with fewer train events in a bucket is measured there by all users.
        min_events: A bucket of fewer train events takes the bound of all events together.
    """

    name: str = Field(min_length=1)
    derived: Literal["watch_percentile"] = "watch_percentile"
    at_least: float = Field(default=0.75, gt=0, le=1)
    base: float = Field(default=2.0, gt=1)
    within: Literal["user", "all"] = "user"
    min_user_events: int = Field(default=5, ge=1)
    min_events: int = Field(default=20, ge=1)


def duration_buckets(duration_ms: npt.NDArray[np.floating], base: float) -> npt.NDArray[np.int64]:
    """Return ``floor(log_base(seconds))`` of durations above 0.

    Example:
        >>> duration_buckets(np.array([500.0, 1000.0, 1999.0, 2000.0, 8000.0]), 2.0).tolist()
        [-1, 0, 0, 1, 3]
    """
    seconds = duration_ms.astype(np.float64) / 1000.0 + EPSILON_S
    return np.floor(np.log(seconds) / np.log(base)).astype(np.int64)


def quantile_bound(values: npt.NDArray[np.floating], at_least: float) -> float:
    """Return the smallest value whose share of values that are not larger reaches ``at_least``.

    Example:
        >>> quantile_bound(np.array([4.0, 1.0, 3.0, 2.0]), 0.75)  # 3 of 4 are at most 3
        3.0
    """
    place = int(np.ceil(at_least * len(values) - 1e-9)) - 1
    return float(np.partition(values, place)[place])


def with_derived_signals(
    log: EventLog, split: SplitArray, signals: tuple[DerivedSignal, ...]
) -> tuple[EventLog, dict[str, Any]]:
    """Add the signals to the log; an event whose watch time or duration is not known has them unknown.

    Returns:
        The log, and by name the bounds and shares for the report.

    Raises:
        ConfigError: The source lacks watch time or duration, has a signal of that name, or there are too many signals.
        DataError: No train event has both measurements.
    """
    facts = {}
    for signal in signals:
        if signal.name in log.signals:
            raise ConfigError(
                f"features.derived_signals: the source has a signal '{signal.name}' already; choose another name"
            )
        check_signal_count((*log.signals, signal.name))
        true, known, facts[signal.name] = _watch_percentile(log, split, signal)
        bit = np.uint8(1 << len(log.signals))
        log = replace(
            log,
            signals=(*log.signals, signal.name),
            signal_values=log.signal_values | true.astype(np.uint8) * bit,
            signal_known=log.signal_known | known.astype(np.uint8) * bit,
        )
    return log, facts


def _watch_percentile(
    log: EventLog, split: SplitArray, signal: DerivedSignal
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
    where = f"features.derived_signals: '{signal.name}'"
    if log.watch_time is None or log.duration is None:
        lacks = "watch_time" if log.watch_time is None else "duration"
        raise ConfigError(
            f"{where} is a percentile of watch time by duration, and the source has no {lacks}; map source.columns.{lacks}"
        )
    known = np.isfinite(log.watch_time) & np.isfinite(log.duration) & (log.duration > 0)
    train = known & (split == TRAIN)
    if not train.any():
        raise DataError(f"{where}: no train event has both a watch time and a duration above 0; check source.columns")
    bucket = np.zeros(len(log), np.int64)
    bucket[known] = duration_buckets(log.duration[known], signal.base)
    bounds = np.full(int(bucket.max()) - int(bucket.min()) + 1, quantile_bound(log.watch_time[train], signal.at_least))
    lowest, rows = int(bucket.min()), []
    for number, count in zip(*np.unique(bucket[train], return_counts=True), strict=True):
        own = count >= signal.min_events
        if own:
            bounds[number - lowest] = quantile_bound(log.watch_time[train & (bucket == number)], signal.at_least)
        rows.append(
            {
                "from_s": float(signal.base ** float(number)),
                "to_s": float(signal.base ** float(number + 1)),
                "train_events": int(count),
                "bound_s": float(bounds[number - lowest]) / 1000.0,
                "of": "bucket" if own else "all",
            }
        )
    bound = bounds[bucket - lowest]
    facts_of_users = {}
    if signal.within == "user":
        own_bound = _user_bounds(log, train, bucket - lowest, signal)
        measured = known & ~np.isnan(own_bound)
        bound = np.where(measured, own_bound, bound)
        facts_of_users = {
            "events_by_own_bound": int(measured.sum()),
            "events_by_all_users": int((known & ~measured).sum()),
        }
    true = known & (log.watch_time >= bound)
    facts = {
        **signal.model_dump(exclude={"name"}),
        "buckets": rows,
        **facts_of_users,
        "share_of_train": float(true[train].mean()),
        "unknown_events": int((~known).sum()),
    }
    return true, known, facts


def _user_bounds(
    log: EventLog, train: npt.NDArray[np.bool_], bucket: npt.NDArray[np.int64], signal: DerivedSignal
) -> npt.NDArray[np.float64]:
    """Bound of each event's user in its bucket (from 0), ``[E]``; NaN where the user has too few train events there."""
    assert log.watch_time is not None
    group = log.user.astype(np.int64) * (int(bucket.max()) + 1) + bucket
    rows = np.flatnonzero(train)
    rows = rows[np.lexsort((log.watch_time[rows], group[rows]))]
    groups, start, count = np.unique(group[rows], return_index=True, return_counts=True)
    place = np.ceil(signal.at_least * count - 1e-9).astype(np.int64) - 1
    bounds = np.where(count >= signal.min_user_events, log.watch_time[rows[start + place]].astype(np.float64), np.nan)
    at = np.searchsorted(groups, group).clip(max=len(groups) - 1)
    return np.where(groups[at] == group, bounds[at], np.nan)

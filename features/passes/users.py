"""Passes over the events of some users: who stays in the k-core, gaps, splits, what is to be predicted.

Every function has two forms with the same result: NumPy, and a kernel of :mod:`recsys.native.columns`, which makes no
arrays on the way.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.passes.rows import Bools, Codes, Rows, add_counts
from recsys.contracts.event_features import gap_buckets
from recsys.native import columns as native

_SLICE_ROWS: Final = 1 << 20
_SLICE_USERS: Final = 1 << 15


def count_open(
    starts: Rows, item: Codes, counts: Bools | None, sure: tuple[Bools, Bools], first: int, events: tuple[Rows, Rows]
) -> tuple[Codes, Codes]:
    """Count the events of a run of users, and gather those whose user or item is not sure to be kept.

    Args:
        starts: ``[users + 1]`` first row of each user, the first of them 0, and behind them the number of rows.
        item: ``[rows]``.
        counts: ``[rows]`` whether a row counts; ``None``: all do.
        sure: ``[users]`` of the run, and ``[items]``: whether they are sure.
        first: Number of the first user.
        events: ``[users]`` of the run, and ``[items]``, of which those that are not sure are counted; are added to.

    Returns:
        Users and items of the open events.

    Example:
        Users 10 and 11; item 0 is sure, item 1 is not.

        >>> sums = (np.zeros(2, np.int64), np.zeros(2, np.int64))
        >>> sure = (np.array([True, True]), np.array([True, False]))
        >>> users, items = count_open(np.array([0, 2, 3]), np.array([0, 1, 0], np.int32), None, sure, 10, sums)
        >>> users.tolist(), items.tolist(), sums[0].tolist(), sums[1].tolist()
        ([10], [1], [2, 1], [0, 1])
    """
    item = np.ascontiguousarray(item)
    if native.available():
        marks = None if counts is None else np.ascontiguousarray(counts)
        return native.count_open(np.ascontiguousarray(starts), item, marks, sure, first, events)
    user = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    if counts is not None:
        user, item = user[counts], item[counts]
    add_counts(user, None, events[0])
    add_counts(item, ~sure[1][item], events[1])
    is_open = ~(sure[0][user] & sure[1][item])
    return user[is_open] + np.int32(first), item[is_open]


def marked(starts: Rows, item: Codes, user_stays: Bools, item_stays: Bools) -> tuple[Bools, int]:
    """Mark the rows whose user and item both stay.

    Args:
        starts: ``[users + 1]`` first row of each user, the first of them 0, and behind them the number of rows.
        item: ``[rows]``.
        user_stays: ``[users]`` of the run.
        item_stays: ``[items]``.

    Returns:
        ``[rows]`` marks, and how many there are.

    Example:
        >>> keep, kept = marked(np.array([0, 2, 3]), np.array([0, 1, 0], np.int32), np.array([True, False]),
        ...                     np.array([True, False]))
        >>> keep.tolist(), kept
        ([True, False, False], 1)
    """
    if native.available():
        return native.marked(np.ascontiguousarray(starts), np.ascontiguousarray(item), user_stays, item_stays)
    keep = np.repeat(user_stays, np.diff(starts)) & item_stays[item]
    return keep, int(np.count_nonzero(keep))


def marked_late(
    starts: Rows, item: Codes, user_stays: Bools, item_stays: Bools, stored: npt.NDArray[Any], since: int
) -> tuple[Bools, int, npt.NDArray[Any]]:
    """Mark rows as :func:`marked` does, and return the times of the marked ones that are not before an instant.

    Args:
        starts, item, user_stays, item_stays: As there.
        stored: ``[rows]`` times as they are stored, uint32 or int64.
        since: The instant, as times are stored.

    Returns:
        ``[rows]`` marks, how many there are, and the late times, in the order of the rows.

    Example:
        >>> keep, kept, late = marked_late(np.array([0, 2, 3]), np.array([0, 1, 0], np.int32), np.array([True, False]),
        ...                                np.array([True, True]), np.array([5, 8, 9], np.uint32), 6)
        >>> keep.tolist(), kept, late.tolist()
        ([True, True, False], 2, [8])
    """
    if native.available():
        run = (np.ascontiguousarray(starts), np.ascontiguousarray(item))
        return native.marked_late(*run, user_stays, item_stays, np.ascontiguousarray(stored), since)
    keep, kept = marked(starts, item, user_stays, item_stays)
    return keep, kept, stored[keep & (stored >= since)]


def gap_codes(user: Codes, timestamp: Rows, last_user: int, last_time: int) -> npt.NDArray[np.uint8]:
    """Bucket the time since the user's previous event (:func:`~recsys.contracts.event_features.gap_buckets`).

    Args:
        user, timestamp: Of the events, at least one.
        last_user, last_time: Of the event in front of them.

    Example:
        The first event of a user has no gap, two seconds are code 3.

        >>> gap_codes(np.array([1, 1], np.int32), np.array([5_000_000, 7_000_000]), -1, -1).tolist()
        [0, 3]
    """
    if native.available():
        return native.gap_codes(np.ascontiguousarray(user), np.ascontiguousarray(timestamp), last_user, last_time)
    gap: Rows = np.empty(len(user), np.int64)
    gap[0] = timestamp[0] - last_time
    np.subtract(timestamp[1:], timestamp[:-1], out=gap[1:])
    unknown: Bools = np.empty(len(user), bool)
    unknown[0] = user[0] != last_user or last_time < 0
    np.not_equal(user[1:], user[:-1], out=unknown[1:])
    if timestamp.min() < 0:
        untimed = timestamp < 0
        unknown |= untimed
        unknown[1:] |= untimed[:-1]
    gap[unknown] = -1
    return gap_buckets(gap)


def gap_sessions(user: Codes, split: npt.NDArray[np.int8], timestamp: Rows, longest: int) -> Codes:
    """Number the runs of events of one user and split in which no pause is longer than ``longest``.

    Args:
        user, split, timestamp: ``[E]`` by user and time.
        longest: Microseconds.

    Returns:
        ``[E]``, ascending from 0.

    Example:
        >>> user, split = np.array([0, 0, 0, 1], np.int32), np.array([0, 0, 1, 1], np.int8)
        >>> gap_sessions(user, split, np.array([5, 15, 16, 16]), 10).tolist()
        [0, 0, 1, 2]
    """
    if native.available():
        events = (np.ascontiguousarray(user), np.ascontiguousarray(split), np.ascontiguousarray(timestamp))
        return native.gap_sessions(*events, longest)
    starts: Bools = np.ones(len(user), bool)
    for begin in range(1, len(user), _SLICE_ROWS):
        here, before = slice(begin, begin + _SLICE_ROWS), slice(begin - 1, begin + _SLICE_ROWS - 1)
        new = timestamp[here] - timestamp[before][: len(timestamp[here])] > longest
        for column in (user, split):
            new |= column[here] != column[before][: len(new)]
        starts[here] = new
    return np.cumsum(starts, dtype=np.int32) - np.int32(1)


def run_starts(codes: Codes) -> Rows:
    """Return the first row of each code, and behind them the number of rows.

    Args:
        codes: Ascending from 0, each of them met.

    Example:
        >>> run_starts(np.array([0, 0, 1, 2], np.int32)).tolist()
        [0, 2, 3, 4]
    """
    if not len(codes):
        return np.zeros(1, np.int64)
    if native.available():
        return native.run_starts(np.ascontiguousarray(codes))
    starts = np.empty(int(codes[-1]) + 2, np.int64)
    filled = 0
    for begin in range(0, len(codes), _SLICE_ROWS):
        part = codes[begin : begin + _SLICE_ROWS]
        if begin:
            new = begin + np.flatnonzero(part != codes[begin - 1 : begin - 1 + len(part)])
        else:
            new = np.append(0, 1 + np.flatnonzero(part[1:] != part[:-1]))
        starts[filled : filled + len(new)] = new
        filled += len(new)
    starts[-1] = len(codes)
    return starts


def split_counts(user: Codes, split: npt.NDArray[np.int8], users: int, splits: int) -> Rows:
    """Return ``[splits, users]`` how many rows each user has in each split.

    Example:
        >>> split_counts(np.array([0, 0, 1], np.int32), np.array([0, 1, 1], np.int8), 2, 2).tolist()
        [[1, 0], [1, 1]]
    """
    if native.available():
        return native.split_counts(np.ascontiguousarray(user), np.ascontiguousarray(split), users, splits)
    return np.bincount(user * np.int64(splits) + split, minlength=users * splits).reshape(users, splits).T


def distinct_targets(start: Rows, end: Rows, item: Codes) -> tuple[Codes, Rows]:
    """Return the items of each user's window, each once, in order, and ``[users]`` how many there are.

    Args:
        start, end: ``[users]`` rows of ``item``.
        item: From 0.

    Example:
        >>> items, sizes = distinct_targets(np.array([0, 2]), np.array([2, 5]), np.array([7, 8, 5, 6, 5], np.int32))
        >>> items.tolist(), sizes.tolist()
        ([7, 8, 5, 6], [2, 2])
    """
    if native.available():
        windows = (np.ascontiguousarray(start), np.ascontiguousarray(end))
        return native.distinct_targets(*windows, np.ascontiguousarray(item))
    rows, owner = window(start, end)
    items = item[rows]
    first = first_occurrences(owner, items)
    return items[first], np.bincount(owner[first], minlength=len(start))


def item_counts(start: Rows, end: Rows, item: Codes, num_items: int) -> Rows:
    """Return ``[items]`` how often each stands in the users' windows.

    Args:
        start, end: ``[users]`` rows of ``item``; windows do not overlap.
        item: From 0.

    Example:
        >>> item_counts(np.array([0, 2]), np.array([1, 4]), np.array([1, 0, 1, 2], np.int32), 3).tolist()
        [0, 2, 1]
    """
    counts = np.zeros(num_items, np.int64)
    add_window_counts(start, end, item, counts)
    return counts


def add_window_counts(start: Rows, end: Rows, item: Codes, counts: Rows) -> None:
    """Count the items of the users' windows.

    Args:
        start, end: ``[users]`` rows of ``item``; windows do not overlap.
        item: From 0.
        counts: ``[items]``; is added to.

    Example:
        >>> counts = np.array([5, 5, 5])
        >>> add_window_counts(np.array([0, 2]), np.array([1, 4]), np.array([1, 0, 1, 2], np.int32), counts)
        >>> counts.tolist()
        [5, 7, 6]
    """
    if native.available():
        native.count_windows(np.ascontiguousarray(start), np.ascontiguousarray(end), np.ascontiguousarray(item), counts)
        return
    for begin in range(0, len(start), _SLICE_USERS):
        users = slice(begin, begin + _SLICE_USERS)
        add_counts(item[window(start[users], end[users])[0]], None, counts)


def window(start: Rows, end: Rows) -> tuple[Rows, Codes]:
    """Return the rows from ``start`` to ``end`` of all users, and whose each is; looks at no other row."""
    sizes = end - start
    owner = np.repeat(np.arange(len(start), dtype=np.int32), sizes)
    before = np.cumsum(sizes) - sizes
    return np.arange(len(owner)) + np.repeat(start - before, sizes), owner


def first_occurrences(groups: npt.NDArray[np.integer], items: Codes) -> Rows:
    """Return the places, ascending, where an item appears for the first time in its group.

    Example:
        >>> first_occurrences(np.array([0, 0, 0, 1]), np.array([5, 6, 5, 5], np.int32)).tolist()
        [0, 1, 3]
    """
    if not len(groups):
        return np.empty(0, np.int64)
    key = groups.astype(np.int64) * (int(items.max()) + 1) + items
    return pl.Series(key).is_first_distinct().arg_true().to_numpy().astype(np.int64)

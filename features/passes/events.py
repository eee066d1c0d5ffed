"""What every event of a run of users goes through before it is written: taken out, and told its split, session and gap.

Every function has two forms with the same result: NumPy, and a kernel of :mod:`recsys.native.columns`, which goes over the
events once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.passes.rows import Bools, Codes, Rows, gathered, ranked
from features.passes.users import gap_codes, gap_sessions, run_starts, split_counts
from recsys.contracts.columns import SPLIT_NAMES
from recsys.native import columns as native

_DOUBLINGS: Final = 64


@dataclass(frozen=True)
class Taken:
    """Kept events of a run of users.

    Attributes:
        user: ``[E]`` numbers of the users that have any, from 0.
        item: ``[E]`` numbers of the items.
        timestamp: ``[E]`` UTC microseconds; ``None``: there are no times.
        used: ``[users]`` of the run, whether it has any.
    """

    user: Codes
    item: Codes
    timestamp: Rows | None
    used: Bools


def taken(
    starts: Rows, item: Codes, stored: npt.NDArray[Any] | None, scale: int, keep: Bools | None, item_number: Codes
) -> Taken:
    """Take the events that are kept, under their final numbers.

    Args:
        starts: ``[users + 1]`` first row of each user, the first of them 0, and behind them the number of rows.
        item: ``[rows]``.
        stored: ``[rows]`` times as they are stored, uint32 or int64; ``None``: there are none.
        scale: Microseconds that a stored time of 1 stands for.
        keep: ``[rows]``; ``None``: all are kept.
        item_number: ``[items]`` the number of each that is kept.

    Example:
        Three users; the second loses her only event, and item 5 is number 0.

        >>> found = taken(np.array([0, 1, 2, 4]), np.array([5, 3, 5, 5], np.int32), np.array([7, 8, 9, 9], np.uint32),
        ...               1_000_000, np.array([True, False, True, True]), np.array([0, 0, 0, 1, 0, 0], np.int32))
        >>> found.user.tolist(), found.item.tolist(), found.timestamp.tolist(), found.used.tolist()
        ([0, 1, 1], [0, 0, 0], [7000000, 9000000, 9000000], [True, False, True])
    """
    starts, item = np.ascontiguousarray(starts), np.ascontiguousarray(item)
    if native.available():
        times = None if stored is None else np.ascontiguousarray(stored)
        marks = None if keep is None else np.ascontiguousarray(keep)
        return Taken(*native.taken(starts, item, times, scale, marks, np.ascontiguousarray(item_number)))
    user = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    if keep is not None:
        user, item = user[keep], item[keep]
        stored = None if stored is None else stored[keep]
    used = np.zeros(len(starts) - 1, bool)
    user = ranked(user, used)
    times = None if stored is None else np.multiply(stored, np.int64(scale), dtype=np.int64)
    return Taken(user, gathered(item_number, item), times, used)


def doubling_counts(values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return ``[64]`` how many values are 0, 1, 2-3, 4-7, …; counts of this form add up."""
    each = np.bincount(values)
    bins = np.frexp(np.arange(len(each), dtype=np.float64))[1]
    return np.bincount(bins, weights=each, minlength=_DOUBLINGS).astype(np.int64)


@dataclass(frozen=True)
class Labels:
    """What is told of events by their users and times.

    Attributes:
        split: ``[E]`` 0 train, 1 validation, 2 test.
        session: ``[E]`` ascending from 0.
        starts: ``[S + 1]`` first event of each session, and behind them the number of events.
        gap: ``[E]`` bucket of the time since the user's event before, 0 not known.
        split_counts: ``[3, users]`` events of each split.
        session_lengths: ``[64]`` how many sessions have 0, 1, 2-3, 4-7, … events.
        ties: Events with the user and the time of the one before.
        first, last: Least and largest time that is known (not below 0); ``None``: none is.
    """

    split: npt.NDArray[np.int8]
    session: Codes
    starts: Rows
    gap: npt.NDArray[np.uint8]
    split_counts: Rows
    session_lengths: Rows
    ties: int
    first: int | None
    last: int | None


def labels_of(user: Codes, timestamp: Rows, cuts: tuple[int, int], longest: int, users: int) -> Labels:
    """Label events that are split at two instants, and whose sessions end with a pause.

    Args:
        user, timestamp: ``[E]`` by user and time, at least one event; users from 0.
        cuts: First instants of validation and test, UTC microseconds.
        longest: Pause inside a session, microseconds.
        users: How many there are.

    Example:
        Two events at once, two seconds later a third in validation, and another user.

        >>> user, time = np.array([0, 0, 0, 1], np.int32), np.array([5, 5, 7, 7]) * 1_000_000
        >>> found = labels_of(user, time, (6_000_000, 9_000_000), 60_000_000, 2)
        >>> found.split.tolist(), found.session.tolist(), found.starts.tolist(), found.gap.tolist()
        ([0, 0, 1, 1], [0, 0, 1, 2], [0, 2, 3, 4], [0, 1, 3, 0])
        >>> found.split_counts.tolist(), found.ties, found.first, found.last
        ([[2, 0], [1, 1], [0, 0]], 1, 5000000, 7000000)
    """
    user, timestamp = np.ascontiguousarray(user), np.ascontiguousarray(timestamp)
    if native.available():
        found = native.labelled(user, timestamp, cuts, longest, users)
        ties, first, last = found[-1].tolist()
        return Labels(*found[:-1], ties, *((first, last) if last >= 0 else (None, None)))
    split = (timestamp >= cuts[0]).astype(np.int8) + (timestamp >= cuts[1])
    session = gap_sessions(user, split, timestamp, longest)
    starts = run_starts(session)
    known = timestamp[timestamp >= 0]
    return Labels(
        split=split,
        session=session,
        starts=starts,
        gap=gap_codes(user, timestamp, -1, -1),
        split_counts=split_counts(user, split, users, len(SPLIT_NAMES)),
        session_lengths=doubling_counts(np.diff(starts)),
        ties=int(np.count_nonzero((user[1:] == user[:-1]) & (timestamp[1:] == timestamp[:-1]))),
        first=int(known.min()) if len(known) else None,
        last=int(known.max()) if len(known) else None,
    )

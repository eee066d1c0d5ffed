"""Repeats: several rows of the same user, item and instant are one event, whose feedback came in pieces.

Reads the encoded log; produces which rows stay, and what the rows that stay know after they have taken in the others. A
view and a like of the same second are one event that was viewed and liked; dropping the second row would lose the like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import NO_CODE, BoolArray, CodeArray
from features.log.encoded_log import EncodedLog, instants
from features.log.order import same_as_before
from features.log.signal_bits import DEFAULT_RULE, merge_bits
from features.sources.base import MergeRule
from recsys.native import columns as native

RowArray = npt.NDArray[np.int64]
Duplicates = Literal["merge", "keep", "drop"]
_PIECE: Final = 4_000_000


@dataclass(frozen=True)
class Repeats:
    """Rows that say something about an event that an earlier row has named.

    Attributes:
        rows: ``[R]`` numbers of the rows, in groups of the same user, item and instant.
        into: ``[R]`` the first row of each one's group.
    """

    rows: RowArray
    into: RowArray

    def __len__(self) -> int:
        return len(self.rows)


def find_repeats(log: EncodedLog) -> Repeats:
    """Find rows with the same user, item and instant as an earlier row.

    The log is sorted, so only runs of equal instants are looked into, by the item.

    Example:
        See ``tests/features/log/test_repeats.py``.
    """
    return _of_ties(same_as_before([log.user, log.prehistory, *instants(log.arrays())]), log.item)


def _of_ties(tie: BoolArray, item: CodeArray) -> Repeats:
    """Find repeats among rows, of which ``tie`` says whether each has the user and the instant of the one before."""
    found = [_repeats_in(item, start, tie[start:end]) for start, end in _pieces(tie)]
    none = np.empty(0, np.int64)
    return Repeats(
        np.concatenate([none, *(rows for rows, _ in found)]), np.concatenate([none, *(into for _, into in found)])
    )


def repeats_of(starts: RowArray, item: CodeArray, time: npt.NDArray[Any]) -> Repeats:
    """Find repeats of rows that all have a time, as :func:`find_repeats` does.

    Args:
        starts: ``[users + 1]`` first row of each user, and behind them the number of rows.
        item: ``[rows]``.
        time: ``[rows]``, ascending within a user; uint32 or int64 of any unit.

    Example:
        The second user's row is no repeat of the first one's.

        >>> found = repeats_of(np.array([0, 3, 4]), np.array([8, 7, 8, 8], np.int32), np.array([5, 5, 5, 5]))
        >>> found.rows.tolist(), found.into.tolist()
        ([2], [0])
    """
    if native.available():
        rows, into, tie = native.repeats(*(np.ascontiguousarray(array) for array in (starts, item, time)))
        order = np.lexsort((rows, item[rows], tie))
        return Repeats(rows[order], into[order])
    user = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    return _of_ties(same_as_before([user, time]), item)


def merge_repeats(log: EncodedLog, repeats: Repeats, rules: Mapping[str, MergeRule]) -> EncodedLog:
    """Return the log in which the first row of each group knows what all of them know; no row is removed.

    Signals follow their rules; watch time and duration are the largest known ones; session and split are the first
    known ones; the place in the order stays that of the first row.

    Args:
        log: Sorted.
        repeats: Of this log.
        rules: Signal -> rule; ``any`` for signals that are not named.
    """
    if not len(repeats):
        return log
    target = np.unique(repeats.into)
    # the groups, each in the order of the log, first row first
    owner = np.searchsorted(target, np.concatenate([target, repeats.into]))
    rows = np.concatenate([target, repeats.rows])
    order = np.lexsort((rows, owner))
    rows, owner = rows[order], owner[order]
    starts = np.searchsorted(owner, np.arange(len(target)))
    values, known = merge_bits(
        log.signal_values[rows],
        log.signal_known[rows],
        starts,
        [rules.get(name, DEFAULT_RULE) for name in log.signals],
    )
    changed: dict[str, npt.NDArray[Any]] = {
        "signal_values": _with(log.signal_values, target, values),
        "signal_known": _with(log.signal_known, target, known),
    }
    for name in ("watch_time", "duration", "propensity"):
        column = getattr(log, name)
        if column is not None:
            changed[name] = _with(column, target, np.fmax.reduceat(column[rows], starts))
    for name in ("session", "split"):
        column = getattr(log, name)
        if column is not None:
            changed[name] = _with(column, target, _first_known(column[rows], starts))
    return replace(log, **changed)  # type: ignore[arg-type]


def _pieces(tie: BoolArray) -> Iterator[tuple[int, int]]:
    """Cut the log into pieces of some million rows that part no run of equal instants."""
    start = 0
    while start < len(tie):
        end = min(start + _PIECE, len(tie))
        while end < len(tie) and tie[end]:
            end += 1
        yield start, end
        start = end


def _repeats_in(item: CodeArray, start: int, tie: BoolArray) -> tuple[RowArray, RowArray]:
    in_run = tie.copy()
    in_run[:-1] |= tie[1:]
    rows = np.flatnonzero(in_run)
    key = np.cumsum(~tie[rows], dtype=np.int64) * (int(item.max(initial=0)) + 1) + item[start + rows]
    # events of the same instant are many, and of the same item few: only those are sorted
    in_group = pl.Series(key).is_duplicated().to_numpy()
    key, rows = key[in_group], rows[in_group]
    order = np.argsort(key, kind="stable")
    key, rows = key[order], start + rows[order]
    repeated = same_as_before([key])
    first = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(rows))))
    return rows[repeated], rows[first[repeated]]


def without(repeats: Repeats, rows: int) -> BoolArray | None:
    """Return ``[rows]`` whether a row stays; ``None`` when all do."""
    if not len(repeats):
        return None
    keep = np.ones(rows, bool)
    keep[repeats.rows] = False
    return keep


def _first_known(codes: CodeArray, starts: RowArray) -> CodeArray:
    places = np.where(codes != NO_CODE, np.arange(len(codes)), len(codes))
    first = np.minimum.reduceat(places, starts)
    return np.where(first < len(codes), codes[np.minimum(first, len(codes) - 1)], NO_CODE).astype(np.int32)


def _with(column: npt.NDArray[Any], rows: RowArray, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the column with other values in some rows; the column itself may be a file that is only read."""
    result = np.array(column)
    result[rows] = values
    return result

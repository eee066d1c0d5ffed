"""A further day: the events of new files sorted into a log that is sorted already.

Reads two encoded logs, of files read earlier and of new ones; produces the log of all files, the same that reading them
all at once gives. The place of each new event is found by bisection; every column is copied once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import NO_CODE
from features.log.encoded_log import ARRAY_NAMES, EncodedLog, sort_keys
from features.log.order import KeyArray

RowArray = npt.NDArray[np.int64]

KEY_NAMES: Final = ("user", "prehistory", "timestamp", "position", "tie_break", "record")
"""Columns that decide the order."""

_CODES: Final = {"user": "user_ids", "item": "item_ids", "session": "session_ids", "split": "split_names"}


def merge_logs(earlier: EncodedLog, new: EncodedLog) -> EncodedLog:
    """Sort the events of ``new`` into ``earlier``.

    Args:
        earlier: Of some of the files.
        new: Of the others; its ``files`` are all of them, in order, with no records in those that ``earlier`` has.

    Returns:
        The log of all files.

    Raises:
        ValueError: The logs do not have the same columns, signals and types of ids.

    Example:
        See ``tests/features/log/test_append.py``.
    """
    difference = difference_of(earlier, new)
    if difference is not None:
        raise ValueError(f"the logs cannot be merged: {difference}")
    before, after = dict(earlier.arrays()), dict(new.arrays())
    ids: dict[str, pl.Series] = {}
    for name, table in _CODES.items():
        if name in before:
            ids[table], places = merge_ids(getattr(earlier, table), getattr(new, table))
            before[name], after[name] = _renumbered(before[name], places.left), _renumbered(after[name], places.right)
    counts = {name: _of_all(name, earlier, new) for name in ("file_records", "file_spans")}
    merged = replace(new, **counts, **ids)  # type: ignore[arg-type]
    before["record"] = _moved(before["record"], earlier, merged)
    after["record"] = _moved(after["record"], new, merged)
    places_of_new = insertion_places(before, after)
    columns = {name: _inserted(before[name], after[name], places_of_new) for name in ARRAY_NAMES if name in before}
    return replace(merged, **columns)  # type: ignore[arg-type]


def _of_all(name: str, earlier: EncodedLog, new: EncodedLog) -> tuple[int, ...]:
    """Return a count per file for all files."""
    known = dict(zip(earlier.files, getattr(earlier, name), strict=True))
    return tuple(known.get(file, count) for file, count in zip(new.files, getattr(new, name), strict=True))


def difference_of(earlier: EncodedLog, new: EncodedLog) -> str | None:
    """Say in what two logs differ that must agree before they can be one; ``None`` when in nothing."""
    if earlier.signals != new.signals or earlier.positive != new.positive:
        return "their signals differ"
    left, right = sorted(earlier.arrays()), sorted(new.arrays())
    if left != right:
        return f"their columns differ: {', '.join(sorted(set(left) ^ set(right)))}"
    for name, table in _CODES.items():
        one, other = getattr(earlier, table), getattr(new, table)
        if one is not None and one.dtype != other.dtype:
            return f"the ids of '{name}' are {one.dtype} in the files read earlier and {other.dtype} now"
    return None


@dataclass(frozen=True)
class MergedPlaces:
    """Where the ids of two tables stand in the merged one; ``None``: where they stood."""

    left: npt.NDArray[np.int32] | None
    right: npt.NDArray[np.int32] | None


def merge_ids(left: pl.Series, right: pl.Series) -> tuple[pl.Series, MergedPlaces]:
    """Merge two tables of distinct ids, ascending.

    Example:
        >>> ids, places = merge_ids(pl.Series(["a", "c"]), pl.Series(["b", "c"]))
        >>> ids.to_list(), places.left.tolist(), places.right.tolist()
        (['a', 'b', 'c'], [0, 2], [1, 2])
    """
    fresh = right.filter(~right.is_in(left.implode()))
    if not len(fresh):
        return left, MergedPlaces(None, _places(left, right))
    slots = _places(left, fresh)
    table = np.arange(len(left), dtype=np.int32)
    table += np.cumsum(np.bincount(slots, minlength=len(left) + 1)[: len(left)], dtype=np.int32)
    gathered = np.empty(len(left) + len(fresh), np.int64)
    gathered[table] = np.arange(len(left))
    gathered[slots + np.arange(len(fresh))] = len(left) + np.arange(len(fresh))
    merged = pl.concat([left, fresh], rechunk=True).gather(pl.Series(gathered))
    return merged, MergedPlaces(table, _places(merged, right))


def _places(ids: pl.Series, wanted: pl.Series) -> npt.NDArray[np.int32]:
    """Return the first place in ``ids``, ascending, that is not below each wanted id."""
    return ids.search_sorted(wanted, side="left").to_numpy().astype(np.int32)


def _renumbered(codes: npt.NDArray[np.int32], table: npt.NDArray[np.int32] | None) -> npt.NDArray[np.int32]:
    if table is None:
        return codes
    return np.append(table, np.int32(NO_CODE))[codes]  # "no id" is -1, the last place


def _moved(record: RowArray, log: EncodedLog, merged: EncodedLog) -> RowArray:
    """Return the records under the numbers that they have among all files."""
    places = [merged.files.index(file) for file in log.files]
    shift = merged.file_starts[places] - log.file_starts
    has_rows = np.asarray(log.file_spans) > 0
    shift = shift[has_rows]
    if not shift.any():
        return record
    starts = log.file_starts[has_rows]
    return record + shift[np.searchsorted(starts, record, side="right") - 1]


def insertion_places(before: Mapping[str, Any], after: Mapping[str, Any]) -> RowArray:
    """Return for every row of ``after`` how many rows of ``before`` come before it.

    Args:
        before: Sorted columns by name, as in :class:`~features.log.encoded_log.EncodedLog`.
        after: Likewise.
    """
    user = before["user"]
    low = np.searchsorted(user, after["user"], side="left").astype(np.int64)
    high = np.searchsorted(user, after["user"], side="right").astype(np.int64)
    wanted = _keys(after)
    open_rows = np.flatnonzero(low < high)
    while len(open_rows):
        middle = (low[open_rows] + high[open_rows]) // 2
        found = _keys({name: before[name][middle] for name in KEY_NAMES if name in before})
        earlier = _is_before(found, [key[open_rows] for key in wanted])
        low[open_rows[earlier]] = middle[earlier] + 1
        high[open_rows[~earlier]] = middle[~earlier]
        open_rows = open_rows[low[open_rows] < high[open_rows]]
    return low


def _keys(arrays: Mapping[str, Any]) -> list[KeyArray]:
    """What events of one user are ordered by; the record is last, so that no two events are equal."""
    keys = sort_keys(arrays)[1:]
    if not arrays["prehistory"].any():  # left out there, where no event is early
        keys.insert(0, ~arrays["prehistory"])
    return [*keys, arrays["record"]]


def _is_before(left: Sequence[KeyArray], right: Sequence[KeyArray]) -> npt.NDArray[np.bool_]:
    result = np.zeros(len(left[0]), bool)
    undecided = np.ones(len(left[0]), bool)
    for one, other in zip(left, right, strict=True):
        result |= undecided & (one < other)
        undecided &= one == other
    return result


def _inserted(before: npt.NDArray[Any], after: npt.NDArray[Any], places: RowArray) -> npt.NDArray[Any]:
    result = np.empty(len(before) + len(after), before.dtype)
    own = places + np.arange(len(after))
    is_new = np.zeros(len(result), bool)
    is_new[own] = True
    result[own] = after
    result[~is_new] = before
    return result

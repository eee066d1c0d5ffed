"""Kernels over columns of numbers, for preparing data: NumPy arrays in, NumPy arrays or bytes out; no torch.

Each is the fast twin of a NumPy form that stands where it is called and gives the same result. Arrays are read and written
where they lie, so that they have to be contiguous and of the type that is named. A kernel looks rows and codes up without
a question: that they are there is asked here, in one pass over what is looked up (:func:`_are_below`, :func:`_are_rows`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys import native

Codes = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_DELTA_KINDS: Final = {np.dtype(np.int8): 0, np.dtype(np.uint8): 1, np.dtype(np.int32): 2, np.dtype(np.int64): 3}
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS: Final[dict[str, list[Any]]] = {
    "delta_packed": [_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER],
    "insert_rows": [_POINTER, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER],
    "compress_rows": [_POINTER, _NUMBER, _POINTER, _NUMBER, _POINTER],
    "gather_codes": [_POINTER, _POINTER, _NUMBER, _POINTER],
    "rank_sorted": [_POINTER, _NUMBER, _POINTER, _POINTER],
    "count_codes": [_POINTER, _POINTER, _NUMBER, _POINTER],
    "count_windows": [_POINTER, _POINTER, _NUMBER, _POINTER, _POINTER],
    "count_open": [_POINTER, _NUMBER] + [_POINTER] * 4 + [_NUMBER] + [_POINTER] * 4,
    "mark_kept": [_POINTER, _NUMBER] + [_POINTER] * 4,
    "mark_late": [_POINTER, _NUMBER] + [_POINTER] * 4 + [_NUMBER, _NUMBER] + [_POINTER] * 3,
    "find_repeats": [_POINTER, _NUMBER, _POINTER, _POINTER, _NUMBER] + [_POINTER] * 3,
    "gap_codes": [_POINTER, _POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER],
    "same_pairs": [_POINTER, _POINTER, _NUMBER, _POINTER],
    "gap_sessions": [_POINTER] * 3 + [_NUMBER, _NUMBER, _POINTER],
    "run_starts": [_POINTER, _NUMBER, _POINTER],
    "take_events": [_POINTER, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER] + [_POINTER] * 6,
    "label_events": [_POINTER, _POINTER] + [_NUMBER] * 5 + [_POINTER] * 7,
    "whole_seconds": [_POINTER, _NUMBER, _POINTER],
    "split_counts": [_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER],
    "distinct_targets": [_POINTER, _POINTER, _NUMBER, _POINTER, _POINTER, _POINTER],
}


def available() -> bool:
    """Whether the kernels are compiled and not switched off."""
    return native.available()


@cache
def _library() -> ctypes.CDLL:
    library = native._library()
    assert library is not None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _NUMBER
    return library


def _at(array: npt.NDArray[Any] | None, dtype: Any = None) -> int | None:
    """Return where an array lies; its memory is read as it is, so what does not fit is an error of ours."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    assert dtype is None or array.dtype == dtype, f"{array.dtype}, expected {np.dtype(dtype)}"
    return int(array.ctypes.data)


def _are_below(codes: Codes, size: int) -> bool:
    """Whether codes are from 0 to ``size`` - 1; read without a sign, what is below 0 is the largest."""
    return not len(codes) or int(codes.view(np.uint32).max()) < size


def _are_rows(start: Rows, end: Rows, rows: int) -> bool:
    """Whether runs of rows, from ``start`` to ``end``, are there."""
    return not len(start) or (int(start.min()) >= 0 and int(end.max()) <= rows and bool(np.all(end >= start)))


def delta_packed(*parts: npt.NDArray[Any]) -> bytes:
    """Differences in few bits; the fast twin of :func:`features.number_tables.encodings.delta_packed`.

    Args:
        parts: Int8, uint8, int32 or int64, all of one type.
    """
    dtype, count = parts[0].dtype, sum(map(len, parts))
    out = np.empty(64 + (count // 128 + 1) * (14 + 128 * max(dtype.itemsize, 4)), np.uint8)
    places, sizes = np.array([_at(part, dtype) for part in parts]), np.array([len(part) for part in parts])
    size = _library().delta_packed(_at(places), _at(sizes, np.int64), _DELTA_KINDS[dtype], count, _at(out))
    return out[:size].tobytes()


def inserted(old: npt.NDArray[Any], at: Rows, fresh: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``old`` with each of ``fresh`` in front of the row ``at``.

    Args:
        old: Of 1, 4 or 8 bytes a value.
        at: Ascending, from 0 to ``len(old)``.
        fresh: As many as ``at``, of the type of ``old``.
    """
    assert old.dtype == fresh.dtype
    assert len(at) == len(fresh)
    assert old.dtype.itemsize in (1, 4, 8)
    assert not len(at) or (at[0] >= 0 and at[-1] <= len(old))
    assert bool(np.all(at[1:] >= at[:-1])), "rows to insert at are not in order"
    out = np.empty(len(old) + len(fresh), old.dtype)
    size = old.dtype.itemsize
    _library().insert_rows(_at(old), len(old), _at(at, np.int64), _at(fresh), len(fresh), size, _at(out))
    return out


def compressed(values: npt.NDArray[Any], keep: Bools) -> npt.NDArray[Any]:
    """Return ``values[keep]``.

    Args:
        values: Of 1, 4 or 8 bytes a value.
        keep: As many.
    """
    assert values.dtype.itemsize in (1, 4, 8)
    assert len(values) == len(keep)
    out = np.empty(len(values) + 1, values.dtype)
    kept = _library().compress_rows(_at(values), values.dtype.itemsize, _at(keep, np.bool_), len(keep), _at(out))
    return out[:kept]


def gathered(table: Codes, codes: Codes) -> Codes:
    """Return ``table[codes]``; negative codes stay as they are."""
    out = np.empty(len(codes), np.int32)
    assert not len(codes) or int(codes.max()) < len(table), "a code has no entry"
    _library().gather_codes(_at(table, np.int32), _at(codes, np.int32), len(codes), _at(out))
    return out


def ranked(codes: Codes, used: Bools) -> Codes:
    """Return the rank of each code among those that are met, and mark them in ``used``.

    Args:
        codes: Ascending, from 0.
        used: ``[codes there are]``, all false; is written to.
    """
    out = np.empty(len(codes), np.int32)
    assert _are_below(codes, len(used)), "a code is not there"
    _library().rank_sorted(_at(codes, np.int32), len(codes), _at(out), _at(used, np.bool_))
    return out


def add_counts(codes: Codes, keep: Bools | None, counts: Rows) -> None:
    """Add to ``counts[code]`` each code whose ``keep`` is true, or each."""
    assert keep is None or len(keep) == len(codes)
    assert _are_below(codes, len(counts)), "a code has no count"
    _library().count_codes(_at(codes, np.int32), _at(keep, np.bool_), len(codes), _at(counts, np.int64))


def count_windows(start: Rows, end: Rows, item: Codes, counts: Rows) -> None:
    """Add to ``counts[item]`` every event from ``start`` to ``end`` of every user."""
    assert len(start) == len(end)
    assert _are_rows(start, end, len(item)), "rows that are not there"
    assert _are_below(item, len(counts)), "an item has no count"
    windows = (_at(start, np.int64), _at(end, np.int64), len(start), _at(item, np.int32))
    _library().count_windows(*windows, _at(counts, np.int64))


def count_open(
    starts: Rows, item: Codes, counts: Bools | None, sure: tuple[Bools, Bools], first: int, events: tuple[Rows, Rows]
) -> tuple[Codes, Codes]:
    """Count a run of users, and gather the events whose user or item is not sure to be kept.

    Args:
        starts: ``[users + 1]`` first row of each user in ``item``.
        item: ``[rows]``.
        counts: ``[rows]`` whether a row counts; ``None``: all do.
        sure: ``[users]`` of the run, and ``[items]``.
        first: Number of the first user.
        events: ``[users]`` of the run, and ``[items]`` that are not sure; are added to.

    Returns:
        Users and items of the open events.
    """
    users, items = (np.empty(len(item), np.int32) for _ in range(2))
    assert counts is None or len(counts) == len(item)
    assert [len(each) for each in (*sure, *events)] == [len(starts) - 1, len(sure[1])] * 2
    assert _are_rows(starts[:-1], starts[1:], len(item)), "rows that are not there"
    assert _are_below(item, len(sure[1])), "an item has no mark"
    marks = (_at(mark, np.bool_) for mark in (counts, *sure))
    sums = (_at(count, np.int64) for count in events)
    run = (_at(starts, np.int64), len(starts) - 1, _at(item, np.int32))
    found = _library().count_open(*run, *marks, first, *sums, _at(users), _at(items))
    return users[:found].copy(), items[:found].copy()


def marked(starts: Rows, item: Codes, user_stays: Bools, item_stays: Bools) -> tuple[Bools, int]:
    """Mark the rows whose user and item both stay.

    Args:
        starts: ``[users + 1]`` first row of each user in ``item``.
        item: ``[rows]``.
        user_stays: ``[users]`` of the run.
        item_stays: ``[items]``.

    Returns:
        ``[rows]`` marks, and how many there are.
    """
    keep = np.empty(len(item), np.bool_)
    _check_marks(starts, item, user_stays, item_stays)
    run = (_at(starts, np.int64), len(starts) - 1, _at(item, np.int32))
    kept = _library().mark_kept(*run, _at(user_stays, np.bool_), _at(item_stays, np.bool_), _at(keep))
    return keep, int(kept)


def _check_marks(starts: Rows, item: Codes, user_stays: Bools, item_stays: Bools) -> None:
    assert len(user_stays) == len(starts) - 1
    assert _are_rows(starts[:-1], starts[1:], len(item)), "rows that are not there"
    assert _are_below(item, len(item_stays)), "an item has no mark"


def marked_late(
    starts: Rows, item: Codes, user_stays: Bools, item_stays: Bools, stored: npt.NDArray[Any], since: int
) -> tuple[Bools, int, npt.NDArray[Any]]:
    """Mark the rows whose user and item both stay, and return the times of those of them that are not before an instant.

    Args:
        starts: ``[users + 1]`` first row of each user in ``item``.
        item: ``[rows]``.
        user_stays: ``[users]`` of the run.
        item_stays: ``[items]``.
        stored: ``[rows]`` times, uint32 or int64.
        since: The instant, as times are stored.

    Returns:
        ``[rows]`` marks, how many there are, and the late times.
    """
    rows = len(item)
    assert len(stored) == rows
    assert stored.dtype in (np.uint32, np.int64)
    _check_marks(starts, item, user_stays, item_stays)
    keep, late, count = np.empty(rows, np.bool_), np.empty(rows + 1, stored.dtype), np.empty(1, np.int64)
    run = (_at(starts, np.int64), len(starts) - 1, _at(item, np.int32))
    stay = (_at(user_stays, np.bool_), _at(item_stays, np.bool_))
    times = (_at(stored), stored.dtype.itemsize, since)
    kept = _library().mark_late(*run, *stay, *times, _at(keep), _at(late), _at(count))
    return keep, int(kept), late[: int(count[0])].copy()


def repeats(starts: Rows, item: Codes, stored: npt.NDArray[Any]) -> tuple[Rows, Rows, Rows]:
    """Return the rows with user, item and time of an earlier row, that row, and the first row with user and time.

    Args:
        starts: ``[users + 1]`` first row of each user in ``item``, each user's ordered by time.
        item: ``[rows]``.
        stored: ``[rows]`` times, uint32 or int64.
    """
    rows = len(item)
    assert len(stored) == rows
    assert stored.dtype in (np.uint32, np.int64)
    assert _are_rows(starts[:-1], starts[1:], rows), "rows that are not there"
    assert _are_below(item, 1 << 31), "items are from 0"
    found = [np.empty(rows, np.int64) for _ in range(3)]
    run = (_at(starts, np.int64), len(starts) - 1, _at(item, np.int32), _at(stored), stored.dtype.itemsize)
    count = _library().find_repeats(*run, *map(_at, found))
    first, into, ties = (each[:count].copy() for each in found)
    return first, into, ties


def gap_codes(user: Codes, timestamp: Rows, last_user: int, last_time: int) -> Bytes:
    """Bucket the time since the user's previous event, as :func:`recsys.contracts.event_features.gap_buckets` does.

    Args:
        user, timestamp: Of the events, by user.
        last_user, last_time: Of the event in front of them.
    """
    out = np.empty(len(user), np.uint8)
    assert len(user) == len(timestamp)
    events = (_at(user, np.int32), _at(timestamp, np.int64), len(user))
    _library().gap_codes(*events, last_user, last_time, _at(out))
    return out


def same_pairs(user: Codes, timestamp: Rows) -> Bools:
    """Return ``[rows]`` whether a row has the user and the time of the row before it."""
    out = np.empty(len(user), np.bool_)
    assert len(user) == len(timestamp)
    _library().same_pairs(_at(user, np.int32), _at(timestamp, np.int64), len(user), _at(out))
    return out


def gap_sessions(user: Codes, split: npt.NDArray[np.int8], timestamp: Rows, longest: int) -> Codes:
    """Number runs of rows of one user and split without a pause longer than ``longest``, from 0."""
    out = np.empty(len(user), np.int32)
    assert len(user) == len(split) == len(timestamp)
    events = (_at(user, np.int32), _at(split, np.int8), _at(timestamp, np.int64), len(user))
    _library().gap_sessions(*events, longest, _at(out))
    return out


def run_starts(codes: Codes) -> Rows:
    """Return the first row of each code, and behind them the number of rows.

    Args:
        codes: Ascending from 0, each of them met.
    """
    assert len(codes), "there are no codes"
    assert codes[0] == 0, "codes begin at 0"
    assert int(np.count_nonzero(codes[1:] != codes[:-1])) == codes[-1], "a code is not met, or not in order"
    out = np.empty(int(codes[-1]) + 2, np.int64)
    _library().run_starts(_at(codes, np.int32), len(codes), _at(out))
    return out


def taken(
    starts: Rows, item: Codes, stored: npt.NDArray[Any] | None, scale: int, keep: Bools | None, item_number: Codes
) -> tuple[Codes, Codes, Rows | None, Bools]:
    """Return users, items and times of the kept rows of a run of users, and ``[users]`` who has any.

    Args:
        starts: ``[users + 1]`` first row of each user in ``item``, and behind them the number of rows.
        item: ``[rows]``.
        stored: ``[rows]`` times, uint32 or int64; ``None``: there are none.
        scale: What a time is multiplied with.
        keep: ``[rows]``; ``None``: all are kept.
        item_number: ``[items]`` number of each among those that are kept.
    """
    rows = len(item)
    assert keep is None or len(keep) == rows
    assert stored is None or (len(stored) == rows and stored.dtype in (np.uint32, np.int64))
    assert _are_rows(starts[:-1], starts[1:], rows), "rows that are not there"
    assert _are_below(item, len(item_number)), "an item has no number"
    user, items = (np.empty(rows + 1, np.int32) for _ in range(2))
    time, used = None if stored is None else np.empty(rows + 1, np.int64), np.empty(len(starts) - 1, np.bool_)
    run = (_at(starts, np.int64), len(starts) - 1, _at(item, np.int32))
    size = 8 if stored is None else stored.dtype.itemsize
    given = (_at(stored), size, scale, _at(keep, np.bool_), _at(item_number, np.int32))
    kept = _library().take_events(*run, *given, _at(user), _at(items), _at(time), _at(used))
    return user[:kept], items[:kept], None if time is None else time[:kept], used


def labelled(
    user: Codes, timestamp: Rows, cuts: tuple[int, int], longest: int, users: int
) -> tuple[npt.NDArray[np.int8], Codes, Rows, Bytes, Rows, Rows, Rows]:
    """Return split, session, first row of each session, and gap code of each event; counts; and facts.

    Args:
        user, timestamp: ``[E]`` by user and time, users from 0.
        cuts: First instants of validation and test.
        longest: Pause inside a session, microseconds.
        users: How many there are.

    Returns:
        ``[E]`` split, ``[E]`` session, ``[S + 1]`` starts, ``[E]`` gap codes, ``[3, users]`` events of each split,
        ``[64]`` sessions by the bits of their number of events, and ``[3]``: events with user and time of the one before,
        least and largest time of those that are not below 0.
    """
    rows = len(user)
    assert len(timestamp) == rows
    assert _are_below(user, users), "a user is not there"
    split, session, gap = np.empty(rows, np.int8), np.empty(rows, np.int32), np.empty(rows, np.uint8)
    starts, counts, facts = np.empty(rows + 1, np.int64), np.zeros((3, users), np.int64), np.empty(3, np.int64)
    lengths = np.zeros(64, np.int64)
    events = (_at(user, np.int32), _at(timestamp, np.int64), rows, *cuts, longest, users)
    sessions = _library().label_events(
        *events, _at(split), _at(session), _at(starts), _at(gap), _at(counts), _at(lengths), _at(facts)
    )
    return split, session, starts[: sessions + 1], gap, counts, lengths, facts


def whole_seconds(times: Rows) -> npt.NDArray[np.uint32] | None:
    """Return microseconds as seconds; ``None`` where one is below 0, no whole second, or does not fit four bytes."""
    out = np.empty(len(times), np.uint32)
    return out if _library().whole_seconds(_at(times, np.int64), len(times), _at(out)) else None


def split_counts(user: Codes, split: npt.NDArray[np.int8], users: int, splits: int) -> Rows:
    """Return ``[splits, users]`` how many rows each user has in each split."""
    counts = np.zeros((splits, users), np.int64)
    assert len(user) == len(split)
    assert _are_below(user, users), "a user is not there"
    assert not len(split) or int(split.view(np.uint8).max()) < splits, "a split is not there"
    _library().split_counts(_at(user, np.int32), _at(split, np.int8), len(user), users, _at(counts))
    return counts


def distinct_targets(start: Rows, end: Rows, item: Codes) -> tuple[Codes, Rows]:
    """Return the items of each user's window, each once, in order, and ``[users]`` how many there are.

    Args:
        start, end: ``[users]`` rows of ``item``.
        item: From 0.
    """
    assert len(start) == len(end)
    assert _are_rows(start, end, len(item)), "rows that are not there"
    assert _are_below(item, 1 << 31), "items are from 0"
    sizes = np.empty(len(start), np.int64)
    out = np.empty(int((end - start).sum()), np.int32)
    windows = (_at(start, np.int64), _at(end, np.int64), len(start), _at(item, np.int32))
    total = _library().distinct_targets(*windows, _at(sizes), _at(out))
    return out[:total], sizes

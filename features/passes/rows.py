"""Columns made of other columns, row by row: taken out, put in between, looked up, counted.

Every function has two forms with the same result: NumPy, and a kernel of :mod:`recsys.native.columns`, which makes no
arrays on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.contracts.event_times import whole_seconds
from recsys.native import columns as native

Codes = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def compressed(values: npt.NDArray[Any], keep: Bools) -> npt.NDArray[Any]:
    """Return the values whose ``keep`` is true.

    Example:
        >>> compressed(np.array([5, 6, 7]), np.array([True, False, True])).tolist()
        [5, 7]
    """
    if native.available() and values.dtype.itemsize in (1, 4, 8):
        return native.compressed(np.ascontiguousarray(values), np.ascontiguousarray(keep))
    return values[keep]


def inserted(old: npt.NDArray[Any], at: Rows, fresh: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``old`` with each of ``fresh`` in front of the row ``at``.

    Args:
        old: ``[rows]``.
        at: Ascending, from 0 to ``rows``.
        fresh: As many, of the type of ``old``.

    Example:
        >>> inserted(np.array([1, 2]), np.array([0, 2, 2]), np.array([7, 8, 9])).tolist()
        [7, 1, 2, 8, 9]
    """
    if native.available() and old.dtype.itemsize in (1, 4, 8):
        return native.inserted(*(np.ascontiguousarray(array) for array in (old, at, fresh)))
    out = np.empty(len(old) + len(fresh), old.dtype)
    own = at + np.arange(len(at))
    is_old = np.ones(len(out), bool)
    is_old[own] = False
    out[is_old] = old
    out[own] = fresh
    return out


def gathered(table: Codes, codes: Codes) -> Codes:
    """Return ``table[codes]``; codes below 0, which stand for no id, stay as they are.

    Example:
        >>> gathered(np.array([4, 3], np.int32), np.array([1, -1, 0], np.int32)).tolist()
        [3, -1, 4]
    """
    if native.available():
        return native.gathered(np.ascontiguousarray(table), np.ascontiguousarray(codes))
    return np.where(codes < 0, codes, np.append(table, np.int32(0))[codes])


def ranked(codes: Codes, used: Bools) -> Codes:
    """Return the rank of each code among those that are met, and mark those in ``used``.

    Args:
        codes: Ascending, from 0.
        used: ``[codes there are]``, all false; is written to.

    Example:
        >>> used = np.zeros(4, bool)
        >>> ranked(np.array([1, 1, 3], np.int32), used).tolist(), used.tolist()
        ([0, 0, 1], [False, True, False, True])
    """
    if native.available():
        return native.ranked(np.ascontiguousarray(codes), used)
    used[codes] = True
    return (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]


def add_counts(codes: Codes, keep: Bools | None, counts: Rows) -> None:
    """Count codes.

    Args:
        codes: ``[rows]``, from 0.
        keep: ``[rows]`` which of them count; ``None``: all.
        counts: ``[codes there are]``; is added to.

    Example:
        >>> counts = np.array([5, 5])
        >>> add_counts(np.array([1, 1, 0], np.int32), np.array([True, False, True]), counts); counts.tolist()
        [6, 6]
    """
    if native.available():
        native.add_counts(np.ascontiguousarray(codes), None if keep is None else np.ascontiguousarray(keep), counts)
    else:
        counts += np.bincount(codes if keep is None else codes[keep], minlength=len(counts))


def seconds_of(times: Rows) -> npt.NDArray[np.uint32] | None:
    """Return what :func:`recsys.contracts.event_times.whole_seconds` does.

    Example:
        >>> seconds_of(np.array([5_000_000, 7_000_000])).tolist(), seconds_of(np.array([5_000_000, -1]))
        ([5, 7], None)
    """
    return native.whole_seconds(np.ascontiguousarray(times)) if native.available() else whole_seconds(times)

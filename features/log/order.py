"""The order of events: user, prehistory first, time, position, tie-break, and what is left in the order of the files.

Reads whole-number keys; produces row numbers. Sorting is by digits of 16 bits from the least to the most significant key,
so its time grows with the rows, and keys that are in order already cost one comparison. It is stable: rows that agree in
all keys keep the order in which they came, which is that of the files and of the rows in each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.log.arrays import is_constant
from recsys.native import columns as native

KeyArray = npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_]

_SLICE: Final = 1 << 18
_DIGIT: Final = 16
_GLANCE: Final = 1000
_PILE_ROWS: Final = 1 << 16


def stable_order(keys: Sequence[KeyArray]) -> npt.NDArray[np.int64] | None:
    """Return the stable order by several keys, or ``None`` when the rows are in order already.

    Args:
        keys: ``[rows]`` each, the most significant first.

    Example:
        >>> stable_order([np.array([1, 0, 1, 0]), np.array([5, 7, 4, 7])]).tolist()
        [1, 3, 2, 0]
    """
    if in_order(keys):
        return None
    order: npt.NDArray[np.int64] | None = None
    for key in reversed(keys):
        current = key if order is None else key[order]
        if in_order([current]):
            continue
        digits = _from_zero(current)
        bits = int(digits.max()).bit_length()
        for shift in range(0, bits, _DIGIT):
            step = np.argsort((digits >> shift).astype(np.uint16), kind="stable")  # a radix sort for 16 bits
            order = step if order is None else order[step]
            if shift + _DIGIT < bits:
                digits = digits[step]
    return order


def sort_columns(columns: dict[str, Any], keys_of: Callable[[dict[str, Any]], list[KeyArray]], major: str) -> None:
    """Put the rows of all columns into the order of their keys, in place or in new arrays: the dictionary holds them.

    Rows are first dealt into piles by the most significant key, in one pass that reads and writes along, and then every
    pile is sorted where it lies: it fits the cache, where sorting all rows at once would fetch each value from memory.

    Args:
        columns: ``[rows]`` each.
        keys_of: Gives the keys of columns, the most significant first.
        major: Name of the most significant key, whole numbers from 0.
    """
    if in_order(keys_of(columns)):
        return
    rows, highest = len(columns[major]), int(columns[major].max())
    piles = min(max(rows // _PILE_ROWS, 1), 1 << _DIGIT)
    shift = max((highest // piles).bit_length(), 0)
    pile = (columns[major] >> shift).astype(np.uint16)
    ends = np.cumsum(np.bincount(pile))
    if len(ends) > 1 and not in_order([pile]):
        order = np.argsort(pile, kind="stable")
        for name, column in columns.items():
            columns[name] = column if is_constant(column) else column[order]
        del order
    start = 0
    for end in ends:
        piece = {name: column[start:end] for name, column in columns.items()}
        order_in_pile = stable_order(keys_of(piece)) if end > start else None
        if order_in_pile is not None:
            for column in piece.values():
                if not is_constant(column):
                    column[:] = column[order_in_pile]
        start = end


def in_order(keys: Sequence[KeyArray]) -> bool:
    """Whether no row comes before its predecessor; looks at slices, so that temporaries stay small."""
    rows = len(keys[0])
    for start in range(0, rows - 1, _SLICE):
        end = min(start + _SLICE + 1, rows)
        undecided = np.ones(end - start - 1, bool)
        for key in keys:
            before, after = key[start : end - 1], key[start + 1 : end]
            if (undecided & (after < before)).any():
                return False
            undecided &= after == before
    return True


def same_as_before(keys: Sequence[KeyArray]) -> npt.NDArray[np.bool_]:
    """Return ``[rows]`` whether a row agrees with its predecessor in all keys; the first one does not.

    Example:
        >>> same_as_before([np.array([1, 1, 1]), np.array([4, 4, 5])]).tolist()
        [False, True, False]
    """
    result = np.zeros(len(keys[0]), bool)
    keys = [key for key in keys if not is_constant(key)]
    if not keys:
        result[1:] = True
        return result
    if native.available() and [key.dtype for key in keys] == [np.int32, np.int64]:  # users and times
        return native.same_pairs(np.ascontiguousarray(keys[0], np.int32), np.ascontiguousarray(keys[1], np.int64))
    for start in range(1, len(result), _SLICE):
        end = min(start + _SLICE, len(result))
        same = keys[0][start:end] == keys[0][start - 1 : end - 1]
        for key in keys[1:]:
            same &= key[start:end] == key[start - 1 : end - 1]
        result[start:end] = same
    return result


def _from_zero(key: KeyArray) -> npt.NDArray[np.int64]:
    """Shift a key to begin at 0, and divide what is whole seconds or milliseconds: fewer digits to sort by."""
    if key.dtype == np.bool_:
        return key.astype(np.int64)
    low, high = int(key.min()), int(key.max())
    if high - low > np.iinfo(np.int64).max:  # only with a placeholder among the values: rank them
        return np.unique(key, return_inverse=True)[1].astype(np.int64)
    shifted = key.astype(np.int64) - low
    if key.dtype == np.int64 and high - low >= 1 << _DIGIT:
        for scale in (1_000_000, 1_000):
            if not (shifted[:_GLANCE] % scale).any() and not (shifted % scale).any():
                return shifted // scale
    return shifted

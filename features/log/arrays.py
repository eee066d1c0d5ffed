"""Columns that grow batch by batch: blocks of fixed size, so that nothing is copied before the end."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.errors import DataError

CodeArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

NO_NUMBER: Final = np.iinfo(np.int64).min
"""Stands for a missing whole number."""

NO_CODE: Final = -1
"""Stands for a missing id."""

_BLOCK: Final = (
    1 << 22
)  # large enough for the allocator to give freed blocks back; pages count only once they are written


class GrowingArray:
    """A one-dimensional array that is appended to.

    Example:
        >>> column = GrowingArray(np.int32)
        >>> column.append(np.array([3, 1])); column.append(np.array([2]))
        >>> column.finish().tolist()
        [3, 1, 2]
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._blocks: list[npt.NDArray[Any]] = []
        self._free = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, values: npt.NDArray[Any]) -> None:
        """Copy the values to the end."""
        done = 0
        while done < len(values):
            if self._free == 0:
                self._blocks.append(np.empty(_BLOCK, self.dtype))
                self._free = _BLOCK
            taken = min(self._free, len(values) - done)
            start = _BLOCK - self._free
            self._blocks[-1][start : start + taken] = values[done : done + taken]
            done += taken
            self._free -= taken
        self._length += len(values)

    def finish(self) -> npt.NDArray[Any]:
        """Return everything as one array; the blocks are freed on the way."""
        result = np.empty(self._length, self.dtype)
        place = 0
        self._blocks.reverse()
        while self._blocks:
            block = self._blocks.pop()
            taken = min(_BLOCK, self._length - place)
            result[place : place + taken] = block[:taken]
            place += taken
        self._length = self._free = 0
        return result


class IdColumn:
    """Ids of one kind, met in any order; at the end they are numbered in ascending order.

    Text is held once per distinct id, in a dictionary that grows; whole numbers are held as they are. So the codes do not
    depend on the order of rows or on the size of batches.

    Example:
        >>> column = IdColumn(pl.String())
        >>> column.append(pl.Series(["b", "a"])); column.append(pl.Series(["b", None]))
        >>> codes, ids = column.finish()
        >>> codes.tolist(), ids.to_list()
        ([1, 0, 1, -1], ['a', 'b'])
    """

    def __init__(self, dtype: pl.DataType) -> None:
        if dtype not in (pl.String, pl.Int64):
            raise DataError(f"ids are {dtype}, expected Int64 or String")
        self._is_text = dtype == pl.String
        self._categories = pl.Categories.random()
        self._type = pl.Categorical(self._categories)
        # the dictionary lives as long as a series of its type does
        self._alive = pl.Series(dtype=self._type)
        self._column = GrowingArray(np.int32 if self._is_text else np.int64)

    def append(self, ids: pl.Series) -> None:
        """Add a batch; null stands for "no id"."""
        if self._is_text:
            codes = ids.cast(self._type).to_physical()
            if codes.null_count():
                self._column.append(codes.cast(pl.Int64).fill_null(NO_CODE).to_numpy())
            else:
                self._column.append(codes.to_numpy())
        else:
            self._column.append(ids.fill_null(NO_NUMBER).to_numpy() if ids.null_count() else ids.to_numpy())

    def finish(self) -> tuple[CodeArray, pl.Series]:
        """Return ``[rows]`` codes and the distinct ids, ascending, code = place; the column is empty afterwards."""
        values = self._column.finish()
        if not self._is_text:
            return _encode_numbers(values)
        known = self._categories.to_series().cast(pl.String)
        places = known.arg_sort().to_numpy()
        table = np.empty(len(known) + 1, np.int32)
        table[places] = np.arange(len(known), dtype=np.int32)
        table[-1] = NO_CODE
        for start in range(0, len(values), _BLOCK):  # in place: a second array of all rows is not needed
            part = values[start : start + _BLOCK]
            part[:] = table[part]
        return values, known.gather(pl.Series(places)).alias("")


def encode_ids(ids: pl.Series) -> tuple[CodeArray, pl.Series]:
    """Number the distinct ids in ascending order.

    Args:
        ids: Int64 or String.

    Returns:
        ``[rows]`` codes, -1 for null, and the distinct ids, code = place.

    Example:
        >>> codes, distinct = encode_ids(pl.Series(["b", "a", "b"]))
        >>> codes.tolist(), distinct.to_list()
        ([1, 0, 1], ['a', 'b'])
    """
    column = IdColumn(ids.dtype)
    column.append(ids)
    return column.finish()


def _encode_numbers(values: npt.NDArray[np.int64]) -> tuple[CodeArray, pl.Series]:
    missing = values == NO_NUMBER
    known = values[~missing] if missing.any() else values
    low, high = (int(known.min()), int(known.max())) if len(known) else (0, 0)
    dense = high - low < 4 * len(values) + 1024  # a table of the whole range is far cheaper than a search per row
    table = np.empty(0, np.int32)
    if dense:
        used = np.zeros(high - low + 1, bool)
        used[known - low] = True
        distinct = np.flatnonzero(used) + low if len(known) else known
        table = np.cumsum(used, dtype=np.int32) - np.int32(1)
    else:
        distinct = np.unique(known)
    codes = np.empty(len(values), np.int32)
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        codes[start : start + _BLOCK] = table[np.maximum(part, low) - low] if dense else np.searchsorted(distinct, part)
    codes[missing] = NO_CODE
    return codes, pl.Series(distinct, dtype=pl.Int64)

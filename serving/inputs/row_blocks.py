"""Rows of a lazily read file, a run of them at a time; what is read in order is read once.

Reads Parquet by row groups, as getting to a row inside a group costs several times what reading it does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

READ_AHEAD: Final = 32_768
"""Rows read from a file at once, at least."""

READ_BYTES: Final = 16 * 2**20
"""Of a file, before it is packed, that are read at once to get to the end of a row group."""

RowGroups = tuple[npt.NDArray[np.int64], float]
"""The row behind the last one of each row group, and the bytes of a row, before packing."""

NO_GROUPS: Final[RowGroups] = (np.zeros(0, np.int64), 0.0)


@dataclass
class RowBlocks:
    """Rows of a file by their numbers.

    Attributes:
        rows: All of them.
        groups: Of the file, from :func:`row_groups`, or :data:`NO_GROUPS`.
        schema: The form of rows, where there is none.
    """

    rows: pl.LazyFrame
    groups: RowGroups
    schema: pl.Schema
    _first: int = 0
    _block: pl.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing read."""
        self._block = pl.DataFrame(schema=self.schema)

    def read(self, start: int, end: int) -> pl.DataFrame:
        """Rows ``start`` to ``end``.

        Raises:
            OSError, PolarsError: They cannot be read.
        """
        if not self._first <= start <= self._first + len(self._block):
            self._first, self._block = start, self._block.clear()
        read = self._first + len(self._block)
        if end > read:
            pieces = [self._block[start - self._first :]] if start < read else []
            self._first = start
            while read < end:
                last = self._end_of_reading(read)
                pieces.append(self.rows.slice(read, last - read).collect())
                read = last
            self._block = pl.concat(pieces)
        return self._block.slice(start - self._first, end - start)

    def _end_of_reading(self, start: int) -> int:
        """Up to which row is read from ``start`` on: to the end of a row group, where that is not too far."""
        ends, row_bytes = self.groups
        far = start + max(READ_AHEAD, int(READ_BYTES / row_bytes) if row_bytes else 0)
        place = np.searchsorted(ends, far, side="right")
        last = int(ends[place - 1]) if place else 0
        return last if last > start else far


def row_groups(path: Path) -> RowGroups:
    """Return the row behind the last one of each row group of a Parquet file, and the bytes of a row, before packing.

    Raises:
        OSError: Its list of row groups cannot be read.
    """
    import pyarrow as pa  # only here: a model that answers requests does without
    import pyarrow.parquet as pq

    try:
        listed = pq.read_metadata(path)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    groups = [listed.row_group(number) for number in range(listed.num_row_groups)]
    rows = np.array([group.num_rows for group in groups], np.int64)
    return rows.cumsum(), sum(group.total_byte_size for group in groups) / max(int(rows.sum()), 1)

"""A Parquet table of numbers that is written piece by piece; the file is the same however it was cut into pieces.

Numbers that ascend, and codes of few values, are stored as differences in few bits, which takes a tenth of the space;
numbers that look random are stored as they are. Nothing is compressed: what is left looks random. One page holds the values
of a column of one row group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.number_tables import file_format
from features.number_tables.encodings import bits, delta_packed, levels
from features.number_tables.file_format import Chunk, ColumnFormat
from features.number_tables.file_in_pieces import FileInPieces

GROUP_ROWS: Final = 250_000
"""Larger columns are memory that is asked of the system, and given back, for every group."""

_KINDS: Final[dict[np.dtype[Any], tuple[int, int | None]]] = {
    np.dtype(np.bool_): (file_format.BOOLEAN, None),
    np.dtype(np.int8): (file_format.INT32, file_format.INT_8),
    np.dtype(np.uint8): (file_format.INT32, file_format.UINT_8),
    np.dtype(np.int32): (file_format.INT32, None),
    np.dtype(np.int64): (file_format.INT64, None),
    np.dtype(np.float32): (file_format.FLOAT, None),
}


@dataclass(frozen=True)
class Nullable:
    """Values some of which may be missing.

    Attributes:
        values: ``[rows]``; what stands where none is known does not count.
        known: ``[rows]`` whether each is there; ``None``: all are.
    """

    values: npt.NDArray[Any]
    known: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Nullable:
        return Nullable(self.values[rows], None if self.known is None else self.known[rows])

    @property
    def marks(self) -> npt.NDArray[np.bool_]:
        """``[rows]`` whether each is there."""
        return np.broadcast_to(np.True_, (len(self),)) if self.known is None else self.known


@dataclass(frozen=True)
class Lists:
    """A list of at least one number in each row.

    Attributes:
        items: The numbers of all rows, one row after the other.
        ends: ``[rows + 1]`` where the first row begins in ``items``, and where each ends; ascending by at least 1.
    """

    items: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, items: npt.NDArray[Any], sizes: npt.NDArray[np.integer[Any]]) -> Lists:
        """Cut items into lists of these sizes.

        Raises:
            ValueError: A list would be empty, or the sizes do not add up to the items.
        """
        if len(sizes) and int(sizes.min()) < 1:
            raise ValueError(f"list {int(sizes.argmin())} has {int(sizes.min())} items, expected at least 1")
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        if ends[-1] != len(items):
            raise ValueError(f"the lists have {int(ends[-1])} items by their sizes, and there are {len(items)}")
        return cls(items, ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, rows: slice) -> Lists:
        start, stop, _ = rows.indices(len(self))
        return Lists(self.items, self.ends[start : stop + 1])

    @property
    def values(self) -> npt.NDArray[Any]:
        """The numbers of these rows alone."""
        return self.items[self.ends[0] : self.ends[-1]]

    @property
    def is_first(self) -> npt.NDArray[np.bool_]:
        """``[values]`` whether each begins a row."""
        found = np.zeros(int(self.ends[-1] - self.ends[0]), bool)
        found[self.ends[:-1] - self.ends[0]] = True
        return found


Column = npt.NDArray[Any] | Nullable | Lists


class NumberTableWriter(FileInPieces):
    """Writes one file.

    Example:
        >>> import tempfile, polars as pl
        >>> path = Path(tempfile.mkdtemp()) / "a.parquet"
        >>> with NumberTableWriter(path, ascending={"user"}) as writer:
        ...     time = Nullable(np.array([5, -1, 7]), np.array([True, False, True]))
        ...     writer.write({"user": np.array([0, 0, 1]), "time": time})
        >>> pl.read_parquet(path).rows()
        [(0, 5), (0, None), (1, 7)]
    """

    def __init__(self, path: Path, ascending: Collection[str]) -> None:
        """Open the file.

        Args:
            path: Of the file.
            ascending: Columns that are stored as differences, where they are whole numbers without nulls.
        """
        super().__init__(path)
        self._ascending = ascending
        self._columns: list[ColumnFormat] = []
        self._groups: list[tuple[int, list[Chunk]]] = []
        self._waiting: list[Mapping[str, Column]] = []
        self._rows = 0
        self._end = self._file.write(file_format.MAGIC)

    def write(self, columns: Mapping[str, Column]) -> None:
        """Append rows; the first ones, which may be none, say which columns there are.

        Args:
            columns: Name -> ``[rows]``, of the types that :data:`_KINDS` lists.
        """
        if not self._columns:
            self._columns = [self._format(name, column) for name, column in columns.items()]
        rows = len(next(iter(columns.values())))
        start = 0
        while self._rows + rows - start >= GROUP_ROWS:
            taken = GROUP_ROWS - self._rows
            self._waiting.append(_part(columns, start, start + taken))
            self._flush(GROUP_ROWS)
            start += taken
        if start < rows:
            self._waiting.append(_part(columns, start, rows))
            self._rows += rows - start

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        if self._rows:
            self._flush(self._rows)
        self._file.write(file_format.footer(self._columns, self._groups))
        super().close()

    def _format(self, name: str, column: Column) -> ColumnFormat:
        plain = isinstance(column, np.ndarray)
        dtype = column.dtype if isinstance(column, np.ndarray) else column.values.dtype
        physical, converted = _KINDS[dtype]
        packed = name in self._ascending and plain and dtype.kind in "iu"
        encoding = file_format.DELTA if packed else file_format.PLAIN
        return ColumnFormat(
            name, physical, converted, isinstance(column, Nullable), encoding, isinstance(column, Lists)
        )

    def _flush(self, rows: int) -> None:
        chunks = []
        for column in self._columns:
            parts = [part[column.name] for part in self._waiting]
            page = _page(parts, column, rows)
            values = sum(len(part.values) for part in parts if isinstance(part, Lists)) if column.in_lists else rows
            head = file_format.page_head(column, values, sum(memoryview(part).nbytes for part in page))
            begin = self._end
            for part in (head, *page):
                self._end += self._file.write(part)
            chunks.append(Chunk(begin, self._end - begin, values))
        self._groups.append((rows, chunks))
        self._waiting.clear()
        self._rows = 0


def _part(columns: Mapping[str, Column], start: int, end: int) -> Mapping[str, Column]:
    return {name: column[start:end] for name, column in columns.items()}


def _page(parts: list[Column], column: ColumnFormat, rows: int) -> list[bytes | memoryview]:
    """Return the bytes of a page, without its head."""
    if column.in_lists:
        lists = [part for part in parts if isinstance(part, Lists)]
        first = np.concatenate([part.is_first for part in lists])
        return [levels(~first, len(first)), levels(None, len(first)), *_plain([part.values for part in lists])]
    if column.nullable:
        nullable = [part for part in parts if isinstance(part, Nullable)]
        values = [part.values for part in nullable]
        if all(part.known is None for part in nullable):
            return [levels(None, rows), *_plain(values)]
        known = np.concatenate([part.marks for part in nullable])
        if known.all():
            return [levels(None, rows), *_plain(values)]
        return [levels(known, rows), *_plain([_joined(values)[known]])]
    values = [part for part in parts if isinstance(part, np.ndarray)]
    return [delta_packed(*values)] if column.encoding == file_format.DELTA else _plain(values)


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _plain(parts: list[npt.NDArray[Any]]) -> list[bytes | memoryview]:
    """Return the bytes of values one part after the other; only bits have to be put together before."""
    if parts[0].dtype == np.bool_:
        return [bits(_joined(parts))]
    wide = (part.astype(np.int32) if part.dtype.itemsize == 1 else part for part in parts)
    return [np.ascontiguousarray(part).view(np.uint8).data for part in wide]

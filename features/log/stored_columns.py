"""How the columns of a log lie on disk: no wider than their values, so that a day that is added rewrites few bytes.

Reads and writes ``.npy`` files. A column of bytes that are all equal is no file but one value; times that are whole
seconds, and numbers of rows below four milliards, take four bytes each; users, by whom the log is sorted, are kept as rows
per user.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.log.arrays import compacted, is_constant
from features.number_tables.file_in_pieces import FileInPieces
from features.passes.rows import seconds_of
from recsys.contracts.event_times import SECOND_US

_UINT32: Final = np.dtype(np.uint32)
_SLICE: Final = 1 << 18
MAYBE_CONSTANT: Final = frozenset({"prehistory", "signal_values", "signal_known"})
"""Columns that hold one value in many logs."""


@dataclass(frozen=True)
class Layout:
    """How one column is stored.

    Attributes:
        dtype: In memory.
        stored: On disk.
        scale: What a stored number is multiplied with: 1, or the microseconds of a second.
        constant: The value of every row; there is no file then.
    """

    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    scale: int = 1
    constant: int | None = None

    @classmethod
    def of(cls, name: str, values: npt.NDArray[Any], records: int) -> Layout:
        """Choose the narrowest layout that loses nothing.

        Args:
            name: Of the column.
            values: ``[rows]``.
            records: Row numbers of the log are below this.

        Example:
            >>> Layout.of("timestamp", np.array([5_000_000, 7_000_000]), 2).stored
            dtype('uint32')
            >>> Layout.of("timestamp", np.array([5_000_000, 7_000_001]), 2).stored
            dtype('int64')
        """
        plain = cls(values.dtype, values.dtype)
        if name in MAYBE_CONSTANT and len(values) and is_constant(compacted(values)):
            return cls(values.dtype, values.dtype, constant=int(values[0]))
        if name == "timestamp" and len(values) and _whole_seconds(values):
            return cls(values.dtype, _UINT32, SECOND_US)
        if name == "record":
            return cls(values.dtype, _UINT32) if records <= 1 << 32 else plain
        return plain

    def joined(self, other: Layout, name: str, records: int) -> Layout:
        """Return the layout of rows of this one and of another one together, as :meth:`of` would choose it."""
        plain = Layout(self.dtype, self.dtype)
        if name == "record":
            return Layout(self.dtype, _UINT32) if records <= 1 << 32 else plain
        return self if self == other else plain

    def to_disk(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values as they are stored."""
        if self.scale == 1:
            return values.astype(self.stored, copy=False)
        seconds = seconds_of(values)
        assert seconds is not None  # :meth:`of` has looked
        return seconds

    def from_disk(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return stored values as they are in memory."""
        if self.scale == 1:
            return values.astype(self.dtype, copy=False)
        return np.multiply(values, self.dtype.type(self.scale), dtype=self.dtype)

    def stored_from(self, value: int) -> int:
        """Return the least stored number that stands for ``value`` or more.

        Example:
            >>> seconds = Layout(np.dtype(np.int64), np.dtype(np.uint32), SECOND_US)
            >>> seconds.stored_from(2_000_000), seconds.stored_from(2_000_001), seconds.stored_from(-5)
            (2, 3, 0)
        """
        least = -(-value // self.scale)
        return max(least, 0) if self.stored.kind == "u" else least

    def as_json(self) -> dict[str, Any]:
        """What a reader needs beside the file."""
        return {"dtype": self.dtype.str, "stored": self.stored.str, "scale": self.scale, "constant": self.constant}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Layout:
        """Read what :meth:`as_json` gave."""
        return cls(np.dtype(values["dtype"]), np.dtype(values["stored"]), values["scale"], values["constant"])


@dataclass(frozen=True)
class StoredColumn:
    """A column on disk, read where it is asked for.

    Attributes:
        layout: How it is stored.
        rows: How many values it has.
        file: The memory-mapped file; ``None`` where all values are equal.
    """

    layout: Layout
    rows: int
    file: npt.NDArray[Any] | None

    @classmethod
    def open(cls, path: Path, layout: Layout, rows: int) -> StoredColumn:
        """Open a file.

        Raises:
            ValueError: It does not hold what the layout says.
        """
        if layout.constant is not None:
            return cls(layout, rows, None)
        file = np.load(path, mmap_mode="r", allow_pickle=False)
        if file.dtype != layout.stored or file.shape != (rows,):
            raise ValueError(f"'{path}' holds {file.shape} of {file.dtype}, expected {(rows,)} of {layout.stored}")
        return cls(layout, rows, file)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice | npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """Return some of the values; of a column of one value an array that cannot be written to."""
        return self.layout.from_disk(self.stored(rows))

    def stored(self, rows: slice | npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """Return the same values as they are on the disk."""
        if self.file is None:
            count = len(range(*rows.indices(self.rows))) if isinstance(rows, slice) else len(rows)
            return np.broadcast_to(np.asarray(self.layout.constant, self.layout.dtype), (count,))
        return self.file[rows]


class ColumnWriter(FileInPieces):
    """An ``.npy`` file of one dimension that is written piece by piece, with the bytes that :func:`numpy.save` gives.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.npy"
        >>> with ColumnWriter(path, np.dtype(np.int32)) as writer:
        ...     writer.write(np.array([1, 2], np.int32)); writer.write(np.array([3], np.int32))
        >>> np.load(path).tolist()
        [1, 2, 3]
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        super().__init__(path)
        self._dtype = np.dtype(dtype)
        self._rows = 0
        self._begin = self._header()

    def write(self, values: npt.NDArray[Any]) -> None:
        """Append values."""
        self._file.write(np.ascontiguousarray(values, self._dtype).view(np.uint8).data)
        self._rows += len(values)

    def close(self) -> None:
        """Write how many values there are, and close the file."""
        self._file.seek(0)
        assert self._header() == self._begin  # numpy leaves room for a number of any length
        super().close()

    def _header(self) -> int:
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


def _whole_seconds(times: npt.NDArray[np.int64]) -> bool:
    """Whether all times are whole seconds that fit four bytes (until the year 2106); a slice at a time, for its memory."""
    return all(seconds_of(times[start : start + _SLICE]) is not None for start in range(0, len(times), _SLICE))

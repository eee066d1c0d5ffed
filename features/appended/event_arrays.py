"""The arrays of histories that have one value per event, written some events at a time.

Produces the files of :func:`recsys.contracts.dataset.write_history_arrays`, byte for byte: how a file is stored shows only
once all of it is known, so each begins in the narrowest form and is written anew where a value does not fit it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from features.log.stored_columns import ColumnWriter
from features.passes.rows import seconds_of
from recsys.contracts.dataset import HISTORY_ARRAYS, MAYBE_EQUAL, is_one_value
from recsys.contracts.event_times import Times, WholeSeconds

_SLICE: Final = 1 << 18


class EventArrayWriter:
    """One of the files.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "timestamp.npy"
        >>> with EventArrayWriter(path) as writer:
        ...     writer.write(np.array([5_000_000, 5_000_000])); writer.write(np.array([7_000_000]))
        >>> np.load(path)
        array([5, 5, 7], dtype=uint32)
    """

    def __init__(self, path: Path) -> None:
        self._path, self._name = path, path.stem
        self._dtype = np.dtype(HISTORY_ARRAYS[self._name])
        self._rows = 0
        self._all: npt.NDArray[Any] | None = None  # the value of all rows so far
        self._file: ColumnWriter | None = None
        self._in_seconds = self._name == "timestamp"
        if self._name not in MAYBE_EQUAL:
            self._open()

    def write(self, values: npt.NDArray[Any]) -> None:
        """Append values of the declared type."""
        if not len(values):
            return
        if self._file is None and is_one_value(values) and (self._all is None or self._all[0] == values[0]):
            self._all = values[:1].copy()
        else:
            self._write(values)
        self._rows += len(values)

    def close(self) -> None:
        """Finish the file."""
        if self._file is None:
            np.save(self._path, np.empty(0, self._dtype) if self._all is None else self._all.reshape(()))
        else:
            self._file.close()

    def _write(self, values: npt.NDArray[Any]) -> None:
        if self._file is None:
            self._open()
            if self._all is not None:
                self._copy(np.broadcast_to(self._all, (self._rows,)))
        seconds = seconds_of(values) if self._in_seconds else None
        if self._in_seconds and seconds is None:
            self._widen()
        assert self._file is not None
        self._file.write(values if seconds is None else seconds)

    def _open(self) -> None:
        self._file = ColumnWriter(self._path, np.uint32 if self._in_seconds else self._dtype)

    def _widen(self) -> None:
        """Write the seconds so far as microseconds."""
        assert self._file is not None
        self._file.close()
        aside = self._path.with_name(f".{self._path.name}")  # a dot: scratch, wherever the process ends
        self._path.rename(aside)
        self._in_seconds = False
        self._open()
        self._copy(WholeSeconds(np.load(aside, mmap_mode="r")))
        aside.unlink()

    def _copy(self, values: npt.NDArray[Any] | Times) -> None:
        for start in range(0, len(values), _SLICE):
            self._write(values[start : start + _SLICE])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.__exit__(kind, error, at)

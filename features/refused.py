"""Refused rows: counted as they come, and kept on disk once they are many: a bad log needs no more memory than a good one.

Takes tables of refused rows in the order of the files; gives them back piece by piece, in that order.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

import polars as pl

from features.sources.base import FILE, ROW
from recsys.contracts.columns import Columns

ROWS_IN_MEMORY: Final = 1 << 17
"""About 25 MB; a log with fewer refused rows never touches the disk for them."""


@dataclass(frozen=True)
class Reason:
    """How often a reason was met, and where first."""

    rows: int
    file: str
    row: int


@dataclass(frozen=True)
class _OnDisk:
    """A table as an Arrow stream in the temporary file."""

    start: int
    size: int


class RefusedRows:
    """All refused rows of a log.

    The temporary file has no name: it is gone with the last object that reads it, or with the process. It lies where
    ``TMPDIR`` says.

    Attributes:
        schema: Columns of the rows, with ``file``, ``row`` and ``reason``.
        reasons: Reason -> how many rows and where the first one is, in the order in which they were met.
        per_file: File -> rows.

    Example:
        >>> rows = pl.DataFrame({"file": ["a", "a"], "row": [3, 5], "reason": ["null user_id"] * 2})
        >>> refused = RefusedRows(rows.schema)
        >>> refused.append(rows)
        >>> len(refused), refused.reasons, refused.per_file
        (2, {'null user_id': Reason(rows=2, file='a', row=3)}, {'a': 2})
    """

    def __init__(self, schema: pl.Schema) -> None:
        self.schema = schema
        self.reasons: dict[str, Reason] = {}
        self.per_file: dict[str, int] = {}
        self._pieces: list[_OnDisk] = []
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return sum(self.per_file.values())

    def append(self, rows: pl.DataFrame) -> None:
        """Add rows behind those that are there."""
        if not len(rows):
            return
        found = rows.group_by(Columns.REASON, maintain_order=True).agg(
            pl.len(), pl.col(FILE).first(), pl.col(ROW).first()
        )
        for reason, count, file, row in found.select(Columns.REASON, "len", FILE, ROW).iter_rows():
            known = self.reasons.get(reason, Reason(0, file, row))
            self.reasons[reason] = Reason(known.rows + count, known.file, known.row)
        for file, count in rows.group_by(FILE, maintain_order=True).len().iter_rows():
            self.per_file[file] = self.per_file.get(file, 0) + count
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        if self._waiting_rows > ROWS_IN_MEMORY:
            self._put_away()

    def and_also(self, rows: pl.DataFrame) -> RefusedRows:
        """Return these rows and others behind them; this object stays as it is."""
        both = copy.copy(self)
        both.reasons, both.per_file = dict(self.reasons), dict(self.per_file)
        both._pieces, both._waiting = list(self._pieces), list(self._waiting)
        both.append(rows)
        return both

    def tables(self) -> Iterator[pl.DataFrame]:
        """Yield all rows in pieces, at least one; their cut says nothing."""
        yield self.schema.to_frame()
        for piece in self._pieces:
            assert self._file is not None
            self._file.seek(piece.start)
            yield pl.read_ipc_stream(io.BytesIO(self._file.read(piece.size)))
        yield from self._waiting

    def table(self) -> pl.DataFrame:
        """Return all rows as one table, for few of them."""
        return pl.concat(self.tables())

    def _put_away(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its rows are asked for
        start = self._file.seek(0, io.SEEK_END)
        pl.concat(self._waiting, rechunk=True).write_ipc_stream(self._file, compression="lz4")
        self._pieces.append(_OnDisk(start, self._file.tell() - start))
        self._waiting, self._waiting_rows = [], 0

"""One logical table, opened: where it is, which columns it has, and its rows in batches.

Reads nothing itself; :mod:`features.reading.text` and :mod:`features.reading.parquet` do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import polars as pl

from features.reading.errors import closest
from recsys.contracts.errors import DataError

FILE: Final = "__file"
"""Column of every batch: place of the row's file in ``OpenedTable.files``."""

ROW: Final = "__row"
"""Column of every batch: place of the record in its file, from 0. Of a text file it is the line on which the record begins:
the header stands on line 0, so ``ROW + 1`` is what an editor shows."""

REFUSED: Final = "__refused"
"""Column of every batch: why the record cannot be read, in few words that can be counted; else null."""

RAW: Final = "__raw"
"""Column of every batch: the line of a refused record, as it stands in the file; else null."""

PLACE_TYPES: Final[dict[str, pl.DataType]] = {
    FILE: pl.Int32(),
    ROW: pl.Int64(),
    REFUSED: pl.String(),
    RAW: pl.String(),
}


class OpenedTable(ABC):
    """The files of one table, read as one.

    Attributes:
        where: The name under which messages speak of it.
        files: Paths relative to the source's folder, in natural order (``part-2`` before ``part-10``).
        schema: Column -> type, the union over all files; in text files every column is text.
        is_text: Whether the files are text: then every value is a text that still has to be understood.
        ignored: Hidden and unfinished files that a pattern matched as well.
        unreadable: Columns that cannot be read over all files, and why: an error once one of them is asked for.
        float32: Columns that a file holds as 32-bit floats, too coarse for times even where another file has 64 bits.
    """

    is_text: bool
    float32: frozenset[str] = frozenset()
    unreadable: Mapping[str, str] = MappingProxyType({})
    ignored: tuple[str, ...] = ()

    def __init__(self, where: str, files: tuple[str, ...], schema: dict[str, pl.DataType]) -> None:
        self.where = where
        self.files = files
        self.schema = schema
        self._rows_without: dict[str, dict[str, int]] = {}

    @property
    @abstractmethod
    def notes(self) -> dict[str, object]:
        """What was met so far and belongs into the data report; complete once all batches have been read."""

    @property
    def plain(self) -> bool:
        """Whether the values of the batch that was yielded last hold visible ASCII characters only: no blank to remove."""
        return False

    @abstractmethod
    def batches(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield the asked columns and ``FILE, ROW, REFUSED, RAW``, file by file and row by row.

        A record that cannot be read is a row as well: ``REFUSED`` says why, ``RAW`` holds its line, the asked columns are
        null. Memory is bounded by a batch, never by a file.

        Args:
            columns: Names of ``schema``; a column that a file lacks is null there.
            only: Relative paths to read; ``None`` reads all files.

        Raises:
            DataError: A column is in no file, or cannot be read as one column over all files; a file is damaged, or has
                another encoding than declared; the parser gave another number of records than were counted.
        """

    def collect(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return all batches as one table; for tables of items and users, which are small beside the log."""
        found = list(self.batches(columns))
        return pl.concat(found, rechunk=True) if found else self.empty(columns)

    def empty(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return a batch without rows."""
        return pl.DataFrame(schema={**{name: self.schema[name] for name in columns}, **PLACE_TYPES})

    def chosen(self, only: Collection[str] | None) -> list[int]:
        """Return the places of the files to read.

        Raises:
            DataError: ``only`` names a file that the table does not have.
        """
        if only is None:
            return list(range(len(self.files)))
        unknown = sorted(set(only) - set(self.files))
        if unknown:
            raise DataError(f"{self.where}: has no file '{unknown[0]}'; files: {', '.join(self.files[:20])}")
        return [place for place, name in enumerate(self.files) if name in set(only)]

    def lacks(self, place: int, columns: Collection[str], rows: int) -> None:
        """Remember that a file with rows has none of these columns; see :attr:`rows_without`."""
        for name in columns if rows else ():
            self._rows_without.setdefault(name, {})[self.files[place]] = rows

    @property
    def rows_without(self) -> dict[str, dict[str, int]]:
        """Asked column -> file that lacks it -> its rows, of the files that were read."""
        return {name: dict(files) for name, files in self._rows_without.items()}

    def check_asked(self, columns: Sequence[str]) -> None:
        """Refuse columns that no file has.

        Raises:
            DataError: Names the column, the closest one, and all there are.
        """
        for name in columns:
            if name not in self.schema:
                raise DataError(f"{self.where}: missing column '{name}': {closest(name, list(self.schema))}")

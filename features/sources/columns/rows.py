"""Rows: all columns of a batch read, and every row with a value that was not understood refused, with what stood there.

Reads batches of an :class:`~features.reading.OpenedTable`; produces batches of canonical columns, with the place of
each row, why it is refused, and what stood there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from features import reading
from features.sources.base import FILE, PREHISTORY, RAW, REFUSED, ROW
from features.sources.columns.cells import ColumnReader, Parsed, Place, Refusal
from features.sources.columns.signals import SignalReader
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError

HEAD: Final = {FILE: pl.Int32(), ROW: pl.Int64(), PREHISTORY: pl.Boolean(), REFUSED: pl.String(), RAW: pl.String()}
"""Columns of every batch beside those that are read."""

_PER_DAY: Final = {"ms": 86_400_000, "us": 86_400_000_000}
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31, the first and last day of Python's dates
_SHOWN: Final = 200
_IDS: Final = (Columns.USER_ID, Columns.ITEM_ID)


class RowReader:
    """Reads the rows of one table.

    Args:
        readers: One per canonical column.
        files: Names of the table's files.
        first_file: Place of the first of them among the files of the source.
        prehistory: Whether these are events without a time.
    """

    def __init__(
        self,
        readers: Sequence[ColumnReader],
        files: tuple[str, ...],
        *,
        first_file: int = 0,
        prehistory: bool = False,
    ) -> None:
        self.readers = readers
        self._files = files
        self._first_file = first_file
        self._prehistory = prehistory
        self._first_refused: str | None = None
        self._any_read = False

    @property
    def columns(self) -> list[str]:
        """Columns of the table that are read."""
        return list(dict.fromkeys(reader.column for reader in self.readers))

    @property
    def schema(self) -> pl.Schema:
        """Columns of the batches that :meth:`read` returns."""
        return pl.Schema(HEAD | {reader.canonical: reader.dtype for reader in self.readers})

    def read(self, batch: pl.DataFrame, *, plain: bool = False) -> pl.DataFrame:
        """Return a batch in canonical columns.

        Args:
            batch: Of the table.
            plain: What :attr:`OpenedTable.plain` says of it.

        Raises:
            DataError: A column as a whole is not what was declared.
        """
        place = Place(self._files, batch[reading.FILE], batch[reading.ROW], plain)
        self._any_read = self._any_read or batch[reading.REFUSED].null_count() > 0
        if not self._any_read and self._first_refused is None and len(batch):
            reason, raw = batch.select(reading.REFUSED, reading.RAW).row(0)
            self._first_refused = f"{place.of(0)}, is refused ({reason}): {raw[:_SHOWN]!r}"
        parsed = [self._parsed(reader, batch[reader.column], place) for reader in self.readers]
        refused = batch[reading.REFUSED]
        for refusal in (refusal for column in parsed for refusal in column.refusals):
            new = refusal.rows & refused.is_null()
            refused = refused.to_frame("r").select(pl.when(new).then(pl.lit(refusal.reason)).otherwise("r")).to_series()
        raw = batch[reading.RAW]
        seen = refused.is_not_null() & raw.is_null()
        if seen.any():
            raw = raw.scatter(seen.arg_true(), as_json(batch.filter(seen).select(self.columns)))
        head = [
            (batch[reading.FILE] + self._first_file).cast(pl.Int32).alias(FILE),
            batch[reading.ROW].cast(pl.Int64).alias(ROW),
            pl.repeat(self._prehistory, len(batch), dtype=pl.Boolean, eager=True).alias(PREHISTORY),
            refused.cast(pl.String).alias(REFUSED),
            raw.cast(pl.String).alias(RAW),
        ]
        return pl.DataFrame([*head, *(column.values for column in parsed)])

    @staticmethod
    def _parsed(reader: ColumnReader, raw: pl.Series, place: Place) -> Parsed:
        parsed = reader.read(reader.unmarked(raw), place)
        if reader.canonical in _IDS and parsed.values.null_count():
            nobody = Refusal(f"null {reader.canonical}", parsed.values.is_null())
            return Parsed(parsed.values, (*parsed.refusals, nobody))
        return parsed

    def finish(self) -> dict[str, object]:
        """Check the columns as a whole and return what was met, for the data report.

        Returns:
            ``null_markers`` and ``blanks_stripped`` by column, ``signal_rows`` (true, false and not known of each
            signal), ``warnings`` as sentences; only what there is.

        Raises:
            DataError: No row could be read at all, or a column is not what was declared.
        """
        if self._first_refused is not None and not self._any_read:
            raise DataError(
                f"{self.readers[0].where}: no line is a record. {self._first_refused}; mend the file, or name another one"
            )
        for reader in self.readers:
            reader.finish()
        markers = {
            reader.column: dict(reader.markers_met.most_common()) for reader in self.readers if reader.markers_met
        }
        stripped = {reader.column: reader.stripped for reader in self.readers if reader.stripped}
        signals = {reader.canonical: reader.counts for reader in self.readers if isinstance(reader, SignalReader)}
        facts: dict[str, object] = {
            "null_markers": markers,
            "blanks_stripped": stripped,
            "signal_rows": signals,
            "warnings": [by_name(warning, reader.where) for reader in self.readers for warning in reader.warnings()],
        }
        return {name: fact for name, fact in facts.items() if fact}


def by_name(said: str, where: str) -> str:
    """Name a file without its folder: what is written beside the data says the same wherever the source lies.

    Example:
        >>> by_name("/logs/a.csv: user_id is odd", "/logs/a.csv")
        'a.csv: user_id is odd'
    """
    return said.replace(where, Path(where).name, 1)


def as_json(rows: pl.DataFrame) -> pl.Series:
    """Return each row as a JSON object, as it stood in the file.

    Example:
        >>> as_json(pl.DataFrame({"user_id": ["NULL"], "rating": [4]})).to_list()
        ['{"user_id":"NULL","rating":4}']
    """
    if all(dtype.is_numeric() or dtype in (pl.String, pl.Boolean) for dtype in rows.schema.values()):
        return rows.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    rows = rows.with_columns(_with_far_days(rows[name]) for name in rows.columns)
    written = [
        json.dumps(row, default=_text, ensure_ascii=False, separators=(",", ":")) for row in rows.iter_rows(named=True)
    ]
    return pl.Series(written, dtype=pl.String)


def _with_far_days(values: pl.Series) -> pl.Series:
    """Return times as they are, or as the numbers in the file where Python has no name for their year."""
    if values.dtype != pl.Date and not isinstance(values.dtype, pl.Datetime):
        return values
    unit = values.dtype.time_unit if isinstance(values.dtype, pl.Datetime) else "days"
    if unit == "ns":  # end in the year 2262
        return values
    numbers, scale = values.to_physical().cast(pl.Int64), _PER_DAY.get(unit, 1)
    near = numbers.is_between(_FIRST_DAY * scale, (_LAST_DAY + 1) * scale - 1)
    return values if bool(near.all()) else numbers.alias(values.name)


def _text(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)

"""The readers of a table: what the column map says, for the columns that the table has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from features.sources.columns.cells import ColumnReader
from features.sources.columns.ids import IdReader, IdType
from features.sources.columns.numbers import NumberReader
from features.sources.columns.signals import SignalReader
from features.sources.columns.tie_breaks import TieBreakReader
from features.sources.columns.time_texts import TextTimes
from features.sources.columns.times import DateTimes, NumberTimes
from features.sources.columns.words import WordReader
from features.sources.columns_map import InteractionColumns, PrehistoryTable, Signal, check_columns
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import TimestampUnit


@dataclass(frozen=True)
class DeclaredTimes:
    """How times are written.

    Attributes:
        unit: Of numbers, or ``datetime``.
        form: Format of texts; ``None``: ISO 8601.
        zone: Of times that say none; ``None``: UTC.
    """

    unit: TimestampUnit
    form: str | None = None
    zone: str | None = None


@dataclass(frozen=True)
class TableReaders:
    """Makes the readers of one table.

    Attributes:
        schema: Columns of the table.
        where: The table, for messages.
        unreadable: Columns that cannot be read, and why.
        types: Declared types of ids, and of the tie-break.
        markers: Texts that stand for nothing.
        times: How times are written.
        watch_scale: Milliseconds of one unit of watch time and duration.
    """

    schema: Mapping[str, pl.DataType]
    where: str
    types: Mapping[str, IdType]
    markers: tuple[str, ...]
    times: DeclaredTimes
    watch_scale: float = 1.0
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def interactions(
        self, columns: InteractionColumns, signals: Iterable[Signal], *, has_times: bool
    ) -> list[ColumnReader]:
        """Return the readers of interactions.

        Raises:
            DataError: A declared column is missing, or of a type that cannot play its part.
        """
        needed = {role: name for role, name in columns.model_dump().items() if name is not None}
        if not has_times:
            needed.pop(Columns.TIMESTAMP)
        self._check(needed, signals)
        found: list[ColumnReader] = [
            self.ids(columns.user_id, Columns.USER_ID),
            self.ids(columns.item_id, Columns.ITEM_ID),
        ]
        if has_times:
            found.append(self._time(columns.timestamp))
        if columns.position is not None:
            found.append(self._number(columns.position, Columns.POSITION, pl.Int64()))
        if columns.tie_break is not None:
            name = columns.tie_break
            as_text = self.types.get(name) == "text"
            found.append(TieBreakReader(name, self.schema[name], self.where, as_text=as_text, markers=self.markers))
        if columns.session_id is not None:
            found.append(self.ids(columns.session_id, Columns.SESSION_ID))
        if columns.split is not None:
            name = columns.split
            found.append(WordReader(name, Columns.SPLIT, self.schema[name], self.where, markers=self.markers))
        for watched, canonical in (
            (columns.watch_time, Columns.WATCH_TIME_MS),
            (columns.duration, Columns.DURATION_MS),
        ):
            if watched is not None:
                found.append(self._number(watched, canonical, pl.Float32(), self.watch_scale))
        if columns.propensity is not None:
            found.append(self._number(columns.propensity, Columns.PROPENSITY, pl.Float32()))
        return found + self._signals(signals)

    def earlier(self, declared: PrehistoryTable) -> list[ColumnReader]:
        """Return the readers of a prehistory.

        Raises:
            DataError: A declared column is missing, or of a type that cannot play its part.
        """
        names = {
            Columns.USER_ID: declared.user_id,
            Columns.ITEM_ID: declared.item_id,
            Columns.POSITION: declared.position,
        }
        self._check(names, declared.signals)
        return [
            self.ids(declared.user_id, Columns.USER_ID),
            self.ids(declared.item_id, Columns.ITEM_ID),
            self._number(declared.position, Columns.POSITION, pl.Int64()),
            *self._signals(declared.signals),
        ]

    def ids(self, column: str, canonical: str) -> IdReader:
        """Return the reader of an id column that is there."""
        declared = self.types.get(column)
        return IdReader(column, canonical, self.schema[column], self.where, declared=declared, markers=self.markers)

    def _check(self, names: Mapping[str, str], signals: Iterable[Signal]) -> None:
        needed = dict(names) | {f"signal {signal.name}": signal.column for signal in signals}
        check_columns(needed, list(self.schema), self.where)
        for column in needed.values():
            if column in self.unreadable:
                raise DataError(self.unreadable[column])

    def _number(self, column: str, canonical: str, dtype: pl.DataType, scale: float = 1.0) -> NumberReader:
        raw_type = self.schema[column]
        return NumberReader(column, canonical, dtype, raw_type, self.where, scale=scale, markers=self.markers)

    def _signals(self, signals: Iterable[Signal]) -> list[ColumnReader]:
        return [
            SignalReader(signal, self.schema[signal.column], self.where, markers=self.markers) for signal in signals
        ]

    def _time(self, column: str) -> ColumnReader:
        raw_type, times = self.schema[column], self.times
        if times.unit != "datetime":
            assert times.unit != "none"  # then no time is read
            return NumberTimes(column, raw_type, times.unit, self.where, markers=self.markers)
        if raw_type in (pl.String, pl.Categorical, pl.Enum, pl.Null):
            return TextTimes(column, self.where, form=times.form, zone=times.zone, markers=self.markers)
        if times.form is not None:
            raise DataError(
                f"{self.where}: timestamp_format is declared, but column '{column}' is {raw_type} and no text; leave the "
                "format out"
            )
        return DateTimes(column, raw_type, self.where, zone=times.zone)

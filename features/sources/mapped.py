"""Everything a file source shares: declared columns, units and signals, applied to tables that a reader has opened.

Reads lazily opened tables; produces :class:`~features.sources.base.RawTables`. Only the declared columns are loaded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import polars as pl
from pydantic import model_validator

from features.sources.base import FILE, PREHISTORY, ROW, EventStream, RawTables, Source
from features.sources.columns_map import (
    InteractionColumns,
    PrehistoryTable,
    Signal,
    check_columns,
    id_expression,
    number_expression,
    timestamp_expression,
)
from features.sources.item_columns import ItemColumns, canonical_items
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import TimestampUnit, mostly_plausible, wrong_unit
from recsys.contracts.manifest import content_hashes


@dataclass(frozen=True)
class OpenedTable:
    """A table that can be read, and the name under which messages speak of it."""

    frame: pl.LazyFrame
    where: str


class MappedSource(Source):
    """A source of files with a column map.

    Attributes:
        columns: Which column plays which part.
        timestamp_unit: Declared, never guessed; ``none`` for sources with an order only (then map ``position``).
        watch_unit: Unit of both ``watch_time`` and ``duration``.
        signals: Feedback signals in the order of the behaviour code.
        positive: Which of them make an event positive (any of); empty: every event is positive.
        item_columns: Where title, text, categories and author are.
        user_columns: Attributes to carry into ``users.parquet``.
    """

    columns: InteractionColumns = InteractionColumns()
    timestamp_unit: TimestampUnit
    watch_unit: Literal["ms", "s"] = "ms"
    signals: tuple[Signal, ...] = ()
    positive: tuple[str, ...] = ()
    prehistory: PrehistoryTable | None = None
    item_columns: ItemColumns = ItemColumns()
    user_id_column: str = Columns.USER_ID
    user_columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [signal.name for signal in self.signals]
        if len(set(names)) < len(names):
            raise ValueError(f"a signal is declared twice: {', '.join(names)}")
        unknown = set(self.positive) - set(names)
        if unknown:
            raise ValueError(f"positive names {sorted(unknown)}, declared signals are {names}")
        if self.prehistory is not None:
            undeclared = {signal.name for signal in self.prehistory.signals} - set(names)
            if undeclared:
                raise ValueError(
                    f"prehistory has signals {sorted(undeclared)} that the source does not declare: {names}"
                )
        if self.timestamp_unit == "none" and self.columns.position is None:
            raise ValueError("timestamp_unit is 'none' and no 'position' column is mapped: the events have no order")
        return self

    @abstractmethod
    def _open(self, kind: Literal["interactions", "items", "users", "prehistory"]) -> OpenedTable | None:
        """Open one of the tables; ``None`` when the source has no such table."""

    @abstractmethod
    def _files(self) -> Iterable[Path]:
        """Yield all raw files."""

    def fingerprint(self) -> dict[str, str]:
        """Return file name -> sha256; the bytes decide, not the time of modification."""
        paths = list(self._files())
        for path in paths:
            if not path.is_file():
                raise DataError(f"'{path}' does not exist; set source.path")
        return dict(zip((path.name for path in paths), content_hashes(paths), strict=True))

    def read(self, seed: int) -> RawTables:
        """Read and map all tables; see :meth:`Source.read`."""
        del seed  # files are the same under every seed
        opened = self._open("interactions")
        if opened is None:
            raise DataError("the source has no interactions")
        interactions = self._read_interactions(opened)
        notes: dict[str, object] = {}
        files: tuple[str, ...] = (opened.where,)
        earlier = self._open("prehistory")
        if earlier is not None:
            prehistory = self._read_prehistory(earlier)
            _same_id_types(prehistory, earlier.where, interactions, opened.where)
            interactions = interactions.with_columns(pl.lit(1, pl.Int32).alias(FILE))
            interactions = pl.concat([prehistory, interactions], how="diagonal")
            files = (earlier.where, opened.where)
        item_table, items = self._open("items"), None
        if item_table is not None:
            with explain_read_errors(item_table.where):
                raw_items = item_table.frame.collect()
            items, absent = canonical_items(raw_items, self.item_columns, item_table.where)
            notes["absent_item_columns"] = absent
            _same_id_types(items, item_table.where, interactions, opened.where)
        user_table, users = self._open("users"), None
        if user_table is not None:
            users = self._read_users(user_table)
            _same_id_types(users, user_table.where, interactions, opened.where)
        return RawTables(
            interactions=EventStream.from_frame(interactions, *files),
            items=items,
            users=users,
            signals=tuple(signal.name for signal in self.signals),
            positive=self.positive,
            has_timestamps=self.timestamp_unit != "none",
            notes=notes,
        )

    def _read_interactions(self, table: OpenedTable) -> pl.DataFrame:
        columns, where = self.columns, table.where
        with explain_read_errors(where):
            schema = table.frame.collect_schema()
        needed = {role: name for role, name in columns.model_dump().items() if name is not None}
        if self.timestamp_unit == "none":
            needed.pop(Columns.TIMESTAMP)
        needed |= {f"signal {signal.name}": signal.column for signal in self.signals}
        check_columns(needed, schema.names(), where)
        milliseconds = 1000 if self.watch_unit == "s" else 1
        expressions = [
            id_expression(columns.user_id, schema[columns.user_id], Columns.USER_ID, where),
            id_expression(columns.item_id, schema[columns.item_id], Columns.ITEM_ID, where),
        ]
        if self.timestamp_unit != "none":
            expressions.append(
                timestamp_expression(columns.timestamp, schema[columns.timestamp], self.timestamp_unit, where)
            )
        if columns.position is not None:
            dtype = schema[columns.position]
            expressions.append(number_expression(columns.position, dtype, Columns.POSITION, pl.Int64(), where))
        if columns.session_id is not None:
            dtype = schema[columns.session_id]
            expressions.append(id_expression(columns.session_id, dtype, Columns.SESSION_ID, where))
        if columns.split is not None:
            expressions.append(pl.col(columns.split).cast(pl.String).alias(Columns.SPLIT))
        for name, canonical in ((columns.watch_time, Columns.WATCH_TIME_MS), (columns.duration, Columns.DURATION_MS)):
            if name is not None:
                number = number_expression(name, schema[name], canonical, pl.Float32(), where)
                expressions.append(number * milliseconds)
        expressions += [signal.expression(schema[signal.column]) for signal in self.signals]
        with explain_read_errors(where):
            frame = table.frame.select(expressions).collect()
        if self.timestamp_unit != "none" and len(frame) and not mostly_plausible(frame[Columns.TIMESTAMP]):
            with explain_read_errors(where):
                median = self._median_time(table, schema[columns.timestamp])
            raise wrong_unit(median, self.timestamp_unit, where)
        return _numbered(frame, prehistory=False)

    def _median_time(self, table: OpenedTable, dtype: pl.DataType) -> float | None:
        """Return the median of the raw time column, in whatever unit it is; ``None`` for text."""
        if not (dtype.is_numeric() or dtype.is_temporal()):
            return None
        column = pl.col(self.columns.timestamp).to_physical().cast(pl.Float64)
        value: float | None = table.frame.select(column.median()).collect().item()
        return value

    def _read_prehistory(self, table: OpenedTable) -> pl.DataFrame:
        declared, where = self.prehistory, table.where
        assert declared is not None  # the caller opened the table because it is declared
        with explain_read_errors(where):
            schema = table.frame.collect_schema()
        needed = {
            Columns.USER_ID: declared.user_id,
            Columns.ITEM_ID: declared.item_id,
            Columns.POSITION: declared.position,
        }
        needed |= {f"signal {signal.name}": signal.column for signal in declared.signals}
        check_columns(needed, schema.names(), where)
        expressions = [
            id_expression(declared.user_id, schema[declared.user_id], Columns.USER_ID, where),
            id_expression(declared.item_id, schema[declared.item_id], Columns.ITEM_ID, where),
            number_expression(declared.position, schema[declared.position], Columns.POSITION, pl.Int64(), where),
        ]
        expressions += [signal.expression(schema[signal.column]) for signal in declared.signals]
        with explain_read_errors(where):
            return _numbered(table.frame.select(expressions).collect(), prehistory=True)

    def _read_users(self, table: OpenedTable) -> pl.DataFrame:
        with explain_read_errors(table.where):
            schema = table.frame.collect_schema()
        needed = {Columns.USER_ID: self.user_id_column} | {f"user column {name}": name for name in self.user_columns}
        check_columns(needed, schema.names(), table.where)
        key = id_expression(self.user_id_column, schema[self.user_id_column], Columns.USER_ID, table.where)
        with explain_read_errors(table.where):
            return table.frame.select(key, *(name for name in self.user_columns if name != Columns.USER_ID)).collect()


@contextmanager
def explain_read_errors(where: str) -> Iterator[None]:
    """Turn a truncated, unreadable or malformed file into a :class:`DataError` that names it."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"'{where}' cannot be read: {reason}; the file is truncated, damaged or of another format: fetch it again"
        ) from error


def _numbered(frame: pl.DataFrame, *, prehistory: bool) -> pl.DataFrame:
    return frame.with_row_index(ROW).with_columns(pl.lit(0, pl.Int32).alias(FILE), pl.lit(prehistory).alias(PREHISTORY))


def _same_id_types(left: pl.DataFrame, left_name: str, right: pl.DataFrame, right_name: str) -> None:
    for column in (Columns.USER_ID, Columns.ITEM_ID):
        if column in left.columns and left.schema[column] != right.schema[column]:
            raise DataError(
                f"'{column}' is {left.schema[column]} in '{left_name}' and {right.schema[column]} in '{right_name}'; "
                "the ids would never meet: convert one of the files"
            )

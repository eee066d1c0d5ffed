"""Everything a file source shares: declared columns, units and signals, applied to tables that a reader has opened.

Reads opened tables; produces :class:`~features.sources.base.RawTables`, the interactions as a stream of batches. Only
the declared columns are loaded, so what stands in any other column cannot stop a run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import polars as pl
from pydantic import field_validator, model_validator

from features.reading import OpenedTable, fingerprint
from features.sources.base import FILE, RAW, REFUSED, ROW, EventStream, RawTables, Source, merge_facts
from features.sources.columns.cells import Place
from features.sources.columns.ids import IdType, same_id_types
from features.sources.columns.readers import DeclaredTimes, TableReaders
from features.sources.columns.rows import RowReader, by_name
from features.sources.columns.time_formats import check_format
from features.sources.columns_map import InteractionColumns, PrehistoryTable, Signal, check_columns
from features.sources.item_columns import ItemColumns, canonical_items, columns_to_read, metadata_columns
from features.sources.typed_table import ColumnType, TypedTable
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import TimestampUnit
from recsys.contracts.null_markers import MACHINE_MARKERS, NULL_MARKERS
from recsys.contracts.plain_text import strip_expression

TableKind = Literal["interactions", "items", "users", "prehistory"]

_MAX_REFUSED_SHARE: Final = 0.05


class MappedSource(Source):
    r"""A source of files with a column map.

    Attributes:
        path: A folder, or a file in it.
        columns: Which column plays which part.
        types: ``integer`` or ``text`` for columns of ids. Without it ids of text files are text, and ids of Parquet
            files keep their type; rows whose id is no integer are refused where ``integer`` is declared. For all other
            columns of the recipe ``integer``, ``number``, ``boolean``, ``text`` or ``datetime``, for signals that compare
            and attributes of users; without it their part decides.
        null_values: Texts that stand for nothing; not given: ``NULL``, ``\N``, ``nan`` and their like.
        timestamp_unit: Declared, never guessed: ``s``, ``ms``, ``us`` or ``ns`` for numbers, ``datetime`` for dates and
            ISO 8601 text, ``none`` for sources with an order only (then map ``position``).
        timestamp_format: Of texts that are not ISO 8601, such as ``%d/%m/%Y %H:%M``.
        timestamp_zone: Zone of times that say none, such as ``Europe/Paris``; without it they are UTC.
        watch_unit: Unit of both ``watch_time`` and ``duration``.
        signals: Feedback signals in the order of the behaviour code.
        positive: Which of them make an event positive (any of); empty: every event is positive.
        item_columns: Where title, text, categories and author are.
        user_columns: Attributes to carry into ``users.parquet``.
    """

    path: Path
    columns: InteractionColumns = InteractionColumns()
    types: Mapping[str, ColumnType] = {}
    null_values: tuple[str, ...] | None = None
    timestamp_unit: TimestampUnit
    timestamp_format: str | None = None
    timestamp_zone: str | None = None
    watch_unit: Literal["ms", "s"] = "ms"
    signals: tuple[Signal, ...] = ()
    positive: tuple[str, ...] = ()
    prehistory: PrehistoryTable | None = None
    item_columns: ItemColumns = ItemColumns()
    user_id_column: str = Columns.USER_ID
    user_columns: tuple[str, ...] = ()

    @field_validator("timestamp_format")
    @classmethod
    def _readable_format(cls, form: str | None) -> str | None:
        if form is not None:
            check_format(form)
        return form

    @field_validator("timestamp_zone")
    @classmethod
    def _known_zone(cls, zone: str | None) -> str | None:
        if zone is not None:
            try:
                pl.Series([0], dtype=pl.Datetime("us")).dt.replace_time_zone(zone)  # the list that is used later
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"'{zone}' is no time zone; expected a name such as UTC or Europe/Paris") from error
        return zone

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
        for key in ("timestamp_format", "timestamp_zone"):
            if getattr(self, key) is not None and self.timestamp_unit != "datetime":
                raise ValueError(
                    f"{key} is for dates, but timestamp_unit is '{self.timestamp_unit}'; declare timestamp_unit: datetime"
                )
        parts = {Columns.USER_ID: self.columns.user_id, Columns.ITEM_ID: self.columns.item_id}
        if self.timestamp_unit != "none":
            parts[Columns.TIMESTAMP] = self.columns.timestamp
        for part, column in parts.items():
            same = [other for other, named in parts.items() if named == column and other != part]
            if same:
                raise ValueError(
                    f"columns.{part} and columns.{same[0]} both name '{column}'; one of them is another column"
                )
        taken = {Columns.USER_INDEX, Columns.USER_ID} - {self.user_id_column}
        for column in self.user_columns:
            if column in taken:
                raise ValueError(f"user_columns names '{column}', which is a column of ours; rename it in the file")
        ids, others = self._id_columns(), self._other_columns()
        for column, kind in self.types.items():
            if column in ids and kind not in get_args(IdType):
                raise ValueError(f"types says that the ids in '{column}' are {kind}; ids are integer or text")
            if column not in ids and column not in others:
                raise ValueError(f"types names '{column}', which plays no part; these do: {', '.join([*ids, *others])}")
            if kind == "datetime" and (self.timestamp_unit != "datetime" or column != self.columns.timestamp):
                raise ValueError(
                    f"types says that '{column}' is a datetime, but it is not the timestamp of timestamp_unit: datetime"
                )
        return self

    def _other_columns(self) -> list[str]:
        """Columns of the recipe that hold no ids."""
        names = list(self.columns.model_dump().values())
        names += [signal.column for signal in self.signals]
        if self.prehistory is not None:
            names += [self.prehistory.position, *(signal.column for signal in self.prehistory.signals)]
        names += [declared.column for declared in metadata_columns(self.item_columns)]
        names += self.user_columns
        ids = self._id_columns()
        return list(dict.fromkeys(name for name in names if name is not None and name not in ids))

    def _id_columns(self) -> list[str]:
        names = [self.columns.user_id, self.columns.item_id, self.columns.session_id, self.item_columns.item_id]
        names.append(self.user_id_column)
        if self.prehistory is not None:
            names += [self.prehistory.user_id, self.prehistory.item_id]
        return list(dict.fromkeys(name for name in names if name is not None))

    def _typed(self, kind: TableKind) -> OpenedTable | None:
        """Open one of the tables, with columns that hold no ids in their declared types."""
        table = self._open(kind)
        ids = self._id_columns()
        types = {name: declared for name, declared in self.types.items() if name not in ids}
        return TypedTable(table, types, self._markers()) if table is not None and types else table

    def _markers(self) -> tuple[str, ...]:
        return NULL_MARKERS if self.null_values is None else self.null_values

    @abstractmethod
    def _open(self, kind: TableKind) -> OpenedTable | None:
        """Open one of the tables; ``None`` when the source has no such table."""

    def _absent(self, kind: TableKind) -> Mapping[str, object]:
        """Return what is to be said of a table that is not there.

        Raises:
            DataError: The recipe names columns of it.
        """
        items = [one.column for one in metadata_columns(self.item_columns) if not one.optional]
        wanted, key = (items, "item_columns") if kind == "items" else (list(self.user_columns), "user_columns")
        if wanted:
            raise DataError(
                f"source.{key} names {', '.join(dict.fromkeys(wanted))}, and {self._expected(kind)} is not there; add it, "
                f"or leave these columns out of source.{key}"
            )
        return {}

    def _expected(self, kind: TableKind) -> str:
        """Phrase the file of a table that may be absent."""
        return f"a table of {kind}"

    @abstractmethod
    def _files(self) -> Iterable[Path]:
        """Yield all raw files."""

    def _root(self) -> Path:
        """Folder that relative paths start from."""
        return self.path if self.path.is_dir() else self.path.parent

    def fingerprint(self) -> dict[str, str]:
        """Return path relative to the source's folder -> sha256; the bytes decide, not the time of modification."""
        return fingerprint(self._files(), self._root())

    def read(self, seed: int) -> RawTables:
        """Open all tables; see :meth:`Source.read`.

        The facts of the stream of interactions are complete once it has been read to its end.
        """
        del seed  # files are the same under every seed
        opened = self._typed("interactions")
        if opened is None:
            raise DataError("the source has no interactions")
        facts: list[Mapping[str, Any]] = []
        interactions = self._stream(opened, self._typed("prehistory"))
        item_table, items = self._typed("items"), None
        if item_table is None:
            facts.append(self._absent("items"))
        else:
            items, item_facts = self._read_items(item_table)
            facts.append(item_facts)
            same_id_types(items.schema, item_table.where, interactions.schema, opened.where)
        user_table, users = self._typed("users"), None
        if user_table is None:
            facts.append(self._absent("users"))
        else:
            users, user_facts = self._read_users(user_table)
            facts.append(user_facts)
            same_id_types(users.schema, user_table.where, interactions.schema, opened.where)
        return RawTables(
            interactions=interactions,
            items=items,
            users=users,
            signals=tuple(signal.name for signal in self.signals),
            positive=self.positive,
            has_timestamps=self.timestamp_unit != "none",
            notes=merge_facts(facts),
            merge_rules={signal.name: signal.merge for signal in self.signals},
        )

    def _stream(self, table: OpenedTable, earlier: OpenedTable | None) -> EventStream:
        """Return the events of both tables; each pass has readers of its own, and its facts become the stream's."""
        files = (*(earlier.files if earlier is not None else ()), *table.files)
        has_times = self.timestamp_unit != "none"

        def open_readers() -> list[tuple[OpenedTable, RowReader]]:
            first = len(files) - len(table.files)
            readers = self._readers(table).interactions(self.columns, self.signals, has_times=has_times)
            tables = [(table, RowReader(readers, table.files, first_file=first))]
            if earlier is not None and self.prehistory is not None:
                readers = self._readers(earlier).earlier(self.prehistory)
                tables.insert(0, (earlier, RowReader(readers, earlier.files, prehistory=True)))
            return tables

        schema, types, met = pl.Schema({}), dict[str, str](), dict[str, Any]()
        for opened, reader in open_readers():
            part = "" if opened is table else "prehistory: "
            types |= {f"{part}{column}": str(opened.schema[column]) for column in reader.columns}
            if earlier is not None:
                same_id_types(schema, earlier.where, reader.schema, opened.where)
            schema = pl.Schema(dict(reader.schema) | dict(schema))

        def read(only: Collection[str] | None) -> Iterator[pl.DataFrame]:
            facts = []
            for opened, reader in open_readers():
                absent = [
                    pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in reader.schema
                ]
                wanted = None if only is None else [file for file in opened.files if file in only]
                if wanted == []:
                    facts.append(opened.notes)  # of files without rows
                    continue
                for batch in opened.batches(reader.columns, wanted):
                    yield reader.read(batch, plain=opened.plain).with_columns(absent).select(schema.names())
                facts += [reader.finish(), opened.notes]
            met.clear()
            met.update(merge_facts(facts))

        return EventStream(schema, files, read, met, types, by_file=True)

    def _readers(self, table: OpenedTable) -> TableReaders:
        return TableReaders(
            schema={**table.schema, **dict.fromkeys(table.float32, pl.Float32())},
            unreadable=table.unreadable,
            where=table.where,
            types={name: kind for name, kind in self.types.items() if kind == "integer" or kind == "text"},
            markers=self._markers(),
            times=DeclaredTimes(self.timestamp_unit, self.timestamp_format, self.timestamp_zone),
            watch_scale=1000.0 if self.watch_unit == "s" else 1.0,
        )

    def _read_items(self, table: OpenedTable) -> tuple[pl.DataFrame, dict[str, object]]:
        columns = self.item_columns
        raw = table.collect(columns_to_read(columns, list(table.schema), table.where))
        ids, facts = self._read_ids(table, raw, columns.item_id, Columns.ITEM_ID)
        texts = {declared.column for declared in metadata_columns(columns)}
        raw = _without(raw, self.null_values or (), [name for name in raw.columns if name in texts])
        items, absent = canonical_items(raw, columns, table.where, ids)
        return items, {"absent_item_columns": absent, **facts}

    def _read_users(self, table: OpenedTable) -> tuple[pl.DataFrame, dict[str, object]]:
        needed = {Columns.USER_ID: self.user_id_column} | {f"user column {name}": name for name in self.user_columns}
        check_columns(needed, list(table.schema), table.where)
        attributes = [name for name in self.user_columns if name != Columns.USER_ID]
        raw = table.collect(list(dict.fromkeys([self.user_id_column, *attributes])))
        ids, facts = self._read_ids(table, raw, self.user_id_column, Columns.USER_ID)
        markers = MACHINE_MARKERS if self.null_values is None else self.null_values
        raw = _without(raw, ("", *markers), attributes)
        return raw.select(ids, *attributes), facts

    def _read_ids(
        self, table: OpenedTable, raw: pl.DataFrame, column: str, canonical: str
    ) -> tuple[pl.Series, dict[str, Any]]:
        """Return the ids of a table that is in memory, and what was met in them."""
        reader = RowReader([self._readers(table).ids(column, canonical)], table.files)
        rows = reader.read(raw)
        return rows[canonical], merge_facts([_refused_rows(table, rows), reader.finish(), table.notes])


def _without(raw: pl.DataFrame, markers: tuple[str, ...], columns: Iterable[str]) -> pl.DataFrame:
    """Make what stands for nothing null in columns of text; blanks around it do not count."""
    texts = [name for name in columns if raw.schema[name] == pl.String] if markers else []
    return raw.with_columns(pl.when(~strip_expression(pl.col(name)).is_in(markers)).then(name) for name in texts)


def _refused_rows(table: OpenedTable, rows: pl.DataFrame) -> dict[str, object]:
    """Tell of the rows of a table of items or users that cannot be read; those without an id belong to nobody.

    Raises:
        DataError: They are more than a twentieth of the table.
    """
    refused = rows.filter(pl.col(REFUSED).is_not_null() & ~pl.col(REFUSED).str.starts_with("null "))
    if not len(refused):
        return {}
    place = Place(table.files, refused[FILE], refused[ROW])
    counts = ", ".join(f"{reason}: {count}" for reason, count in refused[REFUSED].value_counts(sort=True).iter_rows())
    said = (
        f"{table.where}: {len(refused)} of {len(rows)} rows cannot be read ({counts}), the first in {place.of(0)}: "
        f"{refused[RAW][0]}"
    )
    if len(refused) > _MAX_REFUSED_SHARE * len(rows):
        raise DataError(f"{said}; at most {_MAX_REFUSED_SHARE:.0%} may be: mend the file")
    return {"warnings": [by_name(said, table.where)]}

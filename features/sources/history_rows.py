"""Samples that carry their own history: files of (user, history, target) rows, one file per split, made into events again.

That is how benchmarks of language-model recommenders publish a data set (D3, ReRe, MiniOneRec): every position of a
user's sequence is a row, with at most so many events before it. A user's rows in the order of the files overlap, so the
sequence can be read off them:

    file   history        target        sequence so far
    train  [3]            5             3 5
    train  [3, 5]         8             3 5 8
    test   [5, 8]         9             3 5 8 9        (histories of at most 2)

Where rows are missing, what a history adds to the end of the sequence joins it. Reads the files; produces ``RawTables``
with positions and the given split, and no timestamps: published train files often have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from features import reading
from features.reading import DataFiles, OpenedTable, TextOptions, find_files, fingerprint, open_files
from features.sources.base import FILE, PREHISTORY, RAW, REFUSED, ROW, EventStream, RawTables, Source, merge_facts
from features.sources.columns.cells import ColumnReader, Parsed, Place, Refusal, no_rows
from features.sources.columns.ids import IdReader, IdType, same_id_types
from features.sources.columns.rows import RowReader
from features.sources.columns_map import check_columns
from features.sources.item_columns import ItemColumns, canonical_items, columns_to_read
from recsys.config import FrozenConfig
from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import NULL_MARKERS
from recsys.contracts.plain_text import SURROUNDINGS
from recsys.paths import ConfigPath

_HISTORY = "history"
_SPLIT_CODE = "split_code"
_ENTRY = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,\[\]()'"]+"""
"""An entry of a list that is written as text, as Python or JSON print it: in quotes, or bare."""
_LIST = rf"^\s*[\[(]\s*(?:(?:{_ENTRY})(?:\s*[,\s]\s*(?:{_ENTRY}))*\s*,?\s*)?[\])]\s*$"


class RowFilter(FrozenConfig):
    """Rows whose ``column`` holds one of ``values``.

    Attributes:
        column: Name of the column.
        values: Rows with one of them are kept.
    """

    column: str
    values: tuple[str, ...] = Field(min_length=1)


class HistoryRowsFile(FrozenConfig):
    """One file of rows, or a part of one.

    Attributes:
        file: Name inside the source's ``path``, Parquet or CSV.
        split: Of its targets.
        user_id: Column of the user.
        user_prefix: Put before every user id, where one file has ``A7`` and another 7 for the same user.
        only: Take these rows alone; a file whose parts are not in order of time is listed once per part.
    """

    file: str
    split: Literal["train", "valid", "test"]
    user_id: str = Columns.USER_ID
    user_prefix: str | None = None
    only: RowFilter | None = None


class HistoryRowsSource(TextOptions, Source):
    r"""Files of (user, history, target) rows; ids of text files are text, unless ``types`` says otherwise.

    Attributes:
        path: Folder of the files.
        files: In order of time: a user's rows are read file by file, row by row.
        history: Column of lists of item ids, oldest first; in a text file, text such as ``[3, 5]``.
        item_id: Column of the target.
        items: Item table inside ``path``, or ``None``.
        types: ``integer`` or ``text`` for columns of ids.
        null_values: Texts that stand for nothing; not given: ``NULL``, ``\N``, ``nan`` and their like.
        kind: Names this form of source.
    """

    kind: Literal["history_rows"] = "history_rows"
    path: ConfigPath
    files: tuple[HistoryRowsFile, ...] = Field(min_length=1)
    history: str = "history_item_id"
    item_id: str = Columns.ITEM_ID
    items: str | None = None
    item_columns: ItemColumns = ItemColumns()
    types: Mapping[str, IdType] = {}
    null_values: tuple[str, ...] | None = None

    def fingerprint(self) -> dict[str, str]:
        """Return path relative to the source's folder -> sha256."""
        names = [declared.file for declared in self.files] + ([] if self.items is None else [self.items])
        return fingerprint((path for name in names for path in self._found(name).paths), self.path)

    def read(self, seed: int) -> RawTables:
        """Read the rows and join them; see :meth:`Source.read`.

        Raises:
            DataError: Beside unreadable files: a history holds events that no row predicts, later than valid or test
                targets of the same user; they would belong to no split.
        """
        del seed  # files are the same under every seed
        read: list[pl.DataFrame] = []
        names: list[str] = []
        notes: dict[str, object] = {}
        for declared in self.files:
            table = self._opened(declared.file)
            rows, facts = self._read_rows(table, declared, len(names))
            if read:
                same_id_types(read[0].schema, self.files[0].file, rows.schema, declared.file)
            read.append(rows)
            names += table.files
            notes = merge_facts([notes, facts])
        rows = pl.concat(read)
        good = rows.filter(pl.col(REFUSED).is_null())
        events, joined = join_histories(good.select(Columns.USER_ID, _HISTORY, Columns.ITEM_ID, _SPLIT_CODE))
        bad = rows.filter(pl.col(REFUSED).is_not_null())
        refused = bad.select(FILE, ROW, PREHISTORY, REFUSED, RAW, Columns.USER_ID, Columns.ITEM_ID)
        events = pl.concat([events, refused], how="diagonal_relaxed")
        items = None
        if self.items is not None:
            items, absent = self._read_items(self._opened(self.items), events.schema)
            notes["absent_item_columns"] = absent
        return RawTables(
            interactions=EventStream.from_frame(events, *names),
            items=items,
            users=None,
            signals=(),
            positive=(),
            has_timestamps=False,
            notes={"absent_item_columns": [], **notes, **joined},
        )

    def _found(self, name: str) -> DataFiles:
        return find_files(self.path, name, "source.path")

    def _opened(self, name: str) -> OpenedTable:
        files = self._found(name)
        return open_files(files, self.text_format(files.paths[0].name))

    def _ids(self, table: OpenedTable, column: str, canonical: str) -> IdReader:
        markers = NULL_MARKERS if self.null_values is None else self.null_values
        declared = self.types.get(column)
        return IdReader(column, canonical, table.schema[column], table.where, declared=declared, markers=markers)

    def _read_items(self, table: OpenedTable, events: pl.Schema) -> tuple[pl.DataFrame, list[str]]:
        columns = self.item_columns
        raw = table.collect(columns_to_read(columns, list(table.schema), table.where))
        ids = RowReader([self._ids(table, columns.item_id, Columns.ITEM_ID)], table.files).read(raw)
        items, absent = canonical_items(raw, columns, table.where, ids[Columns.ITEM_ID])
        same_id_types(items.schema, table.where, events, "the rows")
        return items, absent

    def _read_rows(
        self, table: OpenedTable, declared: HistoryRowsFile, first_file: int
    ) -> tuple[pl.DataFrame, dict[str, object]]:
        """Return the rows of one file, refused ones too, and what was met."""
        needed = {Columns.USER_ID: declared.user_id, _HISTORY: self.history, Columns.ITEM_ID: self.item_id}
        if declared.only is not None:
            needed["only"] = declared.only.column
        check_columns(needed, list(table.schema), table.where)
        item = self._ids(table, self.item_id, Columns.ITEM_ID)
        history = HistoryReader(self.history, table.schema[self.history], item.dtype, table.where, item.markers)
        reader = RowReader(
            [self._ids(table, declared.user_id, Columns.USER_ID), item, history], table.files, first_file=first_file
        )
        batches = []
        for batch in table.batches(list(dict.fromkeys([*reader.columns, *needed.values()]))):
            if declared.only is not None:
                wanted = pl.col(declared.only.column).cast(pl.String).is_in(list(declared.only.values))
                batch = batch.filter(wanted | pl.col(reading.REFUSED).is_not_null())
            batches.append(reader.read(batch))
        rows = pl.concat(batches) if batches else pl.DataFrame(schema=reader.schema)
        if declared.user_prefix is not None:
            user = pl.lit(declared.user_prefix) + pl.col(Columns.USER_ID).cast(pl.String)
            rows = rows.with_columns(user.alias(Columns.USER_ID))
        split = pl.lit(SPLIT_NAMES.index(declared.split), pl.Int8).alias(_SPLIT_CODE)
        return rows.with_columns(split), {**reader.finish(), **table.notes}


class HistoryReader(ColumnReader):
    """Reads lists of item ids: lists, or text such as ``[3, 5]`` and ``['a', "it's"]``.

    A row with an entry that stands for nothing is refused, because what came there is not known.

    Raises:
        DataError: The column holds neither.
    """

    def __init__(
        self,
        column: str,
        raw_type: pl.DataType,
        item_type: pl.DataType,
        where: str,
        markers: tuple[str, ...] = NULL_MARKERS,
    ) -> None:
        super().__init__(column, _HISTORY, pl.List(item_type), where, markers)
        self._item_type = item_type
        if raw_type != pl.String and not isinstance(raw_type, pl.List):
            raise self.unreadable(raw_type, "lists of item ids")

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        lists, wrong = raw, no_rows(len(raw))
        if raw.dtype == pl.String:
            wrong = ~raw.str.contains(_LIST).fill_null(True)
            entries = pl.col("l").str.extract_all(_ENTRY).list.eval(_bare(pl.element()))
            lists = raw.to_frame("l").select(entries).to_series()
        texts = lists.cast(pl.List(pl.String))
        nobody = pl.element().is_null() | pl.element().str.strip_chars(SURROUNDINGS).is_in(["", *self.markers])
        holes = texts.list.eval(nobody).list.any().fill_null(False) & ~wrong
        if self._item_type == pl.Int64:
            values = texts.cast(pl.List(pl.Int64), strict=False)
            wrong |= texts.list.eval(_odd(pl.element())).list.any().fill_null(False)
        else:
            values = texts
        nothing = pl.lit([], dtype=self.dtype)  # no history is an empty one
        good = ~(wrong | holes)
        values = values.to_frame("l").select(pl.when(good).then(pl.col("l").fill_null(nothing))).to_series()
        refusals = (Refusal(f"{self.column} has a null entry", holes), Refusal(self.not_("a list of item ids"), wrong))
        return Parsed(values.alias(_HISTORY), tuple(one for one in refusals if one.rows.any()))


def _bare(entry: pl.Expr) -> pl.Expr:
    """Take the quotes away, and the backslash before an escaped quote."""
    quoted = entry.str.contains(r"""^['"]""")
    return (
        pl.when(quoted)
        .then(entry.str.slice(1, entry.str.len_chars() - 2).str.replace_all(r"\\(.)", "${1}"))
        .otherwise(entry)
    )


def _odd(entry: pl.Expr) -> pl.Expr:
    """Return whether an entry of a list is no integer in its only spelling."""
    spelled = entry.str.contains(r"^(0|-?[1-9][0-9]*)$")
    return entry.is_not_null() & ~(spelled & entry.cast(pl.Int64, strict=False).is_not_null())


def join_histories(rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, object]]:
    """Read every user's sequence off the rows.

    A row's history is laid over the end of the sequence so far where the two agree longest; the rest of it and the
    target are appended. Appended history is train: nothing says otherwise, and it comes before every target that is
    not.

    Args:
        rows: ``user_id``, ``history``, ``item_id``, ``split_code``; a user's rows in order of time.

    Returns:
        Events in canonical columns, and facts for the data report.

    Raises:
        DataError: A history adds events behind a valid or test target.

    Example:
        >>> rows = pl.DataFrame({"user_id": ["A7", "A7"], "history": [[3], [5, 8]], "item_id": [5, 9],
        ...                      "split_code": pl.Series([0, 2], dtype=pl.Int8)})
        >>> events, facts = join_histories(rows)
        >>> events["item_id"].to_list(), events["split"].to_list(), facts["context_events"]
        ([3, 5, 8, 9], ['train', 'train', 'train', 'test'], 2)
    """
    users: list[object] = []
    items: list[object] = []
    splits: list[int] = []
    lengths: list[int] = []
    context = 0
    grouped = rows.group_by(Columns.USER_ID, maintain_order=True).agg(pl.all())
    for user, histories, targets, codes in grouped.iter_rows():
        sequence: list[object] = []
        before = len(splits)
        for history, target, code in zip(histories, targets, codes, strict=True):
            added = history[_overlap(sequence, history) :]
            if added and len(splits) > before and splits[-1] > 0:
                raise DataError(
                    f"source: user {user!r} has a row whose history adds {list(added)[:5]} behind a "
                    f"{SPLIT_NAMES[splits[-1]]} target; no row predicts them, so they belong to no split: rows are missing "
                    "or not in order of time"
                )
            context += len(added)
            sequence += [*added, target]
            splits += [0] * len(added) + [code]
        users.append(user)
        items += sequence
        lengths.append(len(sequence))
    repeats = np.asarray(lengths, np.int64)
    owner = np.repeat(np.arange(len(users)), repeats)
    place = np.arange(len(items)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    events = pl.DataFrame(
        {
            FILE: pl.repeat(0, len(items), dtype=pl.Int32(), eager=True),  # an event is told by rows of several files
            ROW: pl.Series(np.arange(len(items)), dtype=pl.Int64),
            PREHISTORY: pl.repeat(False, len(items), eager=True),
            Columns.USER_ID: pl.Series(users, dtype=rows.schema[Columns.USER_ID]).gather(owner),
            Columns.ITEM_ID: pl.Series(items, dtype=rows.schema[Columns.ITEM_ID]),
            Columns.POSITION: place,
            Columns.SPLIT: pl.Series(splits, dtype=pl.Int8).replace_strict(
                list(range(len(SPLIT_NAMES))), list(SPLIT_NAMES), return_dtype=pl.String
            ),
        }
    )
    return events, {"history_rows": len(rows), "context_events": context}


def _overlap(sequence: Sequence[object], history: Sequence[object]) -> int:
    """Length of the longest end of ``sequence`` that ``history`` begins with."""
    for length in range(min(len(sequence), len(history)), 0, -1):
        if list(sequence[-length:]) == list(history[:length]):
            return length
    return 0

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

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from features.reading.errors import explain_file_errors
from features.sources.base import PREHISTORY, ROW, EventStream, RawTables, Source
from features.sources.columns.ids import id_expression
from features.sources.columns_map import check_columns
from features.sources.item_columns import ItemColumns, canonical_items
from recsys.config import FrozenConfig
from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import content_hashes
from recsys.paths import ConfigPath

_HISTORY = "history"
_SPLIT_CODE = "split_code"


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


class HistoryRowsSource(Source):
    """Files of (user, history, target) rows.

    Attributes:
        path: Folder of the files.
        files: In order of time: a user's rows are read file by file, row by row.
        history: Column of lists of item ids, oldest first; in a CSV, text such as ``[3, 5]``.
        item_id: Column of the target.
        items: Item table inside ``path``, or ``None``.
        kind: Names this form of source.
    """

    kind: Literal["history_rows"] = "history_rows"
    path: ConfigPath
    files: tuple[HistoryRowsFile, ...] = Field(min_length=1)
    history: str = "history_item_id"
    item_id: str = Columns.ITEM_ID
    items: str | None = None
    item_columns: ItemColumns = ItemColumns()

    def fingerprint(self) -> dict[str, str]:
        """Return file name -> sha256."""
        paths = self._paths()
        for path in paths:
            self._check_exists(path)
        return dict(zip((path.name for path in paths), content_hashes(paths), strict=True))

    def read(self, seed: int) -> RawTables:
        """Read the rows and join them; see :meth:`Source.read`.

        Raises:
            DataError: Beside unreadable files: a history holds events that no row predicts, later than valid or test
                targets of the same user; they would belong to no split.
        """
        del seed  # files are the same under every seed
        for path in self._paths():
            self._check_exists(path)
        rows = pl.concat([self._read_rows(self.path / declared.file, declared) for declared in self.files])
        events, facts = join_histories(rows)
        items, absent = None, list[str]()
        if self.items is not None:
            path = self.path / self.items
            with explain_file_errors(path):
                table = _scan(path).collect()
            items, absent = canonical_items(table, self.item_columns, str(path))
            if items.schema[Columns.ITEM_ID] != events.schema[Columns.ITEM_ID]:
                raise DataError(
                    f"'item_id' is {items.schema[Columns.ITEM_ID]} in '{path}' and {events.schema[Columns.ITEM_ID]} in the "
                    "rows; the ids would never meet: convert one of the files"
                )
        return RawTables(
            interactions=EventStream.from_frame(events, "rows"),
            items=items,
            users=None,
            signals=(),
            positive=(),
            has_timestamps=False,
            notes={"absent_item_columns": absent, **facts},
        )

    def _paths(self) -> list[Path]:
        names = [file.file for file in self.files] + ([] if self.items is None else [self.items])
        return [self.path / name for name in dict.fromkeys(names)]

    def _check_exists(self, path: Path) -> None:
        if not path.is_file():
            inside = sorted(p.name for p in self.path.glob("*") if p.is_file()) if self.path.is_dir() else []
            raise DataError(
                f"'{path}' does not exist; files there: {', '.join(inside[:20]) or 'none'}; set source.path"
            )

    def _read_rows(self, path: Path, declared: HistoryRowsFile) -> pl.DataFrame:
        where = str(path)
        frame = _scan(path)
        with explain_file_errors(path):
            schema = frame.collect_schema()
        needed = {Columns.USER_ID: declared.user_id, _HISTORY: self.history, Columns.ITEM_ID: self.item_id}
        if declared.only is not None:
            needed["only"] = declared.only.column
        check_columns(needed, schema.names(), where)
        if declared.only is not None:
            frame = frame.filter(pl.col(declared.only.column).cast(pl.String).is_in(list(declared.only.values)))
        user = id_expression(declared.user_id, schema[declared.user_id], Columns.USER_ID, where)
        if declared.user_prefix is not None:
            user = (pl.lit(declared.user_prefix) + user.cast(pl.String)).alias(Columns.USER_ID)
        item = id_expression(self.item_id, schema[self.item_id], Columns.ITEM_ID, where)
        item_type = pl.Int64() if schema[self.item_id].is_integer() else pl.String()
        history, history_type = pl.col(self.history), schema[self.history]
        if history_type == pl.String:
            history = history.str.replace_all("'", '"').str.json_decode(pl.List(item_type))
        elif not isinstance(history_type, pl.List):
            raise DataError(f"{where}: column '{self.history}' is {history_type}, expected lists of item ids")
        split = pl.lit(SPLIT_NAMES.index(declared.split), pl.Int8).alias(_SPLIT_CODE)
        with explain_file_errors(path):
            return frame.select(user, history.cast(pl.List(item_type)).alias(_HISTORY), item, split).collect()


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
            ROW: pl.Series(np.arange(len(items)), dtype=pl.UInt32),
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


def _scan(path: Path) -> pl.LazyFrame:
    if path.suffix == ".parquet":
        return pl.scan_parquet(path, glob=False)
    if path.suffix == ".csv":
        return pl.scan_csv(path, infer_schema_length=10_000, glob=False)
    raise DataError(f"'{path}' ends in neither .parquet nor .csv; convert it or rename it")

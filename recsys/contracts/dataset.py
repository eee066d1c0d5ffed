"""The prepared data set: what `prepare` writes and every later stage reads.

Histories are offsets into one array of *positive* events, sorted by user and time; windows are never materialised.
User 7's history up to event ``e`` is ``history.item[history.offsets[7]:e]``. The arrays are plain ``.npy`` files, opened
memory-mapped, so that any number of workers share one copy.

Files:
    dataset.json        sizes and task, see :class:`DatasetSpec`
    events.parquet      every kept event, positive or not, sorted by user and time
    items.parquet       one row per item, row number = item_index
    users.parquet       one row per user, row number = user_index
    sessions.parquet    one row per session: its user, its rows in events.parquet, its split
    targets.parquet     one row per prediction to make: whose, from which history, which items come next
    history/*.npy       the arrays of :class:`HistoryArrays`, as :func:`stored_array` says
    quarantine.parquet  rows that were refused, with the reason
    merged.parquet      rows that another row of the same event has taken in
    log/                every usable raw event as numbers, so that a further day can be added
    data_report.json    counts of everything above
    data_contract.json  what readers rely on: types of ids, signals, samples of the ids; copied into the serving bundle
    leakage.json        what the leakage audit found
    data_report.html    all of it as a page

The columns of the tables are declared in :mod:`recsys.contracts.tables`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.event_times import Times, WholeSeconds, whole_seconds
from recsys.contracts.manifest import read_json, write_json
from recsys.contracts.table_checks import PREPARE_AGAIN, check_file_types, read_table

IntArray = npt.NDArray[np.int32]
OffsetArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]

CONTRACT_NAME: Final = "data_contract.json"

HISTORY_ARRAYS: Final = {
    "item": np.int32,
    "behaviour": np.uint8,
    "gap": np.uint8,
    "watch": np.uint8,
    "timestamp": np.int64,
    "offsets": np.int64,
    "train_end": np.int64,
    "valid_end": np.int64,
}
MAYBE_EQUAL: Final = frozenset({"behaviour", "gap", "watch", "timestamp"})
"""Arrays of events that hold one value in many data sets."""

_SLICE: Final = 1 << 20


class DatasetSpec(BaseModel):
    """Sizes of everything that is counted, and the task. Index 0 of authors, categories, behaviours is "not known"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_users: int
    num_items: int
    num_authors: int
    num_categories: int
    num_behaviours: int
    num_gap_buckets: int
    num_watch_buckets: int
    task: Literal["next_item", "session"]
    session_length: int
    signals: tuple[str, ...]
    has_timestamps: bool

    def table_rows(self, features: Collection[str]) -> dict[str, int]:
        """Rows of the embedding table of each feature that a model uses, at least 1."""
        rows = {
            "item": self.num_items + 1,
            "author": self.num_authors,
            "category": self.num_categories,
            "behaviour": self.num_behaviours,
            "gap": self.num_gap_buckets,
            "watch": self.num_watch_buckets,
            "user": self.num_users + 1,
        }
        return {name: max(count, 1) for name, count in rows.items() if name in features}


@dataclass(frozen=True)
class HistoryArrays:
    """Positive events of all users, one after the other, each user's in order of time.

    Opened, an array of one value everywhere is one that :func:`numpy.broadcast_to` made, and ``timestamp`` may be kept as
    seconds: index it, and the times that are asked for are read.

    Attributes:
        item: ``[E]`` item_index.
        behaviour: ``[E]`` packed signals, 0 not known.
        gap: ``[E]`` bucket of the time since the user's previous event, 0 not known.
        watch: ``[E]`` bucket of watched share, 0 not known.
        timestamp: ``[E]`` UTC microseconds, -1 not known.
        offsets: ``[U + 1]``; user ``u`` owns ``[offsets[u], offsets[u + 1])``.
        train_end: ``[U]`` end of the user's train events (a row number in the arrays).
        valid_end: ``[U]`` end of the user's train and valid events.
    """

    item: IntArray
    behaviour: ByteArray
    gap: ByteArray
    watch: ByteArray
    timestamp: Times
    offsets: OffsetArray
    train_end: OffsetArray
    valid_end: OffsetArray


@dataclass(frozen=True)
class Targets:
    """Predictions to make; row ``n`` asks for ``items[item_offsets[n]:item_offsets[n + 1]]``.

    Attributes:
        user_index: ``[N]``.
        history_start: ``[N]`` first row of the history in the history arrays.
        history_end: ``[N]`` row after the last one that may be looked at.
        items: ``[sum of targets]`` item_index in order of time.
        item_offsets: ``[N + 1]``.
    """

    user_index: IntArray
    history_start: OffsetArray
    history_end: OffsetArray
    items: IntArray
    item_offsets: OffsetArray

    def __len__(self) -> int:
        return len(self.user_index)

    def take(self, rows: npt.NDArray[np.integer]) -> Targets:
        """Return the rows given by number, in that order."""
        starts, ends = self.item_offsets[rows], self.item_offsets[rows + 1]
        lengths = ends - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Targets(
            self.user_index[rows], self.history_start[rows], self.history_end[rows], self.items[flat], offsets
        )


@dataclass(frozen=True)
class Dataset:
    """A prepared data set, opened; the arrays are memory-mapped and the tables read when asked for."""

    path: Path
    spec: DatasetSpec
    history: HistoryArrays
    checked: bool = True

    @classmethod
    def open(cls, path: Path, *, checked: bool = True) -> Dataset:
        """Open a folder written by `prepare`.

        Names and types of all columns are checked here, by the files' footers; values are checked when a table is read. A
        table that is not there is refused by whoever asks for it, as no stage needs all of them.

        Args:
            path: The folder.
            checked: Compare the tables with their schemas; not for files that this process has just written, because
                loading the schemas takes longer than preparing 100,000 rows.

        Raises:
            ArtifactError: The sizes, an array or a table do not keep the schema, or do not belong together.
        """
        try:
            spec = DatasetSpec.model_validate(read_json(path / "dataset.json"))
        except ValidationError as error:
            raise ArtifactError(
                f"'{path / 'dataset.json'}' does not keep the schema: {error}; {PREPARE_AGAIN}"
            ) from error
        history = read_history_arrays(path / "history")
        if len(history.train_end) != spec.num_users:
            raise ArtifactError(
                f"'{path / 'history'}' holds the histories of {len(history.train_end)} users, dataset.json says "
                f"{spec.num_users}; {PREPARE_AGAIN}"
            )
        if checked:
            from recsys.contracts.tables import DATASET_TABLES

            for name, table in DATASET_TABLES.items():
                if (path / name).exists():
                    check_file_types(path / name, table, PREPARE_AGAIN)
        return cls(path, spec, history, checked)

    @cached_property
    def items(self) -> pl.DataFrame:
        """The table ``items.parquet``, row number = item_index."""
        return self._table("items.parquet", rows=self.spec.num_items)

    @cached_property
    def users(self) -> pl.DataFrame:
        """The table ``users.parquet``, row number = user_index."""
        return self._table("users.parquet", rows=self.spec.num_users)

    @cached_property
    def events(self) -> pl.DataFrame:
        """The table ``events.parquet``: every kept event, with the raw feedback signals."""
        return self._table(
            "events.parquet",
            at_most={Columns.USER_INDEX: self.spec.num_users - 1, Columns.ITEM_INDEX: self.spec.num_items - 1},
        )

    def scan_events(self) -> pl.LazyFrame:
        """The same table for who reads few rows or columns of it.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        path = self.path / "events.parquet"
        try:
            events = pl.scan_parquet(path, glob=False)
            events.collect_schema()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"'{path}' cannot be read: {error}; {PREPARE_AGAIN}") from error
        return events

    @cached_property
    def sessions(self) -> pl.DataFrame:
        """The table ``sessions.parquet``, row number = session_index."""
        return self._table("sessions.parquet", at_most={Columns.USER_INDEX: self.spec.num_users - 1})

    def target_rows(self) -> pl.DataFrame:
        """Read the table ``targets.parquet``, the rows of all splits."""
        limits = {
            Columns.USER_INDEX: self.spec.num_users - 1,
            Columns.TARGETS: self.spec.num_items - 1,
            Columns.HISTORY_END: len(self.history.item),
        }
        return self._table("targets.parquet", at_most=limits)

    def targets(self, split: int, rows: pl.DataFrame | None = None) -> Targets:
        """Return the targets of one split (:data:`~recsys.contracts.columns.TRAIN`, ``VALID`` or ``TEST``).

        Args:
            split: Its code.
            rows: What :meth:`target_rows` gave, for who asks for several splits; ``None`` reads it.
        """
        table = (self.target_rows() if rows is None else rows).filter(pl.col(Columns.SPLIT) == split)
        lists = table[Columns.TARGETS]
        lengths = lists.list.len().to_numpy().astype(np.int64)
        return Targets(
            user_index=table[Columns.USER_INDEX].to_numpy(),
            history_start=table[Columns.HISTORY_START].to_numpy(),
            history_end=table[Columns.HISTORY_END].to_numpy(),
            items=lists.explode().drop_nulls().to_numpy().astype(np.int32),
            item_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def all_users(self) -> Targets:
        """Return one row per user with the whole history and no target: what a batch job scores."""
        count = self.spec.num_users
        return Targets(
            user_index=np.arange(count, dtype=np.int32),
            history_start=self.history.offsets[:-1],
            history_end=self.history.offsets[1:],
            items=np.empty(0, np.int32),
            item_offsets=np.zeros(count + 1, np.int64),
        )

    def _table(self, name: str, *, rows: int | None = None, at_most: Mapping[str, int] | None = None) -> pl.DataFrame:
        if not self.checked:
            return pl.read_parquet(self.path / name, glob=False)
        from recsys.contracts.tables import DATASET_TABLES

        return read_table(self.path / name, DATASET_TABLES[name], PREPARE_AGAIN, rows=rows, at_most=at_most)


def stored_array(name: str, values: npt.NDArray[Any] | WholeSeconds) -> npt.NDArray[Any]:
    """Return an array of histories as it lies on the disk: no wider than its values, since every day writes it anew.

    Args:
        name: Of the array; those of :data:`MAYBE_EQUAL` may be narrower than :data:`HISTORY_ARRAYS` says.
        values: ``[E]``, of the declared type.

    Returns:
        ``[]`` where every event has the same value; times as uint32 seconds where all of them are whole seconds, see
        :func:`~recsys.contracts.event_times.whole_seconds`; else the values.

    Example:
        >>> stored_array("gap", np.array([3, 3], np.uint8)).shape, stored_array("gap", np.array([3, 4], np.uint8)).shape
        ((), (2,))
        >>> stored_array("timestamp", np.array([5_000_000, 7_000_000])).tolist()
        [5, 7]
    """
    if name not in MAYBE_EQUAL or not len(values):
        return np.asarray(values)
    if is_one_value(values.seconds if isinstance(values, WholeSeconds) else values):
        return values[:1].reshape(())
    if isinstance(values, WholeSeconds):
        return values.seconds
    seconds = whole_seconds(values) if name == "timestamp" else None
    return values if seconds is None else seconds


def is_one_value(values: npt.NDArray[Any]) -> bool:
    """Whether all values are equal; stops at the first run of them that says no.

    Args:
        values: One or more.
    """
    if values.strides == (0,):
        return True
    return all(bool((values[start : start + _SLICE] == values[0]).all()) for start in range(0, len(values), _SLICE))


def write_history_arrays(folder: Path, history: HistoryArrays) -> None:
    """Write the arrays as ``.npy`` files, as :func:`stored_array` says."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dtype in HISTORY_ARRAYS.items():
        values = getattr(history, name)
        kept = values if isinstance(values, WholeSeconds) else np.asarray(values, dtype=dtype)
        np.save(folder / f"{name}.npy", stored_array(name, kept))


def read_history_arrays(folder: Path) -> HistoryArrays:
    """Open the arrays memory-mapped.

    Raises:
        ArtifactError: A file is missing, truncated, or of another type; lengths or offsets do not fit together.
    """
    arrays: dict[str, Any] = {}
    for name, dtype in HISTORY_ARRAYS.items():
        path = folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{path}' cannot be opened: {error}; {PREPARE_AGAIN}") from error
        if name in MAYBE_EQUAL and array.ndim == 0 and array.dtype == dtype:
            arrays[name] = np.broadcast_to(np.array(array), (len(arrays["item"]),))
            continue
        seconds = name == "timestamp" and array.dtype == np.uint32
        if array.dtype != dtype and not seconds:
            raise ArtifactError(f"'{path}' holds {array.dtype}, expected {np.dtype(dtype)}; {PREPARE_AGAIN}")
        if array.ndim != 1:
            raise ArtifactError(f"'{path}' has shape {array.shape}, expected one dimension; {PREPARE_AGAIN}")
        arrays[name] = WholeSeconds(array) if seconds else array
    history = HistoryArrays(**arrays)
    problem = _offset_problem(history)
    if problem is not None:
        raise ArtifactError(f"'{folder}': {problem}; {PREPARE_AGAIN}")
    return history


def _offset_problem(history: HistoryArrays) -> str | None:
    """Say what is wrong with lengths and offsets; reads the arrays of users, never those of events."""
    events, users = len(history.item), len(history.train_end)
    lengths = {name: len(getattr(history, name)) for name in HISTORY_ARRAYS}
    expected = dict.fromkeys(lengths, events) | {"offsets": users + 1, "train_end": users, "valid_end": users}
    for name, length in lengths.items():
        if length != expected[name]:
            return f"{name}.npy has {length} entries, expected {expected[name]} ({events} events, {users} users)"
    start, end = history.offsets[:-1], history.offsets[1:]
    if history.offsets[0] != 0 or history.offsets[-1] != events:
        return f"offsets.npy goes from {history.offsets[0]} to {history.offsets[-1]}, expected from 0 to {events}"
    in_order = (start <= history.train_end) & (history.train_end <= history.valid_end) & (history.valid_end <= end)
    if not in_order.all():
        user = int(in_order.argmin())
        places = [int(row[user]) for row in (start, history.train_end, history.valid_end, end)]
        return (
            f"user {user} has start, train_end, valid_end, end {places}, expected ascending numbers "
            f"({int((~in_order).sum())} such users)"
        )
    return None


def write_dataset_spec(path: Path, spec: DatasetSpec) -> None:
    """Write ``dataset.json`` into the folder ``path``."""
    write_json(path / "dataset.json", spec.model_dump(mode="json"))

"""The compact state of a log: every usable raw event as numbers, sorted, before repeats are merged and thin users removed.

Everything that `prepare` writes is a function of it, so it is kept with the prepared data set, and a further day is sorted
into it instead of reading all days again. No text is held per event: ids are numbers into tables.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import NO_CODE, NO_NUMBER, BoolArray, CodeArray
from features.log.order import KeyArray
from features.log.signal_bits import unpack_signal
from features.log.stored_columns import ColumnWriter, Layout, StoredColumn
from features.sources.base import FILE, PREHISTORY, ROW, TIE_BREAK
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import ByteArray
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json, write_json

_FACTS: Final = "log.json"
_LAYOUTS: Final = "columns"


@dataclass(frozen=True, kw_only=True)
class EncodedLog:
    """Usable raw events, sorted by user, prehistory first, time, position, tie-break, file and row.

    A column that the source does not have is ``None``.

    Attributes:
        user: ``[E]`` place in ``user_ids``.
        item: ``[E]`` place in ``item_ids``.
        record: ``[E]`` number of the row among the rows of all files: ``file_starts[file] + row``.
        prehistory: ``[E]`` whether the event has an order but no time.
        timestamp: ``[E]`` UTC microseconds, -1 in the prehistory.
        position: ``[E]`` place in the user's order, ``NO_NUMBER`` where not given.
        tie_break: ``[E]`` order of equal times, ``NO_NUMBER`` where not given; place in ``tie_break_texts``, -1 where not
            given, if it is text.
        session: ``[E]`` place in ``session_ids``, -1 where not given.
        split: ``[E]`` place in ``split_names``, -1 where not given.
        watch_time: ``[E]`` milliseconds, NaN where not known.
        duration: ``[E]`` milliseconds, NaN where not known.
        propensity: ``[E]`` in (0, 1], NaN where not known.
        signal_values: ``[E]`` bit ``j``: the ``j``-th signal is true.
        signal_known: ``[E]`` bit ``j``: the ``j``-th signal is known.
        user_ids: Distinct ids of usable rows, ascending.
        item_ids: Likewise.
        session_ids: Likewise.
        split_names: Likewise.
        tie_break_texts: Likewise; ``None`` where they are numbers.
        files: Paths of the files, in the order in which they were read.
        file_records: Records of each file, refused ones included.
        file_spans: One more than the largest row number of each file; in a text file rows are lines, which are more.
        signals: Names of the signals.
        positive: Those that make an event positive, any of them; empty: every event is positive.
    """

    user: CodeArray
    item: CodeArray
    record: npt.NDArray[np.int64]
    prehistory: BoolArray
    timestamp: npt.NDArray[np.int64] | None
    position: npt.NDArray[np.int64] | None
    tie_break: npt.NDArray[np.int64] | CodeArray | None
    session: CodeArray | None
    split: CodeArray | None
    watch_time: npt.NDArray[np.float32] | None
    duration: npt.NDArray[np.float32] | None
    propensity: npt.NDArray[np.float32] | None = None
    signal_values: ByteArray
    signal_known: ByteArray
    user_ids: pl.Series
    item_ids: pl.Series
    session_ids: pl.Series | None
    split_names: pl.Series | None
    tie_break_texts: pl.Series | None = None
    files: tuple[str, ...]
    file_records: tuple[int, ...]
    file_spans: tuple[int, ...]
    signals: tuple[str, ...]
    positive: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def has_timestamps(self) -> bool:
        """Whether events outside the prehistory have a time."""
        return self.timestamp is not None

    @property
    def file_starts(self) -> npt.NDArray[np.int64]:
        """``[files]`` the record number of each file's row 0."""
        return np.concatenate([[0], np.cumsum(self.file_spans)]).astype(np.int64)[:-1]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns that are there, by name."""
        found = {name: getattr(self, name) for name in ARRAY_NAMES}
        return {name: array for name, array in found.items() if array is not None}

    def without_events(self) -> EncodedLog:
        """Return the log of the same files without any event."""
        none: dict[str, Any] = {name: array[:0].copy() for name, array in self.arrays().items()}
        return replace(self, **none)

    def decode(self, rows: npt.NDArray[np.integer[Any]] | slice) -> pl.DataFrame:
        """Return events as they were read: ``file`` (path), ``row``, ``prehistory``, and the canonical columns.

        Args:
            rows: Numbers of the events, in the order wanted, or a run of them.
        """
        record = self.record[rows]
        starts = self.file_starts
        file = np.searchsorted(starts, record, side="right") - 1
        # an empty file shares its start with the next one, and `right` finds the last of them, which has the record
        columns = {
            FILE: pl.Series(self.files, dtype=pl.String).gather(pl.Series(file)),
            ROW: pl.Series(record - starts[file], dtype=pl.Int64),
            PREHISTORY: pl.Series(self.prehistory[rows]),
            Columns.USER_ID: self.user_ids.gather(pl.Series(self.user[rows])),
            Columns.ITEM_ID: self.item_ids.gather(pl.Series(self.item[rows])),
        }
        if self.timestamp is not None:
            columns[Columns.TIMESTAMP] = _known(self.timestamp[rows], -1)
        for name, numbers in ((Columns.POSITION, self.position), (TIE_BREAK, self.tie_break)):
            if numbers is not None and not (name == TIE_BREAK and self.tie_break_texts is not None):
                columns[name] = _known(numbers[rows], NO_NUMBER)
        for name, codes, ids in (
            (Columns.SESSION_ID, self.session, self.session_ids),
            (Columns.SPLIT, self.split, self.split_names),
            (TIE_BREAK, self.tie_break, self.tie_break_texts),
        ):
            if codes is not None and ids is not None:
                columns[name] = ids.gather(_known(codes[rows], NO_CODE))
        for name, measured in (
            (Columns.WATCH_TIME_MS, self.watch_time),
            (Columns.DURATION_MS, self.duration),
            (Columns.PROPENSITY, self.propensity),
        ):
            if measured is not None:
                columns[name] = pl.Series(measured[rows]).fill_nan(None)
        for place, name in enumerate(self.signals):
            columns[name] = unpack_signal(self.signal_values[rows], self.signal_known[rows], place)
        return pl.DataFrame([column.alias(name) for name, column in columns.items()])

    def layouts(self) -> dict[str, Layout]:
        """Return how each column lies on disk, that of users aside."""
        arrays = {name: array for name, array in self.arrays().items() if name != "user"}
        return {name: Layout.of(name, array, sum(self.file_spans)) for name, array in arrays.items()}

    def save(self, folder: Path) -> None:
        """Write the columns as ``.npy``, the ids as Parquet, the rest as JSON; equal logs give equal bytes."""
        with LogWriter(folder, self.layouts()) as writer:
            writer.write(self, np.bincount(self.user, minlength=len(self.user_ids)))
        writer.finish(self)

    @classmethod
    def load(cls, folder: Path) -> EncodedLog:
        """Read a saved log into memory.

        Raises:
            ArtifactError: A file is missing, or damaged.
        """
        stored = StoredLog.open(folder)
        return stored.of_users(0, len(stored.head.user_ids))


class LogWriter:
    """A log that is saved a run of users at a time."""

    def __init__(self, folder: Path, layouts: Mapping[str, Layout]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._layouts = folder, layouts
        files = {name: layout.stored for name, layout in layouts.items() if layout.constant is None}
        self._files = {name: ColumnWriter(folder / f"{name}.npy", dtype) for name, dtype in files.items()}
        self._files["user"] = ColumnWriter(folder / "user.npy", np.int32)

    def write(self, log: EncodedLog, user_rows: npt.NDArray[np.integer[Any]]) -> None:
        """Append the rows of the next users.

        Args:
            log: Their rows.
            user_rows: ``[users]`` how many each has.
        """
        arrays = {name: array for name, array in log.arrays().items() if name in self._files and name != "user"}
        self.write_stored({name: self._layouts[name].to_disk(array) for name, array in arrays.items()}, user_rows)

    def write_stored(self, columns: Mapping[str, npt.NDArray[Any]], user_rows: npt.NDArray[np.integer[Any]]) -> None:
        """Append the rows of the next users.

        Args:
            columns: As they are stored; those of one value need not be there.
            user_rows: ``[users]`` how many each has.
        """
        for name, array in columns.items():
            if name in self._files:
                self._files[name].write(array)
        self._files["user"].write(user_rows.astype(np.int32))

    def finish(self, log: EncodedLog) -> None:
        """Write what is not a column: ids, files, signals."""
        for name in ID_TABLES.values():
            ids = getattr(log, name)
            if ids is not None:
                table = pl.DataFrame({name: ids.rechunk()})
                table.write_parquet(self._folder / f"{name}.parquet", compression="uncompressed", statistics=False)
        facts: dict[str, Any] = {name: list(getattr(log, name)) for name in _FACT_NAMES}
        layouts = {name: layout.as_json() for name, layout in self._layouts.items()}
        write_json(self._folder / _FACTS, {**facts, _LAYOUTS: layouts})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        for file in self._files.values():
            file.__exit__(*raised)


@dataclass(frozen=True)
class StoredLog:
    """A saved log, of which runs of users are read.

    Attributes:
        head: The log without its events.
        columns: Every column but that of users.
        starts: ``[users + 1]`` first row of each user, and behind them the number of rows.
    """

    head: EncodedLog
    columns: Mapping[str, StoredColumn]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @classmethod
    def open(cls, folder: Path) -> StoredLog:
        """Open a saved log; its columns are memory-mapped.

        Raises:
            ArtifactError: A file is missing, or damaged.
        """
        facts = read_json(folder / _FACTS)
        try:
            values: dict[str, Any] = {name: tuple(facts[name]) for name in _FACT_NAMES}
            layouts = {name: Layout.from_json(layout) for name, layout in facts[_LAYOUTS].items()}
            user_rows = np.load(folder / "user.npy", allow_pickle=False)
            starts = np.concatenate([[0], np.cumsum(user_rows)]).astype(np.int64)
            rows = int(starts[-1])
            columns = {n: StoredColumn.open(folder / f"{n}.npy", layout, rows) for n, layout in layouts.items()}
            for name in ID_TABLES.values():
                path = folder / f"{name}.parquet"
                there = path.exists() or name not in _OPTIONAL
                values[name] = pl.read_parquet(path, glob=False)[name] if there else None
            none = {name: np.empty(0, layout.dtype) for name, layout in layouts.items()}
            arrays: dict[str, Any] = {name: none.get(name) for name in ARRAY_NAMES} | {"user": np.empty(0, np.int32)}
            head = EncodedLog(**values, **arrays)
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(
                f"'{folder}' cannot be opened: {error}; delete its artefact and run prepare again"
            ) from error
        return cls(head, columns, starts)

    def of_users(self, first: int, end: int, without: Collection[str] = ()) -> EncodedLog:
        """Return the rows of the users from ``first`` to ``end``, who are numbered from 0 in it.

        Args:
            first, end: Numbers of users.
            without: Columns that the caller does not ask for; all their values are 0.
        """
        rows = slice(int(self.starts[first]), int(self.starts[end]))
        arrays: dict[str, Any] = {
            name: _zeros(column.layout.dtype, rows) if name in without else column[rows]
            for name, column in self.columns.items()
        }
        if "user" in without:
            arrays["user"] = _zeros(np.dtype(np.int32), rows)
        else:
            arrays["user"] = np.repeat(np.arange(end - first, dtype=np.int32), np.diff(self.starts[first : end + 1]))
        return replace(self.head, user_ids=self.head.user_ids[first:end], **arrays)


def _zeros(dtype: np.dtype[Any], rows: slice) -> npt.NDArray[Any]:
    return np.broadcast_to(dtype.type(0), (rows.stop - rows.start,))


ARRAY_NAMES: Final = (
    "user", "item", "record", "prehistory", "timestamp", "position", "tie_break", "session", "split",
    "watch_time", "duration", "propensity", "signal_values", "signal_known",
)  # fmt: skip
"""Columns with one entry per event."""

ID_TABLES: Final = {
    "user": "user_ids",
    "item": "item_ids",
    "session": "session_ids",
    "split": "split_names",
    "tie_break": "tie_break_texts",
}
"""Columns of codes -> the tables that they point into; a tie-break is one only where it is text."""

_OPTIONAL: Final = frozenset({"session_ids", "split_names", "tie_break_texts"})
_FACT_NAMES: Final = ("files", "file_records", "file_spans", "signals", "positive")


def sort_keys(arrays: Mapping[str, Any]) -> list[KeyArray]:
    """Return what events are ordered by, the most significant first; equal events keep the order of the files.

    Args:
        arrays: Columns by name, as in :class:`EncodedLog`; what is not there is no key.
    """
    user, early = arrays["user"], arrays["prehistory"]
    keys: list[KeyArray] = [user]
    if early.any():
        keys.append(~early)
    keys += instants(arrays)
    position, tie_break = arrays.get("position"), arrays.get("tie_break")
    if arrays.get("timestamp") is not None and position is not None:
        keys.append(np.where(position == NO_NUMBER, 0, position))
    if tie_break is not None:
        keys.append(tie_break)
    return keys


def instants(arrays: Mapping[str, Any]) -> list[KeyArray]:
    """Return when events happened: their time, or their position where there is none."""
    timestamp, position, early = arrays.get("timestamp"), arrays.get("position"), arrays["prehistory"]
    if timestamp is None:
        return [] if position is None else [position]
    if position is None or not early.any():
        return [timestamp]
    return [np.where(early, position, timestamp)]


def _known(values: npt.NDArray[Any], missing: int) -> pl.Series:
    column = pl.Series(values)
    return column.set(column == missing, None)

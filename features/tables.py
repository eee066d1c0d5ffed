"""The tables of a prepared data set, written from the event log: events, items, users, targets, and what stands beside them.

Reads kept events and what the later steps found out about each; produces ``events.parquet``, ``items.parquet`` and
``users.parquet``. Events are written slice by slice, so that no table of all of them is ever in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from features.histories import TargetRows
from features.items import ItemTable, one_row_per_id
from features.log.arrays import is_constant
from features.log.event_log import EventLog
from features.number_tables.writer import GROUP_ROWS, Column, Lists, Nullable, NumberTableWriter
from features.passes.rows import add_counts
from features.refused import RefusedRows
from features.sessions import session_columns, session_starts
from features.sources.base import FILE, ROW
from features.splits import SplitArray
from recsys.contracts.columns import TRAIN, Columns
from recsys.contracts.dataset import DatasetSpec, write_dataset_spec
from recsys.contracts.manifest import write_json

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("recsys.features")

_SLICE_ROWS: Final = 1_000_000
_BATCH_VALUES: Final = 1 << 16  # 1,024 by default, which costs a sixth of the time
_RANDOM: Final = (Columns.ITEM_INDEX, Columns.TIMESTAMP)
_FEW_VALUES: Final = (Columns.REASON, FILE)
ASCENDING: Final = frozenset(
    (
        Columns.USER_INDEX,
        Columns.SESSION_INDEX,
        Columns.SPLIT,
        Columns.BEHAVIOUR,
        Columns.EVENT_START,
        Columns.EVENT_END,
        Columns.HISTORY_START,
        Columns.HISTORY_END,
    )
)
"""Columns of events, sessions and targets whose neighbours differ by little."""


@dataclass(frozen=True)
class LabelledEvents:
    """Kept events with what the later steps found out about each.

    Attributes:
        log: Users, items and times, ``E`` events sorted by user and time.
        split: ``[E]`` 0 train, 1 validation, 2 test.
        session: ``[E]`` session_index.
        behaviour: ``[E]`` packed signals, 0 not known.
        watch_ratio: ``[E]`` watched time / duration, NaN not known.
    """

    log: EventLog
    split: SplitArray
    session: npt.NDArray[np.int32]
    behaviour: npt.NDArray[np.uint8]
    watch_ratio: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What is written of a data set beside its events, sessions and histories.

    Attributes:
        items: The items of the kept events, and items without events where the configuration keeps them.
        users: ``users.parquet``.
        targets: The rows of ``targets.parquet``, split by split.
        quarantine: Refused rows, with the reason.
        merged: Rows that another row of the same event has taken in.
        spec: Sizes and task.
        report: Counts of every step.
    """

    items: ItemTable
    users: pl.DataFrame
    targets: Sequence[TargetRows]
    quarantine: RefusedRows
    merged: pl.DataFrame
    spec: DatasetSpec
    report: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What has been written of a data set, as far as it is described behind that and small enough to be kept meanwhile.

    Attributes:
        report: Counts of every step.
        user_ids: ``[U]`` ids in ``users.parquet``.
        targets: The rows of ``targets.parquet``, split by split.
    """

    report: dict[str, Any]
    user_ids: pl.Series
    targets: Sequence[TargetRows]

    @classmethod
    def of(cls, data: Rest) -> Prepared:
        """Take what is kept."""
        return cls(data.report, data.users[Columns.USER_ID], data.targets)


class SlicedWriter:
    """A Parquet table of any columns that is written piece by piece; the file is the same however it was cut into pieces.

    Row numbers are stored as differences, which takes a tenth of the space; numbers that look random are stored as they are,
    because looking for repetitions in them takes longer than writing them. Tables of numbers alone have a faster writer
    (:mod:`features.number_tables.writer`).

    Attributes:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[pl.DataFrame] = []
        self._rows = 0
        self._file: Any = None

    def write(self, rows: pl.DataFrame) -> None:
        """Append rows."""
        self._waiting.append(rows)
        self._rows += len(rows)
        while self._rows >= GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        if self._waiting:
            self._flush()
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        import pyarrow.parquet as pq  # only here: reading a configuration does not need it

        pieces: list[pl.DataFrame] = []
        wanted = GROUP_ROWS
        while wanted and self._waiting:
            pieces.append(self._waiting[0][:wanted])
            left = self._waiting.pop(0)[wanted:]
            wanted -= len(pieces[-1])
            if len(left):
                self._waiting.insert(0, left)
        self._rows -= sum(map(len, pieces))
        table = _as_arrow(pl.concat(pieces, rechunk=True))
        if self._file is None:
            names = table.column_names
            plain = set(_RANDOM) & set(names)
            self._file = pq.ParquetWriter(
                self.path,
                table.schema,
                compression={name: "none" if name in plain else "lz4" for name in names},
                use_dictionary=[name for name in _FEW_VALUES if name in names],
                column_encoding={name: "DELTA_BINARY_PACKED" for name in (ROW,) if name in names},
                write_statistics=False,
                write_batch_size=_BATCH_VALUES,
            )
        self._file.write_table(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def write_events(path: Path, events: LabelledEvents) -> None:
    """Write every kept event in contract columns, and the raw signals that feed the reward model."""
    with NumberTableWriter(path, ASCENDING) as writer:
        for start in range(0, max(len(events.log), 1), GROUP_ROWS):
            writer.write(event_columns(events, slice(start, start + GROUP_ROWS)))


def write_sessions(path: Path, events: LabelledEvents) -> None:
    """Write ``sessions.parquet``."""
    starts = session_starts(events.session)
    with NumberTableWriter(path, ASCENDING) as writer:
        for first in range(0, len(starts) - 1, GROUP_ROWS):
            writer.write(session_columns(events.log, events.split, starts, slice(first, first + GROUP_ROWS)))


def write_targets(path: Path, rows: Iterable[TargetRows]) -> None:
    """Write ``targets.parquet``, split by split."""
    with NumberTableWriter(path, ASCENDING) as writer:
        for part in rows:
            writer.write(
                {
                    Columns.USER_INDEX: part.user.astype(np.int32, copy=False),
                    Columns.HISTORY_START: part.history_start,
                    Columns.HISTORY_END: part.history_end,
                    Columns.TARGETS: Lists.of(part.items.astype(np.int32, copy=False), part.sizes),
                    Columns.SPLIT: np.full(len(part), part.split, np.int8),
                }
            )


def _as_arrow(table: pl.DataFrame) -> pa.Table:
    """Hand a table over by the C interface: ``to_arrow`` would import pyarrow.compute, and ``pa.table`` pandas."""
    import pyarrow as pa

    return pa.RecordBatchReader.from_stream(table).read_all()


def write_large_table(path: Path, table: pl.DataFrame) -> None:
    """Write a table that grows with the users; fast to write rather than small, as every day writes it anew.

    Compressing took as long as everything else, and made a data set of 20 million events 2 % smaller.
    """
    table.rechunk().write_parquet(path, compression="uncompressed", statistics=False)


def event_columns(events: LabelledEvents, rows: slice) -> dict[str, Column]:
    """Return a run of the rows of ``events.parquet``."""
    log = events.log
    time, ratio = log.timestamp[rows], events.watch_ratio[rows]
    some_untimed = bool(len(time)) and int(time.min()) < 0
    columns: dict[str, Column] = {
        Columns.USER_INDEX: log.user[rows],
        Columns.ITEM_INDEX: log.item[rows],
        Columns.TIMESTAMP: Nullable(time, time >= 0 if some_untimed else None),
        Columns.SESSION_INDEX: events.session[rows],
        Columns.SPLIT: events.split[rows],
        Columns.POSITIVE: log.positive[rows],
        Columns.BEHAVIOUR: events.behaviour[rows],
        Columns.WATCH_RATIO: _measured(ratio),
    }
    for name, measured in (
        (Columns.WATCH_TIME_MS, log.watch_time),
        (Columns.DURATION_MS, log.duration),
        (Columns.PROPENSITY, log.propensity),
    ):
        if measured is not None:
            columns[name] = _measured(measured[rows])
    for place, name in enumerate(log.signals):
        bit = np.uint8(1 << place)
        columns[name] = Nullable((log.signal_values[rows] & bit) != 0, (log.signal_known[rows] & bit) != 0)
    return columns


def _measured(values: npt.NDArray[np.float32]) -> Nullable:
    if is_constant(values) and len(values):
        return Nullable(values, np.broadcast_to(~np.isnan(values[0]), values.shape))
    return Nullable(values, ~np.isnan(values))


def watched_times(log: EventLog) -> pl.LazyFrame:
    """Return ``watch_time_ms`` and ``duration_ms`` of the events as they are written, those that the source has."""
    columns = {Columns.WATCH_TIME_MS: log.watch_time, Columns.DURATION_MS: log.duration}
    return pl.LazyFrame(
        [pl.Series(name, values, nan_to_null=True) for name, values in columns.items() if values is not None]
    )


def train_counts(events: LabelledEvents, num_items: int) -> npt.NDArray[np.int64]:
    """Return ``[items]`` the positive events of each in the train split."""
    log = events.log
    counts = np.zeros(num_items, np.int64)
    for start in range(0, len(log), _SLICE_ROWS):
        rows = slice(start, start + _SLICE_ROWS)
        add_counts(log.item[rows], log.positive[rows] & (events.split[rows] == TRAIN), counts)
    return counts


def items_table(items: ItemTable, counts: npt.NDArray[np.int64]) -> pl.DataFrame:
    """Return ``items.parquet``.

    Args:
        items: The items.
        counts: ``[items]`` their positive events in the train split.
    """
    table = items.table.with_columns(pl.Series(Columns.TRAIN_COUNT, counts))
    return table.select(
        Columns.ITEM_INDEX,
        Columns.ITEM_ID,
        Columns.TITLE,
        Columns.TEXT,
        Columns.CATEGORIES,
        Columns.AUTHOR_INDEX,
        Columns.CATEGORY_INDEX,
        Columns.HAS_METADATA,
        Columns.TRAIN_COUNT,
        Columns.AUTHOR_ID,
    )


def users_table(user_ids: pl.Series, users: pl.DataFrame | None) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return ``users.parquet``, the users with the attributes of the source, and counts for the data report."""
    table = pl.DataFrame(
        {
            Columns.USER_INDEX: np.arange(len(user_ids), dtype=np.int32),
            Columns.USER_ID: user_ids,
        }
    )
    if users is None:
        return table, {}
    attributes, conflicting = one_row_per_id(users, Columns.USER_ID)
    without_id = users[Columns.USER_ID].null_count()
    facts = {
        "user_rows_repeated": len(users) - without_id - len(attributes),
        "user_rows_without_id": without_id,
        "user_ids_that_conflict": conflicting,
    }
    return table.join(attributes, on=Columns.USER_ID, how="left", maintain_order="left"), facts


def write_rest(out_dir: Path, data: Rest, counts: npt.NDArray[np.int64]) -> None:
    """Write everything but events, sessions and histories.

    Args:
        out_dir: Folder to write into.
        data: What to write.
        counts: ``[items]`` positive events in the train split.
    """
    items_table(data.items, counts).rechunk().write_parquet(out_dir / "items.parquet")
    write_large_table(out_dir / "users.parquet", data.users)
    write_targets(out_dir / "targets.parquet", data.targets)
    with SlicedWriter(out_dir / "quarantine.parquet") as quarantine:
        for rows in data.quarantine.tables():
            quarantine.write(rows)
    data.merged.rechunk().write_parquet(out_dir / "merged.parquet")
    write_dataset_spec(out_dir, data.spec)
    write_json(out_dir / "data_report.json", data.report)
    logger.info(
        "prepared %d users, %d items, %d events (%d positive)",
        data.spec.num_users,
        data.spec.num_items,
        data.report["kept"],
        data.report["positive_events"],
    )

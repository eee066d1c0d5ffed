"""The tables of a prepared data set, written from the event log: events, items, users.

Reads kept events and what the later steps found out about each; produces ``events.parquet``, ``items.parquet`` and
``users.parquet``. Events are written slice by slice, so that no table of all of them is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.io.plugins import register_io_source

from features.items import ItemTable, one_row_per_id
from features.log.event_log import EventLog
from features.log.signal_bits import unpack_signal
from features.sessions import session_starts, session_table
from features.splits import SplitArray
from recsys.contracts.columns import TRAIN, Columns

if TYPE_CHECKING:
    import pyarrow as pa

_SLICE_ROWS: Final = 1_000_000
_SESSION_NUMBERS: Final = (Columns.SESSION_INDEX, Columns.USER_INDEX, Columns.EVENT_START, Columns.EVENT_END)


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


def write_events(path: Path, events: LabelledEvents) -> None:
    """Write every kept event in contract columns, and the raw signals that feed the reward model."""

    def slices(*_: object) -> Iterator[pl.DataFrame]:
        for start in range(0, len(events.log), _SLICE_ROWS):
            yield events_table(events, slice(start, start + _SLICE_ROWS))

    schema = events_table(events, slice(0, 0)).schema
    register_io_source(slices, schema=schema).sink_parquet(
        path, compression="lz4", statistics=False, row_group_size=_SLICE_ROWS, maintain_order=True
    )


def write_sessions(path: Path, events: LabelledEvents) -> None:
    """Write ``sessions.parquet``: ascending numbers, so their differences are stored, in a fiftieth of the space."""
    import pyarrow.parquet as pq  # only here: reading a configuration does not need it

    starts = session_starts(events.session)
    encoding = dict.fromkeys(_SESSION_NUMBERS, "DELTA_BINARY_PACKED")
    schema = _as_arrow(session_table(events.log, events.split, starts, slice(0, 0))).schema
    with pq.ParquetWriter(
        path,
        schema,
        compression="lz4",
        use_dictionary=[Columns.SPLIT],
        column_encoding=encoding,
        write_statistics=False,
    ) as writer:
        for first in range(0, len(starts) - 1, _SLICE_ROWS):
            rows = slice(first, first + _SLICE_ROWS)
            writer.write_table(_as_arrow(session_table(events.log, events.split, starts, rows)))


def _as_arrow(table: pl.DataFrame) -> pa.Table:
    """Hand a table over by the C interface: ``to_arrow`` would import pyarrow.compute, and ``pa.table`` pandas."""
    import pyarrow as pa

    return pa.RecordBatchReader.from_stream(table).read_all()


def write_large_table(path: Path, table: pl.DataFrame) -> None:
    """Write a table that grows with the events; fast to write rather than small, as every day writes it anew."""
    table.rechunk().write_parquet(path, compression="lz4", statistics=False)


def events_table(events: LabelledEvents, rows: slice) -> pl.DataFrame:
    """Return a run of the rows of ``events.parquet``."""
    log = events.log
    time, ratio = pl.Series(log.timestamp[rows]), pl.Series(events.watch_ratio[rows])
    columns: dict[str, Any] = {
        Columns.USER_INDEX: log.user[rows],
        Columns.ITEM_INDEX: log.item[rows],
        Columns.TIMESTAMP: time.set(time < 0, None),
        Columns.SESSION_INDEX: events.session[rows],
        Columns.SPLIT: events.split[rows],
        Columns.POSITIVE: log.positive[rows],
        Columns.BEHAVIOUR: events.behaviour[rows],
        Columns.WATCH_RATIO: ratio.fill_nan(None),
    }
    for name, measured in ((Columns.WATCH_TIME_MS, log.watch_time), (Columns.DURATION_MS, log.duration)):
        if measured is not None:
            columns[name] = pl.Series(measured[rows]).fill_nan(None)
    for place, name in enumerate(log.signals):
        columns[name] = unpack_signal(log.signal_values[rows], log.signal_known[rows], place)
    return pl.DataFrame(columns)


def items_table(events: LabelledEvents, items: ItemTable) -> pl.DataFrame:
    """Return ``items.parquet``: the items, with their positive events in the train split."""
    log = events.log
    counts = np.zeros(len(items.table), np.int64)
    for start in range(0, len(log), _SLICE_ROWS):
        rows = slice(start, start + _SLICE_ROWS)
        in_train = log.item[rows][log.positive[rows] & (events.split[rows] == TRAIN)]
        counts += np.bincount(in_train, minlength=len(counts))
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

"""From batches of raw rows to the encoded log: every id becomes a number at once, and no text is held per event.

Reads an :class:`~features.sources.base.EventStream`; produces :class:`~features.log.encoded_log.EncodedLog`, the refused
rows, and counts for the data report.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import NO_NUMBER, GrowingArray, IdColumn, compacted
from features.log.encoded_log import ID_TABLES, EncodedLog, sort_keys
from features.log.order import sort_columns
from features.log.quarantine import Quarantine, QuarantineConfig
from features.log.signal_bits import check_signal_count, pack_signals
from features.log.stored_columns import MAYBE_CONSTANT
from features.refused import RefusedRows
from features.sources.as_of import HELD_BACK
from features.sources.base import FILE, PREHISTORY, ROW, TIE_BREAK, RawTables
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError

_BATCH_ROWS: Final = 1_000_000
_MEASURES: Final = {
    "watch_time": Columns.WATCH_TIME_MS,
    "duration": Columns.DURATION_MS,
    "propensity": Columns.PROPENSITY,
}
_IDS: Final = {
    "user": Columns.USER_ID,
    "item": Columns.ITEM_ID,
    "session": Columns.SESSION_ID,
    "split": Columns.SPLIT,
    "tie_break": TIE_BREAK,  # where it is text
}
_NUMBERS: Final = {"position": Columns.POSITION, "tie_break": TIE_BREAK}


@dataclass(frozen=True)
class ReadLog:
    """What was read.

    Attributes:
        log: Usable rows.
        refused: The others, with the column ``reason``.
        rows_in: All of them.
        facts: What was met in the files, for the data report.
    """

    log: EncodedLog
    refused: RefusedRows
    rows_in: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def without_events(self) -> ReadLog:
        """Return what was read about the files, so that the memory of the rows can be freed once they are kept."""
        return replace(self, log=self.log.without_events())


def read_log(
    raw: RawTables, config: QuarantineConfig, *, need_session_id: bool, only: Collection[str] | None = None
) -> ReadLog:
    """Read, sift, encode and sort the events of a source.

    Args:
        raw: The source.
        config: Limits of the quarantine.
        need_session_id: Sessions are given by the source, so a timed row without one is refused.
        only: Files to read; ``None``: all.

    Raises:
        DataError: There is no row at all, in all files.
        ConfigError: More signals than a behaviour code holds.
    """
    check_signal_count(raw.signals)
    stream = raw.interactions
    quarantine = Quarantine(stream.schema, stream.files, config, need_session_id=need_session_id)
    columns = _Columns(stream.schema, raw)
    for batch in stream.batches(only):
        for part in batch.iter_slices(_BATCH_ROWS):
            columns.count(part)
            columns.append(quarantine.sift(part))
    _give_back_memory()
    if quarantine.rows_in == 0 and only is None:
        held = sum(int(fact["rows"]) for fact in stream.facts.get(HELD_BACK, ()))
        if held:
            raise DataError(
                f"all {held} interactions of the source come after the day asked for (--as-of, features.as_of); give a "
                "later day, or check source.timestamp_unit"
            )
        raise DataError("the source has no interactions at all; check source.path and the column map")
    return ReadLog(columns.finish(stream.files), quarantine.refused, quarantine.rows_in, dict(stream.facts))


def _give_back_memory() -> None:
    """Return to the system what Arrow holds for further batches: about a tenth of a gigabyte, wanted for sorting now."""
    arrow = sys.modules.get("pyarrow")  # a text file is read without it
    if arrow is not None:
        arrow.default_memory_pool().release_unused()


class _Columns:
    """The columns of the log while it is read."""

    def __init__(self, schema: pl.Schema, raw: RawTables) -> None:
        self._raw = raw
        self._numbers = [name for name, column in _NUMBERS.items() if schema.get(column) == pl.Int64]
        coded = {name: column for name, column in _IDS.items() if column in schema and name not in self._numbers}
        self._ids = {name: IdColumn(schema[column]) for name, column in coded.items()}
        self._measures = [name for name, column in _MEASURES.items() if column in schema]
        types: dict[str, npt.DTypeLike] = {"file": np.int32, "record": np.int64, "prehistory": bool}
        if raw.has_timestamps:
            types["timestamp"] = np.int64
        types |= dict.fromkeys(self._numbers, np.int64) | dict.fromkeys(self._measures, np.float32)
        types |= {"signal_values": np.uint8, "signal_known": np.uint8}
        self._arrays = {name: GrowingArray(dtype) for name, dtype in types.items()}
        self._file_records = np.zeros(len(raw.interactions.files), np.int64)
        self._file_spans = np.zeros_like(self._file_records)

    def count(self, batch: pl.DataFrame) -> None:
        """Count the records of each file, refused ones included."""
        file, row = batch[FILE].to_numpy(), batch[ROW].to_numpy()
        self._file_records += np.bincount(file, minlength=len(self._file_records))
        ends = np.flatnonzero(np.diff(file, append=-1))  # a batch has few runs of one file, mostly one
        for begin, end in zip([0, *(ends[:-1] + 1)], ends, strict=False):
            place = file[end]
            self._file_spans[place] = max(self._file_spans[place], int(row[begin : end + 1].max()) + 1)

    def append(self, rows: pl.DataFrame) -> None:
        """Add usable rows."""
        for name, column in self._ids.items():
            column.append(rows[_IDS[name]])
        arrays = self._arrays
        arrays["file"].append(rows[FILE].to_numpy())
        arrays["record"].append(rows[ROW].to_numpy())
        arrays["prehistory"].append(rows[PREHISTORY].to_numpy())
        if self._raw.has_timestamps:
            arrays["timestamp"].append(rows[Columns.TIMESTAMP].fill_null(-1).to_numpy())
        for name in self._numbers:
            arrays[name].append(rows[_NUMBERS[name]].fill_null(NO_NUMBER).to_numpy())
        for name in self._measures:
            arrays[name].append(rows[_MEASURES[name]].fill_null(float("nan")).to_numpy())
        values, known = pack_signals(rows, self._raw.signals)
        arrays["signal_values"].append(values)
        arrays["signal_known"].append(known)

    def finish(self, files: tuple[str, ...]) -> EncodedLog:
        """Number the ids, sort, and return the log; one column at a time, so that few are there twice."""
        parts: dict[str, Any] = {}
        for name, ids in ID_TABLES.items():
            parts[name], parts[ids] = self._ids.pop(name).finish() if name in self._ids else (None, None)
        for name in ("timestamp", "position", "tie_break", *_MEASURES, "prehistory"):
            if name in self._arrays:
                parts[name] = self._arrays.pop(name).finish()
            else:
                parts.setdefault(name)
        parts["signal_values"] = self._arrays.pop("signal_values").finish()
        parts["signal_known"] = self._arrays.pop("signal_known").finish()
        starts = np.concatenate([[0], np.cumsum(self._file_spans)]).astype(np.int64)
        record = self._arrays.pop("record").finish()
        record += starts[self._arrays.pop("file").finish()]
        parts["record"] = record
        columns = {name: values for name, values in parts.items() if isinstance(values, np.ndarray)}
        for name in columns:
            del parts[name]
        for name in MAYBE_CONSTANT:
            columns[name] = compacted(columns[name])
        sort_columns(columns, sort_keys, "user")
        return EncodedLog(
            **parts,
            **cast(dict[str, Any], columns),
            files=files,
            file_records=tuple(self._file_records.tolist()),
            file_spans=tuple(self._file_spans.tolist()),
            signals=self._raw.signals,
            positive=self._raw.positive,
        )

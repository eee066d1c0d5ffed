"""Logs given as columns, read, sorted and kept as `prepare` does."""

from __future__ import annotations

from typing import Any

import polars as pl

from features.log.encode import ReadLog, read_log
from features.log.event_log import EventLog, KeptEvents, keep_events
from features.log.k_core import KCoreConfig
from features.log.quarantine import QuarantineConfig
from features.sources.base import EventStream, RawTables

US = 1_000_000
START = 1_650_000_000 * US


def raw_tables(rows: dict[str, Any], signals: tuple[str, ...] = (), **options: Any) -> RawTables:
    """A source of one file; every signal makes an event positive."""
    frame = pl.DataFrame(rows)
    options = {"has_timestamps": "timestamp" in rows, "positive": signals} | options
    return RawTables(EventStream.from_frame(frame, "log"), None, None, signals, **options)


def read_rows(
    rows: dict[str, Any], signals: tuple[str, ...] = (), *, need_session_id: bool = False, **options: Any
) -> ReadLog:
    """Read such a source; all of its rows may be refused."""
    raw = raw_tables(rows, signals, **options)
    return read_log(raw, QuarantineConfig(max_share=1.0), need_session_id=need_session_id)


def kept_of(
    rows: dict[str, Any],
    signals: tuple[str, ...] = (),
    duplicates: str = "merge",
    rules: dict | None = None,
    **k_core: int,
) -> KeptEvents:
    """Read such a source and keep what `prepare` would."""
    return keep_events(read_rows(rows, signals).log, KCoreConfig(**k_core), duplicates, rules or {})


def log_of(rows: dict[str, Any], signals: tuple[str, ...] = (), duplicates: str = "merge", **k_core: int) -> EventLog:
    """Return the events of :func:`kept_of`."""
    return kept_of(rows, signals, duplicates, **k_core).log

"""A source as it was at the end of a day: later events are held back, as if they did not stand in the files yet.

Reads and produces :class:`~features.sources.base.RawTables`. A night that is caught up later then sees what it would have
seen in time, whatever files have come since. Tables of items and users have no dates and are taken as they are now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, Final

import polars as pl

from features.sources.base import FILE, PREHISTORY, EventStream, RawTables
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError
from recsys.contracts.event_times import LATEST_US, microseconds

HELD_BACK: Final = "held_back"
"""Fact of a stream: of each file with later events ``file``, ``rows`` (that were held back) and ``of`` (rows in it)."""


def end_of(day: date) -> int:
    """Return the first instant after a day, UTC microseconds.

    Example:
        >>> end_of(date(2026, 11, 5)) == microseconds(date(2026, 11, 6))
        True
    """
    return microseconds(day + timedelta(days=1))


def as_of(raw: RawTables, day: date | None) -> RawTables:
    """Return the tables without the events after a day.

    Events of the prehistory have no time and stay. A time that cannot be true (after 2100) stays too: it is for the
    quarantine to refuse and to count, and a wrong unit is not to look like a log that has not begun.

    Files that hold nothing but later events take no part in the facts. That costs a second pass over the others, and only
    where there are such files.

    Args:
        raw: A source.
        day: The last day that is seen, UTC; ``None``: everything.

    Raises:
        ConfigError: The source has no times.
    """
    if day is None:
        return raw
    if not raw.has_timestamps:
        raise ConfigError(
            f"features.as_of is {day}, but the source has no times (source.timestamp_unit: none); leave as_of out, or "
            "declare the column of times"
        )
    stream, end = raw.interactions, end_of(day)
    later = (pl.col(Columns.TIMESTAMP).is_between(end, LATEST_US) & ~pl.col(PREHISTORY)).fill_null(False)
    facts: dict[str, Any] = {}

    def read(only: Collection[str] | None) -> Iterator[pl.DataFrame]:
        held, rows = [0] * len(stream.files), [0] * len(stream.files)
        for batch in stream.batches(only):
            seen = batch.with_columns(later.alias(HELD_BACK))
            counts = seen.group_by(FILE).agg(pl.len(), pl.col(HELD_BACK).sum())
            for place, number, back in counts.iter_rows():
                rows[place] += number
                held[place] += back
            yield seen.filter(~pl.col(HELD_BACK)).drop(HELD_BACK) if counts[HELD_BACK].sum() else batch
        counted = list(zip(stream.files, held, rows, strict=True))
        ahead = {file for file, back, number in counted if 0 < back == number}
        if ahead:
            for _ in stream.batches([file for file in only or stream.files if file not in ahead]):
                pass
        facts.clear()
        facts.update(stream.facts)
        if any(held):
            facts[HELD_BACK] = [{"file": file, "rows": back, "of": number} for file, back, number in counted if back]

    later_stream = EventStream(stream.schema, stream.files, read, facts, stream.types, stream.by_file)
    return replace(raw, interactions=later_stream)

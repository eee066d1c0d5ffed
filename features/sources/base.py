"""What every source gives: interactions, items and users as tables in canonical columns, plus what was declared about them.

Reads nothing itself. Produces :class:`RawTables`, the one input of everything downstream in ``features``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import polars as pl

from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns

MergeRule = Literal["any", "all", "first", "last"]
"""How a signal of repeated events becomes one: of its known values any, all, the first or the last."""

FILE: Final = "file"
"""Place, in :attr:`EventStream.files`, of the file the event was read from."""

ROW: Final = "row"
"""Row number (from 0) in the file the event was read from."""

REFUSED: Final = "refused"
"""Why the row cannot be used, as far as its reader can say; null where it can."""

RAW: Final = "raw"
"""What a refused row looked like: the line of a text file, or the columns read as JSON; null where it can be used."""

TIE_BREAK: Final = "tie_break"
"""Order of a user's events of the same instant, where the source declares one (Int64, or String: by its bytes)."""

PREHISTORY: Final = "prehistory"
"""True for an event that comes before all timed events of its user and has only an order."""

RESERVED_COLUMNS: Final = frozenset(
    {
        FILE,
        ROW,
        REFUSED,
        RAW,
        TIE_BREAK,
        PREHISTORY,
        *(value for name, value in vars(Columns).items() if not name.startswith("_")),
    }
)
"""Names that a declared signal must not take."""


@dataclass(frozen=True)
class EventStream:
    """The raw events of a source, batch by batch, in the order of the files and of the rows in each.

    Attributes:
        schema: Columns of every batch: ``file`` (Int32), ``row`` (Int64), ``prehistory``, ``refused`` and ``raw``
            (String), ``user_id``, ``item_id`` (Int64 or String), and where the source has them ``timestamp`` (Int64,
            UTC microseconds), ``position`` (Int64), ``tie_break`` (Int64 or String), ``session_id``, ``split`` (String),
            ``watch_time_ms`` and ``duration_ms`` (Float32), and one Boolean column per signal (null: not known).
        files: Paths of the files, relative to the source's folder, in natural order; ``file`` is a place in it.
        read: Yields the batches of the files that are named, of all for ``None``.
        facts: What the last complete pass met in the files that it read, for the data report.
        types: Type of every column that is read, over all files.
        by_file: Whether the rows of a file are the same whatever the other files hold, so that a new file can be read alone.
    """

    schema: pl.Schema
    files: tuple[str, ...]
    read: Callable[[Collection[str] | None], Iterator[pl.DataFrame]]
    facts: dict[str, Any] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    by_file: bool = False

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, *files: str) -> EventStream:
        """Make a stream of a table in memory; without the columns ``file`` and ``row`` it is all one file.

        Example:
            >>> EventStream.from_frame(pl.DataFrame({"user_id": [7], "item_id": [1]}), "log").collect().columns
            ['file', 'row', 'prehistory', 'refused', 'raw', 'user_id', 'item_id']
        """
        fixed = {
            FILE: pl.lit(0, pl.Int32),
            ROW: pl.int_range(pl.len(), dtype=pl.Int64),
            PREHISTORY: pl.lit(False),
            REFUSED: pl.lit(None, pl.String),
            RAW: pl.lit(None, pl.String),
        }
        added = frame.select(
            *(value.alias(name) for name, value in fixed.items() if name not in frame.columns), pl.all()
        )
        whole = added.cast({FILE: pl.Int32, ROW: pl.Int64}).select(*fixed, pl.exclude(list(fixed)))

        def read(only: Collection[str] | None) -> Iterator[pl.DataFrame]:
            if only is None:
                yield whole
            else:
                yield whole.filter(pl.col(FILE).is_in([place for place, file in enumerate(files) if file in only]))

        return cls(whole.schema, files, read)

    def batches(self, only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield the rows.

        Args:
            only: Files to read; ``None``: all.

        Raises:
            DataError: A file is unreadable, or has changed its columns since the stream was opened.
        """
        return self.read(only)

    def collect(self) -> pl.DataFrame:
        """Return all rows at once: for small sources and tests."""
        return pl.concat([self.schema.to_frame(), *self.batches()])


@dataclass(frozen=True)
class RawTables:
    """A source, read but not yet evaluated.

    Attributes:
        interactions: The raw events.
        items: ``item_id``, ``title``, ``text``, ``categories`` (list), ``author_id``; ``None`` when the source has
            none.
        users: ``user_id`` and attributes; ``None`` when the source has none.
        signals: Declared feedback signals, in the order of the behaviour code.
        positive: Signals that make an event positive, any of them; empty: every event is positive.
        has_timestamps: Whether events outside the prehistory have a time.
        notes: Facts for the data report, such as optional columns that were absent.
        merge_rules: Signal -> how its values are merged when rows repeat an event; ``any`` for those not named.
    """

    interactions: EventStream
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    signals: tuple[str, ...]
    positive: tuple[str, ...]
    has_timestamps: bool
    notes: dict[str, object] = field(default_factory=dict)
    merge_rules: Mapping[str, MergeRule] = field(default_factory=dict)

    @property
    def has_positions(self) -> bool:
        """Whether events carry their place in the user's order."""
        return Columns.POSITION in self.interactions.schema


class Source(FrozenConfig, ABC):
    """Base of all sources: a configuration that can read itself."""

    @abstractmethod
    def read(self, seed: int) -> RawTables:
        """Read everything into canonical columns.

        Args:
            seed: Used by generated sources only; files are the same under every seed.

        Raises:
            DataError: A file is missing, unreadable, or lacks a declared column.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Return what the content depends on besides this configuration: file name -> sha256 of its bytes."""


def merge_facts(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the facts of several tables together: lists joined, mappings merged, numbers added.

    Example:
        >>> merge_facts([{"warnings": ["a"], "rows": {"x": 1}}, {"warnings": ["b"], "rows": {"x": 2, "y": 1}}])
        {'warnings': ['a', 'b'], 'rows': {'x': 3, 'y': 1}}
    """
    merged: dict[str, Any] = {}
    for fact in facts:
        for name, value in fact.items():
            before = merged.get(name)
            merged[name] = (
                merge_facts([before, value])
                if isinstance(before, dict)
                else value
                if before is None
                else before + value
            )
    return merged


def text_sha256(text: str) -> str:
    """Return the sha256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()

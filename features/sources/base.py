"""What every source gives: interactions, items and users as tables in canonical columns, plus what was declared about them.

Reads nothing itself. Produces :class:`RawTables`, the one input of everything downstream in ``features``.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns

ROW: Final = "row"
"""Row number (from 0) in the file the event was read from."""

PREHISTORY: Final = "prehistory"
"""True for an event that comes before all timed events of its user and has only an order."""

RESERVED_COLUMNS: Final = frozenset(
    {
        ROW,
        PREHISTORY,
        *(value for name, value in vars(Columns).items() if not name.startswith("_")),
    }
)
"""Names that a declared signal must not take."""


@dataclass(frozen=True)
class RawTables:
    """A source, read but not yet evaluated.

    Attributes:
        interactions: One row per raw event: ``row``, ``prehistory``, ``user_id``, ``item_id``, and where the source has
            them ``timestamp`` (Int64, UTC microseconds), ``position`` (Int64), ``session_id``, ``split`` (String),
            ``watch_time_ms`` and ``duration_ms`` (Float32), and one Boolean column per signal (null: not known).
        items: ``item_id``, ``title``, ``text``, ``categories`` (list), ``author_id``; ``None`` when the source has none.
        users: ``user_id`` and attributes; ``None`` when the source has none.
        signals: Declared feedback signals, in the order of the behaviour code.
        positive: Signals that make an event positive, any of them; empty: every event is positive.
        has_timestamps: Whether events outside the prehistory have a time.
        notes: Facts for the data report, such as optional columns that were absent.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    signals: tuple[str, ...]
    positive: tuple[str, ...]
    has_timestamps: bool
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def has_positions(self) -> bool:
        """Whether events carry their place in the user's order."""
        return Columns.POSITION in self.interactions.columns


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


def closest(name: str, known: Sequence[str]) -> str:
    """Phrase the columns that exist, the most similar first.

    Example:
        >>> closest("userid", ["item_id", "user_id"])
        "did you mean 'user_id'? columns there: item_id, user_id"
    """
    found = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{found[0]}'? " if found else ""
    return f"{hint}columns there: {', '.join(known) or 'none'}"


def text_sha256(text: str) -> str:
    """Return the sha256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()

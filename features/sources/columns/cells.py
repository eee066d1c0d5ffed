"""What all column readers share: one raw column in, one canonical column out, and a reason for every value not understood.

A reader sees its column batch by batch. It gives the canonical values of each batch and says of which rows the value is
there and cannot be understood; those rows go to the quarantine. What has to be known of the whole column (null markers
met, a unit that fits no row) it keeps, and tells at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Final

import polars as pl

from features.reading import place_of
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import NULL_MARKERS, null_markers
from recsys.contracts.plain_text import SURROUNDINGS

SHOWN_VALUES: Final = 5
"""How many values a message shows."""

_SHOWN_CHARACTERS: Final = 100

_COMMA: Final = r"^\s*[+-]?(?:\d+,\d+(?:[eE][+-]?\d+)?|\d{1,3}(?:[,.'\x{a0}\x{202f} ]\d{3})+(?:[,.]\d+)?)\s*$"

EARLY_ROWS: Final = 10_000
"""After so many rows a column that has been wrong throughout is refused before the rest of it is read."""

_SAMPLE: Final = 2000


@dataclass(frozen=True)
class Refusal:
    """Rows of a batch whose value cannot be understood.

    Attributes:
        reason: For the quarantine; names the column and what the value is not.
        rows: Boolean, true where refused.
    """

    reason: str
    rows: pl.Series


@dataclass(frozen=True)
class Parsed:
    """One canonical column of a batch.

    Attributes:
        values: In canonical type; null where the value is missing or refused.
        refusals: In the order in which they apply.
    """

    values: pl.Series
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where the rows of a batch come from.

    Attributes:
        files: Names of all files.
        file, row: Of each row of the batch: place in ``files``, and place in the file from 0.
        plain: Whether the values hold visible ASCII characters only.
    """

    files: tuple[str, ...]
    file: pl.Series
    row: pl.Series
    plain: bool = False

    def of(self, place: int) -> str:
        """Phrase where one row stands."""
        return place_of(self.files[self.file[place]], self.row[place])


class Unread:
    """Values that could not be read, beside all there are: a column of mostly such values is not what was declared."""

    def __init__(self) -> None:
        self._known = 0
        self._wrong = 0
        self.sample = pl.Series([], dtype=pl.String)

    def see(self, known: int, wrong: pl.Series) -> None:
        """Count a batch.

        Args:
            known: How many values are there.
            wrong: Those that could not be read.
        """
        self._known += known
        self._wrong += len(wrong)
        if len(wrong) and len(self.sample) < _SAMPLE:
            self.sample = pl.concat([self.sample, wrong.cast(pl.String).head(_SAMPLE)]).unique(maintain_order=True)

    def is_most(self, *, at_end: bool) -> bool:
        """Return whether more than half could not be read; on the way only where that is so of many rows."""
        return 2 * self._wrong > self._known and (at_end or self._known >= EARLY_ROWS)


class ColumnReader(ABC):
    """Reads one column.

    Attributes:
        column: Its name in the file.
        canonical: What it becomes.
        dtype: Type of the canonical column.
        where: The table, for messages.
        markers: Texts that stand for nothing.
        markers_met: How often each was met.
        stripped: How many values had blanks around them.
    """

    def __init__(
        self,
        column: str,
        canonical: str,
        dtype: pl.DataType,
        where: str,
        markers: tuple[str, ...] = NULL_MARKERS,
    ) -> None:
        self.column = column
        self.canonical = canonical
        self.dtype = dtype
        self.where = where
        self.markers = markers
        self.markers_met: Counter[str] = Counter()
        self.stripped = 0

    @abstractmethod
    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch.

        Raises:
            DataError: The column as a whole is not what was declared.
        """

    def finish(self) -> None:
        """Check the whole column, once all batches were read.

        Raises:
            DataError: It is not what was declared.
        """
        return

    def warnings(self) -> list[str]:
        """Return sentences about what a reader of the report should look at."""
        return []

    def known(self, texts: pl.Series, *, plain: bool = False) -> pl.Series:
        """Strip blanks, make null markers and empty texts null, and count both.

        Args:
            texts: As they are written.
            plain: They hold visible ASCII characters only, so nothing is to be stripped.
        """
        bare = texts if plain else texts.str.strip_chars(SURROUNDINGS)
        nothing = null_markers(bare, self.markers).fill_null(False)
        if nothing.any():
            met = bare.filter(nothing).value_counts()
            self.markers_met.update({value: count for value, count in met.iter_rows() if value})
            bare = bare.to_frame("t").select(pl.when(~nothing).then("t")).to_series()
        if not plain and int(bare.str.len_bytes().sum()) != int(texts.filter(~nothing).str.len_bytes().sum()):
            self.stripped += int((bare != texts).sum())
        return bare.alias(texts.name)

    def unmarked(self, raw: pl.Series) -> pl.Series:
        """Return a column without declared null markers, which may read as a value: ``-1``, ``2000-01-01``.

        Markers of ours read as no value, so that each reader meets them where it cannot read a text.

        Args:
            raw: As it is written; columns that are no text come back as they are.
        """
        if set(self.markers) <= set(NULL_MARKERS) or raw.dtype not in (pl.String, pl.Categorical, pl.Enum):
            return raw
        return self.known(raw.cast(pl.String))

    def not_(self, kind: str) -> str:
        """Phrase why a value is refused."""
        return f"{self.column} is not {kind}"

    def unreadable(self, dtype: pl.DataType, expected: str) -> DataError:
        """Return the error for a column of a type that cannot play this part."""
        return DataError(f"{self.where}: column '{self.column}' (for {self.canonical}) is {dtype}, expected {expected}")


def shown(values: pl.Series) -> str:
    """Phrase some of the distinct values, in the order of their first rows.

    Example:
        >>> shown(pl.Series(["b", "a", "b"]))
        "'b', 'a'"
    """
    distinct = values.drop_nulls().unique(maintain_order=True)
    listed = ", ".join(phrase(value) for value in distinct.head(SHOWN_VALUES))
    return listed + (f" and {len(distinct) - SHOWN_VALUES} others" if len(distinct) > SHOWN_VALUES else "")


def phrase(value: object) -> str:
    """Write a value as a recipe would: text in quotes, all else bare."""
    if not isinstance(value, str):
        return str(value)
    return (
        repr(value) if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]!r}… ({len(value)} characters)"
    )


def with_comma(texts: pl.Series) -> pl.Series:
    """Return which texts are numbers with a decimal comma or separators of thousands, which nothing says how to read.

    Example:
        >>> with_comma(pl.Series(["1,5", "1.700.000", "12 000,5", "1.5", "x"])).to_list()
        [True, True, True, False, False]
    """
    return texts.str.contains(_COMMA).fill_null(False)


def comma_advice(sample: pl.Series) -> str:
    """Say what to do about values of which most are :func:`with_comma`; empty for others."""
    if not len(sample) or 2 * int(with_comma(sample.cast(pl.String)).sum()) <= len(sample):
        return ""
    return "these are numbers with a decimal comma or separators of thousands: write them as 1234.5 in the file"


def no_rows(count: int) -> pl.Series:
    """Return a mask that is false everywhere."""
    return pl.repeat(False, count, dtype=pl.Boolean, eager=True)

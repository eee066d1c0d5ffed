"""Number columns: positions, watch times, and whatever else is counted or measured.

A text is read as a number as it is written in English: ``4``, ``4.0``, ``-1.5e3``. A decimal comma, a thousands
separator or a currency is no number: the row is refused, because ``1,5`` may be 1.5 or 15. ``NaN`` is "not known", as
data frames write it; an infinite number is refused.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from features.sources.columns.cells import ColumnReader, Parsed, Place, Refusal, no_rows, with_comma
from recsys.contracts.null_markers import NULL_MARKERS

_EXACT_FLOAT: Final = 2**53


class NumberReader(ColumnReader):
    """Reads a number; ``scale`` turns its unit into the canonical one."""

    def __init__(
        self,
        column: str,
        canonical: str,
        dtype: pl.DataType,
        raw_type: pl.DataType,
        where: str,
        *,
        scale: float = 1.0,
        markers: tuple[str, ...] = NULL_MARKERS,
    ) -> None:
        super().__init__(column, canonical, dtype, where, markers)
        check_number_type(self, raw_type)
        self._scale = scale

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        if raw.dtype.is_integer() and self.dtype.is_integer():
            values = raw.cast(self.dtype, strict=False)
            beyond = values.is_null() & raw.is_not_null()
            return self._parsed(values, no_rows(len(raw)), no_rows(len(raw)), beyond)
        numbers, wrong = as_numbers(self, raw)
        if self._scale != 1.0:
            numbers = numbers * self._scale
        if self.dtype.is_integer():
            return self._whole(raw, numbers, wrong)
        values = numbers.cast(self.dtype, strict=False)
        if values.dtype.is_float():  # what Float32 cannot hold becomes infinite
            values = values.to_frame("v").select(pl.when(pl.col("v").is_finite()).then("v")).to_series()
        comma = with_comma(raw.cast(pl.String)) & wrong if wrong.any() else wrong
        return self._parsed(values, wrong, comma, values.is_null() & numbers.is_not_null())

    def _whole(self, raw: pl.Series, numbers: pl.Series, wrong: pl.Series) -> Parsed:
        """Read whole numbers; digits are read as they stand, since a float holds those beyond 2^53 only nearly."""
        broken = ((numbers != numbers.round()) & numbers.is_finite()).fill_null(False)
        values = numbers.to_frame("n").select(pl.when(~pl.Series(broken)).then("n")).to_series()
        values = values.cast(self.dtype, strict=False)
        if raw.dtype == pl.String:
            exact = raw.str.strip_chars().cast(self.dtype, strict=False)
            values = exact.to_frame("e").select(pl.coalesce("e", values)).to_series()
        comma = with_comma(raw.cast(pl.String)) & wrong if wrong.any() else wrong
        parsed = self._parsed(values, wrong, comma, values.is_null() & numbers.is_not_null() & ~broken)
        refusals = (Refusal(self.not_("a whole number"), broken),) if broken.any() else ()
        return Parsed(parsed.values, (*parsed.refusals, *refusals))

    def _parsed(self, values: pl.Series, wrong: pl.Series, comma: pl.Series, beyond: pl.Series) -> Parsed:
        reasons = (
            Refusal(f"{self.column} has a decimal comma or separators of thousands", comma),
            Refusal(self.not_("a number"), wrong & ~comma),
            Refusal(f"{self.column} is infinite or too large", beyond),
        )
        return Parsed(values.alias(self.canonical), tuple(reason for reason in reasons if reason.rows.any()))


def check_number_type(reader: ColumnReader, raw_type: pl.DataType) -> None:
    """Refuse a column that cannot hold numbers; text may, and each of its values is looked at.

    Raises:
        DataError: Names the column and its type.
    """
    if not (raw_type.is_numeric() or raw_type in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise reader.unreadable(raw_type, "a number")


def inexact_integers(raw: pl.Series, numbers: pl.Series) -> pl.Series:
    """Return the places of texts that are whole numbers so large that Float64 may hold another one: those beyond 2^53.

    Example:
        >>> texts = pl.Series(["7", "9007199254740993", "1e300", None])
        >>> inexact_integers(texts, texts.cast(pl.Float64)).to_list()
        [1]
    """
    if raw.dtype != pl.String:
        return pl.Series([], dtype=pl.UInt32)
    large = ((numbers.abs() >= _EXACT_FLOAT) & numbers.is_finite()).fill_null(False).arg_true()
    return large.filter(raw.gather(large).str.contains(r"^\s*[+-]?[0-9]+\s*$"))


def as_numbers(reader: ColumnReader, raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return the numbers of a batch as Float64, infinite ones too, and where a text is none.

    Args:
        reader: Counts the null markers and blanks that are met.
        raw: Numeric or text.

    Returns:
        Numbers, null where nothing is there, NaN stands, or a text is no number; and a mask of the last.
    """
    if raw.dtype.is_numeric() or raw.dtype == pl.Null:
        return raw.cast(pl.Float64).fill_nan(None), no_rows(len(raw))
    texts = raw.cast(pl.String)
    numbers = texts.cast(pl.Float64, strict=False)
    left = (numbers.is_null() | numbers.is_nan()) & texts.is_not_null()
    if not left.any():
        return numbers, no_rows(len(raw))
    known = reader.known(texts.filter(left))
    places = left.arg_true()
    found = known.cast(pl.Float64, strict=False).fill_nan(None)
    wrong = no_rows(len(raw)).scatter(places, found.is_null() & known.is_not_null())
    return numbers.scatter(places, found), wrong

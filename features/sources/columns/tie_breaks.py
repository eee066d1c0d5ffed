"""What orders events of the same instant: a number or a time as an integer whose order is the same."""

from __future__ import annotations

import numpy as np
import polars as pl

from features.sources.base import TIE_BREAK
from features.sources.columns.cells import ColumnReader, Parsed, Place, Refusal
from features.sources.columns.numbers import as_numbers, check_number_type
from recsys.contracts.null_markers import NULL_MARKERS


class TieBreakReader(ColumnReader):
    """Reads the column that orders events of the same instant; missing values come first.

    Integers are taken as they are. A column that is text or Float64 is read as numbers; these are mapped to integers of
    the same order, whatever their size.
    """

    def __init__(
        self, column: str, raw_type: pl.DataType, where: str, *, markers: tuple[str, ...] = NULL_MARKERS
    ) -> None:
        super().__init__(column, TIE_BREAK, pl.Int64(), where, markers)
        if not (raw_type == pl.Date or isinstance(raw_type, pl.Datetime)):
            check_number_type(self, raw_type)

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        if raw.dtype.is_temporal():
            return Parsed(raw.to_physical().cast(pl.Int64).alias(TIE_BREAK))
        if raw.dtype.is_integer() and raw.dtype != pl.UInt64:
            return Parsed(raw.cast(pl.Int64).alias(TIE_BREAK))
        numbers, wrong = as_numbers(self, raw)
        values = ordered_integers(numbers).alias(TIE_BREAK)
        refusals = (Refusal(self.not_("a number"), wrong),) if wrong.any() else ()
        return Parsed(values, refusals)


def ordered_integers(numbers: pl.Series) -> pl.Series:
    """Map Float64 to Int64 so that the order stays; null stays null.

    The bits of a positive float grow with it; those of a negative one are turned round.

    Example:
        >>> values = ordered_integers(pl.Series([-1e300, -0.5, 0.0, 0.25, 3.0, 1e300, None]))
        >>> values.is_sorted(nulls_last=True), values.null_count()
        (True, 1)
    """
    bits = (numbers.fill_null(0.0).to_numpy() + 0.0).view(np.int64)  # + 0.0 makes one zero of two
    turned = np.where(bits >= 0, bits, np.int64(-(2**63)) - bits)
    known = numbers.is_not_null()
    return pl.Series(numbers.name, turned).to_frame("v").select(pl.when(known).then("v")).to_series()

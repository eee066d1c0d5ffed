"""What orders events of the same instant: a number or a time as an integer whose order is the same, or a text."""

from __future__ import annotations

import numpy as np
import polars as pl

from features.sources.base import TIE_BREAK
from features.sources.columns.cells import ColumnReader, Parsed, Place, Refusal, Unread, shown
from features.sources.columns.numbers import as_numbers, check_number_type, inexact_integers
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import NULL_MARKERS


class TieBreakReader(ColumnReader):
    """Reads the column that orders events of the same instant; missing values come first.

    Integers are taken as they are. A column that is text or Float64 is read as numbers; these are mapped to integers of
    the same order; texts of whole numbers beyond 2^53 have to be declared ``integer``. Where ``source.types`` declares the
    column ``text``, texts are kept, and ordered by their bytes in UTF-8: digits before capitals before small letters, and
    ``10`` before ``9``.

    Args:
        column: Its name in the file.
        raw_type: Its type in the file.
        where: The table, for messages.
        as_text: Whether it is declared as text.
        markers: Texts that stand for nothing.

    Raises:
        DataError: The type has no such order, or numbers would become one.
    """

    def __init__(
        self,
        column: str,
        raw_type: pl.DataType,
        where: str,
        *,
        as_text: bool = False,
        markers: tuple[str, ...] = NULL_MARKERS,
    ) -> None:
        super().__init__(column, TIE_BREAK, pl.String() if as_text else pl.Int64(), where, markers)
        self._unread = Unread()
        if not as_text and not (raw_type == pl.Date or isinstance(raw_type, pl.Datetime)):
            check_number_type(self, raw_type)

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        if self.dtype == pl.String:
            return Parsed(self.known(raw.cast(pl.String), plain=place.plain).alias(TIE_BREAK))
        if raw.dtype.is_temporal():
            return Parsed(raw.to_physical().cast(pl.Int64).alias(TIE_BREAK))
        if raw.dtype.is_integer() and raw.dtype != pl.UInt64:
            return Parsed(raw.cast(pl.Int64).alias(TIE_BREAK))
        numbers, wrong = as_numbers(self, raw)
        if len(inexact := inexact_integers(raw, numbers)):
            raise DataError(
                f"{self.where}: column '{self.column}' (for {TIE_BREAK}) holds whole numbers beyond 2^53, such as "
                f"{shown(raw.gather(inexact[:1]))}, of which several would be one; declare "
                f"source.types: {{{self.column}: integer}}"
            )
        values = ordered_integers(numbers).alias(TIE_BREAK)
        self._unread.see(len(values) - values.null_count() + int(wrong.sum()), raw.filter(wrong))
        self._check(at_end=False)
        refusals = (Refusal(self.not_("a number"), wrong),) if wrong.any() else ()
        return Parsed(values, refusals)

    def finish(self) -> None:
        """Check that most values are numbers."""
        self._check(at_end=True)

    def _check(self, *, at_end: bool) -> None:
        if self._unread.is_most(at_end=at_end):
            raise DataError(
                f"{self.where}: column '{self.column}' (for {TIE_BREAK}) holds texts that are no numbers, such as "
                f"{shown(self._unread.sample)}; declare source.types: {{{self.column}: text}} to order events of the same "
                "instant by the bytes of these texts, or take columns.tie_break out: they keep the order of the files then"
            )


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

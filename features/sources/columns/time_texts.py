"""Times that are text: ISO 8601, or a declared format; everything else is refused with the formats that would fit.

``01/02/2023`` is the first of February or the second of January, and nothing in a file says which: a format has to be
declared. ISO 8601 is read in the forms that :func:`~recsys.contracts.event_times.iso_times` names. A text without a
zone is in the declared zone, or else in UTC; texts with and without one in the same column need a declared zone.
"""

from __future__ import annotations

from datetime import datetime
from itertools import product
from typing import Final

import polars as pl

from features.sources.columns.cells import ColumnReader, Parsed, Place, Refusal, Unread, comma_advice, shown
from features.sources.columns.time_formats import polars_format
from features.sources.columns.times import LocalTimes
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import EARLIEST_US, LATEST_US, fitting_units, iso_times
from recsys.contracts.null_markers import NULL_MARKERS

_FAST: Final = (
    ("%Y-%m-%dT%H:%M:%SZ", True),
    ("%Y-%m-%dT%H:%M:%S%.fZ", True),
    ("%Y-%m-%d %H:%M:%S", False),
    ("%Y-%m-%d %H:%M:%S%.f", False),
    ("%Y-%m-%dT%H:%M:%S", False),
    ("%Y-%m-%dT%H:%M:%S%.f", False),
    ("%Y-%m-%d", False),
)
"""Forms that one call of Polars reads, and whether they are UTC; the first to fit a batch's first value reads the batch."""

_DATES: Final = (
    *("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d", "%Y%m%d"),
    *(
        "%d/%m/%y",
        "%m/%d/%y",
        "%d.%m.%y",
        "%y-%m-%d",
        "%d-%m-%y",
        "%m-%d-%y",
        "%y/%m/%d",
        "%d-%b-%Y",
        "%d %b %Y",
        "%d %B %Y",
        "%b %d, %Y",
        "%B %d, %Y",
        "%d-%b-%y",
    ),
)
_CLOCKS: Final = (
    *("", " %H:%M", " %H:%M:%S", " %H:%M:%S%.f", "T%H:%M:%S", "T%H:%M:%S%.f", ", %H:%M:%S", ", %H:%M"),
    *(" %I:%M %p", " %I:%M:%S %p", " %H:%M:%S %z", "T%H:%M:%S%#z", "%H%M%S"),
)
_FOUR_DIGITS: Final = datetime(1000, 1, 1)
_WHOLE: Final = (
    "%a, %d %b %Y %H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S GMT",
    "%a %b %d %H:%M:%S %Y",
    "%d/%b/%Y:%H:%M:%S %z",
)


class TextTimes(ColumnReader):
    """Reads times that are text.

    Args:
        column: Its name in the file.
        where: The table, for messages.
        form: Declared format; ``None``: ISO 8601.
        zone: Zone of texts without one; ``None``: UTC.
        markers: Texts that stand for nothing.
    """

    def __init__(
        self,
        column: str,
        where: str,
        *,
        form: str | None = None,
        zone: str | None = None,
        markers: tuple[str, ...] = NULL_MARKERS,
    ) -> None:
        super().__init__(column, Columns.TIMESTAMP, pl.Int64(), where, markers)
        self._form = None if form is None else polars_format(form)
        self._zone = zone
        self._local = LocalTimes(column, zone)
        self._unread = Unread()
        self._with_zone: str | None = None
        self._without_zone: str | None = None

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        texts = raw.cast(pl.String)
        local, instants, left = self._fast(texts)
        if left.any():
            known = self.known(texts.filter(left))
            places = left.arg_true()
            more_local, more_instants = self._slow(known)
            local, instants = local.scatter(places, more_local), instants.scatter(places, more_instants)
            left = left.scatter(places, known.is_not_null())
        unread = left & local.is_null() & instants.is_null()
        self._unread.see(len(texts) - texts.null_count(), texts.filter(unread))
        self._check_readable(at_end=False)
        self._check_zones(texts, local, instants)
        zoned = self._local.as_utc(local)
        values = zoned.values.to_frame("l").select(pl.coalesce(pl.Series("i", instants), "l")).to_series()
        kind = "an ISO date and time" if self._form is None else f"of the format '{self._form}'"
        refusals = (Refusal(self.not_(kind), unread),) if unread.any() else ()
        return Parsed(values.alias(self.canonical), refusals + zoned.refusals)

    def _fast(self, texts: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
        """Return local times (Datetime), instants (Int64) of texts with a zone, and which texts are still to be read."""
        nothing = pl.repeat(None, len(texts), dtype=pl.Datetime("us"), eager=True)
        no_instants = nothing.cast(pl.Int64)
        form, utc = self._form, False
        first = texts.drop_nulls().head(1)
        if form is None:
            fitting = [(fast, zone) for fast, zone in _FAST if _parse(first, fast).null_count() < len(first)]
            if not fitting:
                return nothing, no_instants, texts.is_not_null()
            form, utc = fitting[0]
        parsed = _parse(texts, form)
        if self._form is None and (parsed < _FOUR_DIGITS).any():  # a year of two digits is none of ISO 8601
            parsed = parsed.to_frame("p").select(pl.when(pl.col("p") >= _FOUR_DIGITS).then("p")).to_series()
        left = parsed.is_null() & texts.is_not_null()
        if isinstance(parsed.dtype, pl.Datetime) and parsed.dtype.time_zone is not None:
            return nothing, parsed.dt.epoch("us"), left
        return (nothing, parsed.dt.epoch("us"), left) if utc else (parsed, no_instants, left)

    def _slow(self, texts: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Read what the one form of the batch did not: other forms of ISO 8601, or blanks around a declared format."""
        if self._form is not None:
            parsed = _parse(texts, self._form)
            zoned = isinstance(parsed.dtype, pl.Datetime) and parsed.dtype.time_zone is not None
            nothing = pl.repeat(None, len(texts), dtype=pl.Datetime("us"), eager=True)
            return (nothing, parsed.dt.epoch("us")) if zoned else (parsed, nothing.cast(pl.Int64))
        return iso_times(texts)

    def finish(self) -> None:
        """Check that most texts are times.

        Raises:
            DataError: Most are not; says what could be declared.
        """
        self._check_readable(at_end=True)

    def _check_readable(self, *, at_end: bool) -> None:
        if self._unread.is_most(at_end=at_end):
            raise _unread(self, self._unread.sample, self._form)

    def _check_zones(self, texts: pl.Series, local: pl.Series, instants: pl.Series) -> None:
        if self._with_zone is None:
            self._with_zone = next(iter(texts.filter(instants.is_not_null()).head(1)), None)
        if self._without_zone is None:
            self._without_zone = next(iter(texts.filter(local.is_not_null()).head(1)), None)
        if self._with_zone is not None and self._without_zone is not None and self._zone is None:
            raise DataError(
                f"{self.where}: column '{self.column}' holds times with a zone ({self._with_zone!r}) and without one "
                f"({self._without_zone!r}); declare source.timestamp_zone, such as UTC or Europe/Paris, for those without"
            )

    def warnings(self) -> list[str]:
        """Tell of local times that happened twice."""
        return self._local.warnings(self.where)


def fitting_formats(texts: pl.Series) -> list[str]:
    """Return the usual formats that read all of some texts as times between 1990 and 2100, one of each meaning.

    Example:
        >>> fitting_formats(pl.Series(["01/02/2023", "03/02/2023"])), fitting_formats(pl.Series(["31/01/2023 10:00"]))
        (['%d/%m/%Y', '%m/%d/%Y'], ['%d/%m/%Y %H:%M'])
    """
    meanings: dict[tuple[int, ...], str] = {}
    first = texts.head(1)
    for form in [date + clock for date, clock in product(_DATES, _CLOCKS)] + list(_WHOLE):
        if _parse(first, form).null_count():
            continue
        times = _parse(texts, form).dt.epoch("us")
        if bool(times.is_between(EARLIEST_US, LATEST_US).fill_null(False).all()):
            meanings.setdefault(tuple(times), form)
    return list(meanings.values())


def _iso_unread(texts: pl.Series) -> int:
    """Return how many texts are no ISO 8601."""
    local, instants = iso_times(texts)
    return int((local.is_null() & instants.is_null()).sum())


def _unread(reader: TextTimes, texts: pl.Series, form: str | None) -> DataError:
    """Return the error for a column of which most texts cannot be read, with what could be declared."""
    bare = reader.known(texts).drop_nulls().unique(maintain_order=True)
    begin = f"{reader.where}: column '{reader.column}' holds times such as {shown(bare)}"
    if form is not None:
        begin += f", which are not of the declared format '{form}'"
    not_iso = ", which is not ISO 8601" if form is None else ", nor ISO 8601"
    numbers = bare.cast(pl.Float64, strict=False)
    if not numbers.null_count():
        units = fitting_units(float(numbers.median()))  # type: ignore[arg-type]  # of numbers
        if units:
            return DataError(f"{begin}; these are numbers: declare timestamp_unit: {units[0]}")
    if advice := comma_advice(bare):
        return DataError(f"{begin}; {advice}, and declare its unit, such as timestamp_unit: s")
    if form is not None and not _iso_unread(bare):
        return DataError(f"{begin}; they are ISO 8601: take source.timestamp_format out")
    fitting = fitting_formats(bare)
    if len(fitting) > 1:
        choices = " or ".join(f"'{choice}'" for choice in fitting[:4])
        return DataError(
            f"{begin}, and nothing says which part is the day and which the month; declare source.timestamp_format: "
            f"{choices}"
        )
    if fitting:
        return DataError(f"{begin}{not_iso}; declare source.timestamp_format: '{fitting[0]}'")
    return DataError(
        f"{begin}{not_iso} (2023-01-31T10:00:00Z); declare source.timestamp_format, such as '%d/%m/%Y %H:%M'"
    )


def _parse(texts: pl.Series, form: str) -> pl.Series:
    return texts.str.to_datetime(form, time_unit="us", strict=False, ambiguous="null")

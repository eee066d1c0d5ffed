"""Times of events: numbers in a declared unit, dates of a typed column, or text; always UTC microseconds in the end.

A number of a declared unit may stand in a text file as ``1700000000``, ``1700000000.25`` or ``1.7e9``. Float32 is
refused: it holds the seconds of today to 128 s only. What lies outside the years 1990 to 2100 is left to the
quarantine; a unit that does not fit the column, or two units in one column, stop the run.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from features.sources.columns.cells import (
    EARLY_ROWS,
    ColumnReader,
    Parsed,
    Place,
    Refusal,
    Unread,
    comma_advice,
    no_rows,
    shown,
)
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import EARLIEST_US, LATEST_US, NANOSECONDS, NumberUnit, as_microseconds, wrong_unit
from recsys.contracts.null_markers import NULL_MARKERS

_EXPONENT: Final = r"^\s*[+-]?\d(?:\.(?P<decimals>\d*))?[eE]\+?(?P<exponent>\d{1,3})\s*$"
_COARSE_S: Final = 1000
_FEWEST_SHORTENED: Final = 20  # a time may end in zeros; a column of them does not
_SHOWN: Final = 3
_SECONDS_OF_A_DAY: Final = 86_400
_WEEK_US: Final = 7 * _SECONDS_OF_A_DAY * 1_000_000
TWO_UNITS_SHARE: Final = 0.05
"""From this share of rows on, times that fit another unit are no stray values but a second unit."""


class UnitCheck:
    """Counts which units the times of a column fit."""

    def __init__(self, column: str, unit: NumberUnit, where: str) -> None:
        self._column, self._unit, self._where = column, unit, where
        self._known = 0
        self._fits = dict.fromkeys(NANOSECONDS, 0)
        self._examples: dict[str, float] = {}
        self._median: float | None = None

    def see(self, numbers: pl.Series, microseconds: pl.Series) -> None:
        """Look at the next batch: the numbers as written and what they mean under the declared unit."""
        known = len(numbers) - numbers.null_count()
        if known and self._median is None:
            self._median = float(numbers.median())  # type: ignore[arg-type]  # of numbers
        self._known += known
        inside = microseconds.is_between(EARLIEST_US, LATEST_US)
        self._count(self._unit, numbers, inside)
        stray = numbers.filter(~inside)
        if len(stray):
            for unit in NANOSECONDS:
                if unit != self._unit:
                    self._count(unit, stray, as_microseconds(stray, unit).is_between(EARLIEST_US, LATEST_US))

    def _count(self, unit: NumberUnit, numbers: pl.Series, fits: pl.Series) -> None:
        count = int(fits.sum())
        self._fits[unit] += count
        if count and unit not in self._examples:
            self._examples[unit] = numbers[int(fits.arg_max() or 0)]

    def check(self, *, at_end: bool) -> None:
        """Refuse a wrong unit; on the way only where none of many times fits.

        Raises:
            DataError: Two units share the column, or fewer than half of the times fit the declared one.
        """
        own = self._fits[self._unit]
        if not at_end and (own or self._known < EARLY_ROWS):
            return
        for unit, count in self._fits.items():
            if unit != self._unit and min(count, own) >= TWO_UNITS_SHARE * self._known > 0:
                raise DataError(
                    f"{self._where}: column '{self._column}' holds times in two units: {own} rows fit '{self._unit}' "
                    f"(such as {self._examples[self._unit]}) and {count} fit '{unit}' (such as {self._examples[unit]}); "
                    "convert them to one unit in the file"
                )
        if 2 * own < self._known or not self._known:
            raise wrong_unit(self._median, self._unit, self._where)


class NumberTimes(ColumnReader):
    """Reads times that are numbers of a unit."""

    def __init__(
        self,
        column: str,
        raw_type: pl.DataType,
        unit: NumberUnit,
        where: str,
        *,
        markers: tuple[str, ...] = NULL_MARKERS,
    ) -> None:
        super().__init__(column, Columns.TIMESTAMP, pl.Int64(), where, markers)
        self._unit = unit
        self._check = UnitCheck(column, unit, where)
        self._rows = self._empty = 0
        self._unread = Unread()
        self._shortened: list[str] = []
        self._num_shortened = 0
        if raw_type in (pl.Float32, pl.Float16):
            raise DataError(
                f"{where}: timestamp column '{column}' is {raw_type}, which holds the seconds of today to 128 s only and "
                "finer units worse; write it as Float64 or as an integer"
            )
        if not (raw_type.is_numeric() or raw_type in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
            raise DataError(
                f"{where}: timestamp_unit is '{unit}' but column '{column}' is {raw_type}; "
                "declare timestamp_unit: datetime for dates and ISO text"
            )

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        numbers, wrong = self._numbers(raw)
        endless = no_rows(len(raw))
        if numbers.dtype.is_float():
            endless = numbers.is_infinite().fill_null(False)
            if endless.any():
                numbers = numbers.to_frame("n").select(pl.when(~endless).then("n")).to_series()
        microseconds = as_microseconds(numbers, self._unit)
        self._check.see(numbers, microseconds)
        self._unread.see(len(raw) - raw.null_count(), raw.filter(wrong))
        self._check_readable(at_end=False)
        self._check.check(at_end=False)
        self._rows += len(raw)
        self._empty += raw.null_count()
        reasons = (Refusal(self.not_("a number"), wrong), Refusal(f"{self.column} is infinite", endless))
        return Parsed(microseconds.alias(self.canonical), tuple(reason for reason in reasons if reason.rows.any()))

    def _numbers(self, raw: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Return integers where all are, else floats; NaN is "not known"."""
        if raw.dtype.is_numeric() or raw.dtype == pl.Null:
            if raw.dtype.is_integer():
                return raw, no_rows(len(raw))
            return raw.cast(pl.Float64).fill_nan(None), no_rows(len(raw))
        texts = raw.cast(pl.String)
        numbers = texts.cast(pl.Int64, strict=False)
        left = numbers.is_null() & texts.is_not_null()
        if not left.any():
            return numbers, left
        known = self.known(texts.filter(left))
        shortened = known.filter(_steps_s(known, self._unit) >= _COARSE_S)
        self._num_shortened += len(shortened)
        self._shortened = (self._shortened + shortened.head(_SHOWN).to_list())[:_SHOWN]
        places = left.arg_true()
        found = known.cast(pl.Int64, strict=False)
        floats = known.cast(pl.Float64, strict=False).fill_nan(None)
        unread = floats.is_null() & found.is_null() & known.is_not_null()
        wrong = no_rows(len(raw)).scatter(places, unread)
        if (floats.is_not_null() & found.is_null()).any():
            return numbers.cast(pl.Float64).scatter(places, floats), wrong
        return numbers.scatter(places, found), wrong

    def finish(self) -> None:
        """Check the unit.

        Raises:
            DataError: The declared unit does not fit, two units share the column, or most of its numbers were shortened.
        """
        self._check_readable(at_end=True)
        if self._num_shortened >= _FEWEST_SHORTENED and 2 * self._num_shortened > self._rows:
            raise DataError(
                f"{self.where}: {self._num_shortened} of {self._rows} times of column '{self.column}' were shortened, as a "
                f"spreadsheet does: {', '.join(map(repr, self._shortened))} tell quarters of an hour apart at best; "
                "export the column again as whole numbers"
            )
        if self._rows and self._rows == self._empty:
            raise DataError(
                f"{self.where}: column '{self.column}' is empty in all {self._rows} rows, so no event has a time; map the "
                "column that holds them in columns.timestamp"
            )
        if self._rows:
            self._check.check(at_end=True)

    def _check_readable(self, *, at_end: bool) -> None:
        if self._unread.is_most(at_end=at_end):
            raise DataError(
                f"{self.where}: timestamp_unit is '{self._unit}' but column '{self.column}' holds text such as "
                f"{shown(self._unread.sample)}; "
                f"{comma_advice(self._unread.sample) or 'declare timestamp_unit: datetime for dates and ISO text'}"
            )


def _steps_s(texts: pl.Series, unit: NumberUnit) -> pl.Series:
    """Return how many seconds the last digit of a number with an exponent stands for; null for all other texts.

    Example:
        >>> _steps_s(pl.Series(["1.7E+12", "1.70012e+09", "1700000000.0"]), "ms").to_list()
        [100000000.0, 10.0, None]
    """
    parts = texts.to_frame("t").select(pl.col("t").str.extract_groups(_EXPONENT)).unnest("t")
    digits = pl.col("exponent").cast(pl.Float64, strict=False) - pl.col("decimals").fill_null("").str.len_bytes()
    return parts.select(pl.lit(10.0).pow(digits) * (NANOSECONDS[unit] / 1e9)).to_series()


class DateTimes(ColumnReader):
    """Reads dates and instants of a typed column; one without a zone is in the declared zone, or else in UTC."""

    def __init__(self, column: str, raw_type: pl.DataType, where: str, *, zone: str | None = None) -> None:
        super().__init__(column, Columns.TIMESTAMP, pl.Int64(), where)
        self._zone = LocalTimes(column, zone)
        if not (raw_type == pl.Date or isinstance(raw_type, pl.Datetime)):
            kind = "declare s, ms, us or ns for numbers" if raw_type.is_numeric() else "expected dates or ISO text"
            raise DataError(f"{where}: timestamp_unit is 'datetime' but column '{column}' is {raw_type}; {kind}")

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        numbers = raw.to_physical().cast(pl.Int64)
        if isinstance(raw.dtype, pl.Datetime):
            microseconds = as_microseconds(numbers, raw.dtype.time_unit)
            if raw.dtype.time_zone is not None:
                return Parsed(microseconds.alias(self.canonical))
        else:
            microseconds = as_microseconds(numbers * _SECONDS_OF_A_DAY, "s")
        return self._zone.as_utc(microseconds.cast(pl.Datetime("us")))

    def warnings(self) -> list[str]:
        """Tell of local times that happened twice."""
        return self._zone.warnings(self.where)


class LocalTimes:
    """Local times of a declared zone as UTC.

    When the clocks go back an hour happens twice: the first of the two is taken, and such times are counted. When they
    go forward an hour does not happen at all: a time in it is refused.
    """

    def __init__(self, column: str, zone: str | None) -> None:
        self._column, self._zone = column, zone
        self._twice = 0

    def as_utc(self, local: pl.Series) -> Parsed:
        """Return UTC microseconds of local times (Datetime without a zone)."""
        given = local.to_physical()
        if self._zone is None:
            return Parsed(given.alias(Columns.TIMESTAMP))
        # of other centuries zones know nothing, and such times are refused as implausible later
        near = given.is_between(EARLIEST_US - _WEEK_US, LATEST_US + _WEEK_US)
        known = local.to_frame("l").select(pl.when(near).then("l")).to_series()
        first, second = (
            known.dt.replace_time_zone(self._zone, ambiguous=which, non_existent="null").dt.epoch("us")
            for which in ("earliest", "latest")
        )
        self._twice += int((first != second).sum())
        missing = first.is_null() & known.is_not_null()
        first = given.to_frame("g").select(pl.when(near).then(first).otherwise("g")).to_series()
        refusals = (Refusal(f"{self._column} does not exist in {self._zone}", missing),) if missing.any() else ()
        return Parsed(first.alias(Columns.TIMESTAMP), refusals)

    def warnings(self, where: str) -> list[str]:
        """Tell of times that happened twice."""
        if not self._twice:
            return []
        return [
            f"{where}: {self._twice} times of '{self._column}' happened twice in {self._zone}, when the clocks went back; "
            "the first of the two is taken"
        ]

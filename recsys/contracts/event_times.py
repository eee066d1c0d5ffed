"""Times of events: the units in which they may be declared, their form as text, and the years in which they can lie.

Used wherever times come in: by the sources that read logs, and by the serving side that is given histories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.errors import DataError

NumberUnit = Literal["s", "ms", "us", "ns"]
TimestampUnit = Literal["s", "ms", "us", "ns", "datetime", "none"]
NANOSECONDS: Final[Mapping[NumberUnit, int]] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Units of numbers, in nanoseconds."""

# 1990-01-01 and 2100-01-01 as UTC microseconds: interaction logs outside are a wrong unit or a placeholder
EARLIEST_US: Final = 631_152_000_000_000
LATEST_US: Final = 4_102_444_800_000_000

_ISO: Final = (
    r"^(?P<date>\d{4}-\d{1,2}-\d{1,2})"
    r"(?:[Tt ](?P<clock>\d{1,2}:\d{2})(?P<seconds>:\d{2}(?:[.,]\d+)?)?)?"
    r"(?: ?(?P<zone>[Zz]|UTC|GMT|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)(?: UTC)?(?:\[[^\]]+\])?)?$"
)

SECOND_US: Final = 1_000_000
_SLICE: Final = 1 << 16
_LIMIT_US: Final = 9_000_000_000_000_000_000  # fits in Int64; values beyond are clipped and then refused as implausible


def as_microseconds(numbers: pl.Series, unit: NumberUnit) -> pl.Series:
    """Return times as UTC microseconds, Int64; fractions of a microsecond are rounded, nanoseconds cut off.

    Numbers that are far out of range are clipped rather than allowed to wrap, so that they stay implausible.

    Args:
        numbers: Integers, or Float64 without NaN.
        unit: What they count.

    Example:
        >>> as_microseconds(pl.Series([1_700_000_000, 2**62]), "s").to_list()
        [1700000000000000, 9000000000000000000]
        >>> as_microseconds(pl.Series([1.5, None]), "ms").to_list()
        [1500, None]
    """
    nanoseconds = NANOSECONDS[unit]
    if nanoseconds == 1:
        return (
            numbers.round().clip(-_LIMIT_US, _LIMIT_US).cast(pl.Int64) if numbers.dtype.is_float() else _int64(numbers)
        ) // 1_000
    scale = nanoseconds // 1_000
    limit = _LIMIT_US // scale
    if numbers.dtype.is_float():
        return (numbers.clip(-limit, limit) * scale).round().cast(pl.Int64)
    return _int64(numbers).clip(-limit, limit) * scale


def _int64(numbers: pl.Series) -> pl.Series:
    if numbers.dtype == pl.UInt64:
        return numbers.clip(0, 2**63 - 1).cast(pl.Int64)
    return numbers.cast(pl.Int64)


def fitting_units(number: float) -> list[str]:
    """Return the units in which a number is a time between 1990 and 2100; at most one.

    Example:
        >>> fitting_units(1.65e12), fitting_units(20230131)
        (['ms'], [])
    """
    return [name for name, scale in NANOSECONDS.items() if EARLIEST_US <= number * scale / 1_000 <= LATEST_US]


def iso_times(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Read texts of ISO 8601 in its extended form.

    A date, or date and time behind ``T`` or a blank, a fraction of a second of any length, and as zone ``Z``, ``UTC``,
    ``GMT``, ``+02:00``, ``+0200`` or ``+02``; the name of a zone in brackets is passed over behind one of these, and refused
    alone.

    Args:
        texts: Without blanks around.

    Returns:
        Local times of the texts without a zone (Datetime), and UTC microseconds (Int64) of those with one.

    Example:
        >>> local, instants = iso_times(pl.Series(["2022-05-01T02:00:00.5+02:00", "2022-05-01", "1/5/2022"]))
        >>> instants.to_list()
        [1651363200500000, None, None]
        >>> [str(time) for time in local]
        ['None', '2022-05-01 00:00:00', 'None']
    """
    parts = texts.to_frame("t").select(pl.col("t").str.extract_groups(_ISO)).unnest("t")
    seconds = pl.col("seconds").fill_null(":00").str.replace(",", ".", literal=True)
    written = pl.col("date") + "T" + pl.col("clock").fill_null("00:00") + seconds
    zone = (
        pl.col("zone").str.replace("(?i)^(z|utc|gmt)$", "+0000").str.replace(":", "", literal=True).str.pad_end(5, "0")
    )
    number = zone.str.tail(4).cast(pl.Int64)
    minutes = (number // 100 * 60 + number % 100) * pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    read = parts.select(
        written.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False).alias("local"),
        minutes.alias("offset"),
    )
    instant = pl.col("local").dt.epoch("us") - pl.col("offset") * 60_000_000
    local = pl.when(pl.col("offset").is_null()).then("local")
    result = read.select(local.alias("local"), instant.alias("instant"))
    return result["local"], result["instant"]


def mostly_plausible(timestamps: pl.Series) -> bool:
    """Return whether at least half of the known times (UTC microseconds) lie in the years 1990 to 2100.

    Fewer means that the declared unit is wrong; single stray values are left to the quarantine.
    """
    known = timestamps.drop_nulls()
    inside = known.is_between(EARLIEST_US, LATEST_US)
    return len(known) > 0 and 2 * int(inside.sum()) >= len(known)


def wrong_unit(raw_median: float | None, unit: TimestampUnit, where: str) -> DataError:
    """Return the error for a column that is not plausible under its declared unit.

    Args:
        raw_median: Median of the numbers in the file; ``None`` when there are none.
        unit: The declared unit.
        where: The file, for the message.

    Example:
        >>> str(wrong_unit(1.65e12, "s", "log.csv")).rpartition("; ")[2]
        'declare timestamp_unit: ms'
    """
    if raw_median is None:
        return DataError(f"{where}: no timestamp could be read as '{unit}'; check timestamp_unit and the column map")
    fitting = fitting_units(raw_median)
    if unit in fitting:  # the median of two halves, or of the first rows alone
        return DataError(
            f"{where}: fewer than half of the timestamps lie in the years 1990 to 2100 as '{unit}' (some do, around "
            f"{raw_median:.0f}); mend the others in the file, or leave them empty"
        )
    advice = f"declare timestamp_unit: {fitting[0]}" if fitting else "no unit fits, check the column map"
    return DataError(
        f"{where}: timestamps in the wrong unit: as '{unit}' the median {raw_median:.0f} lies outside the years "
        f"1990 to 2100; {advice}"
    )


def microseconds(instant: datetime | date) -> int:
    """Return UTC microseconds; a date is its midnight, a datetime without zone is UTC.

    Example:
        >>> microseconds(date(2022, 5, 1))
        1651363200000000
    """
    if not isinstance(instant, datetime):
        instant = datetime(instant.year, instant.month, instant.day)
    aware = instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)
    whole = int((aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return whole * 1_000_000 + aware.microsecond


@dataclass(frozen=True)
class WholeSeconds:
    """Times that are kept as whole seconds, in half of the space, and read as UTC microseconds where they are asked for.

    Stands where an array of microseconds may stand: it is indexed as one, and :func:`numpy.asarray` makes one of all of it.

    Example:
        >>> times = WholeSeconds(np.array([5, 7, 9], np.uint32))
        >>> len(times), times[1:].tolist(), times[np.array([2, 0])].tolist(), int(times[1])
        (3, [7000000, 9000000], [9000000, 5000000], 7000000)

    Attributes:
        seconds: ``[E]`` uint32, since 1970 in UTC.
    """

    seconds: npt.NDArray[np.uint32]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return self.seconds.shape

    def __len__(self) -> int:
        return len(self.seconds)

    @overload
    def __getitem__(self, rows: int) -> np.int64: ...
    @overload
    def __getitem__(
        self, rows: slice | npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]: ...
    def __getitem__(self, rows: Any) -> Any:
        """Return some of the times; reads no others."""
        return np.multiply(self.seconds[rows], np.int64(SECOND_US), dtype=np.int64)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all times.

        Raises:
            ValueError: They are asked for without a copy, which is never possible.
        """
        if copy is False:
            raise ValueError("times that are kept as seconds are microseconds only in a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)


Times = npt.NDArray[np.int64] | WholeSeconds
"""UTC microseconds, -1 not known."""


def whole_seconds(times: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32] | None:
    """Return times as whole seconds; ``None`` where one is not known, no whole second, or after the year 2106.

    Args:
        times: ``[E]`` UTC microseconds, -1 not known.

    Example:
        >>> whole_seconds(np.array([5_000_000, 7_000_000])).tolist(), whole_seconds(np.array([5_000_000, 7_000_001]))
        ([5, 7], None)
    """
    found = np.empty(len(times), np.uint32)
    for start in range(0, len(times), _SLICE):  # a slice at a time, to stop early
        part = times[start : start + _SLICE]
        seconds = part // SECOND_US
        if int(seconds.min()) < 0 or int(seconds.max()) >= 1 << 32 or (seconds * SECOND_US != part).any():
            return None
        found[start : start + _SLICE] = seconds
    return found

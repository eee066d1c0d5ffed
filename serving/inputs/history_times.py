"""Times of histories: checked as `prepare` checks those of a log, user by user, and turned into gaps.

Units and plausible years are those of :mod:`recsys.contracts.event_times`. A log is looked at by its
median, a request user by user, because callers of one batch may have asked different services.

Legend: E events of all users, one after the other.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.event_features import gap_buckets
from recsys.contracts.event_times import (
    EARLIEST_US,
    LATEST_US,
    NumberUnit,
    as_microseconds,
    fitting_units,
    iso_times,
    microseconds,
    wrong_unit,
)
from recsys.contracts.null_markers import null_markers
from recsys.contracts.plain_text import SURROUNDINGS

_FACTORS: Final = {"s": "multiply by 1000000", "ms": "multiply by 1000", "ns": "divide by 1000"}
"""How numbers of another unit become microseconds."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def check_unit(unit: object) -> NumberUnit:
    """Return the unit.

    Raises:
        ConfigError: There is no such unit.
    """
    for known in get_args(NumberUnit):
        if unit == known:
            return known
    raise ConfigError(f"timestamp_unit is {unit!r}, expected one of {', '.join(get_args(NumberUnit))}")


def times_us(times: pl.Series, users: pl.Series, unit: NumberUnit = "us") -> pl.Series:
    """Return times as UTC microseconds ``[E]``, Int64; null where a time is not known.

    Args:
        times: ``[E]`` numbers of ``unit``, Datetime or Date (without a zone: UTC), or ISO text.
        users: ``[E]`` the user of each event.

    Raises:
        DataError: Times are of another type, float32, text that is no ISO date, in the wrong unit, or outside 1990 to 2100.
    """
    if times.dtype == pl.Null:
        return times.cast(pl.Int64)
    if times.dtype == pl.String:
        found = _from_text(times, users)
        _check_years(found, found, users, None)
        return found
    if times.dtype == pl.Date or isinstance(times.dtype, pl.Datetime):
        found = times.cast(pl.Datetime("us")).to_physical()
        _check_years(found, found, users, None)
        return found
    if times.dtype in (pl.Float32, pl.Float16):
        raise DataError(
            f"histories: timestamps hold {times.dtype}, which knows the seconds of today to 128 s only; give "
            "integers, Float64 or "
            "Datetime"
        )
    if not (times.dtype.is_integer() or times.dtype == pl.Float64):
        raise DataError(
            f"histories: timestamps hold {times.dtype}, expected Int64 UTC microseconds, Datetime or ISO text"
        )
    numbers = times.fill_nan(None) if times.dtype.is_float() else times
    found = as_microseconds(numbers, unit)
    _check_years(found, numbers, users, unit)
    return found


def gaps(times: pl.Series, row: npt.NDArray[np.integer], users: pl.Series) -> npt.NDArray[np.uint8]:
    """Return gap buckets ``[E]``: the time since the user's previous event, whether the model knows its item or not.

    Args:
        times: ``[E]`` UTC microseconds, null where not known: then the gaps on both sides are not known.
        row: ``[E]`` row of the user.

    Raises:
        DataError: Times of a user run backwards.
    """
    known = times.is_not_null().to_numpy()
    time = times.fill_null(0).to_numpy()
    gap = np.full(len(time), -1, np.int64)
    follows = (row[1:] == row[:-1]) & known[1:] & known[:-1]
    gap[1:][follows] = (time[1:] - time[:-1])[follows]
    back = 1 + np.flatnonzero(follows & (time[1:] < time[:-1]))
    if len(back):
        place = int(back[0])
        raise DataError(
            f"histories: timestamps of a user run backwards; sort each list from the oldest event to the newest (user_id "
            f"{users[place]!r}: {_iso(int(time[place]))} after {_iso(int(time[place - 1]))})"
        )
    return gap_buckets(gap)


FUTURE: Final = "some times are later than now; they are taken as given"


def later_than_now(times: pl.Series, now: datetime | None = None) -> bool:
    """Return whether any time lies in the future, which clocks and time zones gone wrong bring about."""
    moment = now or datetime.now(UTC)
    return bool((times > microseconds(moment)).any())


def _from_text(times: pl.Series, users: pl.Series) -> pl.Series:
    """Read ISO dates; one text is read once."""
    bare = times.str.strip_chars(SURROUNDINGS)
    texts = bare.drop_nulls().unique(maintain_order=True)
    texts = texts.filter(~null_markers(texts))
    local, instants = iso_times(texts)
    unread = texts.filter(local.is_null() & instants.is_null())
    if len(unread):
        user = users[int((bare == unread[0]).arg_max() or 0)]
        raise DataError(
            f"histories: user_id {user!r} has the time {unread[0]!r}, expected ISO text such as "
            "'2024-05-31T12:00:00Z', a number of microseconds, or Datetime; null where it is not known"
        )
    aware, naive = texts.filter(instants.is_not_null()), texts.filter(local.is_not_null())
    if len(aware) and len(naive):
        raise DataError(
            f"histories: timestamps mix texts with a zone ({aware[0]!r}) and without ({naive[0]!r}); give all with their "
            "zone, or all in UTC"
        )
    values = (instants if len(aware) else local.dt.epoch("us")).cast(pl.Int64)
    return bare.replace_strict(texts, values, default=None, return_dtype=pl.Int64)


def _check_years(found: pl.Series, numbers: pl.Series, users: pl.Series, unit: NumberUnit | None) -> None:
    """Refuse times outside 1990 to 2100, as a wrong unit where the median of a user is one of them.

    Args:
        found: ``[E]`` microseconds.
        numbers: ``[E]`` as given.
        unit: Of ``numbers``; ``None`` where they say it themselves.
    """
    wrong = ~found.is_between(EARLIEST_US, LATEST_US).fill_null(True)
    if not wrong.any():
        return
    per_user = pl.DataFrame({"user": users, "number": numbers.cast(pl.Float64), "wrong": wrong}).group_by(
        "user", maintain_order=True
    )
    counted = per_user.agg(
        pl.col("number").median().alias("median"),
        pl.col("wrong").sum().alias("strays"),
        pl.col("number").filter("wrong").first().alias("stray"),
        pl.col("number").count().alias("known"),
    ).filter(pl.col("strays") > 0)
    first = counted.sort(2 * pl.col("strays") >= pl.col("known"), descending=True, maintain_order=True).row(
        0, named=True
    )
    more = "" if len(counted) == 1 else f" (and {len(counted) - 1} more users)"
    where = f"histories: user_id {first['user']!r}{more}"
    if unit is None:
        raise DataError(
            f"{where}: the time {_iso(int(first['stray']))} lies outside the years 1990 to 2100; null where it is not known"
        )
    if 2 * first["strays"] >= first["known"] and unit not in fitting_units(first["median"]):
        refused = str(wrong_unit(first["median"], unit, where)).removesuffix(", check the column map")
        fitting = fitting_units(first["median"])
        factor = f"{_FACTORS[fitting[0]]}, or " if fitting and unit == "us" else ""
        raise DataError(
            f"{refused}; timestamps are UTC microseconds unless timestamp_unit says otherwise: {factor}give Datetime values"
        )
    raise DataError(
        f"{where}: the time {first['stray']:.0f} among {first['known']} lies outside the years 1990 to 2100 as '{unit}'; "
        "every time of a request has one unit, null where it is not known"
    )


def _iso(microseconds: int) -> str:
    try:
        return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    except OverflowError:
        return f"{microseconds} us"

"""Types of Parquet columns: which ones are read, as what, and as what several files' types are read together.

Reads Arrow types; produces Polars types, or the reason why there is none. A type is widened only where no value is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

if TYPE_CHECKING:
    import pyarrow as pa

TimeUnit = Literal["ms", "us", "ns"]

_EXACT_DIGITS: Final = 18  # of a decimal that always fits into Int64
_UNITS: Final[dict[str, TimeUnit]] = {"s": "ms", "ms": "ms", "us": "us", "ns": "ns"}


@dataclass(frozen=True)
class Unreadable:
    """A type that is refused when the recipe names the column: what it is, what to do, and what it would be in Polars."""

    shown: str
    advice: str
    dtype: pl.DataType = field(default_factory=pl.Unknown)


def readable_type(arrow: pa.DataType) -> pl.DataType | Unreadable:
    """Return the type that a column is read as.

    Whole numbers of any width but UInt64 become Int64, text of every kind String, and a decimal Int64 or, of more than 18
    digits, text; with digits behind the point it becomes Float64.
    """
    import pyarrow.types as types

    if types.is_dictionary(arrow):
        return readable_type(arrow.value_type)
    if hasattr(arrow, "storage_type"):  # an extension, such as a UUID or JSON
        return pl.String() if is_uuid(arrow) else readable_type(arrow.storage_type)
    if types.is_null(arrow):
        return pl.Null()
    if types.is_boolean(arrow):
        return pl.Boolean()
    if types.is_integer(arrow):
        return pl.UInt64() if types.is_uint64(arrow) else pl.Int64()
    if types.is_floating(arrow):
        return pl.Float64() if types.is_float64(arrow) else pl.Float32()
    if types.is_string(arrow) or types.is_large_string(arrow) or types.is_string_view(arrow):
        return pl.String()
    if types.is_binary(arrow) or types.is_large_binary(arrow) or types.is_binary_view(arrow):
        return pl.String()
    if types.is_fixed_size_binary(arrow):
        return Unreadable(str(arrow), "write it as text")
    if types.is_decimal(arrow):
        if arrow.scale > 0:
            return pl.Float64()
        return pl.Int64() if arrow.precision <= _EXACT_DIGITS else pl.String()
    if types.is_date(arrow):
        return pl.Date()
    if types.is_timestamp(arrow):
        return pl.Datetime(_UNITS[arrow.unit], "UTC" if arrow.tz is not None else None)
    if types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow):
        inner = readable_type(arrow.value_type)
        if isinstance(inner, (Unreadable, pl.List)):
            return Unreadable(str(arrow), "write one list per row, of numbers or texts", pl.List(pl.List(pl.Unknown)))
        return pl.List(inner)
    if types.is_struct(arrow):
        return Unreadable("a struct", "write each of its fields as a column of its own", pl.Struct({}))
    if types.is_map(arrow):
        return Unreadable("a map", "write the values that are needed as columns", pl.List(pl.Struct({})))
    if types.is_duration(arrow):
        return Unreadable("a duration", "write it as a number of milliseconds or seconds", pl.Duration())
    if types.is_time(arrow):
        return Unreadable("a time of day", "write date and time as one datetime", pl.Time())
    return Unreadable(str(arrow), "write it as a number, text or datetime")


def is_uuid(arrow: pa.DataType) -> bool:
    """Return whether a column holds UUIDs, which are read as text such as ``1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed``."""
    return getattr(arrow, "extension_name", "") == "arrow.uuid"


def common_type(first: pl.DataType, second: pl.DataType) -> pl.DataType | None:
    """Return the type that holds the values of both; ``None`` when none does without loss.

    A mix of whole numbers and floats becomes Float64, and a whole number beyond 2^53 is refused when it is met; a mix of
    Int64 and UInt64 becomes Int64, and a number beyond 2^63 - 1 is refused.

    Example:
        >>> common_type(pl.Int64(), pl.Float32()), common_type(pl.Int64(), pl.String())
        (Float64, None)
    """
    if first == second or second == pl.Null:
        return first
    if first == pl.Null:
        return second
    if first.is_numeric() and second.is_numeric():
        return pl.Int64() if first.is_integer() and second.is_integer() else pl.Float64()
    if isinstance(first, pl.Datetime) and isinstance(second, pl.Datetime):
        if first.time_zone != second.time_zone:
            return None
        # ns beside anything else becomes us: events are kept in microseconds anyway, and ns end in the year 2262
        units = {first.time_unit, second.time_unit}
        return pl.Datetime("ms" if units == {"ms"} else "us", first.time_zone)
    for one, other in ((first, second), (second, first)):
        if one == pl.Date and isinstance(other, pl.Datetime) and other.time_zone is None:
            return other
    if isinstance(first, pl.List) and isinstance(second, pl.List):
        inner = common_type(_inner(first), _inner(second))
        return None if inner is None else pl.List(inner)
    return None


def _inner(dtype: pl.List) -> pl.DataType:
    inner = dtype.inner
    return inner() if isinstance(inner, type) else inner

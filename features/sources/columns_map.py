"""The column map: which column of the user's table plays which part, with every unit declared.

Reads the user's configuration; produces Polars expressions that turn a raw table into canonical columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

import polars as pl
from pydantic import Field, field_validator, model_validator

from features.sources.base import RESERVED_COLUMNS, closest
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import MICROSECONDS, TimestampUnit

_LIMIT_US: Final = 9_000_000_000_000_000_000  # fits in Int64; values beyond are clipped and then refused as implausible


class InteractionColumns(FrozenConfig):
    """Names in the user's interaction table; ``timestamp`` is not read when ``timestamp_unit`` is ``none``.

    Attributes:
        user_id, item_id: Ids, whole numbers or text; kept as given in every output.
        timestamp: When; its unit is ``timestamp_unit``.
        position: Order of a user's events, for sources without times.
        session_id: Session of the event, for ``features.sessions.by: given``.
        split: ``train``, ``valid`` or ``test``, for ``features.split.kind: given``.
        watch_time, duration: How long it was watched, and how long it is; their ratio is a feature.
    """

    user_id: str = Columns.USER_ID
    item_id: str = Columns.ITEM_ID
    timestamp: str = Columns.TIMESTAMP
    position: str | None = None
    session_id: str | None = None
    split: str | None = None
    watch_time: str | None = None
    duration: str | None = None


class Signal(FrozenConfig):
    """A yes/no feedback signal: a column that is true (or not 0), at least a threshold, or equal to a value.

    Attributes:
        name: What the signal is called from here on.
        column: Where it stands.
        at_least: True from this value on; ``None``: true where the column is not 0.
        equals: True where the column has this value.

    Example:
        >>> Signal(name="liked", column="rating", at_least=4).column
        'rating'
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    column: str
    at_least: float | None = None
    equals: str | int | None = None

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in RESERVED_COLUMNS:
            raise ValueError(f"'{name}' is a column of ours; choose another name for the signal")
        return name

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.at_least is not None and self.equals is not None:
            raise ValueError(f"signal '{self.name}' has both at_least and equals; give one")
        return self

    def expression(self, dtype: pl.DataType) -> pl.Expr:
        """Return the Boolean expression; null stays null ("not known").

        Raises:
            DataError: Text without ``equals`` has no truth value.
        """
        column = pl.col(self.column)
        if self.equals is not None:
            return (column.cast(pl.String) == str(self.equals)).alias(self.name)
        if dtype != pl.Boolean and not dtype.is_numeric():
            raise DataError(
                f"signal '{self.name}': column '{self.column}' is {dtype}, expected a boolean or a number; "
                "for text give 'equals: <value>'"
            )
        number = column.cast(pl.Float64).fill_nan(None)
        return (number >= self.at_least if self.at_least is not None else number != 0).alias(self.name)


class PrehistoryTable(FrozenConfig):
    """Earlier events, before all others of their user, that have an order and no time.

    Signals that this table does not list are "not known" for its events.

    Attributes:
        file: Name inside the source's ``path``.
        user_id, item_id, position: Names of its columns.
        signals: Its feedback columns.
    """

    file: str
    user_id: str = Columns.USER_ID
    item_id: str = Columns.ITEM_ID
    position: str = Columns.POSITION
    signals: tuple[Signal, ...] = ()


def check_columns(needed: Mapping[str, str], present: list[str], where: str) -> None:
    """Refuse a map that names columns the table does not have.

    Args:
        needed: Role -> source column.
        present: Columns of the table.
        where: The file, for the message.

    Raises:
        DataError: Names each missing column, its role, the closest existing one, and all that exist.
    """
    missing = {role: name for role, name in needed.items() if name not in present}
    if missing:
        listed = "; ".join(f"'{name}' (for {role}): {closest(name, present)}" for role, name in missing.items())
        raise DataError(f"{where}: missing column {listed}. Set the column map of the source")


def id_expression(name: str, dtype: pl.DataType, canonical: str, where: str) -> pl.Expr:
    """Return the id as Int64 or String; floats are refused, because 7.0 and '7.0' would not be the user's '7'."""
    if dtype.is_integer():
        return pl.col(name).cast(pl.Int64).alias(canonical)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return pl.col(name).cast(pl.String).alias(canonical)
    raise DataError(f"{where}: id column '{name}' is {dtype}, expected integers or text; convert it in the file")


def number_expression(name: str, dtype: pl.DataType, canonical: str, target: pl.DataType, where: str) -> pl.Expr:
    """Return a numeric column in the type ``target``."""
    if not dtype.is_numeric():
        raise DataError(f"{where}: column '{name}' (for {canonical}) is {dtype}, expected a number")
    column = pl.col(name)
    if dtype.is_float() and target.is_integer():
        column = column.fill_nan(None).round()
    return column.cast(target, strict=False).alias(canonical)  # what does not fit becomes null and is quarantined


def timestamp_expression(name: str, dtype: pl.DataType, unit: TimestampUnit, where: str) -> pl.Expr:
    """Return UTC microseconds as Int64; a datetime without a zone is taken as UTC.

    Numbers that are far out of range are clipped rather than allowed to wrap, so that the quarantine sees them.

    Raises:
        DataError: The column's type does not fit the declared unit.
    """
    column = pl.col(name)
    if unit == "datetime":
        if dtype == pl.String:
            column = column.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        elif dtype == pl.Date or isinstance(dtype, pl.Datetime):
            column = column.cast(pl.Datetime("us"))
        else:
            raise DataError(
                f"{where}: timestamp_unit is 'datetime' but column '{name}' is {dtype}; declare s, ms or us for numbers"
            )
        return column.dt.epoch("us").alias(Columns.TIMESTAMP)
    if not dtype.is_numeric():
        raise DataError(
            f"{where}: timestamp_unit is '{unit}' but column '{name}' is {dtype}; "
            "declare timestamp_unit: datetime for dates and ISO text"
        )
    scale = MICROSECONDS[unit]
    limit = _LIMIT_US // scale
    if dtype.is_float():
        known = column.cast(pl.Float64).fill_nan(None)
        return (known.clip(-limit, limit) * scale).round().cast(pl.Int64).alias(Columns.TIMESTAMP)
    return (column.cast(pl.Int64).clip(-limit, limit) * scale).alias(Columns.TIMESTAMP)

"""The column map: which column of the user's table plays which part, with every unit declared.

Holds the configuration only; the readers of the columns are in :mod:`features.sources.columns`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from features.reading.errors import closest
from features.sources.base import RESERVED_COLUMNS, MergeRule
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError

Value = bool | int | float | str


class InteractionColumns(FrozenConfig):
    """Names in the user's interaction table; ``timestamp`` is not read when ``timestamp_unit`` is ``none``.

    Attributes:
        user_id, item_id: Ids, whole numbers or text; kept as given in every output.
        timestamp: When; its unit is ``timestamp_unit``.
        position: Order of a user's events, for sources without times.
        tie_break: Number or time that orders events of the same instant, such as a sequence number, or a text, such as a
            ULID, that ``types`` declares ``text`` (ordered by bytes); ``None``: their place in the files does.
        session_id: Session of the event, for ``features.sessions.by: given``.
        split: ``train``, ``valid`` or ``test``, for ``features.split.kind: given``.
        watch_time, duration: How long it was watched, and how long it is; their ratio is a feature.
        propensity: Probability with which the system that showed the item had chosen it, in (0, 1]; missing: not known.
            Kept in ``events.parquet`` for ``align.feedback.logged_propensities``.
    """

    user_id: str = Columns.USER_ID
    item_id: str = Columns.ITEM_ID
    timestamp: str = Columns.TIMESTAMP
    position: str | None = None
    tie_break: str | None = None
    session_id: str | None = None
    split: str | None = None
    watch_time: str | None = None
    duration: str | None = None
    propensity: str | None = None


class Signal(FrozenConfig):
    """A yes/no feedback signal: a column that is true (or not 0), inside limits, or equal to a value.

    Values are compared by type. A number equals numbers: ``equals: 1`` is true for 1, 1.0, and in a text file for
    ``1``, ``01`` and ``1.0``. ``equals: true`` is true for true, True, TRUE, t, yes, y, on and 1. A text, also one of
    digits in quotes, equals exactly that text: ``equals: '01'`` is not true for ``1``, and upper and lower case differ.
        Missing values are "not known".

    Attributes:
        name: What the signal is called from here on.
        column: Where it stands.
        at_least: True from this value on.
        at_most: True up to this value.
        equals: True where the column has this value; a number, true or false, or a text.
        one_of: True where the column has one of these values, all of one type; ``in`` in a recipe.
        merge: What rows of the same user, item and instant are together: true where ``any`` of them is, where ``all``
            are, or as in the ``first`` or ``last`` of them.

    Example:
        >>> Signal(name="liked", column="rating", at_least=4).column
        'rating'
    """

    name: str
    column: str
    at_least: float | None = Field(None, allow_inf_nan=False)
    at_most: float | None = Field(None, allow_inf_nan=False)
    equals: Value | None = None
    one_of: tuple[Value, ...] | None = Field(None, min_length=1)
    merge: MergeRule = "any"

    @model_validator(mode="before")
    @classmethod
    def _in(cls, values: object) -> object:
        if isinstance(values, dict) and "in" in values:
            return {("one_of" if key == "in" else key): value for key, value in values.items()}
        return values

    @field_validator("name")
    @classmethod
    def _free_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(
                f"'{name}' is no name for a signal; use lower-case letters, digits and _, such as {_as_name(name)}"
            )
        if name in RESERVED_COLUMNS:
            raise ValueError(f"'{name}' is a column of ours; choose another name for the signal")
        return name

    @field_validator("equals", "one_of", mode="before")
    @classmethod
    def _plain_values(cls, values: object) -> object:
        for value in values if isinstance(values, list | tuple) else (values,):
            if value is not None and not isinstance(value, bool | int | float | str):
                raise ValueError(f"{value} is a {type(value).__name__}; put it in quotes to compare with text")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is no number that a value could be equal to")
        return values

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = {
            "at_least or at_most": self.at_least is not None or self.at_most is not None,
            "equals": self.equals is not None,
            "in": self.one_of is not None,
        }
        rules = [rule for rule, there in given.items() if there]
        if len(rules) > 1:
            raise ValueError(f"signal '{self.name}' has {' and '.join(rules)}; give one")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(
                f"signal '{self.name}' is true from at_least: {self.at_least:g} up to at_most: {self.at_most:g}, which no "
                "number is; at_least must not be above at_most"
            )
        if len({_kind(value) for value in self.values}) > 1:
            raise ValueError(
                f"signal '{self.name}' compares with {list(self.values)}, which are of different types; "
                "write all of them as numbers, or all in quotes"
            )
        return self

    @property
    def values(self) -> tuple[Value, ...]:
        """Values that make the signal true; empty for limits, or without a rule."""
        if self.equals is not None:
            return (self.equals,)
        return self.one_of or ()

    @property
    def kind(self) -> Literal["truth", "number", "boolean", "text"]:
        """What the column is compared as; ``truth`` without a rule."""
        if self.at_least is not None or self.at_most is not None:
            return "number"
        return _kind(self.values[0]) if self.values else "truth"

    @property
    def rule(self) -> str:
        """The rule as it stands in the recipe."""
        rules = {"at_least": self.at_least, "at_most": self.at_most, "equals": self.equals}
        given = [f"{name}: {value!r}" for name, value in rules.items() if value is not None]
        given += [f"in: {list(self.one_of)}"] if self.one_of is not None else []
        return ", ".join(given) or "no rule"


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
        data = any(name[:1].isdigit() for name in present)
        or_header = (
            "; if the first line is data already, give the names as source.header (of kind: table)" if data else ""
        )
        raise DataError(f"{where}: missing column {listed}. Set the column map of the source{or_header}")


def _as_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789") or "liked"


def _kind(value: Value) -> Literal["number", "boolean", "text"]:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"

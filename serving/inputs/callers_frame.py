"""What a caller hands over becomes one kind of frame: pandas, Polars, columns or rows of Python values, as JSON brings them.

Reads whatever the registered model is called with; produces a Polars frame whose columns have the types that
:mod:`serving.inputs.history_frame` reads. Nothing is refused here but what a Polars column could not hold: two types in one
column, a text where a list belongs, an integer beyond 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final

import numpy as np
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import microseconds

LISTS: Final = (
    Columns.ITEM_IDS,
    Columns.TIMESTAMPS,
    Columns.BEHAVIOURS,
    Columns.WATCH_RATIOS,
    Columns.DENY_ITEM_IDS,
)

_NO_VALUE: Final = ("NAType", "NaTType")


def to_frame(given: Any, where: str = "histories") -> pl.DataFrame:
    """Turn what a caller gives into a frame, one row per user.

    Args:
        given: A Polars or pandas frame; a mapping of column names to columns, or of one user to its values; a list of
            mappings,
            one per user, in which a key that is missing is not known.
        where: What it is called in an error.

    Raises:
        DataError: It is something else, or a column cannot be read; rows are named by their number, from 0.

    Example:
        >>> to_frame([{"user_id": 7, "item_ids": [1, None]}, {"user_id": 8}])["item_ids"].to_list()
        [[1, None], None]
    """
    if isinstance(given, pl.LazyFrame):
        given = given.collect()
    if isinstance(given, pl.DataFrame) and given.width:
        odd = [name for name, dtype in given.schema.items() if dtype == pl.Object]
        return given.with_columns(_column(name, given[name].to_list(), where) for name in odd)
    columns = {} if isinstance(given, pl.DataFrame) else _python_columns(given, where)
    if not columns:  # nobody to answer, and so nobody who could have named the columns
        columns = {Columns.USER_ID: [], Columns.ITEM_IDS: []}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: the columns have different lengths ({lengths}); give one value per user in each")
    return pl.DataFrame([_column(name, values, where) for name, values in columns.items()])


def typed_values(name: str, values: Sequence[Any]) -> pl.Series:
    """Return Python values as a series of the one type that they have.

    Raises:
        DataError: They have two, one that no id or number has, or integers beyond 64 bits.
    """
    kind, cleaned = _typed([_plain(value) for value in values], name, lambda place: f"place {place}")
    return pl.Series(name, cleaned, dtype=kind)


def is_missing(value: Any) -> bool:
    """Return whether a Python value stands for nothing: ``None``, NaN, ``NaT``, ``pd.NA``.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), np.datetime64("NaT"), 0, "", "nan")]
        [True, True, True, False, False, False]
    """
    if value is None or type(value).__name__ in _NO_VALUE:
        return True
    if isinstance(value, float | np.floating):
        return bool(value != value)
    return isinstance(value, np.datetime64) and bool(np.isnat(value))


def _python_columns(given: Any, where: str) -> dict[str, Sequence[Any] | pl.Series]:
    if type(given).__module__.partition(".")[0] == "pandas" and hasattr(given, "columns"):
        names = [str(name) for name in given.columns]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise DataError(f"{where}: the column '{twice[0]}' occurs {names.count(twice[0])} times; give it once")
        columns: dict[str, Sequence[Any] | pl.Series] = {
            name: _values(given.iloc[:, at]) for at, name in enumerate(names)
        }
        if Columns.USER_ID in columns and not len(given) and given[Columns.USER_ID].dtype.kind in "iu":
            columns[Columns.USER_ID] = pl.Series([], dtype=pl.Int64)  # without rows only the column knows its type
        return columns
    if isinstance(given, Mapping):
        items = _plain(given.get(Columns.ITEM_IDS))
        one_user = Columns.USER_ID in given and not _is_list(_plain(given[Columns.USER_ID]))
        if one_user and (is_missing(items) or _is_list(items)):
            return {str(name): [value] for name, value in given.items()}
        wrong = [name for name, values in given.items() if not _is_list(_plain(values))]
        if wrong:
            raise DataError(
                f"{where}: '{wrong[0]}' is {_shown(given[wrong[0]])}, expected a column of one value per user"
            )
        return {str(name): list(_plain(values)) for name, values in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        wrong_rows = [row for row in given if not isinstance(row, Mapping)]
        if wrong_rows:
            raise DataError(f"{where}: a row is {_shown(wrong_rows[0])}, expected a mapping with user_id and item_ids")
        named = dict.fromkeys(str(name) for row in given for name in row)
        return {name: [row.get(name) for row in given] for name in named}
    raise DataError(
        f"{where} are a {type(given).__name__}, expected a pandas or Polars frame with the columns user_id and "
        "item_ids, or rows "
        "as mappings"
    )


def _values(column: Any) -> list[Any]:
    """Return the values of a column of pandas; 32-bit floats stay such, which `tolist` would hide."""
    short = getattr(column.dtype, "kind", "") == "f" and column.dtype.itemsize < 8
    return list(column.to_numpy()) if short else column.tolist()


def _column(name: str, values: Sequence[Any] | pl.Series, where: str) -> pl.Series:
    """Return a column of the type that its values have."""
    if isinstance(values, pl.Series):
        return values.alias(name)
    values = [_plain(value) for value in values]
    if name in LISTS:
        return _list_column(name, values, where)
    odd = [row for row, value in enumerate(values) if isinstance(value, Mapping)]
    if name == Columns.OBJECTIVE and odd:
        raise DataError(
            f"{where}: column '{name}' is {_shown(values[odd[0]])} in row {odd[0]}, expected JSON text such as "
            "'{\"like\": 1.0}'"
        )
    if name in (Columns.USER_ID, Columns.OBJECTIVE, Columns.WORDS):
        kind, cleaned = _typed(values, f"{where}: {name}", lambda place: f"row {place}")
        return pl.Series(name, cleaned, dtype=kind)
    return pl.Series(name, [], pl.Null) if not values else pl.Series(name, [None] * len(values), pl.Null)


def _list_column(name: str, cells: Sequence[Any], where: str) -> pl.Series:
    flat: list[Any] = []
    lengths: list[int] = []
    for row, cell in enumerate(cells):
        if is_missing(cell):
            lengths.append(-1)
            continue
        if not _is_list(cell):
            raise DataError(
                f"{where}: column '{name}' is {_shown(cell)} in row {row}, expected a list per user (null where it is "
                "not known)"
            )
        elements = _elements(cell, name, row, where)
        lengths.append(len(elements))
        flat.extend(elements)
    ends = np.cumsum(np.maximum(lengths, 0))

    def place_of(place: int) -> str:
        row = int(np.searchsorted(ends, place, side="right"))
        return f"place {place - int(ends[row] - max(lengths[row], 0))} of row {row}"

    kind, cleaned = _typed(flat, f"{where}: {name}", place_of)
    rows, start = [], 0
    for length in lengths:
        rows.append(None if length < 0 else cleaned[start : start + length])
        start += max(length, 0)
    return pl.Series(name, rows, dtype=pl.List(kind))


def _elements(cell: Any, name: str, row: int, where: str) -> list[Any]:
    """Return the elements of a list as Python values."""
    if isinstance(cell, np.ndarray):
        if cell.ndim != 1:
            raise DataError(f"{where}: column '{name}' has {cell.ndim} dimensions in row {row}, expected a plain list")
        if cell.dtype.kind == "M":  # in Python a datetime64 of nanoseconds would become an integer
            return [None if np.isnat(value) else value for value in cell.astype("datetime64[us]")]
        if cell.dtype.kind == "f" and cell.dtype.itemsize < 8:
            return list(cell)  # keeps float32, which tolist() would hide
        cell = cell.tolist()
    return [_plain(value) for value in cell]


def _typed(values: Sequence[Any], what: str, place: Callable[[int], str]) -> tuple[pl.DataType, list[Any]]:
    """Return the one type of all values, and the values in it; what is missing becomes ``None``.

    Raises:
        DataError: Values of two types, of a type that no column here has, or integers beyond 64 bits; both places are named.
    """
    if set(map(type, values)) == {str}:  # most columns; nothing to look for one by one
        return pl.String(), list(values)
    first: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for number, value in enumerate(values):
        if is_missing(value):
            continue
        kind = _kind(value)
        first.setdefault(kind, number)
        kinds[kind] = kinds.get(kind, 0) + 1
    if set(kinds) == {"integers", "decimals"}:
        kinds = {"decimals": sum(kinds.values())}
    if len(kinds) > 1:
        listed = "; ".join(
            f"{count} {kind}, the first in {place(first[kind])}: {_shown(values[first[kind]])}"
            for kind, count in kinds.items()
        )
        raise DataError(f"{what} mixes types ({listed}); give all of one type, that of the training data")
    if not kinds:
        return pl.Null(), [None] * len(values)
    (kind,) = kinds
    if kind not in _TYPES:
        raise DataError(
            f"{what} holds {_shown(values[first[kind]])} ({type(values[first[kind]]).__name__}) in {place(first[kind])}, "
            "expected integers or text for ids, numbers or times"
        )
    dtype, convert = _TYPES[kind]
    cleaned = [None if is_missing(value) else convert(value) for value in values]
    if kind == "integers":
        wide = next(
            (number for number, value in enumerate(cleaned) if value is not None and not -(2**63) <= value < 2**63),
            None,
        )
        if wide is not None:
            raise DataError(f"{what} holds {cleaned[wide]} in {place(wide)}, which does not fit into 64 bits")
    return dtype, cleaned


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "booleans"
    if isinstance(value, int | np.integer):
        return "integers"
    if isinstance(value, np.float32 | np.float16):
        return "float32 numbers"
    if isinstance(value, float | np.floating):
        return "decimals"
    if isinstance(value, str):
        return "texts"
    if isinstance(value, datetime):
        return "times without a zone" if value.tzinfo is None else "times with a zone"
    if isinstance(value, np.datetime64):
        return "times without a zone"
    return "dates" if isinstance(value, date) else f"{type(value).__name__} values"


def _microseconds(value: Any) -> int:
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[us]").astype(np.int64))
    return microseconds(value)


_TIME: Final = pl.Datetime("us", "UTC")
_TYPES: Final[Mapping[str, tuple[pl.DataType, Callable[[Any], Any]]]] = {
    "booleans": (pl.Boolean(), bool),
    "integers": (pl.Int64(), int),
    "decimals": (pl.Float64(), float),
    "float32 numbers": (pl.Float32(), float),
    "texts": (pl.String(), str),
    "times without a zone": (_TIME, _microseconds),
    "times with a zone": (_TIME, _microseconds),
    "dates": (_TIME, _microseconds),
}


def _plain(value: Any) -> Any:
    """Take a value out of an array of no dimensions, which is how MLflow hands over what came as JSON."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _is_list(value: Any) -> bool:
    if isinstance(value, str | bytes | bytearray | Mapping):
        return False
    if isinstance(value, Sequence | np.ndarray | pl.Series):
        return True
    # columns, indices and arrays of pandas, such as `unique` of a group leaves in its cells
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "tolist") and hasattr(value, "dtype")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."

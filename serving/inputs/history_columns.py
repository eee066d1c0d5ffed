"""The columns of a frame of histories, one by one: ids, codes and ratios as the model reads them, or a refusal by name.

What `prepare` refuses in a log is refused here, and by the same facts (:mod:`recsys.contracts.null_markers`): a user that is
null in any dress, ids that are fractions or too large, codes and ratios that no log can have. Times have a module of
their own (:mod:`serving.inputs.history_times`).

Legend: E events of all users, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import DatasetSpec
from recsys.contracts.errors import DataError
from recsys.contracts.event_features import behaviour_codes, watch_buckets
from recsys.contracts.null_markers import NUMPY_MISSING, null_markers
from recsys.contracts.plain_text import SURROUNDINGS


def whole_floats(dtype: pl.DataType) -> int:
    """Return up to where every whole number is a float of its own; beyond it several ids are one.

    Example:
        >>> whole_floats(pl.Float64()) == 2**53, whole_floats(pl.Float32()) == 2**24
        (True, True)
    """
    return 2**53 if dtype == pl.Float64 else 2**24


def id_values(ids: pl.Series, where: str) -> pl.Series:
    """Return ids as Int64, String, or Null where none is known.

    Blanks around a text are no part of it, as in `prepare`. Data frames with gaps hold integers as 7.0, which is the id 7;
    7.5 is none.

    Raises:
        DataError: They are of a type that no id has, fractions, or do not fit into 64 bits.
    """
    dtype = ids.dtype
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return ids.cast(pl.String).str.strip_chars(SURROUNDINGS)
    if dtype == pl.Null or dtype == pl.Int64:
        return ids
    if dtype.is_integer():
        try:
            return ids.cast(pl.Int64)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{where} reach {ids.max()!r}, which does not fit into 64 bits ({dtype})") from error
    if dtype.is_float():
        known = ids.fill_nan(None)
        numbers = known.drop_nulls()
        wrong = numbers.filter((numbers.round() != numbers) | (numbers.abs() >= whole_floats(dtype)))
        if len(wrong):
            raise DataError(f"{where} hold {wrong[0]} ({dtype}), expected whole ids; convert them to integers or text")
        return known.cast(pl.Int64)
    raise DataError(f"{where} are {dtype}, expected integers or text")


def user_values(user_ids: pl.Series, where: str = "histories") -> pl.Series:
    """Return user ids as :func:`id_values` does, each of them known and given once.

    Raises:
        DataError: Ids are of no id's type, null, stand for nothing (null markers, NumPy's missing number), or occur twice.
    """
    users = id_values(user_ids, f"{where}: {Columns.USER_ID}")
    missing = users.is_null()
    if users.dtype == pl.String:
        missing = missing | null_markers(users).fill_null(True)
    if users.dtype == pl.Int64:
        missing = missing | (users == NUMPY_MISSING).fill_null(True)
    if missing.any():
        rows = missing.arg_true()
        shown = ", ".join(f"{row} ({user_ids[row]!r})" for row in rows.head(5).to_list())
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise DataError(
            f"{where}: user_id is null in {len(rows)} of {len(users)} rows; every row needs its user: row {shown}{more}"
        )
    if users.n_unique() != len(users):
        twice = users.filter(users.is_duplicated())[0]
        rows = (users == twice).arg_true().to_list()
        raise DataError(
            f"{where}: user_id {twice!r} occurs more than once; give one row per user with the whole history (rows "
            f"{', '.join(map(str, rows[:5]))})"
        )
    return users


def behaviour_values(
    codes: pl.Series | None, spec: DatasetSpec, num_events: int, users: pl.Series
) -> npt.NDArray[np.uint8]:
    """Return codes ``[E]``; 0 is "not known", also where no list or null is given.

    Without signals there is one behaviour, and every event of the training data has it.

    Args:
        users: ``[E]`` the user of each event, for the error.

    Raises:
        DataError: A code is no whole number, or the model does not have it.
    """
    unknown = 0 if spec.signals else int(behaviour_codes(np.zeros((1, 0), bool))[0])
    if codes is None or codes.dtype == pl.Null:
        return np.full(num_events, unknown, np.uint8)
    if not codes.dtype.is_numeric() or codes.dtype.is_decimal():
        raise DataError(f"histories: behaviours hold {codes.dtype}, expected {_codes_of(spec)}")
    numbers = codes.cast(pl.Float64).fill_nan(None)
    whole = (numbers.round() == numbers) & numbers.is_between(0, spec.num_behaviours - 1)
    wrong = ~whole.fill_null(True)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise DataError(
            f"histories: user_id {users[row]!r} has the behaviour {codes[row]} ({int(wrong.sum())} such events), expected "
            f"{_codes_of(spec)}"
        )
    return numbers.fill_null(unknown).cast(pl.UInt8).to_numpy()


def _codes_of(spec: DatasetSpec) -> str:
    return (
        f"integer codes from 0 (not known) to {spec.num_behaviours - 1}, packed from the signals "
        f"{list(spec.signals)}; null where "
        "it is not known"
    )


def watch_values(ratios: pl.Series | None, num_events: int, users: pl.Series) -> npt.NDArray[np.uint8]:
    """Return the buckets of watched time / duration, ``[E]``; null and NaN are "not known".

    Raises:
        DataError: A ratio is no number, negative or infinite.
    """
    if ratios is None or ratios.dtype == pl.Null:
        return np.zeros(num_events, np.uint8)
    if not ratios.dtype.is_numeric():
        raise DataError(f"histories: watch_ratios hold {ratios.dtype}, expected watched time / duration as numbers")
    numbers = ratios.cast(pl.Float64)
    wrong = (numbers < 0).fill_null(False) | numbers.is_infinite().fill_null(False)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise DataError(
            f"histories: user_id {users[row]!r} has the watch ratio {ratios[row]} ({int(wrong.sum())} such events), "
            "expected "
            "watched time / duration, a finite number of at least 0; null where it is not known"
        )
    return watch_buckets(numbers.fill_null(np.nan).to_numpy())


def shown_users(users: Sequence[object], limit: int = 3) -> str:
    """Phrase some users, the rest as a number.

    Example:
        >>> shown_users([7, 8, 9, 10])
        '7, 8, 9 and 1 more'
    """
    named = ", ".join(repr(user) for user in users[:limit])
    return named if len(users) <= limit else f"{named} and {len(users) - limit} more"

"""From what a caller knows about users to what the model reads.

Reads a frame of item ids; produces :class:`~recsys.data.histories.Histories` in the model's own indices.

The frame has one row per user: ``user_id``, ``item_ids`` (list, oldest first) and, where known, lists of the same
length ``timestamps`` (UTC microseconds, or Datetime), ``behaviours`` (codes as in
:func:`~recsys.contracts.event_features.behaviour_codes`) and ``watch_ratios``. A column ``objective`` (JSON text, see
:mod:`serving.inputs.objectives`) says what a row's request wants more of.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.event_features import behaviour_codes, gap_buckets, watch_buckets
from recsys.data.histories import Histories
from recsys.model.layers.tables import unseen_row_numbers
from serving.bundle.layout import Catalogue
from serving.inputs.objectives import OBJECTIVE

logger = logging.getLogger("recsys.serving")

ITEM_IDS: Final = "item_ids"
OPTIONAL_LISTS: Final = ("timestamps", "behaviours", "watch_ratios")


@dataclass(frozen=True)
class MappedHistories:
    """Histories in the model's indices.

    Attributes:
        user_ids: ``[N]`` as given.
        histories: N rows.
        num_unknown: ``[N]`` events left out because the model has no such item.
        objectives: ``[N]`` JSON text of each row's objective weights, as given; ``None`` where the rows name none.
    """

    user_ids: pl.Series
    histories: Histories
    num_unknown: npt.NDArray[np.int32]
    objectives: pl.Series | None = None


def map_frame(
    frame: pl.DataFrame, catalogue: Catalogue, user_index: npt.NDArray[np.int32] | None = None
) -> MappedHistories:
    """Map a frame of histories.

    Items that the catalogue lacks are left out and counted; an empty history stays and is answered as well.

    Args:
        user_index: What :func:`user_index_of` gave for the rows, if the caller has it already; the look-up costs as much
            for one row as for a million.

    Raises:
        DataError: A column is missing, unknown or of the wrong type; ``user_id`` is null or occurs twice; lists of one
            row differ in length; times run backwards.
    """
    _check_columns(frame, catalogue)
    present = [name for name in OPTIONAL_LISTS if name in frame.columns]
    rows = frame.select(
        pl.col(Columns.USER_ID), pl.int_range(pl.len()).alias("row"), pl.col(ITEM_IDS).fill_null([]), *present
    )
    _check_lengths(rows, present)
    _warn_of_missing(present, catalogue)
    events = rows.filter(pl.col(ITEM_IDS).list.len() > 0).drop(Columns.USER_ID).explode([ITEM_IDS, *present])
    item = index_of(events[ITEM_IDS], catalogue.item_ids, "item_ids")
    row = events["row"].to_numpy()
    gap = _gaps(events, row, catalogue)
    known = item >= 0
    counts = np.bincount(row[known], minlength=len(frame)).astype(np.int64)
    ends = np.cumsum(counts)
    histories = Histories(
        user_index=user_index_of(frame[Columns.USER_ID], catalogue) if user_index is None else user_index,
        start=ends - counts,
        end=ends,
        item=item[known],
        behaviour=_behaviours(events, catalogue)[known],
        gap=gap[known],
        watch=_watch(events)[known],
    )
    num_unknown = np.bincount(row[~known], minlength=len(frame)).astype(np.int32)
    objectives = frame[OBJECTIVE] if OBJECTIVE in frame.columns else None
    return MappedHistories(frame[Columns.USER_ID], histories, num_unknown, objectives)


def user_index_of(user_ids: pl.Series, catalogue: Catalogue, what: str = Columns.USER_ID) -> npt.NDArray[np.int32]:
    """Return user_index of each id.

    A user that the model has not met gets one of its rows for such users, behind the known ones: the same one in every
    process and on every day. -1 where the model has no such rows, or knows no users.
    """
    if catalogue.user_ids is None:
        return np.full(len(user_ids), -1, np.int32)
    index = index_of(user_ids, catalogue.user_ids, what)
    unseen = np.flatnonzero(index < 0)
    if not (catalogue.unseen_user_rows and len(unseen)):
        return index
    index = index.copy()
    numbers = unseen_row_numbers(user_ids.gather(unseen).to_list(), catalogue.unseen_user_rows)
    index[unseen] = len(catalogue.user_ids) + numbers
    return index


def index_of(values: pl.Series, ids: pl.Series, what: str) -> npt.NDArray[np.int32]:
    """Return the position of each value in ``ids``, -1 where it does not occur or is null.

    Raises:
        DataError: Text was given for integer ids, or the other way round.

    Example:
        >>> index_of(pl.Series([30, 5]), pl.Series([10, 20, 30]), "item_ids").tolist()
        [2, -1]
    """
    if values.dtype == pl.Null:
        return np.full(len(values), -1, np.int32)
    if values.dtype.is_integer() != ids.dtype.is_integer():
        raise DataError(
            f"{what} hold {values.dtype}, the model's ids are {ids.dtype}; give ids of the same type as in the training data"
        )
    left = values.cast(pl.Int64).to_frame("id") if ids.dtype.is_integer() else values.cast(pl.String).to_frame("id")
    right = pl.DataFrame({"id": ids.cast(left["id"].dtype), "index": np.arange(len(ids), dtype=np.int32)})
    return left.join(right, on="id", how="left", maintain_order="left")["index"].fill_null(-1).to_numpy()


def _check_columns(frame: pl.DataFrame, catalogue: Catalogue) -> None:
    known = (Columns.USER_ID, ITEM_IDS, *OPTIONAL_LISTS, OBJECTIVE)
    missing = [name for name in known[:2] if name not in frame.columns]
    if missing:
        raise DataError(f"histories lack the column '{missing[0]}'; they have {frame.columns}, expected {list(known)}")
    extra = [name for name in frame.columns if name not in known]
    if extra:
        raise DataError(
            f"histories have the column '{extra[0]}', which the model would not read; allowed are {list(known)}"
        )
    for name in frame.columns:
        if name not in (Columns.USER_ID, OBJECTIVE) and not isinstance(frame.schema[name], pl.List | pl.Array):
            raise DataError(f"histories: column '{name}' is {frame.schema[name]}, expected a list per user")
    users = frame[Columns.USER_ID]
    if users.null_count():
        raise DataError(
            f"histories: user_id is null in {users.null_count()} of {len(users)} rows; every row needs its user"
        )
    if users.n_unique() != len(users):
        twice = users.filter(users.is_duplicated())[0]
        raise DataError(
            f"histories: user_id {twice!r} occurs more than once; give one row per user with the whole history"
        )
    if "timestamps" in frame.columns and not catalogue.spec.has_timestamps:
        raise DataError("histories have timestamps, but the model was trained on data without; leave the column out")


def _warn_of_missing(present: Sequence[str], catalogue: Catalogue) -> None:
    """Say what the model was trained with and the caller does not give; the answer stands, but it is a poorer one."""
    trained_with = {
        "timestamps": catalogue.spec.has_timestamps,
        "behaviours": bool(catalogue.spec.signals),
    }
    missing = [name for name, used in trained_with.items() if used and name not in present]
    if missing:
        logger.warning(
            "histories lack %s, which the model was trained with; it ranks without, and differently from a batch job "
            "that has them",
            " and ".join(missing),
        )


def _check_lengths(rows: pl.DataFrame, present: Sequence[str]) -> None:
    for name in present:
        wrong = rows.filter(pl.col(name).list.len().fill_null(0) != pl.col(ITEM_IDS).list.len())
        if len(wrong):
            raise DataError(
                f"histories: user_id {wrong[Columns.USER_ID][0]!r} has {len(wrong[ITEM_IDS][0])} item_ids but another "
                f"number of {name}; every event needs one entry, null where it is not known"
            )


def _gaps(events: pl.DataFrame, row: npt.NDArray[np.int64], catalogue: Catalogue) -> npt.NDArray[np.uint8]:
    """Gap buckets; the gap is to the user's previous event, whether the model knows that one's item or not."""
    if "timestamps" not in events.columns:
        return np.zeros(len(events), np.uint8)
    times = events["timestamps"]
    if isinstance(times.dtype, pl.Datetime):
        times = times.dt.cast_time_unit("us").to_physical()
    elif not times.dtype.is_integer() and times.dtype != pl.Null:
        raise DataError(f"histories: timestamps hold {times.dtype}, expected Int64 UTC microseconds or Datetime")
    known = times.is_not_null().to_numpy()
    time = times.cast(pl.Int64).fill_null(0).to_numpy()
    gap = np.full(len(time), -1, np.int64)
    follows = (row[1:] == row[:-1]) & known[1:] & known[:-1]
    gap[1:][follows] = (time[1:] - time[:-1])[follows]
    if (gap[1:][follows] < 0).any():
        raise DataError(
            "histories: timestamps of a user run backwards; sort each list from the oldest event to the newest"
        )
    return gap_buckets(gap)


def _behaviours(events: pl.DataFrame, catalogue: Catalogue) -> npt.NDArray[np.uint8]:
    if not catalogue.spec.signals and "behaviours" not in events.columns:
        # without signals there is one behaviour, and every event of the training data has it
        return behaviour_codes(np.zeros((len(events), 0), bool))
    if "behaviours" not in events.columns:
        return np.zeros(len(events), np.uint8)
    codes = events["behaviours"].fill_null(0)
    limit = catalogue.spec.num_behaviours
    if not codes.dtype.is_integer() or (len(codes) and not codes.is_between(0, limit - 1).all()):
        raise DataError(
            f"histories: behaviours must be integer codes from 0 (not known) to {limit - 1}, packed from the signals "
            f"{list(catalogue.spec.signals)}; found {codes.dtype} from {codes.min()!r} to {codes.max()!r}"
        )
    return codes.cast(pl.UInt8).to_numpy()


def _watch(events: pl.DataFrame) -> npt.NDArray[np.uint8]:
    if "watch_ratios" not in events.columns:
        return np.zeros(len(events), np.uint8)
    return watch_buckets(events["watch_ratios"].cast(pl.Float64).fill_null(np.nan).to_numpy())

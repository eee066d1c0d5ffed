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
from serving.bundle.catalogue import Catalogue

logger = logging.getLogger("recsys.serving")

OPTIONAL_LISTS: Final = (Columns.TIMESTAMPS, Columns.BEHAVIOURS, Columns.WATCH_RATIOS)
_KNOWN: Final = (Columns.USER_ID, Columns.ITEM_IDS, *OPTIONAL_LISTS, Columns.OBJECTIVE)


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

    def take(self, rows: npt.NDArray[np.integer]) -> MappedHistories:
        """Return the rows given by number, in that order."""
        return MappedHistories(
            self.user_ids.gather(rows),
            self.histories.take(rows),
            self.num_unknown[rows],
            None if self.objectives is None else self.objectives.gather(rows),
        )


def map_frame(
    frame: pl.DataFrame, catalogue: Catalogue, user_index: npt.NDArray[np.int32] | None = None
) -> MappedHistories:
    """Map a frame of histories.

    Items that the catalogue lacks are left out and counted; an empty history stays and is answered as well.

    Args:
        user_index: What :meth:`~serving.bundle.catalogue.Catalogue.user_index` gave for the rows, if the caller has it
            already; the look-up costs as much for one row as for a million.

    Raises:
        DataError: A column is missing, unknown or of the wrong type; ``user_id`` is null or occurs twice; lists of one
            row differ in length; times run backwards.
    """
    check_columns(frame.schema)
    check_users(frame[Columns.USER_ID])
    if Columns.TIMESTAMPS in frame.columns and not catalogue.spec.has_timestamps:
        raise DataError("histories have timestamps, but the model was trained on data without; leave the column out")
    present = [name for name in OPTIONAL_LISTS if name in frame.columns]
    rows = frame.select(
        pl.col(Columns.USER_ID), pl.int_range(pl.len()).alias("row"), pl.col(Columns.ITEM_IDS).fill_null([]), *present
    )
    _check_lengths(rows, present)
    _warn_of_missing(present, catalogue)
    events = (
        rows.filter(pl.col(Columns.ITEM_IDS).list.len() > 0).drop(Columns.USER_ID).explode([Columns.ITEM_IDS, *present])
    )
    item = catalogue.item_index(events[Columns.ITEM_IDS], Columns.ITEM_IDS)
    row = events["row"].to_numpy()
    gap = _gaps(events, row, catalogue)
    known = item >= 0
    counts = np.bincount(row[known], minlength=len(frame)).astype(np.int64)
    ends = np.cumsum(counts)
    histories = Histories(
        user_index=catalogue.user_index(frame[Columns.USER_ID]) if user_index is None else user_index,
        start=ends - counts,
        end=ends,
        item=item[known],
        behaviour=_behaviours(events, catalogue)[known],
        gap=gap[known],
        watch=_watch(events)[known],
    )
    num_unknown = np.bincount(row[~known], minlength=len(frame)).astype(np.int32)
    objectives = frame[Columns.OBJECTIVE] if Columns.OBJECTIVE in frame.columns else None
    return MappedHistories(frame[Columns.USER_ID], histories, num_unknown, objectives)


def check_columns(schema: pl.Schema, where: str = "histories") -> None:
    """Check names and types of the columns.

    Args:
        where: What they belong to, for the error.

    Raises:
        DataError: A column is missing, unknown, or no list where a list is expected.
    """
    names = schema.names()
    missing = [name for name in _KNOWN[:2] if name not in names]
    if missing:
        raise DataError(f"{where} lack the column '{missing[0]}'; they have {names}, expected {list(_KNOWN)}")
    extra = [name for name in names if name not in _KNOWN]
    if extra:
        raise DataError(
            f"{where} have the column '{extra[0]}', which the model would not read; allowed are {list(_KNOWN)}"
        )
    for name in names:
        if name not in (Columns.USER_ID, Columns.OBJECTIVE) and not isinstance(schema[name], pl.List | pl.Array):
            raise DataError(f"{where}: column '{name}' is {schema[name]}, expected a list per user")


def check_users(user_ids: pl.Series, where: str = "histories") -> None:
    """Check that every row has a user of its own.

    Raises:
        DataError: A user is null or occurs twice.
    """
    if user_ids.null_count():
        raise DataError(
            f"{where}: user_id is null in {user_ids.null_count()} of {len(user_ids)} rows; every row needs its user"
        )
    if user_ids.n_unique() != len(user_ids):
        twice = user_ids.filter(user_ids.is_duplicated())[0]
        raise DataError(
            f"{where}: user_id {twice!r} occurs more than once; give one row per user with the whole history"
        )


def _warn_of_missing(present: Sequence[str], catalogue: Catalogue) -> None:
    """Say what the model was trained with and the caller does not give; the answer stands, but it is a poorer one."""
    trained_with = {
        Columns.TIMESTAMPS: catalogue.spec.has_timestamps,
        Columns.BEHAVIOURS: bool(catalogue.spec.signals),
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
        wrong = rows.filter(pl.col(name).list.len().fill_null(0) != pl.col(Columns.ITEM_IDS).list.len())
        if len(wrong):
            raise DataError(
                f"histories: user_id {wrong[Columns.USER_ID][0]!r} has {len(wrong[Columns.ITEM_IDS][0])} item_ids but "
                f"another number of {name}; every event needs one entry, null where it is not known"
            )


def _gaps(events: pl.DataFrame, row: npt.NDArray[np.int64], catalogue: Catalogue) -> npt.NDArray[np.uint8]:
    """Gap buckets; the gap is to the user's previous event, whether the model knows that one's item or not."""
    if Columns.TIMESTAMPS not in events.columns:
        return np.zeros(len(events), np.uint8)
    times = events[Columns.TIMESTAMPS]
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
    if not catalogue.spec.signals and Columns.BEHAVIOURS not in events.columns:
        # without signals there is one behaviour, and every event of the training data has it
        return behaviour_codes(np.zeros((len(events), 0), bool))
    if Columns.BEHAVIOURS not in events.columns:
        return np.zeros(len(events), np.uint8)
    codes = events[Columns.BEHAVIOURS].fill_null(0)
    limit = catalogue.spec.num_behaviours
    if not codes.dtype.is_integer() or (len(codes) and not codes.is_between(0, limit - 1).all()):
        raise DataError(
            f"histories: behaviours must be integer codes from 0 (not known) to {limit - 1}, packed from the signals "
            f"{list(catalogue.spec.signals)}; found {codes.dtype} from {codes.min()!r} to {codes.max()!r}"
        )
    return codes.cast(pl.UInt8).to_numpy()


def _watch(events: pl.DataFrame) -> npt.NDArray[np.uint8]:
    if Columns.WATCH_RATIOS not in events.columns:
        return np.zeros(len(events), np.uint8)
    return watch_buckets(events[Columns.WATCH_RATIOS].cast(pl.Float64).fill_null(np.nan).to_numpy())

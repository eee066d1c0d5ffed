"""From raw rows to the event log: ids become dense indices, rows are put in order, repeats and thin users go.

Reads usable raw interactions; produces :class:`EventLog`, sorted by user and time. Ids are encoded once, k-core counts by
``bincount`` on the codes, and everything is sorted once; there is no join and no group-by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from features.quarantine import as_duplicates
from features.sources.base import PREHISTORY, RawTables
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError

CodeArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

_ORDER = "order"
_PREHISTORY_SHIFT = 1 << 61  # puts every prehistory position before every plausible timestamp or position


class KCoreConfig(FrozenConfig):
    """Fewest positive events of a user and of an item; applied again and again until nothing changes.

    Attributes:
        user: Fewest positive events of a user; 0 keeps all.
        item: Fewest positive events of an item; 0 keeps all.
    """

    user: int = Field(0, ge=0)
    item: int = Field(0, ge=0)


@dataclass(frozen=True)
class EventLog:
    """Kept events, sorted by user and time; ties keep the order of the source.

    Attributes:
        frame: The raw columns of the kept events, in sorted order.
        user: ``[E]`` user_index.
        item: ``[E]`` item_index.
        positive: ``[E]`` whether the event counts as liked.
        prehistory: ``[E]`` whether it has an order but no time.
        timestamp: ``[E]`` UTC microseconds, -1 not known.
        user_ids: ``[U]`` user_id of each user_index, ascending.
        item_ids: ``[I]`` item_id of each item_index, ascending.
        duplicates: Refused rows, with a reason.
        k_core_removed: Events that the k-core took away.
    """

    frame: pl.DataFrame
    user: CodeArray
    item: CodeArray
    positive: BoolArray
    prehistory: BoolArray
    timestamp: npt.NDArray[np.int64]
    user_ids: pl.Series
    item_ids: pl.Series
    duplicates: pl.DataFrame
    k_core_removed: int

    def __len__(self) -> int:
        return len(self.user)


def build_event_log(
    raw: RawTables, rows: pl.DataFrame, k_core: KCoreConfig, duplicates: Literal["keep", "drop"]
) -> EventLog:
    """Encode, sort, remove repeats, apply the k-core, and number the users and items that are left.

    Args:
        raw: For what the source declared.
        rows: Usable rows.
        k_core: Limits.
        duplicates: ``drop`` refuses rows with the same user, item and time (or position); the first one stays.

    Raises:
        DataError: Nothing is left.
    """
    user, user_ids = encode_ids(rows[Columns.USER_ID])
    item, item_ids = encode_ids(rows[Columns.ITEM_ID])
    order = sort_order(rows, user, has_timestamps=raw.has_timestamps)
    if order is not None:
        rows, user, item = rows[order], user[order], item[order]
    positive = positive_events(rows, raw.positive)
    keep = np.ones(len(rows), bool)
    repeated = rows.head(0)
    if duplicates == "drop":
        is_repeat = repeated_events(rows, user, item, has_timestamps=raw.has_timestamps)
        repeated, keep = rows.filter(is_repeat), ~is_repeat
    before = int(keep.sum())
    keep &= k_core_mask(user, item, positive & keep, k_core)
    kept = int(keep.sum())
    if kept == 0:
        raise DataError(
            f"no event is left of {len(rows)} usable rows (k-core: user {k_core.user}, item {k_core.item}); "
            "lower features.k_core or check the column map"
        )
    if kept < len(rows):
        rows, user, item, positive = rows.filter(keep), user[keep], item[keep], positive[keep]
    user, user_ids = _renumber(user, user_ids)
    item, item_ids = _renumber(item, item_ids)
    times = rows[Columns.TIMESTAMP].fill_null(-1).to_numpy() if raw.has_timestamps else None
    return EventLog(
        frame=rows,
        user=user,
        item=item,
        positive=positive,
        prehistory=rows[PREHISTORY].to_numpy(),
        timestamp=times if times is not None else np.full(len(rows), -1, np.int64),
        user_ids=user_ids,
        item_ids=item_ids,
        duplicates=as_duplicates(repeated),
        k_core_removed=before - kept,
    )


def encode_ids(ids: pl.Series) -> tuple[CodeArray, pl.Series]:
    """Number the distinct ids in ascending order, so that the codes do not depend on the order of rows.

    Args:
        ids: Int64 or String, no nulls.

    Returns:
        ``[rows]`` codes and the distinct ids, code = place.

    Example:
        >>> codes, distinct = encode_ids(pl.Series(["b", "a", "b"]))
        >>> codes.tolist(), distinct.to_list()
        ([1, 0, 1], ['a', 'b'])
    """
    distinct = ids.unique().sort()
    if ids.dtype == pl.String:
        codes = ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)
        return codes, distinct
    values, known = ids.to_numpy(), distinct.to_numpy()
    low, span = (int(known[0]), int(known[-1]) - int(known[0])) if len(known) else (0, 0)
    if span < 4 * len(values) + 1024:  # a table of the whole range is far cheaper than a search per row
        table = np.zeros(span + 1, np.int32)
        table[known - low] = np.arange(len(known), dtype=np.int32)
        return table[values - low], distinct
    return np.searchsorted(known, values).astype(np.int32), distinct


def sort_order(rows: pl.DataFrame, user: CodeArray, *, has_timestamps: bool) -> npt.NDArray[np.uint32] | None:
    """Return the stable order by user, prehistory first, time, position; ``None`` when the rows are in order already."""
    place = pl.col(Columns.POSITION).fill_null(0) if Columns.POSITION in rows.columns else pl.lit(0, pl.Int64)
    main = pl.col(Columns.TIMESTAMP) if has_timestamps else place
    keys = rows.select(
        pl.when(pl.col(PREHISTORY)).then(place - _PREHISTORY_SHIFT).otherwise(main).alias(_ORDER),
        place.alias("place"),
    ).with_columns(pl.Series("user", user))
    order, second = keys[_ORDER].to_numpy(), keys["place"].to_numpy()
    same_user = user[1:] == user[:-1]
    later = (order[1:] > order[:-1]) | ((order[1:] == order[:-1]) & (second[1:] >= second[:-1]))
    if bool(np.all((user[1:] > user[:-1]) | (same_user & later))):
        return None
    names = ["user", _ORDER] + (["place"] if has_timestamps and Columns.POSITION in rows.columns else [])
    return keys.select(pl.arg_sort_by(names, maintain_order=True)).to_series().to_numpy()


def positive_events(rows: pl.DataFrame, positive: tuple[str, ...]) -> BoolArray:
    """Return whether any of the signals is true; without signals every event is positive."""
    if not positive:
        return np.ones(len(rows), bool)
    return rows.select(pl.any_horizontal(pl.col(name).fill_null(False) for name in positive)).to_series().to_numpy()


def repeated_events(rows: pl.DataFrame, user: CodeArray, item: CodeArray, *, has_timestamps: bool) -> BoolArray:
    """Mark events with the same user, item and instant as an earlier row.

    The rows are sorted, so only runs of equal instants need to be looked into; there are few.
    """
    place = pl.col(Columns.POSITION) if Columns.POSITION in rows.columns else pl.lit(0, pl.Int64)
    main = pl.when(pl.col(PREHISTORY)).then(place).otherwise(pl.col(Columns.TIMESTAMP)) if has_timestamps else place
    instants = rows.select(main).to_series().to_numpy()
    early = rows[PREHISTORY].to_numpy()
    tie = (user[1:] == user[:-1]) & (instants[1:] == instants[:-1]) & (early[1:] == early[:-1])
    result = np.zeros(len(user), bool)
    in_tie = np.flatnonzero(np.append(tie, False) | np.insert(tie, 0, False))
    if len(in_tie):
        run = np.cumsum(~np.insert(tie, 0, False))[in_tie]
        pairs = pl.DataFrame({"run": run, "item": item[in_tie]})
        result[in_tie] = ~pairs.select(pl.struct("run", "item").is_first_distinct()).to_series().to_numpy()
    return result


def k_core_mask(user: CodeArray, item: CodeArray, positive: BoolArray, limits: KCoreConfig) -> BoolArray:
    """Keep users and items that have enough positive events among the kept ones, to the fixed point.

    Returns:
        ``[E]`` whether the event's user and item both stay; events that are not positive follow their user and item.

    Example:
        User 1 has one event; without it item 1 has only one left, and so user 0 falls below two as well.

        >>> user, item = np.array([0, 0, 1], np.int32), np.array([0, 1, 1], np.int32)
        >>> k_core_mask(user, item, np.ones(3, bool), KCoreConfig(user=2)).tolist()
        [True, True, False]
        >>> k_core_mask(user, item, np.ones(3, bool), KCoreConfig(user=2, item=2)).tolist()
        [False, False, False]
    """
    if limits.user == 0 and limits.item == 0:
        return np.ones(len(user), bool)
    num_users, num_items = int(user.max(initial=-1)) + 1, int(item.max(initial=-1)) + 1
    user_stays, item_stays = np.ones(num_users, bool), np.ones(num_items, bool)
    left_user, left_item = user[positive], item[positive]
    while True:
        user_stays &= np.bincount(left_user, minlength=num_users) >= limits.user
        item_stays &= np.bincount(left_item, minlength=num_items) >= limits.item
        stays = user_stays[left_user] & item_stays[left_item]
        if stays.all():
            return user_stays[user] & item_stays[item]
        left_user, left_item = left_user[stays], left_item[stays]


def _renumber(codes: CodeArray, ids: pl.Series) -> tuple[CodeArray, pl.Series]:
    used = np.bincount(codes, minlength=len(ids)) > 0
    if used.all():
        return codes, ids
    table = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return table[codes], ids.filter(used)

"""The validation or test rows as the audit looks at them: where in the arrays the first right item of each row really is.

Reads a prepared data set; produces :class:`AskedRows`. ``targets.parquet`` says where a history ends; the audit does not
believe it, and finds the target among the user's events of that split by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.audit.contract import read_user_ids
from features.audit.leakage.findings import example_ids
from features.passes.users import item_counts
from recsys.contracts.columns import SPLIT_NAMES, TEST, TRAIN, VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.event_times import Times, WholeSeconds

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Arrays:
    """The history arrays in memory, with what every check asks of them.

    Attributes:
        item, timestamp: ``[E]``; see :class:`~recsys.contracts.dataset.HistoryArrays`.
        offsets: ``[U + 1]``.
        train_end, valid_end: ``[U]``.
        num_items: Items of the catalogue.
        user_ids: ``[U]`` ids, for examples.
    """

    item: npt.NDArray[np.int32]
    timestamp: Times
    offsets: Int64Array
    train_end: Int64Array
    valid_end: Int64Array
    num_items: int
    user_ids: pl.Series

    @classmethod
    def of(cls, dataset: Dataset, user_ids: pl.Series | None = None) -> Arrays:
        """Read the arrays of a data set.

        Args:
            dataset: The data.
            user_ids: Of the users; ``None`` reads them.
        """
        history = dataset.history
        return cls(
            item=np.asarray(history.item),
            timestamp=times if isinstance(times := history.timestamp, WholeSeconds) else np.asarray(times),
            offsets=np.asarray(history.offsets),
            train_end=np.asarray(history.train_end),
            valid_end=np.asarray(history.valid_end),
            num_items=dataset.spec.num_items,
            user_ids=read_user_ids(dataset.path) if user_ids is None else user_ids,
        )

    @property
    def ticks(self) -> npt.NDArray[np.integer[Any]]:
        """``[E]`` times as they are kept: ordered and equal as ``timestamp`` is, and below 0 where none is known."""
        return self.timestamp.seconds if isinstance(self.timestamp, WholeSeconds) else self.timestamp

    @cached_property
    def owner(self) -> npt.NDArray[np.int32]:
        """``[E]`` user_index of every event."""
        return np.repeat(np.arange(len(self.train_end), dtype=np.int32), np.diff(self.offsets))

    @cached_property
    def in_train(self) -> BoolArray:
        """``[E]`` whether the event may be trained on."""
        lengths = np.stack([self.train_end - self.offsets[:-1], self.offsets[1:] - self.train_end], axis=1)
        return np.repeat(np.tile([True, False], len(self.train_end)), lengths.ravel())

    @cached_property
    def train_item(self) -> npt.NDArray[np.int32]:
        """``[train events]`` item_index."""
        return self.item[self.in_train]

    @cached_property
    def train_time(self) -> Int64Array:
        """``[train events]`` UTC microseconds, -1 not known."""
        return self.timestamp[self.in_train]

    @cached_property
    def train_owner(self) -> npt.NDArray[np.int32]:
        """``[train events]`` user_index."""
        return self.owner[self.in_train]

    @cached_property
    def train_counts(self) -> Int64Array:
        """``[I]`` train events of every item."""
        return item_counts(self.offsets[:-1], self.train_end, self.item, self.num_items)

    @cached_property
    def backwards(self) -> Int64Array:
        """Places whose known time is before that of the event in front of it, of the same user; none in sound data."""
        drops = self.ticks[1:] < self.ticks[:-1]
        borders = self.offsets[(self.offsets > 0) & (self.offsets < len(self.ticks))]
        drops[borders - 1] = False  # another user's event is in front of it
        places = np.flatnonzero(drops) + 1
        return places[self.ticks[places] >= 0]

    @cached_property
    def backward_users(self) -> Int64Array:
        """Users whose events go backwards, ascending."""
        return np.unique(np.searchsorted(self.offsets, self.backwards, side="right") - 1)

    @cached_property
    def latest_train_time(self) -> Int64Array:
        """``[U]`` time of the user's latest train event, -1 without one."""
        last = self.train_end - 1
        time = np.where(last >= self.offsets[:-1], self.timestamp[np.maximum(last, 0)], -1)
        for user in self.backward_users.tolist():
            time[user] = self.timestamp[self.offsets[user] : self.train_end[user]].max(initial=-1)
        return time

    def window(self, split: int) -> tuple[Int64Array, Int64Array]:
        """Return start and end of every user's events of a split, as places in the arrays."""
        borders = (self.offsets[:-1], self.train_end, self.valid_end, self.offsets[1:])
        return borders[split], borders[split + 1]


@dataclass(frozen=True)
class AskedRows:
    """The rows of one split.

    Attributes:
        split: Its name.
        targets: The rows as written.
        row: ``[targets]`` the row each right item belongs to.
        first: ``[N]`` place of the row's first right item in the arrays, -1 where the user has no such event there.
        time: ``[N]`` its time, -1 not known.
        window_start: ``[N]`` first place of the user's events of this split.
    """

    split: str
    targets: Targets
    row: npt.NDArray[np.int64]
    first: Int64Array
    time: Int64Array
    window_start: Int64Array

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def user(self) -> npt.NDArray[np.int32]:
        """``[N]`` user_index."""
        return self.targets.user_index

    def any_of(self, right: BoolArray) -> BoolArray:
        """Return for every row whether any of its right items is marked.

        Args:
            right: ``[targets]`` one mark per right item.
        """
        return np.bincount(self.row[right], minlength=len(self)) > 0

    def about(self, touched: BoolArray, user_ids: pl.Series) -> dict[str, Any]:
        """Return what a finding says of the rows it touches: ``split``, ``rows``, ``of`` and ``examples``.

        Args:
            touched: ``[N]`` one mark per row.
            user_ids: Of the data set.
        """
        examples = example_ids(user_ids, self.user[touched])
        return {"split": self.split, "rows": int(touched.sum()), "of": len(self), "examples": examples}


def asked_rows(arrays: Arrays, split: int, targets: Targets) -> AskedRows:
    """Find the first right items of the rows of a split.

    A user's only row of a split begins where the split begins; of several rows each begins at its own event, which is where
    its history should end. Where another item stands there, the user's events of the split are searched.

    Args:
        arrays: The data.
        split: ``VALID`` or ``TEST``.
        targets: Its rows.
    """
    if split == TRAIN:
        raise ValueError("train rows are not asked; give VALID or TEST")
    start, end = arrays.window(split)
    user = np.asarray(targets.user_index).astype(np.int64)  # as NumPy looks places up
    begin, stop = start[user], end[user]
    place = begin.copy()
    if not (user[1:] > user[:-1]).all():
        several = np.bincount(user, minlength=len(start))[user] > 1
        place[several] = targets.history_end[several]
    wanted = targets.items[targets.item_offsets[:-1]] if len(user) else np.empty(0, np.int32)
    inside = (place >= begin) & (place < stop)
    right = inside & (arrays.item[np.minimum(place, len(arrays.item) - 1)] == wanted)
    for row in np.flatnonzero(~right):
        found = np.flatnonzero(arrays.item[begin[row] : stop[row]] == wanted[row])
        place[row] = begin[row] + found[0] if len(found) else -1
    return AskedRows(
        split=SPLIT_NAMES[split],
        targets=targets,
        row=np.repeat(np.arange(len(user)), np.diff(targets.item_offsets)),
        first=place,
        time=np.where(place >= 0, arrays.timestamp[place], -1),
        window_start=begin,
    )


AUDITED = (TEST, VALID)
"""Splits that are looked at, the one that is reported first."""


def hit_rate(rows: AskedRows, lists: npt.NDArray[np.int32]) -> float:
    """Return the share of rows with a right item in their list.

    Args:
        lists: ``[N, k]`` item_index, -1 for no item; or ``[k]``, one list for all rows.
    """
    if not len(rows):
        return 0.0
    items = rows.targets.items
    one = lists.ndim == 1
    hit = np.isin(items, lists[lists >= 0]) if one else (lists[rows.row] == items[:, None]).any(axis=1)
    return float(rows.any_of(hit).mean())


def most_frequent(counts: Int64Array, k: int = 10) -> npt.NDArray[np.int32]:
    """Return the ``k`` items with the largest counts, ties to the lower index; items without any are left out.

    Example:
        >>> most_frequent(np.array([1, 3, 0, 3]), 3).tolist()
        [1, 3, 0]
    """
    order = np.argsort(-counts, kind="stable")[:k]
    return order[counts[order] > 0].astype(np.int32)

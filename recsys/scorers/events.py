"""What counting reads: the events it may look at, and histories as weights of their items.

Legend: N rows (histories), I items, U users, E events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.contracts.dataset import Dataset, IntArray, OffsetArray
from recsys.contracts.errors import DataError
from recsys.data.histories import Histories
from recsys.scorers.config import Until

FloatArray = npt.NDArray[np.float32]

NEGLIGIBLE_WEIGHT: Final = 1e-6
"""Events of a history that weigh less than this are left out; they cannot change an order that anybody would defend."""


@dataclass(frozen=True)
class CountedEvents:
    """The positive events that may be looked at, sorted by user, then time.

    Attributes:
        user: ``[E]`` user_index.
        item: ``[E]`` item_index.
        timestamp: ``[E]`` UTC microseconds, -1 not known.
        age: ``[E]`` how many later events the user has among the counted ones; 0 is the user's last.
    """

    user: IntArray
    item: IntArray
    timestamp: OffsetArray
    age: OffsetArray

    @classmethod
    def from_dataset(cls, prepared: Dataset, until: Until) -> CountedEvents:
        """Collect the events.

        Raises:
            DataError: There is none.
        """
        history = prepared.history
        ends = history.train_end if until == "train" else history.valid_end
        row, flat = ragged_rows(np.asarray(history.offsets[:-1]), np.asarray(ends))
        if not len(flat):
            raise DataError(f"no positive event lies before the end of the {until} split; check the dates of the split")
        return cls(
            user=row.astype(np.int32),
            item=np.asarray(history.item)[flat],
            timestamp=np.asarray(history.timestamp[flat]),
            age=np.asarray(ends)[row] - 1 - flat,
        )

    def user_item_matrix(self, num_users: int, num_items: int) -> sparse.csr_array:
        """Return the binary float32 matrix ``[U, I]``: 1 where the user has at least one counted event on the item."""
        ones = np.ones(len(self.item), np.float32)
        matrix = sparse.csr_array((ones, (self.user, self.item)), shape=(num_users, num_items))
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix


def ragged_rows(start: OffsetArray, end: OffsetArray) -> tuple[OffsetArray, OffsetArray]:
    """Enumerate the ranges ``[start, end)``: for every element its range number and its position.

    Example:
        >>> row, flat = ragged_rows(np.array([0, 5]), np.array([2, 6]))
        >>> row.tolist(), flat.tolist()
        ([0, 0, 1], [0, 1, 5])
    """
    lengths = (end - start).astype(np.int64)
    before = np.cumsum(lengths) - lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row, np.repeat(start - before, lengths) + np.arange(len(row))


def history_weights(histories: Histories, num_items: int, decay: float) -> sparse.csr_array:
    """Weigh each history's items by recency: ``decay ** (number of later events)``; repeats add up.

    Args:
        decay: In (0, 1]; 1 counts all events alike.

    Returns:
        ``[N, I]`` float32, sparse.

    Raises:
        DataError: A history holds an item beyond ``num_items``.
    """
    reach = len(histories.item) if decay >= 1.0 else int(np.ceil(np.log(NEGLIGIBLE_WEIGHT) / np.log(decay)))
    row, flat = ragged_rows(np.maximum(histories.start, histories.end - reach), histories.end)
    item = np.asarray(histories.item)[flat]
    weight = np.power(decay, histories.end[row] - 1 - flat)
    known = known_items(item, num_items)
    triplets = (weight[known].astype(np.float32), (row[known], item[known]))
    return sparse.csr_array(triplets, shape=(len(histories), num_items))


def known_items(item: IntArray, num_items: int) -> npt.NDArray[np.bool_]:
    """Which entries are items of the catalogue; -1 is an item that was not known when the data were prepared.

    Raises:
        DataError: One is beyond the catalogue.
    """
    if len(item) and int(item.max()) >= num_items:
        raise DataError(
            f"a history holds item_index {int(item.max())}, the counts are of {num_items} items; "
            "count and rank with the same prepared data"
        )
    return item >= 0

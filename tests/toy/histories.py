"""Histories and data sets that lie on no disk, from a list of items per user."""

from __future__ import annotations

import numpy as np

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from tests.toy.builders import history_lists, in_memory


def histories_of(lists: list[list[int]]) -> Histories:
    ends = np.cumsum([len(items) for items in lists]).astype(np.int64)
    item = np.array([item for items in lists for item in items], np.int32)
    blank = np.zeros(len(item), np.uint8)
    starts = ends - np.array([len(items) for items in lists])
    return Histories(np.full(len(lists), -1, np.int32), starts, ends, item, blank, blank, blank)


def prepared_of(lists: list[list[int]], num_items: int) -> Dataset:
    """All but the last two events are train; nothing lies on disk."""
    return in_memory(history_lists(lists, held_out=2), num_items)

"""Slices: a catalogue small enough to see, and a target from another catalogue."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.contracts.dataset import Targets
from recsys.contracts.errors import DataError
from recsys.evaluation.config import SlicesConfig
from recsys.evaluation.slices import head_items, row_slices

COUNTS = np.array([10, 5, 4, 1, 0])


def targets_with(lengths: list[int], lists: list[list[int]]) -> Targets:
    start = np.array([100 * row for row in range(len(lists))], np.int64)
    return Targets(
        user_index=np.arange(len(lists), dtype=np.int32),
        history_start=start,
        history_end=start + np.array(lengths),
        items=np.array([item for items in lists for item in items], np.int32),
        item_offsets=np.cumsum([0, *(len(items) for items in lists)]).astype(np.int64),
    )


def test_rows_by_hand() -> None:
    """Traffic 20: item 0 alone makes 50 %, so it is the head; item 4 was never trained on.

    Rows ask for {0}, {1}, {4}, {0, 1} (mixed: neither head nor tail), {1, 4} (tail, and cold because of 4).
    """
    slices = row_slices(targets_with([0, 5, 6, 20, 40], [[0], [1], [4], [0, 1], [1, 4]]), COUNTS)
    assert slices["all"].tolist() == [True] * 5
    assert slices["head_items"].tolist() == [True, False, False, False, False]
    assert slices["tail_items"].tolist() == [False, True, True, False, True]
    assert slices["cold_items"].tolist() == [False, False, True, False, True]
    assert slices["no_history"].tolist() == [True, False, False, False, False]
    assert slices["new_users"].tolist() == [True, True, False, False, False]
    assert slices["long_histories"].tolist() == [False, False, False, True, True]


def test_borders_are_configurable() -> None:
    config = SlicesConfig(cold_max_count=1, new_user_max=0, long_history_min=6, head_share=0.6)
    slices = row_slices(targets_with([0, 5, 6], [[3], [1], [2]]), COUNTS, config)
    assert slices["cold_items"].tolist() == [True, False, False]
    assert slices["new_users"].tolist() == [True, False, False]
    assert slices["long_histories"].tolist() == [False, False, True]
    assert slices["head_items"].tolist() == [False, True, False]  # 10 of 20 is below 60 %, so item 1 joins the head


def test_head_makes_up_the_share_and_not_one_item_more() -> None:
    counts = np.random.default_rng(0).integers(0, 50, size=200)
    head = head_items(counts, 0.5)
    inside = counts[head].sum()
    assert inside >= 0.5 * counts.sum()
    assert inside - counts[head].min() < 0.5 * counts.sum()
    assert counts[head].min() >= counts[~head].max()


def test_of_equally_popular_items_the_lower_ones_are_head() -> None:
    assert head_items(np.array([2, 2, 2, 2]), 0.5).tolist() == [True, True, False, False]
    assert head_items(np.array([1, 3, 1, 3]), 0.6).tolist() == [False, True, False, True]
    assert head_items(np.array([1, 3, 1, 3]), 0.8).tolist() == [True, True, False, True]


def test_every_single_target_is_head_or_tail() -> None:
    lists = [[int(item)] for item in np.random.default_rng(1).integers(5, size=30)]
    slices = row_slices(targets_with([3] * 30, lists), COUNTS)
    assert (slices["head_items"] ^ slices["tail_items"]).all()


def test_refuses_targets_of_another_catalogue() -> None:
    with pytest.raises(DataError, match="item_index 9, the item table has 5 rows"):
        row_slices(targets_with([1], [[9]]), COUNTS)

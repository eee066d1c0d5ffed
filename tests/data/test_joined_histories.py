"""Rows of several tables of histories as one table: nobody's events change hands."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data.histories import Histories

ITEMS = np.array([10, 11, 12, 13, 14, 15], np.int32)


def histories(start: list[int], end: list[int], *, asks: bool = False) -> Histories:
    """Rows that look at these spans of six events; behaviour, gap and watch count on from 0, 100 and 200."""
    count = np.arange(len(ITEMS), dtype=np.uint8)
    rows = len(start)
    return Histories(
        user_index=np.arange(rows, dtype=np.int32),
        start=np.array(start),
        end=np.array(end),
        item=ITEMS,
        behaviour=count,
        gap=count + 100,
        watch=count + 200,
        objective=np.full((rows, 2), 0.5, np.float32) if asks else None,
        words=np.full((rows, 3), rows, np.int32) if asks else None,
    )


def test_events_that_nobody_looks_at_are_left_out_and_every_row_keeps_its_own() -> None:
    """Events 4, 5 | none | 1, 2 and 0: five of twelve, in that order."""
    joined = Histories.joined([histories([4, 2], [6, 2]), histories([1, 0], [3, 1])])
    assert joined.item.tolist() == [14, 15, 11, 12, 10]
    assert (joined.start.tolist(), joined.end.tolist()) == ([0, 2, 2, 4], [2, 2, 4, 5])
    assert joined.behaviour.tolist() == [4, 5, 1, 2, 0]
    assert joined.gap.tolist() == [104, 105, 101, 102, 100]
    assert joined.watch.tolist() == [204, 205, 201, 202, 200]
    assert joined.user_index.tolist() == [0, 1, 0, 1]
    assert joined.item.dtype == np.int32
    assert joined.objective is None


def test_objectives_and_words_go_along() -> None:
    joined = Histories.joined([histories([0], [1], asks=True), histories([0, 1], [0, 2], asks=True)])
    assert joined.words is not None
    assert joined.words[:, 0].tolist() == [1, 2, 2]
    assert joined.objective is not None
    assert joined.objective.shape == (3, 2)


@pytest.mark.parametrize("rows", [[0], [1, 0], [2, 2, 1], []])
def test_taking_and_joining_give_the_same_items(rows: list[int]) -> None:
    every = histories([3, 0, 6], [6, 2, 6])
    taken = every.take(np.array(rows, np.int64))
    joined = Histories.joined([taken])
    assert [seen.tolist() for seen in joined.seen_items()] == [seen.tolist() for seen in taken.seen_items()]

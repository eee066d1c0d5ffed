"""Answers become tables of outside ids: items by hand, none at all, and what is missing stays out."""

from __future__ import annotations

import numpy as np
import polars as pl

from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from serving.answers.frame import Answer, answer_frame
from serving.inputs.history_frame import MappedHistories

ITEM_IDS = pl.Series([100, 107, 114])


def answer_of(users: list[str], items: list[list[int]], scores: list[list[float]]) -> Answer:
    no_events = [np.zeros(0, np.uint8)] * 4
    histories = Histories(*[np.zeros(len(users), np.int64)] * 3, *no_events)
    asked = MappedHistories(pl.Series(users, dtype=pl.String), histories, np.arange(len(users), dtype=np.int32))
    return Answer(asked, RankedItems(np.array(items, np.int32), np.array(scores, np.float32)), [])


def test_items_by_hand() -> None:
    """User a gets items 2 and 0, user b only item 1: 2 + 1 rows; b has one event of an unknown item."""
    rows = answer_frame(answer_of(["a", "b"], [[2, 0], [1, -1]], [[4.0, 3.0], [1.0, -np.inf]]), ITEM_IDS)
    assert rows.columns == ["user_id", "item_id", "rank", "score", "num_unknown_items"]
    assert rows.rows() == [("a", 114, 1, 4.0, 0), ("a", 100, 2, 3.0, 0), ("b", 107, 1, 1.0, 1)]


def test_nobody_answered_keeps_the_columns() -> None:
    rows = answer_frame(answer_of(["a"], [[-1, -1]], [[-np.inf, -np.inf]]), ITEM_IDS)
    assert rows.is_empty()
    assert dict(rows.schema) == {
        "user_id": pl.String,
        "item_id": pl.Int64,
        "rank": pl.Int32,
        "score": pl.Float32,
        "num_unknown_items": pl.Int32,
    }

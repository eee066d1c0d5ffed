"""Order, ties, repeats and k-core on logs small enough to do by hand."""

import numpy as np
import polars as pl
import pytest

from features.log.k_core import KCoreConfig, k_core_mask
from recsys.contracts.errors import DataError
from tests.toy.logs import START, US, kept_of, log_of


def test_events_are_sorted_by_user_then_time_and_ties_keep_the_source_order() -> None:
    log = log_of(
        {"user_id": [8, 7, 7, 7], "item_id": [1, 5, 4, 3], "timestamp": [START, START + US, START + US, START]}
    )
    assert log.user_ids.to_list() == [7, 8]
    assert log.item_ids.to_list() == [1, 3, 4, 5]
    assert log.user.tolist() == [0, 0, 0, 1]
    assert log.item_ids[log.item].to_list() == [3, 5, 4, 1]  # 5 before 4: same instant, order of the source


def test_prehistory_comes_before_all_timed_events_in_the_order_of_its_positions() -> None:
    log = log_of(
        {
            "user_id": [7, 7, 7],
            "item_id": [1, 2, 3],
            "timestamp": [START, None, None],
            "position": [None, 9, 4],
            "prehistory": [False, True, True],
        }
    )
    assert log.item_ids[log.item].to_list() == [3, 2, 1]
    assert log.timestamp.tolist() == [-1, -1, START]


def test_position_and_then_the_tie_break_order_events_of_the_same_time() -> None:
    """Items 1 to 4 at one instant: positions 2 2 1 1, tie-breaks 9 8 null 5; null stands first."""
    rows = {"user_id": [7] * 4, "item_id": [1, 2, 3, 4], "timestamp": [START] * 4}
    kept = kept_of(rows | {"position": [2, 2, 1, 1], "tie_break": [9, 8, None, 5]})
    assert kept.log.item_ids[kept.log.item].to_list() == [3, 4, 2, 1]
    assert kept.ties == (3, 0)
    assert kept_of(rows).ties == (3, 3)


def test_a_tie_across_two_users_is_none() -> None:
    rows = {"user_id": [7, 8, 8], "item_id": [1, 2, 3], "timestamp": [START, START, START + US]}
    assert kept_of(rows).ties == (0, 0)


def test_k_core_equals_repeated_filtering() -> None:
    """The bincount version keeps what filtering users and items in turn, until nothing changes, keeps."""
    rng = np.random.default_rng(3)
    user, item = rng.integers(0, 60, 600).astype(np.int32), rng.integers(0, 50, 600).astype(np.int32)
    positive = rng.random(600) < 0.7
    frame = pl.DataFrame({"u": user, "i": item, "p": positive})
    slow = frame.with_row_index()
    while True:
        good = slow.filter("p")
        users = good.group_by("u").len().filter(pl.col("len") >= 5)["u"]
        items = good.group_by("i").len().filter(pl.col("len") >= 5)["i"]
        smaller = slow.filter(pl.col("u").is_in(users.implode()) & pl.col("i").is_in(items.implode()))
        if len(smaller) == len(slow):
            break
        slow = smaller
    mask = k_core_mask(user, item, positive, KCoreConfig(user=5, item=5))
    assert mask is not None
    assert 0 < mask.sum() < 600
    assert np.flatnonzero(mask).tolist() == slow["index"].to_list()


def test_k_core_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no event is left"):
        log_of({"user_id": [7], "item_id": [1], "timestamp": [START]}, user=2)

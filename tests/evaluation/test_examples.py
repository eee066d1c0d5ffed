"""The example users of a report: drawn by seed, with a hit and a miss where both exist."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.examples import EXAMPLES_FILE, choose_rows, hit_rows, write_examples
from tests.toy.dataset import ring_prepared


def targets_of(users: list[int], items: list[list[int]]) -> Targets:
    count = len(users)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64)
    flat = np.array([item for row in items for item in row], np.int32)
    return Targets(np.array(users, np.int32), np.zeros(count, np.int64), np.zeros(count, np.int64), flat, offsets)


def ranking(items: list[list[int]]) -> RankedItems:
    array = np.array(items, np.int32)
    return RankedItems(array, np.zeros(array.shape, np.float32))


def test_hits_by_hand() -> None:
    """Row 0 has 4 at place 2; row 1 has its 9 only at place 3; row 2 has no target, and -1 is no item."""
    targets = targets_of([0, 1, 2], [[7, 4], [9], []])
    ranked = ranking([[1, 4, 2], [1, 2, 9], [-1, -1, -1]])
    assert hit_rows(ranked, targets, 2).tolist() == [True, False, False]
    assert hit_rows(ranked, targets, 3).tolist() == [True, True, False]


def test_draw_is_decided_by_the_seed_and_takes_each_user_once() -> None:
    targets = targets_of([u // 3 for u in range(60)], [[0]] * 60)
    hits = np.arange(60) % 2 == 0
    rows, _ = choose_rows(targets, hits, 3)
    assert rows == choose_rows(targets, hits, 3)[0]
    assert rows != choose_rows(targets, hits, 4)[0]
    assert len({targets.user_index[row] for row in rows}) == len(rows) == 5


@pytest.mark.parametrize("rare", [True, False])
def test_the_only_hit_or_miss_among_many_is_shown(rare: bool) -> None:
    targets = targets_of(list(range(200)), [[0]] * 200)
    hits = np.full(200, not rare)
    hits[137] = rare
    rows, adjusted = choose_rows(targets, hits, 0)
    assert adjusted
    assert rows[-1] == 137
    assert len(set(rows)) == 5


def test_the_only_hit_may_be_another_row_of_a_drawn_user() -> None:
    """Users 0 and 1 have two rows each; whichever row is drawn first, the hit of user 1 must appear, and each user once."""
    targets = targets_of([0, 0, 1, 1], [[0]] * 4)
    for seed in range(10):
        rows, _ = choose_rows(targets, np.array([False, False, False, True]), seed)
        assert 3 in rows
        assert {int(targets.user_index[row]) for row in rows} == {0, 1}


def test_nothing_is_exchanged_where_nothing_else_exists() -> None:
    targets = targets_of([0, 1], [[0], [0]])
    assert choose_rows(targets, np.zeros(2, bool), 0)[1] is False
    assert choose_rows(targets_of([5], [[0]]), np.ones(1, bool), 0) == ([0], False)


def test_examples_of_the_ring(tmp_path: Path) -> None:
    """On the ring the next item is known: rank it second for all but user 3, who gets it nowhere."""
    prepared = ring_prepared(tmp_path / "ring")
    targets = prepared.targets(TEST)
    right = targets.items[targets.item_offsets[:-1]]
    items = np.stack([(right + 5) % 12, right, (right + 6) % 12], axis=1)
    items[targets.user_index == 3, 1] = -1
    ranked = RankedItems(items.astype(np.int32), np.zeros(items.shape, np.float32))
    found = write_examples(prepared, ranked, TEST, tmp_path, 1, system="ring", exclude_seen=False)
    assert found == json.loads((tmp_path / EXAMPLES_FILE).read_text())
    assert (found["k"], found["rows"], len(found["users"])) == (3, 60, 5)
    by_hit = {user["first_hit"] for user in found["users"]}
    assert by_hit == {2, None}
    for user in found["users"]:
        number = int(user["user_id"].removeprefix("u"))
        length = 9 - number // 12 % 3 - 1  # the last event is the target
        walk = [f"i{(number + step) % 12}" for step in range(length + 1)]
        assert user["history_length"] == length
        assert [item["item_id"] for item in user["history"]] == walk[:-1][-8:]
        assert [item["item_id"] for item in user["next"]] == walk[-1:]
        assert user["next"][0]["title"] == f"item {walk[-1].removeprefix('i')}"
        assert [item["hit"] for item in user["answer"]] == ([False, True, False] if number != 3 else [False, False])
        assert user["next"][0]["hit"] == (number != 3)


def test_a_ranking_of_other_rows_is_refused(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path / "ring")
    with pytest.raises(DataError, match=r"ranking of 'ring' has 1 rows, the test split 60"):
        write_examples(prepared, ranking([[0]]), TEST, tmp_path, 1, system="ring", exclude_seen=True)


def test_one_user_by_hand(tmp_path: Path) -> None:
    """The user walked 0 to 9, of which the last eight are shown; of nine targets eight are, of twelve answers ten.

    Answered are 0 11 10 9 8 7 6 5 4 3, so of the targets 3, 10, 2 and 11 only 2 is missed; 10 and 11 were never seen.
    """
    folder = tmp_path / "ring"
    ring_prepared(folder, users=1, events=11)
    table = pl.read_parquet(folder / "targets.parquet")
    come = pl.Series([[3, 10, 2, 3, 3, 3, 3, 3, 11]] * len(table), dtype=table.schema["targets"])
    table.with_columns(come.alias("targets")).write_parquet(folder / "targets.parquet")
    ranked = ranking([[0, *range(11, 0, -1)]])
    (user,) = write_examples(Dataset.open(folder), ranked, TEST, tmp_path, 1, system="x", exclude_seen=False)["users"]
    assert (user["history_length"], user["next_length"], user["first_hit"]) == (10, 9, 2)
    assert [item["item_id"] for item in user["history"]] == [f"i{item}" for item in range(2, 10)]
    assert [(item["item_id"], item["hit"], item["seen"]) for item in user["next"]] == [
        ("i3", True, True),
        ("i10", True, False),
        ("i2", False, True),
        *[("i3", True, True)] * 5,
    ]
    assert [item["item_id"] for item in user["answer"]] == ["i0", *(f"i{item}" for item in range(11, 2, -1))]
    assert [item["hit"] for item in user["answer"]] == [False, True, True, *[False] * 6, True]
    assert [item["seen"] for item in user["answer"]] == [True, False, False, *[True] * 7]


def test_one_user_alone_is_not_exchanged() -> None:
    """Two rows of one user, a hit and a miss: whichever is drawn stays, the report shows one row per user."""
    targets = targets_of([4, 4], [[0], [0]])
    found = [choose_rows(targets, np.array([True, False]), seed) for seed in range(10)]
    assert {row for rows, _ in found for row in rows} == {0, 1}
    assert not any(adjusted for _, adjusted in found)

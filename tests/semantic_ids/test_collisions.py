"""Collisions on a line, where every distance can be checked by eye."""

import itertools

import numpy as np
import pytest

from recsys.contracts.errors import DataError
from recsys.semantic_ids.collisions import CodeTree, make_unique
from recsys.semantic_ids.quantizer import encode_nearest

BOOKS = (np.array([[0.0], [100.0]], np.float32), np.array([[0.0], [1.0], [2.0]], np.float32))


def column(*values):
    return np.array(values, np.float32).reshape(-1, 1)


def test_reassign_by_hand():
    """Items at 0.1, 0.2, 1.1, 100: codes (0,0) (0,0) (0,1) (1,0). Items 0 and 1 collide; item 1 has more traffic and stays.

    Item 0 moves: under prefix 0 only code 2 is free, so (0,2). Items 2 and 3 collide with nobody and stay.
    """
    x = column(0.1, 0.2, 1.1, 100.0)
    codes = encode_nearest(x, BOOKS)
    assert codes.tolist() == [[0, 0], [0, 0], [0, 1], [1, 0]]
    repair = make_unique(codes, x, BOOKS, np.array([3, 7, 1, 1]), "reassign")
    assert repair.codes.tolist() == [[0, 2], [0, 0], [0, 1], [1, 0]]
    assert repair.moved.tolist() == [True, False, False, False]
    assert repair.level_sizes == (2, 3)


def test_movers_are_assigned_together_not_one_after_the_other():
    """Three items at -0.2, 0.4, 0.3 share (0,0); item 0 has the traffic. Free: codes 1 and 2, at 1 and 2.

    Costs: item 1 0.36 or 2.56, item 2 0.49 or 2.89. Apart, both want code 1. Together: item 1 on 2 and item 2 on 1 is
    2.56 + 0.49 = 3.05, the other way 0.36 + 2.89 = 3.25. So item 1, though nearer to code 1 and more visited, takes code 2.
    """
    x = column(-0.2, 0.4, 0.3)
    repair = make_unique(encode_nearest(x, BOOKS), x, BOOKS, np.array([9, 2, 1]), "reassign")
    assert repair.codes.tolist() == [[0, 0], [0, 2], [0, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_assignment_has_the_least_total_distance(seed):
    """Four items near one centroid of six in the plane: the three movers against all 5 * 4 * 3 ways to place them."""
    rng = np.random.default_rng(seed)
    book = np.concatenate([np.zeros((1, 2)), 3 * rng.standard_normal((5, 2)) + 5]).astype(np.float32)
    books = (np.zeros((1, 2), np.float32), book)
    x = rng.standard_normal((4, 2)).astype(np.float32) * 0.3
    codes = np.zeros((4, 2), np.int32)
    repair = make_unique(codes, x, books, np.array([4, 3, 2, 1]), "reassign")
    cost = np.square(x[1:, None] - book[None]).sum(axis=2)
    best = min(sum(cost[i, c] for i, c in enumerate(way)) for way in itertools.permutations(range(1, 6), 3))
    assert sum(cost[i, c] for i, c in enumerate(repair.codes[1:, 1])) == pytest.approx(best, rel=1e-5)
    assert repair.codes[0].tolist() == [0, 0]


def test_a_full_prefix_sends_its_least_visited_items_to_the_next_one():
    """Five items at 0 with three last codes: traffic 5 4 3 keep prefix 0; items 3 and 4 (traffic 2, 1) go to prefix 1.

    There their residual is 0 - 100 = -100: nearest last code 0 for item 3, then 1 for item 4.
    """
    x = column(0, 0, 0, 0, 0)
    repair = make_unique(encode_nearest(x, BOOKS), x, BOOKS, np.array([5, 4, 3, 2, 1]), "reassign")
    assert sorted(repair.codes[:3, 1].tolist()) == [0, 1, 2]
    assert repair.codes[:3, 0].tolist() == [0, 0, 0]
    assert repair.codes[3:].tolist() == [[1, 0], [1, 1]]
    assert repair.codes[0].tolist() == [0, 0]


def test_overflow_climbs_more_than_one_level():
    """Eight equal items fill all IDs of 2 x 2 x 2, whatever their nearest code."""
    books = tuple(np.array([[0.0], [1.0]], np.float32) for _ in range(3))
    x = column(*[0.0] * 8)
    repair = make_unique(encode_nearest(x, books), x, books, np.arange(8), "reassign")
    assert sorted(map(tuple, repair.codes.tolist())) == list(itertools.product([0, 1], repeat=3))
    assert repair.codes[7].tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", ["reassign", "extra_level"])
def test_repair_keeps_its_promises(method):
    """Unique afterwards; whoever was alone, and the most visited of each group, keep the quantizer's codes."""
    rng = np.random.default_rng(0)
    books = tuple(rng.standard_normal((6, 2)).astype(np.float32) for _ in range(3))
    x = rng.standard_normal((150, 2)).astype(np.float32)
    codes, traffic = encode_nearest(x, books), rng.integers(0, 9, 150)
    repair = make_unique(codes, x, books, traffic, method)
    assert len(np.unique(repair.codes, axis=0)) == 150
    groups = {}
    for item, code in enumerate(map(tuple, codes.tolist())):
        groups.setdefault(code, []).append(item)
    assert max(map(len, groups.values())) > 2
    for members in groups.values():
        keeper = max(members, key=lambda item: (traffic[item], -item))
        for item in members:
            assert repair.moved[item] == (item != keeper)
            if method == "extra_level" or item == keeper:
                assert repair.codes[item, :3].tolist() == codes[item].tolist()
    assert (repair.codes < np.array(repair.level_sizes)).all()
    assert (repair.codes >= 0).all()


def test_extra_level_by_hand():
    """Items 0, 1, 3 share (0,0), traffic 1 5 5: item 1 gets 0, item 3 gets 1 (tie, higher index), item 0 gets 2."""
    x = column(0.0, 0.1, 2.0, 0.2)
    repair = make_unique(encode_nearest(x, BOOKS), x, BOOKS, np.array([1, 5, 1, 5]), "extra_level")
    assert repair.codes.tolist() == [[0, 0, 2], [0, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert repair.level_sizes == (2, 3, 3)
    assert repair.moved.tolist() == [True, False, False, True]


def test_none_leaves_collisions_in_place():
    x = column(0.1, 0.2)
    codes = encode_nearest(x, BOOKS)
    repair = make_unique(codes, x, BOOKS, np.array([1, 1]), "none")
    assert repair.codes.tolist() == codes.tolist()
    assert not repair.moved.any()


def test_more_items_than_ids_are_refused():
    x = column(*range(7))
    with pytest.raises(
        DataError, match=r"7 items, but only 6 IDs from level sizes \(2, 3\); raise tokenize.num_levels"
    ):
        make_unique(encode_nearest(x, BOOKS), x, BOOKS, np.ones(7, np.int64), "reassign")


def test_tree_refuses_when_every_id_is_taken():
    taken = np.array(list(itertools.product(range(2), range(3))), np.int32)
    with pytest.raises(DataError, match=r"all 6 IDs of level sizes \(2, 3\) are taken; tokenize anew"):
        CodeTree(taken, (2, 3), BOOKS).nearest_free(np.zeros(1, np.float32))

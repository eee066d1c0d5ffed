"""Codes of a new generation under the names that keep most."""

from itertools import permutations

import numpy as np
import pytest

from recsys.semantic_ids.generations import naming
from recsys.semantic_ids.generations.naming import names_after, renamed


def test_by_hand():
    """Level 1: new code 1 holds items 0 and 1 (traffic 9 + 1 each one more: 12), both old code 0, so 1 is called 0.

    Level 2, among items that agree: item 0 (weight 10) is 0 and was 1, item 1 (weight 2) is 0 and was 0: 0 is called 1, so
    item 0 keeps its whole ID and item 1 does not. Item 2 would like it otherwise, but has lost its first code.
    """
    old = np.array([[0, 1], [0, 0], [0, 0], [1, 1]], np.int32)
    new = np.array([[1, 0], [1, 0], [0, 0], [0, 1]], np.int32)
    names = names_after(old, new, np.array([9, 1, 0, 3]), (2, 2))
    assert [name.tolist() for name in names] == [[1, 0], [1, 0]]
    assert renamed(new, names).tolist() == [[0, 1], [0, 1], [1, 1], [1, 0]]


def test_items_that_have_lost_their_first_code_do_not_decide_the_second():
    """Level 1: 11 + 10 keep codes as they are, 9 + 9 would if swapped. Level 2: of those who kept it, 11 were 0 and
    10 were 1 where they are 1 now, so 1 is called 0, though with the others 28 would have it otherwise.
    """
    old = np.array([[0, 0], [1, 1], [1, 1], [0, 1]], np.int32)
    new = np.array([[0, 1], [1, 1], [0, 1], [1, 1]], np.int32)
    names = names_after(old, new, np.array([10, 9, 8, 8]), (2, 2))
    assert [name.tolist() for name in names] == [[0, 1], [1, 0]]


def test_they_decide_where_nobody_else_does():
    """Codes 1 and 2 of level 2 hold nobody that kept its first code; the item that has lost it was 1 and is 2."""
    old, new = np.array([[0, 0], [1, 1]], np.int32), np.array([[0, 0], [0, 2]], np.int32)
    names = names_after(old, new, np.array([5, 0]), (2, 3))
    assert [name.tolist() for name in names] == [[0, 1], [0, 2, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_names_keep_more_traffic_at_the_first_level(seed):
    rng = np.random.default_rng(seed)
    old, new = rng.integers(0, 4, (2, 60, 1)).astype(np.int32)
    traffic = rng.integers(0, 30, 60)

    def kept(name):
        return int((traffic + 1)[np.array(name)[new[:, 0]] == old[:, 0]].sum())

    (found,) = names_after(old, new, traffic, (4,))
    assert kept(found) == max(kept(name) for name in permutations(range(4)))


def test_names_are_permutations_and_undo_a_shuffle():
    """A vocabulary that was only shuffled comes back whole; codes that nobody has get the names that are left."""
    rng = np.random.default_rng(1)
    old = rng.integers(0, 7, (200, 3)).astype(np.int32)
    shuffles = [rng.permutation(9) for _ in range(3)]
    new = np.column_stack([shuffle[old[:, level]] for level, shuffle in enumerate(shuffles)]).astype(np.int32)
    names = names_after(old, new, rng.integers(0, 5, 200), (9, 9, 9))
    assert renamed(new, names).tolist() == old.tolist()
    assert all(sorted(name) == list(range(9)) for name in names)


def test_large_codebooks_take_pairs_by_falling_weight(monkeypatch):
    monkeypatch.setattr(naming, "MAX_EXACT", 2)
    old = np.array([[0], [0], [1], [2], [2]], np.int32)
    new = np.array([[2], [2], [2], [1], [0]], np.int32)
    (name,) = names_after(old, new, np.array([1, 1, 9, 3, 2]), (4,))
    # new 2 was 1 with weight 10, which beats 0 with 4; new 1 was 2 with 4, new 0 was 2 with 3; 0 and 3 take what is left
    assert name.tolist() == [0, 2, 1, 3]


def test_without_common_items_any_names_will_do():
    nothing = np.empty((0, 2), np.int32)
    names = names_after(nothing, nothing, np.empty(0, np.int64), (3, 3))
    assert [sorted(name.tolist()) for name in names] == [[0, 1, 2], [0, 1, 2]]

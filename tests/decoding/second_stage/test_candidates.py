"""Candidates of several sources: by hand, against brute force under every kind of rule, and never short without need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.histories import Histories
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.search_index import SearchIndex
from recsys.decoding.second_stage.candidates import allowed_items, best_items, best_within_quotas, unite

CODES = np.stack([np.arange(20) * 7 % 20 // 5, np.arange(20) * 7 % 5], 1)
INDEX = PrefixIndex.build(CODES, (4, 5))
SEARCH = SearchIndex.from_index(INDEX)


def histories_of(seen: Sequence[Sequence[int]]) -> Histories:
    lengths = np.array([len(items) for items in seen])
    end = np.cumsum(lengths)
    flat = np.array([item for items in seen for item in items], np.int32)
    nothing = np.zeros(len(flat), np.uint8)
    return Histories(np.arange(len(seen), dtype=np.int32), end - lengths, end, flat, nothing, nothing, nothing)


def test_equal_scores_go_to_the_lower_item_at_the_last_place_too() -> None:
    """Three places, four items at .5 behind the best one: items 0 and 2 are kept, whatever topk would take."""
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, -torch.inf, 0.5]])
    items, found = best_items(scores, 3)
    assert items.tolist() == [[1, 0, 2]]
    assert found.tolist() == [[0.9, 0.5, 0.5]] or torch.allclose(found, torch.tensor([[0.9, 0.5, 0.5]]))


def test_fewer_possible_items_than_places_leave_the_end_empty() -> None:
    items, found = best_items(torch.tensor([[-torch.inf, 0.1, -torch.inf]]), 5)
    assert items.tolist() == [[1, -1, -1]]
    assert found[0, 1:].tolist() == [-torch.inf, -torch.inf]


def test_union_by_hand() -> None:
    """Beam 5 3, dense 3 9, transitions nothing: 3 has the bits of both, and values of the beam reach its own items."""
    lists = {"beam": [[5, 3], [-1, -1]], "dense": [[3, 9], [4, -1]], "transitions": [[-1, -1], [-1, -1]]}
    union = unite({name: torch.tensor(items) for name, items in lists.items()})
    assert union.item_BC.tolist() == [[3, 5, 9], [4, -1, -1]]
    assert union.bits_BC.tolist() == [[3, 1, 2], [2, 0, 0]]
    assert union.found_by("dense").tolist() == [[True, False, True], [True, False, False]]
    spread = union.spread(torch.tensor([[5, 3], [-1, -1]]), torch.tensor([[0.5, 0.3], [9.0, 9.0]]), -1.0)
    assert torch.allclose(spread, torch.tensor([[0.3, 0.5, -1.0], [-1.0, -1.0, -1.0]]))
    assert union.bits_at(torch.tensor([[9, 4], [4, -1]])).tolist() == [[2, 0], [2, 0]]


def test_no_candidate_at_all_leaves_one_empty_place() -> None:
    union = unite({"beam": torch.tensor([[-1, -1]])})
    assert union.item_BC.tolist() == [[-1]]
    assert union.bits_at(torch.tensor([[-1]])).tolist() == [[0]]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_source_keeps_every_rule_and_misses_nothing(data) -> None:  # type: ignore[no-untyped-def]
    """Against a walk down the sorted catalogue, user by user: segments, deny lists, seen items, quotas, ties."""
    seen = data.draw(st.lists(st.lists(st.integers(0, 19), max_size=12), min_size=1, max_size=4))
    histories = histories_of(seen)
    allow = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=2, max_size=2)))
    allow[:, 3] = True
    segments = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(seen), max_size=len(seen))))
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=20, max_size=20)))
    limits = np.array([0, *data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3))])
    with_quotas, exclude = data.draw(st.booleans()), data.draw(st.booleans())
    quotas = Quotas.from_groups(groups, limits) if with_quotas else None
    k = data.draw(st.integers(1, 25))
    # few different scores, so that ties are the rule
    score = np.array(data.draw(st.lists(st.lists(st.integers(0, 4), min_size=20, max_size=20), min_size=4, max_size=4)))
    score_BI = torch.from_numpy(score[: len(seen)].astype(np.float32))

    rules = CompiledRules.compile(INDEX, ItemRules(allow, segments=segments, quotas=quotas), exclude_seen=exclude)
    allowed = allowed_items(rules.for_batch(histories), SEARCH, len(seen))
    assert allowed is not None
    items, _ = best_within_quotas(score_BI.masked_fill(~allowed, -torch.inf), k, rules.quotas)
    for row, past in enumerate(seen):
        expected: list[int] = []
        left = limits.copy()
        for item in sorted(range(20), key=lambda item: (-float(score_BI[row, item]), item)):
            possible = allow[segments[row], item] and not (exclude and item in past)
            if possible and not (with_quotas and groups[item] and left[groups[item]] == 0) and len(expected) < k:
                expected.append(item)
                left[groups[item]] -= 1
        found = [item for item in items[row].tolist() if item >= 0]
        assert found == expected
        assert allowed[row].tolist() == [
            bool(allow[segments[row], item]) and not (exclude and item in past) for item in range(20)
        ]


def test_no_rule_at_all_costs_no_mask() -> None:
    rules = CompiledRules.compile(INDEX, ItemRules(), exclude_seen=False).for_batch(histories_of([[1], []]))
    assert allowed_items(rules, SEARCH, 2) is None
    rules = CompiledRules.compile(INDEX, ItemRules(), exclude_seen=True).for_batch(histories_of([[], []]))
    assert allowed_items(rules, SEARCH, 2) is None

"""Seen items as tensors close the same nodes as in NumPy; nothing of a search under rules waits for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding import beam_search
from recsys.decoding.batches import PreparedBatch
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.batch_rules import NO_NODE
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.rules.seen_items import close_seen
from recsys.decoding.search_index import SearchIndex
from tests.decoding.test_beam_search import random_policy
from tests.toy.dataset import ring_prepared, toy_ids
from tests.toy.host_reads import HostRead, no_host_reads

CODES = np.stack([np.arange(20) // 5, np.arange(20) % 5], 1)
INDEX = PrefixIndex.build(CODES, (4, 5))
ON_DEVICE = SearchIndex.from_index(INDEX)


def nodes(padded: torch.Tensor) -> list[list[int]]:
    return [sorted(node for node in row if node != NO_NODE) for row in padded.tolist()]


def test_by_hand() -> None:
    """Items 0:(0,0) 1:(0,1) 2:(1,0) 3:(1,1), leaf = item. A list of 1 0 0 takes both items below node 0, which closes with
    its leaves; a list of 3 takes one of two below node 1."""
    index = SearchIndex.from_index(PrefixIndex.build(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2)))
    below = (torch.tensor([[2, 2]]), torch.tensor([[1, 1, 1, 1]]))
    seen = torch.tensor([[1, 0, 0], [3, -1, -1]])
    personal = close_seen(seen, index, below, None, count=True)
    assert [nodes(level) for level in personal.closed] == [[[0], []], [[0, 1], [3]]]
    assert personal.denied is not None
    assert personal.denied[0].below(torch.tensor([[0, 1]] * 2)).tolist() == [[2, 0], [0, 1]]
    assert close_seen(seen, index, below, None, count=False).denied is None


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_tensors_and_arrays_close_the_same(data) -> None:  # type: ignore[no-untyped-def]
    bits = st.lists(st.booleans(), min_size=20, max_size=20)
    allow = np.array([data.draw(bits), data.draw(bits)])
    allow[:, 7] = True
    lists = data.draw(st.lists(st.lists(st.integers(0, 19), max_size=25), min_size=1, max_size=5))
    segments = np.array([data.draw(st.integers(0, 1)) for _ in lists])
    ends = np.cumsum([len(each) for each in lists])
    flat = np.array([item for each in lists for item in each], np.int32)
    starts = np.concatenate([[0], ends[:-1]])
    histories = Histories(np.arange(len(lists)), starts, ends, flat, *[np.zeros(len(flat), np.uint8)] * 3)
    rules = ItemRules(allow, segments=segments)
    arrays, tensors = (
        CompiledRules.compile(INDEX, rules, exclude_seen=True, search_index=search_index).for_batch(
            histories, num_items=2
        )
        for search_index in (None, ON_DEVICE)
    )
    assert arrays.personal is not None
    assert tensors.personal is not None
    for level in range(2):
        assert nodes(arrays.personal.closed[level]) == nodes(tensors.personal.closed[level])
        every = torch.arange(len(INDEX.codes[level])).expand(len(lists), 1, -1)
        expected = arrays.possible_below(ON_DEVICE, level, every)
        assert torch.equal(tensors.possible_below(ON_DEVICE, level, every), expected)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=10, items=20, task="session", session_length=2)


@pytest.mark.parametrize("num_items", [1, 2])
@pytest.mark.parametrize("quotas", [False, True])
def test_a_search_under_all_rules_reads_nothing_back(prepared, monkeypatch, num_items: int, quotas: bool) -> None:  # type: ignore[no-untyped-def]
    """Lists of a batch, the search and its order, as on a GPU; the looks that only a CPU takes are switched off."""
    recommender = Recommender(random_policy(prepared, toy_ids(CODES, (4, 5))), toy_ids(CODES, (4, 5)), DecodeConfig())
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    rules = ItemRules(
        allow=np.stack([np.arange(20) < 15, np.arange(20) > 2]),
        segments=np.arange(10) % 2,
        quotas=Quotas.from_groups(CODES[:, 0] + 1, 1) if quotas else None,
    )
    compiled = CompiledRules.compile(recommender.index, rules, exclude_seen=True, search_index=recommender.search_index)

    def search(width: int) -> beam_search.Beams:
        batch = PreparedBatch.of(histories, compiled, 6, torch.device("cpu"), num_items=num_items)
        with torch.inference_mode():
            return beam_search.beam_search(
                recommender.policy, batch.batch, recommender.search_index, width, rules=batch.rules, num_items=num_items
            )

    expected = search(6)
    if quotas and num_items == 1:
        with pytest.raises(HostRead), no_host_reads():  # the look that a CPU takes is seen
            search(2)
    monkeypatch.setattr(beam_search, "_may_look", lambda _: False)
    with no_host_reads():
        found = search(6)
    assert torch.equal(found.items, expected.items)
    torch.testing.assert_close(found.scores, expected.scores)

"""Recorded searches: few shapes, the right answer from each, a bounded number of them; with a recorder that a CPU has.

The recorder runs the search again on whatever lies in its inputs, as a graph does, and writes into the first answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.batches import PreparedBatch
from recsys.decoding.beam_search import Beams, beam_search
from recsys.decoding.config import DecodeConfig
from recsys.decoding.graphed_search import GraphedSearch, padded_size
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from tests.decoding.test_beam_search import random_policy
from tests.toy.dataset import ring_prepared, toy_ids

CODES = np.stack([np.arange(20) // 5, np.arange(20) % 5], 1)
WIDTH = 6


class Replayed:
    """What was recorded, run again into the same tensors."""

    def __init__(self, search: Callable[[], Beams]) -> None:
        self.search, self.beams = search, search()

    def replay(self) -> None:
        found = self.search()
        for part in fields(Beams):
            getattr(self.beams, part.name).copy_(getattr(found, part.name))


class Recorder:
    """Counts what it records."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, search: Callable[[], Beams]) -> Replayed:
        self.count += 1
        return Replayed(search)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=10, items=20)


@pytest.fixture(scope="module")
def recommender(prepared: Dataset) -> Recommender:
    ids = toy_ids(CODES, (4, 5))
    policy = random_policy(prepared, ids)
    return Recommender(policy, ids, DecodeConfig(beam_width=WIDTH))


def graphed(recommender: Recommender, users: int = 8, most: int = 16) -> tuple[GraphedSearch, Recorder]:
    recorder = Recorder()
    search = GraphedSearch(
        recommender.policy, recommender.search_index, [WIDTH], users, recorder=recorder, most_graphs=most
    )
    return search, recorder


def plain(recommender: Recommender, batch: PreparedBatch) -> Beams:
    return beam_search(recommender.policy, batch.batch, recommender.search_index, WIDTH, rules=batch.rules)


def assert_same(found: Beams, expected: Beams) -> None:
    assert torch.equal(found.items, expected.items)
    for name in ("scores", "log_probs", "dense_query"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)


RULES = {
    "none": ItemRules(exclude_seen=False),
    "seen": ItemRules(),
    "segments": ItemRules(np.stack([np.arange(20) < 15, np.arange(20) > 2]), segments=np.arange(10) % 2),
    "quotas": ItemRules(quotas=Quotas.from_groups(CODES[:, 0] + 1, 2)),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_replayed_search_is_the_search(prepared: Dataset, recommender: Recommender, kind: str) -> None:
    """Batches of other users, fewer users and shorter histories from one recording; nothing of the last batch is left."""
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    rules = recommender.compile(RULES[kind], len(histories))
    search, recorder = graphed(recommender)
    for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [9], [8, 2, 5], [3, 3, 0, 1, 2, 4, 5, 6]):
        own = np.array(rows)
        batch = PreparedBatch.of(histories.take(own), rules.take(own), 6, torch.device("cpu"), list_length=3)
        assert_same(search(batch.batch, batch.rules), plain(recommender, batch))
    assert recorder.count == len(search) <= 2  # without closed nodes at a level, and with some


def test_answers_are_not_overwritten_by_the_next_batch(prepared: Dataset, recommender: Recommender) -> None:
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    search, _ = graphed(recommender)
    first = search(collate_histories(histories.take(np.array([0, 1])), 6), BatchRules())
    kept = first.items.clone()
    search(collate_histories(histories.take(np.array([8, 9])), 6), BatchRules())
    assert torch.equal(first.items, kept)


def test_the_search_that_was_used_longest_ago_is_dropped(prepared: Dataset, recommender: Recommender) -> None:
    """Three kinds of rules, two places: a b a c drops b, so a is replayed and b is recorded again."""
    histories = Histories.from_targets(prepared.history, prepared.all_users()).take(np.arange(4))
    search, recorder = graphed(recommender, most=2)
    kinds = {name: recommender.compile(RULES[name], 4) for name in ("none", "seen", "quotas")}

    def ask(name: str) -> None:
        batch = PreparedBatch.of(histories, kinds[name], 6, torch.device("cpu"), list_length=3)
        assert_same(search(batch.batch, batch.rules), plain(recommender, batch))

    for name, recorded in (("none", 1), ("seen", 2), ("none", 2), ("quotas", 3), ("none", 3), ("seen", 4)):
        ask(name)
        assert recorder.count == recorded, name
        assert len(search) <= 2


def test_a_data_set_needs_few_shapes() -> None:
    """Every length up to 200 events, a window of 200, and lists of up to 3,000 seen items."""
    assert len({padded_size(length, 200) for length in range(1, 201)}) == 5
    assert len({padded_size(length) for length in range(1, 3001)}) == 9
    assert all(padded_size(length, 200) >= length for length in range(1, 201))
    assert padded_size(0) == 0  # no closed nodes: no list


def test_without_a_gpu_nothing_is_recorded(prepared: Dataset, recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="needs a GPU, the policy is on cpu"):
        GraphedSearch(recommender.policy, recommender.search_index, [WIDTH], 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", RULES)
def test_on_a_gpu(prepared: Dataset, kind: str) -> None:
    """As a user would: seen items as tensors, batches prepared ahead, searches recorded, weights of 16 bits."""
    ids = toy_ids(CODES, (4, 5))
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    policy = random_policy(prepared, ids).cuda()
    settings = {"beam_width": 20, "rows_per_batch": 60, "precision": "bfloat16"}
    expected = Recommender(policy, ids, DecodeConfig(**settings)).recommend(histories, 5, rules=RULES[kind])
    found = Recommender(policy, ids, DecodeConfig(**settings, cuda_graph=True)).recommend(
        histories, 5, rules=RULES[kind]
    )
    assert np.array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-3)

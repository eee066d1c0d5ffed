"""A user's answer is the same bit for bit whoever else is asked for: shards, batches, orders, company.

Users have histories of every length from none to more than the model reads; the policies have what a batch could touch:
attention over padded memories, experts with few rows, a guide over the catalogue, odd widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys import native
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.model.checkpoint import load_policy
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.scorer import Scorer
from serving.inputs.user_histories import PreparedUsers
from tests.toy.batch_world import DATA_DIGEST, World, WorldSize, build_world

USERS, ITEMS, K = 200, 400, 12
WIDTHS = {"width": 32, "num_heads": 2, "ffn_width": 40, "expert_width": 24, "max_history": 50}
MODELS: dict[str, dict[str, Any]] = {
    "experts": {"num_experts": 6, "encoder_attention": "bidirectional"},
    "dense": {"num_experts": 1, "experts_per_token": 1, "ffn_width": 37, "expert_width": 37},
    "lazy": {"preset": "tiny_lazy"},
    "pathways": {"preset": "tiny_pathways"},
}
DECODES: dict[str, dict[str, Any]] = {
    "path": {"rescore": "none"},
    "dense head": {"rescore": "dense", "generative_weight": 0.5},
    "guided": {"guidance": 0.7},
    "int8": {"precision": "int8"},
}
CUTS: dict[str, Callable[[int], list[np.ndarray]]] = {
    "shards of 33": lambda n: np.array_split(np.arange(n), range(33, n, 33)),
    "shuffled": lambda n: [np.random.default_rng(1).permutation(n)],
    "some alone": lambda n: [np.array([user]) for user in range(0, n, 29)],
}


@pytest.fixture(scope="module", params=list(MODELS))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    model = MODELS[request.param]
    size = WorldSize(
        users=USERS,
        items=ITEMS,
        categories=5,
        max_events=70,
        level_sizes=(9, 10, 11),
        model=model if "preset" in model else {**WIDTHS, **model},
        beam_width=21,
    )
    return build_world(tmp_path_factory.mktemp(request.param), size)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def ragged(world: World) -> Histories:
    scorer = Scorer.open(world.bundle)
    found = PreparedUsers(world.prepared, DATA_DIGEST).shard(0, USERS, scorer.catalogue).histories
    start = found.start.copy()
    start[::37] = found.end[::37]  # some users have no history
    return replace(found, start=start)


def open_recommender(world: World, **decode: object) -> Recommender:
    ids = SemanticIds.load(world.bundle)
    config = DecodeConfig.model_validate({"beam_width": 21, "rows_per_batch": 1000, **decode})
    return Recommender(load_policy(world.bundle / "model", ids.digest, "cpu"), ids, config)


def differing(whole: RankedItems, parts: list[tuple[np.ndarray, RankedItems]]) -> int:
    """Users with any other item or any other bit of a score."""
    return sum(
        int(
            ((part.items != whole.items[rows]) | (part.scores.view(np.int32) != whole.scores[rows].view(np.int32)))
            .any(1)
            .sum()
        )
        for rows, part in parts
    )


@pytest.mark.parametrize("decode", list(DECODES))
@pytest.mark.parametrize("compiled", [True, False])
def test_the_same_bits_in_any_company(
    world: World, decode: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiled kernels, and without a compiler."""
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    everyone, recommender = ragged(world), open_recommender(world, **DECODES[decode])
    whole = recommender.recommend(everyone, K)
    assert (whole.items >= 0).all()
    assert len(np.unique(whole.items, axis=0)) > USERS // 4, "users are answered alike, so nothing is shown"
    for name, cut in CUTS.items():
        parts = [(rows, recommender.recommend(everyone.take(rows), K)) for rows in cut(USERS)]
        assert differing(whole, parts) == 0, name
    other = open_recommender(world, **DECODES[decode], rows_per_batch=150)
    assert differing(whole, [(np.arange(USERS), other.recommend(everyone, K))]) == 0, "seven users at a time"


def test_the_same_bits_under_quotas(world: World) -> None:
    """One item of a category, of which there are thirty: who has too few is searched again with more beams."""
    everyone, recommender = ragged(world), open_recommender(world, rescore="none")
    groups, limits = 1 + np.arange(ITEMS) % 30, np.full(31, 1)
    rules = ItemRules(quotas=Quotas.from_groups(groups, limits))
    whole = recommender.recommend(everyone, K, rules=rules)
    assert all(len(set(groups[row[row >= 0]])) == (row >= 0).sum() for row in whole.items)
    rows = np.random.default_rng(2).permutation(USERS)
    parts = [(part, recommender.recommend(everyone.take(part), K, rules=rules)) for part in np.split(rows, [50, 51])]
    assert differing(whole, parts) == 0

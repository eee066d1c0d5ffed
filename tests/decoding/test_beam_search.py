"""Constrained beam search: against exhaustive search, against a plain reference, under every kind of rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, DataError
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.decoding.beam_search import Guidance, beam_search
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.item_rules import ItemRules
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_prepared, toy_ids
from tests.toy.reference_search import reference_beam

MODEL = {"width": 16, "num_heads": 2, "ffn_width": 32, "expert_width": 16, "max_history": 6, "init_std": 0.5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=10, items=20)


def random_policy(prepared: Dataset, ids: SemanticIds, seed: int = 0) -> GenerativeRecommender:
    torch.manual_seed(seed)
    return build_policy(prepared, ids, ModelConfig(**MODEL), None).eval()


def all_item_scores(policy: GenerativeRecommender, histories: Histories) -> np.ndarray:
    """Log-probability of every item by teacher forcing, no cache, no index: ``[N, I]``."""
    batch = collate_histories(histories, 6)
    rows = []
    for item in range(policy.spec.dataset.num_items):
        target = torch.full((len(histories), 1, 1), item + 1)
        rows.append(policy.log_prob(TrainingBatch(batch, target, batch.lengths_B[:, None]))[:, 0, 0])
    return torch.stack(rows, 1).detach().numpy()


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """20 distinct items over skewed, degenerate or spread codes."""
    sizes = draw(st.sampled_from([(20, 1), (1, 20), (2, 3, 4), (5, 2, 3), (3, 3, 3, 3), (20,)]))
    every = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), 1)
    picked = draw(st.permutations(range(len(every))))[:20]
    return every[picked], sizes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogue=catalogues(), seed=st.integers(0, 3), filtered=st.booleans(), mask_seed=st.integers(0, 5))
def test_full_width_equals_exhaustive_search(prepared, catalogue, seed, filtered, mask_seed) -> None:
    codes, sizes = catalogue
    ids = toy_ids(codes, sizes)
    policy = random_policy(prepared, ids, seed)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    allow = np.random.default_rng(mask_seed).random(20) < 0.7 if mask_seed else None
    expected = all_item_scores(policy, histories)
    for row, seen in enumerate(histories.seen_items()):
        if filtered:
            expected[row, seen] = -np.inf
        if allow is not None:
            expected[row, ~allow] = -np.inf
    found = Recommender(policy, ids, DecodeConfig(beam_width=20, rescore="none")).recommend(
        histories, 20, exclude_seen=filtered, rules=ItemRules(allow)
    )
    ordered = -np.sort(-expected, axis=1)
    finite = np.isfinite(ordered)
    assert (np.isfinite(found.scores) == finite).all()
    np.testing.assert_allclose(found.scores[finite], ordered[finite], atol=1e-4)
    rows = np.broadcast_to(np.arange(len(histories))[:, None], finite.shape)
    np.testing.assert_allclose(expected[rows[finite], found.items[finite]], found.scores[finite], atol=1e-4)
    assert (found.items[~finite] == -1).all()


@pytest.mark.parametrize("width", [1, 3, 7])
def test_narrow_beams_equal_a_cache_free_reference(prepared: Dataset, width: int) -> None:
    codes = np.stack([np.arange(20) // 7, np.arange(20) % 7 // 2, np.arange(20) % 2 + np.arange(20) % 7 // 6], 1)
    ids = toy_ids(codes, (3, 4, 3))
    policy = random_policy(prepared, ids)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=width, rescore="none", rows_per_batch=3 * width))
    for filtered in (False, True):
        denied = [set(seen.tolist()) if filtered else set() for seen in histories.seen_items()]
        found = recommender.recommend(histories, width, exclude_seen=filtered)
        for row, expected in enumerate(reference_beam(policy, histories, codes, width, denied)):
            n = len(expected)
            np.testing.assert_allclose(found.scores[row, :n], [s for _, s in expected], atol=1e-4)
            assert found.items[row, :n].tolist() == [i for i, _ in expected]
            assert (found.items[row, n:] == -1).all()


def test_batch_result_equals_single_user_result(prepared: Dataset) -> None:
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    policy = random_policy(prepared, ids)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=8))
    together = recommender.recommend(histories, 5)
    for row in range(len(histories)):
        alone = recommender.recommend(histories.take(np.array([row])), 5)
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-5)
        assert alone.items[0].tolist() == together.items[row].tolist()


def test_served_order_is_the_dense_order_of_the_beam(prepared: Dataset) -> None:
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    policy = random_policy(prepared, ids)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=20))
    served = recommender.recommend(histories, 20, exclude_seen=False, rescore=True)
    query = policy.start(collate_histories(histories, 6)).dense_query_BD
    dense = (query @ policy.item_vectors()[1:].T).detach().numpy()
    np.testing.assert_allclose(served.scores, -np.sort(-dense, axis=1), atol=1e-4)


def test_sessions_hold_different_allowed_items_and_their_probabilities(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path, users=6, items=20, task="session", session_length=3)
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    torch.manual_seed(1)
    policy = build_policy(prepared, ids, ModelConfig(**MODEL, encoder_attention="bidirectional"), None).eval()
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    items, scores = Recommender(policy, ids, DecodeConfig(beam_width=12)).recommend_sessions(histories, 4)
    batch = collate_histories(histories, 6)
    for beam in range(4):
        target = torch.from_numpy(items[:, None, beam] + 1)
        expected = policy.log_prob(TrainingBatch(batch, target, batch.lengths_B[:, None])).sum((1, 2))
        np.testing.assert_allclose(scores[:, beam], expected.detach().numpy(), atol=1e-4)
    for row, seen in enumerate(histories.seen_items()):
        for session in items[row]:
            assert len(set(session.tolist())) == 3
            assert not set(session.tolist()) & set(seen.tolist())
    assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_an_empty_history_is_answered(prepared: Dataset) -> None:
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    nothing = histories.start[:1]
    events = (histories.item, histories.behaviour, histories.gap, histories.watch)
    empty = Histories(np.array([-1], np.int32), nothing, nothing, *events)
    ranked = Recommender(random_policy(prepared, ids), ids, DecodeConfig(beam_width=8)).recommend(empty, 5)
    assert (ranked.items >= 0).all()


def test_refusals(prepared: Dataset) -> None:
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    policy = random_policy(prepared, ids)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=4))
    with pytest.raises(DataError, match="leave no item"):
        recommender.recommend(histories, 3, rules=ItemRules(deny=np.ones(20, bool)))
    with pytest.raises(DataError, match="expected \\(20,\\)"):
        recommender.recommend(histories, 3, rules=ItemRules(np.ones(19, bool)))
    other = toy_ids(np.stack([np.arange(20) % 4, np.arange(20) // 4], 1), (4, 5))
    with pytest.raises(ArtifactError, match="other semantic IDs"):
        Recommender(policy, other, DecodeConfig())
    turned = replace(ids, codes=ids.codes[::-1].copy(), item_ids=ids.item_ids.reverse())
    assert turned.digest == ids.digest
    with pytest.raises(ArtifactError, match="numbers its items otherwise than these semantic IDs"):
        Recommender(policy, turned, DecodeConfig())


@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize(("groups", "num_items"), [(1, 1), (1, 2), (4, 2)])
def test_beams_that_do_not_exist_hold_no_items(
    tmp_path: Path, strength: float | None, groups: int, num_items: int
) -> None:
    """Three items are allowed: three lists of one and six sessions of two; what else the beam of 8 holds is empty."""
    prepared = ring_prepared(tmp_path, users=6, items=20, task="session", session_length=2)
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    policy = build_policy(prepared, ids, ModelConfig(**MODEL, encoder_attention="bidirectional"), None).eval()
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=8))
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    rules = recommender.compile(ItemRules(np.isin(np.arange(20), [3, 4, 11])), len(histories), exclude_seen=False)
    beams = beam_search(
        policy,
        collate_histories(histories, 6),
        recommender.search_index,
        8,
        rules=rules.for_batch(histories, num_items=num_items),
        num_items=num_items,
        diversity_groups=groups,
        guidance=None if strength is None else Guidance(lambda query: query @ policy.item_vectors()[1:].T, strength),
    )
    dead = beams.scores == -torch.inf
    assert (beams.items[dead] == -1).all()
    assert (beams.items[~dead] >= 0).all()
    assert torch.equal(dead, beams.log_probs == -torch.inf)
    assert ((~dead).sum(1) == (3 if num_items == 1 else 6)).all()

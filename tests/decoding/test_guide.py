"""Guided search: the bonus of every prefix against plain sums, and the search against exhaustive and blackboard search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.contracts.dataset import Dataset
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.beam_search import Guidance, beam_search
from recsys.decoding.config import DecodeConfig
from recsys.decoding.guide import PrefixGuide, fused_scores
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.batch_rules import NO_NODE, BatchRules, PersonalRules
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.search_index import SearchIndex
from recsys.scorers.config import ScorersConfig
from recsys.scorers.scorer_set import ScorerSet
from tests.decoding.test_beam_search import all_item_scores, catalogues, prepared, random_policy  # noqa: F401
from tests.toy.dataset import toy_ids

CODES = np.stack([np.arange(20) // 7, np.arange(20) % 7 // 2, np.arange(20) % 2 + np.arange(20) % 7 // 6], 1)
SIZES = (3, 4, 3)


def index_of(codes: np.ndarray, sizes: tuple[int, ...]) -> SearchIndex:
    return SearchIndex.from_index(PrefixIndex.build(codes, sizes))


def bonus(guide: PrefixGuide, level: int) -> torch.Tensor:
    """Of every node of a level, ``[B, V]``."""
    nodes = torch.arange(len(guide.index.codes[level].bits)).expand(len(guide.root_B), 1, -1)
    return guide.at(level, nodes)[:, 0]


def test_the_bonus_is_the_log_of_the_share_below_a_prefix() -> None:
    """Items 0 and 1 begin with code 0, item 2 with code 1; probabilities .2, .3, .5, strength 2."""
    index = index_of(np.array([[0, 0], [0, 1], [1, 0]]), (2, 2))
    scores = torch.tensor([[0.2, 0.3, 0.5]]).log() + 7.0  # a constant cancels
    guide = PrefixGuide.from_item_scores(scores, 2.0, index, BatchRules())
    torch.testing.assert_close(bonus(guide, 0), 2 * torch.tensor([[0.5, 0.5]]).log())
    torch.testing.assert_close(bonus(guide, 1), 2 * torch.tensor([[0.2, 0.3, 0.5]]).log())
    nodes = torch.tensor([[[1, 0], [2, 2]]])
    torch.testing.assert_close(guide.at(1, nodes), 2 * torch.tensor([[[0.3, 0.2], [0.5, 0.5]]]).log())


def test_forbidden_items_count_for_no_prefix() -> None:
    index = index_of(np.array([[0, 0], [0, 1], [1, 0]]), (2, 2))
    scores = torch.tensor([[0.2, 0.3, 0.5]] * 3).log()
    closed = [torch.full((3, 1), NO_NODE), torch.tensor([[0, NO_NODE], [NO_NODE, NO_NODE], [0, 1]])]
    guide = PrefixGuide.from_item_scores(scores, 1.0, index, BatchRules(personal=PersonalRules(closed)))
    expected = torch.tensor([[0.3 / 0.8, 0.5 / 0.8], [0.5, 0.5], [0.0, 1.0]]).log()
    torch.testing.assert_close(bonus(guide, 0), expected)
    segment = torch.tensor([1, 0, 1])
    alive = (torch.ones(2, 2, dtype=torch.bool), torch.tensor([[True, True, True], [True, False, False]]))
    guide = PrefixGuide.from_item_scores(scores, 1.0, index, BatchRules(alive=alive, segment_B=segment))
    torch.testing.assert_close(bonus(guide, 0), torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]).log())


def test_a_forbidden_item_sets_no_scale_and_a_user_without_items_gets_no_bonus() -> None:
    """Item 2 scores 1000 above the others: forbidden it hides nobody. Where all three are forbidden, all is -inf."""
    index = index_of(np.array([[0, 0], [0, 1], [1, 0]]), (2, 2))
    scores = torch.tensor([[0.2, 0.8, 1.0]] * 2).log() + torch.tensor([0.0, 0.0, 1000.0])
    closed = [torch.full((2, 1), NO_NODE), torch.tensor([[2, NO_NODE, NO_NODE], [0, 1, 2]])]
    guide = PrefixGuide.from_item_scores(scores, 1.0, index, BatchRules(personal=PersonalRules(closed)))
    torch.testing.assert_close(bonus(guide, 0)[0], torch.tensor([1.0, 0.0]).log())
    torch.testing.assert_close(bonus(guide, 1)[0], torch.tensor([0.2, 0.8, 0.0]).log(), atol=1e-4, rtol=1e-4)
    assert all(bool((bonus(guide, level)[1] == -torch.inf).all()) for level in range(2))


@pytest.mark.parametrize("spread", [1.0, 40.0, 400.0])
def test_the_bonus_of_extreme_scores_is_finite_and_exact_at_the_leaves(spread: float) -> None:
    """Far below the best an item is worth nothing to its prefix, and yet the prefix stays possible."""
    index = index_of(CODES, SIZES)
    scores = torch.randn(4, 20, generator=torch.Generator().manual_seed(1)) * spread
    guide = PrefixGuide.from_item_scores(scores, 1.0, index, BatchRules())
    for level in range(3):
        found = bonus(guide, level)
        assert torch.isfinite(found).all()
        node = index.node_of_item[level]
        for place in range(found.shape[1]):
            below = scores[:, node == place].double().logsumexp(1) - scores.double().logsumexp(1)
            exact = (below > -75.0) | (level == 2)
            torch.testing.assert_close(found[exact, place], below[exact].float(), atol=2e-3, rtol=1e-4)
            assert (found[~exact, place] < -74.0).all()


@pytest.mark.parametrize("strength", [0.5, 4.0])
@pytest.mark.parametrize("filtered", [False, True])
def test_full_width_equals_exhaustive_search(prepared: Dataset, strength: float, filtered: bool) -> None:  # noqa: F811
    ids = toy_ids(CODES, SIZES)
    policy = random_policy(prepared, ids)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    allow = np.random.default_rng(3).random(20) < 0.7
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=20, rescore="none", guidance=strength))
    dense = dense_scores(recommender, histories)
    possible = np.tile(allow, (len(histories), 1))
    for row, seen in enumerate(histories.seen_items()):
        possible[row, seen] &= not filtered
    dense[~possible] = -np.inf
    shares = dense - np.log(np.exp(dense).sum(1, keepdims=True))
    expected = np.where(possible, all_item_scores(policy, histories) + strength * shares, -np.inf)
    found = recommender.recommend(histories, 20, exclude_seen=filtered, rules=ItemRules(allow))
    ordered = -np.sort(-expected, axis=1)
    finite = np.isfinite(ordered)
    assert (np.isfinite(found.scores) == finite).all()
    np.testing.assert_allclose(found.scores[finite], ordered[finite], atol=1e-4)
    assert (found.items[~finite] == -1).all()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogue=catalogues(), seed=st.integers(0, 3), strength=st.sampled_from([0.3, 2.0]), whole=st.booleans())
def test_fused_scores_under_every_rule_equal_brute_force(
    prepared: Dataset,  # noqa: F811
    catalogue: tuple[np.ndarray, tuple[int, ...]],
    seed: int,
    strength: float,
    whole: bool,
) -> None:
    """Allow and deny per segment, seen items out, at most 3 of a group; scores of three scorers beside the dense head."""
    codes, sizes = catalogue
    ids = toy_ids(codes, sizes)
    policy = random_policy(prepared, ids, seed)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    generator = np.random.default_rng(seed)
    users = len(histories)
    segments = generator.integers(0, 2, users)
    allow, deny = generator.random((2, 20)) < 0.9, generator.random((2, 20)) < 0.2
    group = generator.integers(0, 4, 20)
    rules = ItemRules(allow, deny, segments, Quotas.from_groups(group, 3))
    scorers = ScorerSet.fit(
        prepared, ScorersConfig(names=("transitions", "item_knn", "popularity")), {}, catalogue=ids.digest
    )
    weights = {"transitions": 0.7, "item_knn": 0.3, "popularity": -0.2}
    recommender = Recommender(policy, ids, DecodeConfig())
    compiled = recommender.compile(rules, users, True).for_batch(histories)
    vectors = policy.item_vectors()[1:]
    guidance = Guidance(lambda query: fused_scores(query, vectors, histories, scorers, weights), strength)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.scorers.products.LARGE_CATALOGUE", 0 if whole else 1 << 16)
        if not whole:  # levels near the leaves are summed node by node, as in a large catalogue
            patch.setattr("recsys.decoding.guide.SMALL_CATALOGUE", 0)
        found = beam_search(
            policy,
            collate_histories(histories, 6),
            SearchIndex.from_index(recommender.index),
            20,
            rules=compiled,
            guidance=guidance,
        )
    dense = dense_scores(recommender, histories)
    scores = dense - np.log(np.exp(dense).sum(1, keepdims=True))
    scores += np.tensordot(np.array([0.7, 0.3, -0.2]), scorers.scores(histories).astype(np.float64), 1)
    possible = (allow & ~deny)[segments]
    for row, seen in enumerate(histories.seen_items()):
        possible[row, seen] = False
    scores[~possible] = -np.inf
    paths = all_item_scores(policy, histories)
    for row in range(users):
        top = scores[row].max()
        total = paths[row] + strength * (scores[row] - top - np.log(np.exp(scores[row] - top).sum()))
        expected: list[int] = []
        for item in np.argsort(-total, kind="stable"):
            in_group = sum(group[other] == group[item] for other in expected)
            if possible[row, item] and (group[item] == 0 or in_group < 3):
                expected.append(int(item))
        items = found.items[row, :, 0]
        assert items[items >= 0].tolist() == expected
        np.testing.assert_allclose(found.scores[row, : len(expected)], total[expected], atol=3e-4)
        np.testing.assert_allclose(found.log_probs[row, : len(expected)], paths[row, expected], atol=1e-4)
        assert (found.log_probs[row, len(expected) :] == -torch.inf).all()


@pytest.mark.parametrize("width", [1, 3, 7])
def test_narrow_guided_beams_equal_a_search_on_the_blackboard(prepared: Dataset, width: int) -> None:  # noqa: F811
    """A prefix's score is the log-probability of its codes plus the bonus; both are marginals that are summed here anew."""
    ids = toy_ids(CODES, SIZES)
    policy = random_policy(prepared, ids)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=width, rescore="none", guidance=2.0))
    shares = np.exp(dense_scores(recommender, histories))
    shares /= shares.sum(1, keepdims=True)
    found = recommender.recommend(histories, width, exclude_seen=False)
    prefix_scores = prefix_log_probs(policy, histories)
    for row in range(len(histories)):
        beams: list[tuple[int, ...]] = [()]
        scores: dict[tuple[int, ...], float] = {}
        for level in range(3):
            below = {
                prefix: float(shares[row, (CODES[:, : level + 1] == prefix).all(1)].sum())
                for prefix in {tuple(code) for code in CODES[:, : level + 1].tolist()}
                if prefix[:-1] in beams
            }
            scores = {p: prefix_scores[row][p] + 2.0 * math.log(mass) for p, mass in below.items()}
            beams = sorted(scores, key=lambda prefix: -scores[prefix])[:width]
        assert [tuple(CODES[item]) for item in found.items[row, : len(beams)]] == beams
        np.testing.assert_allclose(found.scores[row, : len(beams)], [scores[p] for p in beams], atol=1e-4)


def test_a_session_is_guided_item_by_item(tmp_path) -> None:
    from tests.toy.dataset import ring_prepared

    prepared_sessions = ring_prepared(tmp_path, users=6, items=20, task="session", session_length=2)
    ids = toy_ids(CODES, SIZES)
    policy = random_policy(prepared_sessions, ids)
    histories = Histories.from_targets(prepared_sessions.history, prepared_sessions.all_users())
    plain = Recommender(policy, ids, DecodeConfig(beam_width=400, rescore="none"))
    guided = Recommender(policy, ids, DecodeConfig(beam_width=400, rescore="none", guidance=3.0))
    dense = dense_scores(guided, histories)
    share = dense - np.log(np.exp(dense).sum(1, keepdims=True))
    for row in range(len(histories)):
        own = histories.take(np.array([row]))
        items, scores = plain.recommend_sessions(own, 380, exclude_seen=False)
        unguided = {tuple(pair): float(score) for pair, score in zip(items[0].tolist(), scores[0], strict=True)}
        beams = beam_search(
            policy,
            collate_histories(own, 6),
            SearchIndex.from_index(guided.index),
            380,
            num_items=2,
            guidance=Guidance(lambda query: query @ policy.item_vectors()[1:].T, 3.0),
        )
        for pair, path in zip(beams.items[0].tolist(), beams.log_probs[0].tolist(), strict=True):
            assert path == pytest.approx(unguided[tuple(pair)], abs=2e-3)
        items, scores = guided.recommend_sessions(own, 380, exclude_seen=False)
        assert len(unguided) == len({tuple(pair) for pair in items[0].tolist()}) == 380
        for (first, second), score in itertools.islice(zip(items[0].tolist(), scores[0], strict=True), 40):
            bonus = 3.0 * (share[row, first] + share[row, second])
            assert score == pytest.approx(unguided[first, second] + bonus, abs=2e-3)
        assert (np.diff(scores[0]) <= 1e-5).all()


def test_a_guide_and_a_recorded_graph_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="cuda_graph: false"):
        DecodeConfig(guidance=1.0, cuda_graph=True)
    with pytest.raises(ValidationError, match="guidance"):
        DecodeConfig(guidance=float("nan"))


def dense_scores(recommender: Recommender, histories: Histories) -> np.ndarray:
    """The dense head on every item, by the re-scoring that serves single items: ``[N, I]`` float64."""
    from recsys.data.batch import collate_histories

    with torch.inference_mode():
        state = recommender.policy.start(collate_histories(histories, 6))
        every = torch.arange(20).expand(len(histories), -1)
        return recommender.dense_scores(state.dense_query_BD, every).double().numpy()


def prefix_log_probs(policy, histories: Histories) -> list[dict[tuple[int, ...], float]]:
    """Log-probability of every prefix by teacher forcing, per user."""
    from recsys.data.batch import TrainingBatch, collate_histories

    batch = collate_histories(histories, 6)
    found: list[dict[tuple[int, ...], float]] = [{} for _ in range(len(histories))]
    for item in range(20):
        target = torch.full((len(histories), 1, 1), item + 1)
        with torch.no_grad():
            hidden, _ = policy(TrainingBatch(batch, target, batch.lengths_B[:, None]))
            steps = policy.code_log_probs(hidden, target)[:, 0, 0].cumsum(-1)
        for row in range(len(histories)):
            for level in range(3):
                found[row][tuple(CODES[item, : level + 1].tolist())] = float(steps[row, level])
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10), blocks=st.booleans(), data=st.data())
def test_scores_made_by_leaf_guide_as_scores_given_by_item(seed: int, blocks: bool, data) -> None:  # type: ignore[no-untyped-def]
    """Segments and seen items, levels as a whole or the last but one node by node, all leaves at once or few at a time."""
    generator = np.random.default_rng(seed)
    index = PrefixIndex.build(CODES[generator.permutation(20)], SIZES)
    search_index = SearchIndex.from_index(index)
    users = data.draw(st.integers(1, 4))
    lists = [data.draw(st.lists(st.integers(0, 19), max_size=20)) for _ in range(users)]
    allow = generator.random((2, 20)) < 0.8
    allow[:, 3] = True
    compiled = CompiledRules.compile(index, ItemRules(allow, segments=np.arange(users) % 2), exclude_seen=True)
    ends = np.cumsum([len(each) for each in lists])
    flat = np.array([item for each in lists for item in each], np.int32)
    histories = Histories(
        np.arange(users, dtype=np.int32),
        ends - [len(e) for e in lists],
        ends,
        flat,
        *[np.zeros(len(flat), np.uint8)] * 3,
    )
    rules = compiled.for_batch(histories)
    query, vectors = (torch.from_numpy(generator.normal(size=(n, 4)).astype(np.float32)) for n in (users, 20))
    by_leaf = search_index.item_of_leaf.long()
    expected = PrefixGuide.from_item_scores(query @ vectors.T, 2.0, search_index, rules)
    with pytest.MonkeyPatch.context() as patch:
        if blocks:
            for name, value in (("SMALL_CATALOGUE", 0), ("LEAVES_TOGETHER", 3), ("FEW_LEAVES", 20)):
                patch.setattr(f"recsys.decoding.guide.{name}", value)
        by_item = PrefixGuide.from_item_scores(query @ vectors.T, 2.0, search_index, rules)
        by_vector = PrefixGuide.from_dense_head(query, vectors[by_leaf], 2.0, search_index, rules)
        for level in range(3):
            nodes = torch.arange(len(index.codes[level])).expand(users, 1, -1)
            for found in (by_item, by_vector):
                torch.testing.assert_close(found.at(level, nodes), expected.at(level, nodes), atol=1e-4, rtol=1e-4)


def test_long_lists_of_closed_leaves_in_a_large_catalogue() -> None:
    """400 items in 20 prefixes, 200 of them closed for each user, in more leaves than are scored together."""
    generator = np.random.default_rng(0)
    index = SearchIndex.from_index(
        PrefixIndex.build(np.stack([np.arange(400) // 20, np.arange(400) % 20], 1), (20, 20))
    )
    leaves = torch.from_numpy(np.sort(np.stack([generator.permutation(400)[:200] for _ in range(3)])))
    prefixes = torch.full((3, 1), NO_NODE)
    rules = BatchRules(personal=PersonalRules([prefixes, leaves]))
    query, vectors = (torch.from_numpy(generator.normal(size=(n, 4)).astype(np.float32)) for n in (3, 400))
    score = (query @ vectors.T).scatter(1, leaves, -torch.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.decoding.guide.SMALL_CATALOGUE", 0)
        guide = PrefixGuide.from_dense_head(query, vectors, 1.0, index, rules)
    torch.testing.assert_close(bonus(guide, 0), score.log_softmax(1).view(3, 20, 20).logsumexp(2))


@pytest.mark.parametrize("given", [False, True])
def test_scores_far_below_the_best_stay_possible_in_a_large_catalogue(given: bool) -> None:
    """Item 0 is 1,000 above item 1, which shares no prefix with it: its prefix counts as 80 below, and is not lost."""
    index = SearchIndex.from_index(PrefixIndex.build(np.array([[0, 0], [1, 0]]), (2, 1)))
    query, vectors = torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.decoding.guide.SMALL_CATALOGUE", 0)
        patch.setattr("recsys.decoding.guide.LEAVES_TOGETHER", 1)
        if given:
            guide = PrefixGuide.from_item_scores(query @ vectors.T, 1.0, index, BatchRules())
        else:
            guide = PrefixGuide.from_dense_head(query, vectors, 1.0, index, BatchRules())
    assert guide.at(0, torch.tensor([[[0, 1]]])).flatten().tolist() == [0.0, -80.0]
    assert guide.at(1, torch.tensor([[[0, 1]]])).flatten().tolist() == [0.0, -1000.0]


def test_a_large_catalogue_of_a_single_level_is_scored() -> None:
    """Nothing lies above the leaves: each item's bonus is its log-probability, of scores 1, 2 and 4 in 7."""
    index = SearchIndex.from_index(PrefixIndex.build(np.array([[0], [1], [2]]), (3,)))
    query, vectors = torch.ones(1, 1), torch.tensor([[1.0], [2.0], [4.0]]).log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.decoding.guide.SMALL_CATALOGUE", 0)
        for guide in (
            PrefixGuide.from_item_scores(query @ vectors.T, 1.0, index, BatchRules()),
            PrefixGuide.from_dense_head(query, vectors, 1.0, index, BatchRules()),
        ):
            expected = torch.tensor([1 / 7, 2 / 7, 4 / 7])
            torch.testing.assert_close(guide.at(0, torch.tensor([[[0, 1, 2]]])).exp().flatten(), expected)

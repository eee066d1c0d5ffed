"""The second stage at work: against its own parts put together by hand, whatever the batch, and on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.ranking import SourcedItems
from recsys.data.histories import Histories
from recsys.data.options import WordsConfig
from recsys.data.words import WordList
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.decoding.second_stage.stage import SecondStage, candidate_sources, policy_digest
from recsys.model.config import ModelConfig
from recsys.ranker.config import CandidateCounts
from recsys.training.fit import build_policy
from tests.decoding.second_stage.conftest import DECODE, NUM_ITEMS, Ring
from tests.decoding.test_beam_search import MODEL, all_item_scores


def test_what_follows_on_the_ring_is_served_first(fitted: Ring) -> None:
    """The policy is untrained, so its beam knows nothing; transitions know the answer, and the ranker learns to ask them."""
    assert fitted.summary["serves"] == "linear"
    recommender = fitted.recommender()
    targets = fitted.prepared.targets(2)
    histories = Histories.from_targets(fitted.prepared.history, targets)
    beam, served = recommender.orders(histories, 1, ["beam", "served"], exclude_seen=True)
    assert (served.items[:, 0] == targets.items).mean() > 0.95
    assert (beam.items[:, 0] == targets.items).mean() < 0.3
    assert isinstance(served, SourcedItems)
    transitions = 1 << fitted.stage.sources.index("transitions")
    assert (served.sources[:, 0] & transitions > 0).mean() > 0.95


def test_the_lists_are_what_their_names_say(ring: Ring) -> None:
    """At full width: the policy's own log-probabilities, these plus guidance times the fused score, and the dense head."""
    recommender, histories = ring.recommender(beam_width=NUM_ITEMS), ring.everyone.take(np.arange(12))
    beam, guided, dense, _ = recommender.orders(
        histories, NUM_ITEMS, ["beam", "guided", "dense", "served"], exclude_seen=False
    )
    path = all_item_scores(ring.policy, histories)
    plain = Recommender(ring.policy, ring.ids, DecodeConfig(beam_width=NUM_ITEMS, rescore="none"))
    assert np.array_equal(beam.items, plain.recommend(histories, NUM_ITEMS, exclude_seen=False).items)
    log_dense = _dense(ring, histories)
    fused = np.ascontiguousarray(log_dense * ring.stage.fusion.weights[0])
    weights = dict(zip(ring.stage.fusion.names[1:], ring.stage.fusion.weights[1:], strict=True))
    ring.stage.scorers.add_fused(histories, weights, fused)
    for found, expected in ((beam, path), (guided, path + 1.5 * fused), (dense, log_dense)):
        by_rank = np.take_along_axis(expected, found.items.astype(np.int64), axis=1)
        assert (np.diff(by_rank, axis=1) <= 1e-4).all()
        assert sorted(found.items[0].tolist()) == list(range(NUM_ITEMS))


def test_one_order_does_not_depend_on_which_others_are_asked_for(ring: Ring) -> None:
    recommender, histories = ring.recommender(), ring.everyone
    together = recommender.orders(histories, 5, ["guided", "served", "beam", "dense"])
    for name, ranked in zip(["guided", "served", "beam", "dense"], together, strict=True):
        (alone,) = recommender.orders(histories, 5, [name])  # type: ignore[list-item]
        assert np.array_equal(alone.items, ranked.items)
    assert np.array_equal(recommender.recommend(histories, 5).items, together[1].items)


@pytest.mark.parametrize("rows_per_batch", [6, 30, 3200])
def test_the_batch_changes_no_answer(ring: Ring, rows_per_batch: int) -> None:
    histories = ring.everyone.take(np.arange(40))
    expected = ring.recommender().recommend(histories, 6)
    found = ring.recommender(rows_per_batch=rows_per_batch).recommend(histories, 6)
    assert np.array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


def test_users_without_a_history_and_unknown_users_are_answered(ring: Ring) -> None:
    nobody = ring.everyone.take(np.array([0]))
    empty = Histories(
        np.array([-1], np.int32), nobody.start, nobody.start, nobody.item, nobody.behaviour, nobody.gap, nobody.watch
    )
    ranked = ring.recommender().recommend(empty, 8)
    assert (ranked.items >= 0).all()
    assert np.isfinite(ranked.scores).all()


@pytest.mark.parametrize("k", [3, 12, 24])
def test_a_list_is_short_only_where_the_rules_leave_too_little(ring: Ring, k: int) -> None:
    """Groups of six items with limits 1, 2 and 5, six items in no group; two of the catalogue are denied."""
    groups, limits = np.arange(NUM_ITEMS) // 6, np.array([0, 1, 2, 5])
    deny = np.isin(np.arange(NUM_ITEMS), [0, 23])
    rules = ItemRules(deny=deny, quotas=Quotas.from_groups(groups, limits), exclude_seen=True)
    recommender, histories = ring.recommender(), ring.everyone
    compiled = recommender.compile(rules, len(histories))
    ranked = recommender.rank(histories, k, compiled)
    for row, seen in enumerate(histories.seen_items()):
        items = ranked.items[row][ranked.items[row] >= 0]
        assert not set(items) & {0, 23, *seen.tolist()}
        assert (np.bincount(groups[items], minlength=4)[1:] <= limits[1:]).all()
        assert len(items) == min(k, compiled.count_within_quotas(0, seen))
        assert (np.diff(ranked.scores[row, : len(items)]) <= 0).all()


def test_who_says_something_gets_the_order_of_the_head_that_reads_it(ring: Ring) -> None:
    """Every other user names category c0; words that nobody knows say nothing."""
    torch.manual_seed(1)
    words = WordsConfig(fields=("category",))
    policy = build_policy(ring.prepared, ring.ids, ModelConfig(**MODEL, words=words), None).eval()
    assert policy.words is not None
    with torch.no_grad():
        policy.words.projection.weight.normal_(std=3.0)
    stage = replace(ring.stage, policy_digest=policy_digest(policy))
    recommender, silent = RankedRecommender(policy, ring.ids, DECODE, stage), ring.everyone.take(np.arange(30))
    said = WordList(policy.spec.words, 4).encode(["c0" if row % 2 else "unheard" for row in range(30)])
    saying = silent.with_words(said)
    before, without = recommender.orders(silent, 6, ["served", "dense"])
    served, dense = recommender.orders(saying, 6, ["served", "dense"])
    assert np.array_equal(served.items[::2], before.items[::2])
    assert np.array_equal(served.items[1::2], dense.items[1::2])
    assert np.array_equal(served.scores[1::2], dense.scores[1::2])
    assert not np.array_equal(dense.items[1::2], without.items[1::2])  # the sentence does something
    assert not np.array_equal(served.items[1::2], before.items[1::2])
    assert isinstance(served, SourcedItems)
    bit = 1 << stage.sources.index("dense")
    assert (served.sources[1::2] & bit > 0).all()
    assert np.array_equal(recommender.recommend(saying, 6).items, served.items)
    deny = np.isin(np.arange(NUM_ITEMS), dense.items[1::2, 0])
    assert not deny[recommender.recommend(saying, 6, rules=ItemRules(deny=deny)).items].any()


def test_a_caller_may_ask_for_the_orders_without_the_second_stage(ring: Ring) -> None:
    histories = ring.everyone
    ranked, plain = ring.recommender(), Recommender(ring.policy, ring.ids, DECODE)
    for rescore in (True, False):
        found = ranked.rank(histories, 6, ranked.compile(None, len(histories)), rescore=rescore)
        expected = plain.rank(histories, 6, plain.compile(None, len(histories)), rescore=rescore)
        assert np.array_equal(found.items, expected.items)
        assert np.array_equal(found.scores, expected.scores)


def test_saved_and_read_it_answers_alike(ring: Ring, tmp_path: Path) -> None:
    ring.stage.save(tmp_path / "ranker")
    again = RankedRecommender(ring.policy, ring.ids, DECODE, SecondStage.load(tmp_path / "ranker"))
    found, expected = (each.recommend(ring.everyone, 6) for each in (again, ring.recommender()))
    assert np.array_equal(found.items, expected.items)
    assert np.array_equal(found.scores, expected.scores)
    assert not [path for path in (tmp_path / "ranker").rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]


@pytest.mark.parametrize("file", ["fusion.json", "ranker.json", "items.safetensors", "scorers/scorers.safetensors"])
def test_a_changed_file_is_refused(ring: Ring, tmp_path: Path, file: str) -> None:
    ring.stage.save(tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ArtifactError, match=f"damaged: {file.rpartition('/')[0]}.*run `rank` again"):
        SecondStage.load(tmp_path)


def test_the_ranker_of_another_policy_is_refused(ring: Ring) -> None:
    torch.manual_seed(9)
    other = build_policy(ring.prepared, ring.ids, ring.policy.spec.model, None).eval()
    with pytest.raises(ArtifactError, match=r"was fitted for the policy weights .* run `rank` again"):
        RankedRecommender(other, ring.ids, DECODE, ring.stage)
    assert policy_digest(other) != policy_digest(ring.policy)


def test_unknown_orders_and_recorded_graphs_are_refused(ring: Ring) -> None:
    with pytest.raises(ConfigError, match="order 'best' does not exist; there are beam, guided, dense, served"):
        ring.recommender().orders(ring.everyone, 3, ["best"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"decode.cuda_graph: false, or rank.method: none"):
        ring.recommender(cuda_graph=True)


def test_a_source_without_its_scorer_is_left_out() -> None:
    assert candidate_sources(CandidateCounts(), ("ease",)) == ("beam", "dense", "fused")


def _dense(ring: Ring, histories: Histories) -> np.ndarray:
    from recsys.data.batch import collate_histories

    with torch.inference_mode():
        state = ring.policy.start(collate_histories(histories, ring.policy.spec.model.max_history))
        return (state.dense_query_BD @ ring.policy.item_vectors()[1:].T).log_softmax(1).numpy()

"""The reward model inside the search: by hand, beside brute force, however one asks, and refused where it cannot be."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.contracts.errors import ConfigError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.guide import fused_scores
from recsys.decoding.recommender import Recommender
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.scorer import Scorer
from serving.answers.second_stage import item_rewards
from serving.answers.sessions import RankedSessions
from serving.batch.candidates import write_candidates
from serving.config import AnswerOptions, RecommendConfig
from serving.export.export import BundleSources
from serving.inputs import request as requests
from serving.inputs.user_histories import PreparedUsers
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import HISTORIES, NUM_ITEMS, frame_of

QUIET = PlainProgress()


class Prices:
    """Reward of a session: the sum of its items' prices, times the length of the history and 1."""

    towers = ("price",)
    weights = torch.ones(1)
    prices = torch.tensor([5.0, 1.0, 3.0, 3.0])

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        return self.reward(histories, items_BGM)[..., None]

    def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        total = torch.where(items_BGM >= 0, self.prices[items_BGM.clamp(min=0)], 0.0).sum(-1)
        return total * (1 + torch.from_numpy(histories.lengths)[:, None])


@pytest.fixture(scope="module")
def scorer(steered_bundle: Path) -> Scorer:
    return Scorer.open(steered_bundle)


@pytest.fixture(scope="module")
def histories(steered_sources: BundleSources) -> Histories:
    users = PreparedUsers(steered_sources.prepared, "d" * 64)
    return Histories.from_targets(users.prepared.history, users.prepared.all_users())


def test_scores_are_standard_deviations_by_hand(histories: Histories) -> None:
    """Prices 5 1 3 3 have mean 3 and deviation sqrt 2: sqrt 2, -sqrt 2, 0, 0 whatever a user's factor; times .5."""
    scores = item_rewards(Prices(), 4, 0.5)(histories)
    expected = 0.5 * torch.tensor([2**0.5, -(2**0.5), 0.0, 0.0])
    torch.testing.assert_close(scores, expected.expand(len(histories), -1))


def test_equal_rewards_guide_nowhere(histories: Histories) -> None:
    prices = Prices()
    prices.prices = torch.full((4,), 2.0)
    assert not item_rewards(prices, 4, 3.0)(histories).any()


@pytest.mark.parametrize("strength", [0.0, 0.7, 50.0])
def test_sessions_equal_brute_force(scorer: Scorer, histories: Histories, strength: float) -> None:
    """A beam as wide as all pairs is exhaustive: the best pair of unseen items by path + bonus of both."""
    everything = NUM_ITEMS * (NUM_ITEMS - 1)
    options = AnswerOptions(answer="sessions", reward_guidance=strength)
    found = scorer.score_histories(histories, everything, options=options)
    assert isinstance(found, RankedSessions)
    assert scorer.reward_model is not None
    bonus = item_rewards(scorer.reward_model, NUM_ITEMS, strength)(histories).numpy()
    plain = scorer.score_histories(histories, everything, options=AnswerOptions(answer="sessions"))
    assert isinstance(plain, RankedSessions)
    paths, scores = scorer.recommender.generate(
        histories, everything, scorer.recommender.compile(None, len(histories), exclude_seen=True)
    )
    for user, seen in enumerate(HISTORIES):
        unseen = [item for item in range(NUM_ITEMS) if item not in seen]
        log_prob = {tuple(pair): score for pair, score in zip(paths[user].tolist(), scores[user], strict=True)}
        pairs = list(itertools.permutations(unseen, 2))
        # a constant per user and item is taken out of the bonus, so that orders are compared
        total = np.array([log_prob[pair] + bonus[user, list(pair)].sum() for pair in pairs])
        ordered = [pairs[n] for n in np.argsort(-total)]
        assert [tuple(pair) for pair in found.items[user, : len(pairs)].tolist()] == ordered
    if not strength:
        assert np.array_equal(found.items, plain.items)


def test_items_are_ordered_by_path_and_reward(scorer: Scorer, histories: Histories) -> None:
    """The policy's own order at 0; at a strength that nothing outweighs the reward's; the dense head has no say."""
    assert scorer.reward_model is not None
    bonus = item_rewards(scorer.reward_model, NUM_ITEMS, 1.0)(histories).numpy()
    guided = scorer.score_histories(histories, NUM_ITEMS, options=AnswerOptions(reward_guidance=1000.0))
    for user, seen in enumerate(HISTORIES):
        unseen = [item for item in np.argsort(-bonus[user], kind="stable").tolist() if item not in seen]
        assert guided.items[user][: len(unseen)].tolist() == unseen
    barely = scorer.score_histories(histories, NUM_ITEMS, options=AnswerOptions(reward_guidance=1e-12))
    plain = scorer.score_histories(histories, NUM_ITEMS, options=AnswerOptions(rescore=False))
    assert np.array_equal(barely.items, plain.items)


def test_the_dense_head_and_the_reward_guide_together(
    scorer: Scorer, histories: Histories, steered_bundle: Path
) -> None:
    """A search guided by both is one that is guided by their sum, and neither alone finds what both do."""
    assert scorer.reward_model is not None
    policy, ids = scorer.recommender.policy, SemanticIds.load(steered_bundle)
    dense = Recommender(policy, ids, DecodeConfig(beam_width=2, guidance=3.0, rescore="none"))
    neither = Recommender(policy, ids, DecodeConfig(beam_width=2, rescore="none"))
    reward = item_rewards(scorer.reward_model, NUM_ITEMS, 2.0)

    def both(asked: Histories) -> torch.Tensor:
        prepared = neither.prepare(asked, neither.compile(None, len(asked)))
        query = neither.search(prepared, 2).dense_query
        return reward(asked) + 3.0 * fused_scores(query, neither.catalogue_vectors(), asked, None, {})

    rules = neither.compile(None, len(histories))
    lists = [
        recommender.rank(histories, 2, rules, guided_by=guided_by)
        for recommender, guided_by in ((dense, reward), (neither, both), (dense, None), (neither, reward))
    ]
    assert np.array_equal(lists[0].items, lists[1].items)
    assert np.allclose(lists[0].scores, lists[1].scores, atol=1e-4)
    for alone in lists[2:]:
        assert not np.array_equal(lists[0].items, alone.items)


def test_a_request_s_own_weights_decide(scorer: Scorer, histories: Histories) -> None:
    """Towers disagree, so that weights for one or the other guide to other items."""
    lists = [
        scorer.score_histories(
            histories, 5, options=AnswerOptions(objective={tower: 1.0}, reward_guidance=1000.0)
        ).items
        for tower in ("like", "watch_time")
    ]
    assert (lists[0] != lists[1]).any()


@pytest.mark.parametrize("answer", ["items", "sessions"])
@pytest.mark.parametrize("second_stage", ["none", "reward"])
def test_batch_frame_and_registered_model_agree(
    scorer: Scorer,
    steered_bundle: Path,
    steered_sources: BundleSources,
    item_ids: list[int],
    tmp_path: Path,
    answer: str,
    second_stage: str,
) -> None:
    asked = {"answer": answer, "second_stage": second_stage, "reward_guidance": 2.0}
    users = PreparedUsers(steered_sources.prepared, "d" * 64)
    config = RecommendConfig.model_validate({"k": 3, "users_per_shard": 2, **asked})
    write_candidates(steered_bundle, users, config, tmp_path, QUIET)
    batch = pl.concat([pl.read_parquet(path) for path in sorted(tmp_path.glob("part-*.parquet"))])
    frame = frame_of(item_ids)
    ours = scorer.score_frame(frame, 3, options=config.options)
    model = RecommenderModel()
    model.scorer = scorer
    theirs = pl.from_pandas(model.predict(None, frame, {"k": 3, **asked}))
    for rows in (ours, theirs):
        assert rows["item_id"].to_list() == batch["item_id"].to_list()
    plain = scorer.score_frame(frame, 3, options=AnswerOptions(answer=answer, second_stage=second_stage))  # type: ignore[arg-type]
    if second_stage == "none":
        assert plain["item_id"].to_list() != batch["item_id"].to_list()


def test_refusals(bundle: Path, scorer: Scorer, histories: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"reward_guidance is 1, but the bundle of 'toy' has no reward model"):
        Scorer.open(bundle).score_histories(histories, 3, options=AnswerOptions(reward_guidance=1.0))
    for value in (-1.0, float("nan"), float("inf"), 1e6 + 1):
        with pytest.raises(ConfigError, match=r"expected a number from 0 to 1e\+06"):
            scorer.score_histories(histories, 3, options=AnswerOptions(reward_guidance=value))
    with pytest.raises(ConfigError, match="rescore is true, but reward_guidance is 2"):
        scorer.score_histories(histories, 3, options=AnswerOptions(rescore=True, reward_guidance=2.0))
    for value in (-1.0, 1e6 + 1):
        with pytest.raises(ValueError, match="reward_guidance"):
            RecommendConfig(reward_guidance=value)
    model = RecommenderModel()
    model.scorer = scorer
    with pytest.raises(Exception, match="reward_guidance is 'much', expected a number"):
        model.predict(None, pl.DataFrame({"user_id": [1], "item_ids": [[]]}), {"reward_guidance": "much"})
    monkeypatch.setattr(requests, "MOST_GUIDED_ITEMS", NUM_ITEMS - 1)
    with pytest.raises(
        ConfigError, match="evaluates every item for every user, and 'steered' knows 12, at most 11 are"
    ):
        scorer.score_histories(histories, 3, options=AnswerOptions(reward_guidance=1.0))

"""The reward model selects: hand-worked orders, one answer by every way of asking, and no reward model of somebody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.reward.checkpoint import load_reward_model
from recsys.reward.scoring import rank_by_reward
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.scorer import Scorer
from serving.answers.second_stage import best_items, best_sessions
from serving.batch.candidates import write_candidates
from serving.batch.shard_scorer import ScoredShard, ShardScorer
from serving.config import AnswerOptions, RecommendConfig
from serving.export.export import BundleSources, export_bundle
from serving.export.parity import check_parity
from serving.inputs.user_histories import PreparedUsers
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import HISTORIES, frame_of, sealed, write_model, write_reward_model

QUIET = PlainProgress()
BY_REWARD = AnswerOptions(second_stage="reward")


class Prices:
    """Reward of a session: the sum of its items' prices; item 0 costs 5, 1 costs 1, 2 and 3 cost 3."""

    towers = ("price",)
    weights = torch.ones(1)
    prices = torch.tensor([5.0, 1.0, 3.0, 3.0])

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        return self.reward(histories, items_BGM)[..., None]

    def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        return torch.where(items_BGM >= 0, self.prices[items_BGM.clamp(min=0)], 0.0).sum(-1)


def rows_of(folder: Path) -> pl.DataFrame:
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))])
    return rows.drop("model_name", "model_version", "semantic_id_digest", "run_id", "scored_at")


def test_items_by_price(histories: Histories) -> None:
    """The pool is 1 3 2 0 and a gap. Prices 1 3 3 5: the order is 0, then 3 before 2 as the first stage had them, then 1.

    With 0 and 3 in one group and one item of a group allowed, 3 makes room: 0, 2, 1.
    """
    pool = RankedItems(np.array([[1, 3, 2, 0, -1]], np.int32), np.array([[4.0, 3, 2, 1, -np.inf]], np.float32))
    one = histories.take(np.array([0]))
    plain = best_items(Prices(), one, pool, 3, None)
    assert plain.items.tolist() == [[0, 3, 2]]
    assert plain.scores.tolist() == [[5.0, 3.0, 3.0]]
    limited = best_items(Prices(), one, pool, 4, Quotas.from_groups(np.array([1, 0, 0, 1]), 1))
    assert limited.items.tolist() == [[0, 2, 1, -1]]
    assert limited.scores.tolist() == [[5.0, 3.0, 1.0, -np.inf]]


def test_sessions_by_price(histories: Histories) -> None:
    """(1, 2) costs 4, (0, 1) costs 6, (2, 3) costs 6, and the last candidate does not exist."""
    candidates = np.array([[[1, 2], [0, 1], [2, 3], [-1, -1]]])
    best = best_sessions(Prices(), histories.take(np.array([0])), candidates, 4)
    assert best.items.tolist() == [[[0, 1], [2, 3], [1, 2], [-1, -1]]]
    assert best.scores.tolist() == [[6.0, 6.0, 4.0, -np.inf]]


def test_two_candidates_by_weighted_towers(
    scorer: Scorer, steered_sources: BundleSources, histories: Histories
) -> None:
    """Among two candidates every z-score is 1 or -1; single items are all equally diverse, so that tower gives 0.

    With the weights 3, 1 and 4 of 8 the reward of the better is |3/8 + 1/8| = 0.5 where the towers agree about the two
    items, and |3/8 - 1/8| = 0.25, as the first tower says, where they do not.
    """
    model = load_reward_model(steered_sources.reward_model, None)  # type: ignore[arg-type]
    pair = np.array([9, 10])
    asked = np.broadcast_to(pair, (len(histories), 2))
    signs = [np.sign(np.diff(rank_by_reward(model, histories, asked, weights=weights))[:, 0]) for weights in
             ({"like": 1.0, "watch_time": 0.0}, {"like": 0.0, "watch_time": 1.0})]  # fmt: skip
    expected = signs[0] * 3 / 8 + signs[1] / 8  # of item 10
    rules = ItemRules(exclude_seen=False, allow=np.isin(np.arange(12), pair))
    weighed = AnswerOptions(second_stage="reward", objective={"like": 3, "watch_time": 1, "diversity": 4})
    ranked = scorer.score_histories(histories, 2, rules, weighed)
    assert ranked.items[:, 0].tolist() == np.where(expected > 0, 10, 9).tolist()
    np.testing.assert_allclose(ranked.scores[:, 0], np.abs(expected), rtol=1e-5)
    np.testing.assert_allclose(ranked.scores[:, 1], -np.abs(expected), rtol=1e-5)
    assert len(set(np.abs(expected).round(3).tolist())) == 2, "the toy shows both cases"


def test_the_whole_beam_is_scored(scorer: Scorer, steered_sources: BundleSources, histories: Histories) -> None:
    """With more beams than items the pool is every unseen item, so the answer is the reward's order over the catalogue."""
    model = load_reward_model(steered_sources.reward_model, None)  # type: ignore[arg-type]
    ranked = scorer.score_histories(histories, 3, options=BY_REWARD)
    for row, history in enumerate(HISTORIES):
        unseen = np.array([item for item in range(12) if item not in history])
        rewards = rank_by_reward(model, histories.take(np.array([row])), unseen[None])[0]
        best = np.argsort(-rewards)[:3]
        assert ranked.items[row].tolist() == unseen[best].tolist()
        np.testing.assert_allclose(ranked.scores[row], rewards[best], rtol=1e-4)
    plain = scorer.score_histories(histories, 3)
    assert (plain.items != ranked.items).any()


def test_batch_frame_and_registered_model_agree(
    scorer: Scorer, steered_bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path
) -> None:
    weights = {"like": 1.0, "watch_time": 2.0}
    model = RecommenderModel()
    model.scorer = scorer
    for answer, key in (("items", "rank"), ("sessions", "session_rank")):
        config = RecommendConfig(k=3, users_per_shard=2, answer=answer, second_stage="reward", objective=weights)
        write_candidates(steered_bundle, users, config, tmp_path / answer, QUIET)
        batch = rows_of(tmp_path / answer)
        by_frame = scorer.score_frame(frame_of(item_ids), 3, options=AnswerOptions(answer, "reward", weights))
        params = {"k": 3, "answer": answer, "second_stage": "reward", "objective": json.dumps(weights)}
        by_model = pl.from_pandas(model.predict(None, frame_of(item_ids), params))
        names = [name for name in batch.columns if name != "score"]
        assert len(batch) == 5 * 3 * (2 if answer == "sessions" else 1)
        assert batch.select(names).rows() == by_frame.select(names).rows() == by_model.select(names).rows()
        assert batch["score"].equals(by_frame["score"])  # to the last bit, whatever the batch
        assert batch.filter(pl.col("user_id") == "u0")[key].is_sorted()


@pytest.mark.parametrize("answer", ["items", "sessions"])
def test_a_killed_job_goes_on_with_the_same_files(
    steered_bundle: Path, users: PreparedUsers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    config = RecommendConfig(k=3, users_per_shard=2, answer=answer, second_stage="reward", objective={"like": 1.0})
    undisturbed = write_candidates(steered_bundle, users, config, tmp_path / "whole", QUIET)
    original = ShardScorer.scored

    def dies_in_the_second(
        self: ShardScorer, numbers: Iterable[int], job: dict[str, Any]
    ) -> Iterator[tuple[int, ScoredShard]]:
        for number, shard in original(self, numbers, job):
            if number == 1:
                raise KeyboardInterrupt
            yield number, shard

    with monkeypatch.context() as patch:
        patch.setattr(ShardScorer, "scored", dies_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            write_candidates(steered_bundle, users, config, tmp_path / "killed", QUIET)
    assert not (tmp_path / "killed" / "candidates.json").exists()
    again = write_candidates(steered_bundle, users, config, tmp_path / "killed", QUIET)
    assert {**again, "users_per_second": 0} == {**undisturbed, "users_per_second": 0}
    assert rows_of(tmp_path / "killed").equals(rows_of(tmp_path / "whole"))
    changed = config.model_copy(update={"objective": {"like": 1.0, "watch_time": 1.0}})
    with pytest.raises(ArtifactError, match="holds another job"):
        write_candidates(steered_bundle, users, changed, tmp_path / "killed", QUIET)


def test_quotas_hold_in_the_new_order(scorer: Scorer, histories: Histories) -> None:
    """Three categories of four items and two of each allowed: six items, best reward first, however the beam had them."""
    rules = ItemRules(exclude_seen=False, quotas=Quotas.from_groups(scorer.catalogue.category_I, 2))
    limited = scorer.score_histories(histories, 12, rules, BY_REWARD)
    free = scorer.score_histories(histories, 12, ItemRules(exclude_seen=False), BY_REWARD)
    for row in range(len(histories)):
        taken: list[int] = []
        for item in free.items[row].tolist():
            if sum(item // 4 == other // 4 for other in taken) < 2:
                taken.append(item)
        assert limited.items[row].tolist() == taken + [-1] * 6


def test_a_bundle_without_reward_model_refuses(bundle: Path, sources: BundleSources, tmp_path: Path) -> None:
    config = RecommendConfig(k=3, second_stage="reward")
    with pytest.raises(
        ConfigError, match=r"bundle of 'toy' has no reward model; export it with export\.reward_model=true"
    ):
        write_candidates(bundle, PreparedUsers(sources.prepared, "d" * 64), config, tmp_path, QUIET)
    assert not list(tmp_path.iterdir())


def test_a_reward_model_that_came_or_went_is_noticed(bundle: Path, steered_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(steered_bundle, tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "reward_model")
    with pytest.raises(ArtifactError, match="names a reward model in its digests and holds none"):
        Scorer.open(sealed(tmp_path / "less"))
    shutil.copytree(bundle, tmp_path / "more")
    shutil.copytree(steered_bundle / "reward_model", tmp_path / "more" / "reward_model")
    with pytest.raises(ArtifactError, match="names no reward model in its digests and holds one"):
        Scorer.open(sealed(tmp_path / "more"))


def test_a_reward_model_of_other_parents_is_refused(
    steered_sources: BundleSources, sources: BundleSources, tmp_path: Path
) -> None:
    prepared, ids = Dataset.open(steered_sources.prepared), SemanticIds.load(steered_sources.semantic_ids)
    cases = {
        "aligned with the towers like, watch_time, diversity": {"towers": ("like", "follow")},
        "at most 1 items, the policy generates 2": {"max_items": 1},
        "trained on other data than the policy": {"prepared": Dataset.open(sources.prepared)},
        "trained with semantic IDs": {"semantic_ids": replace(ids, codes=ids.codes[::-1].copy())},
    }
    for number, (message, changes) in enumerate(cases.items()):
        write_reward_model(tmp_path / str(number), **{"prepared": prepared, "semantic_ids": ids, **changes})
        mixed = replace(steered_sources, reward_model=tmp_path / str(number))
        with pytest.raises(ArtifactError, match=message):
            export_bundle(mixed, "mixed", DecodeConfig(), tmp_path / "bundle")


def test_parity_covers_the_reward_model(steered_bundle: Path, steered_sources: BundleSources, tmp_path: Path) -> None:
    prepared, decode = Dataset.open(steered_sources.prepared), DecodeConfig(beam_width=24)
    assert check_parity(steered_bundle, steered_sources, prepared, decode, num_users=5) == {"parity_users": 5}
    ids = SemanticIds.load(steered_sources.semantic_ids)
    write_reward_model(tmp_path / "other", prepared, ids, seed=6)
    with pytest.raises(ArtifactError, match="does not score like the one in"):
        check_parity(steered_bundle, replace(steered_sources, reward_model=tmp_path / "other"), prepared, decode, 5)


def test_a_policy_that_was_not_steered_keeps_the_model_s_own_weights(
    steered_sources: BundleSources, histories: Histories, tmp_path: Path
) -> None:
    """Both towers weigh 1 in the reward model: the order by its own combination, without a diversity tower."""
    prepared, ids = Dataset.open(steered_sources.prepared), SemanticIds.load(steered_sources.semantic_ids)
    write_model(tmp_path / "model", prepared, ids, ("item", "codes"))
    export_bundle(
        replace(steered_sources, model=tmp_path / "model"), "plain", DecodeConfig(beam_width=24), tmp_path / "bundle"
    )
    scorer = Scorer.open(tmp_path / "bundle")
    assert scorer.model.towers == ()
    assert scorer.reward_model is not None
    assert scorer.reward_model.towers == ("like", "watch_time")
    ranked = scorer.score_histories(histories, 2, ItemRules(exclude_seen=False), BY_REWARD)
    model = load_reward_model(steered_sources.reward_model, None)  # type: ignore[arg-type]
    rewards = rank_by_reward(model, histories, np.broadcast_to(np.arange(12), (len(histories), 12)))
    assert ranked.items.tolist() == np.argsort(-rewards, axis=1)[:, :2].tolist()


def test_an_order_by_the_dense_head_as_well_is_refused() -> None:
    with pytest.raises(ValidationError, match="rescore is True, but the dense head decides no order"):
        RecommendConfig(second_stage="reward", rescore=True)

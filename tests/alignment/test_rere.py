"""Ranking-reward learning on the ring: targets become more probable, the books are right, the reference has no gradient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.alignment.align import align_policy
from recsys.alignment.config import (
    AlignConfig,
    GuardConfig,
    OptimiserConfig,
    RereConfig,
    RolloutConfig,
    SupervisedConfig,
)
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.rere import RankingRewardLearning
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner, RoundCurve
from recsys.alignment.rounds.loop import RoundWork, SmallerSteps
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.decoding.config import DecodeConfig
from tests.toy.alignment import NO_FALL_STOPS, QUIET, EvenTaste, next_item_ring, ring_policy, session_ring, weights_of
from tests.toy.dataset import ring_ids

GUARD = GuardConfig(ks=(1, 5, 10), recall_at=10, num_generations=4, users=60, resamples=100, **NO_FALL_STOPS)


def settings(**changes: object) -> RereConfig:
    values = {
        "rounds": 2,
        "steps_per_round": 25,
        "requests_per_step": 32,
        "rollouts": RolloutConfig(num_generations=8),
        "optimiser": OptimiserConfig(learning_rate=3e-3),
        **changes,
    }
    return RereConfig(**values)


def run(prepared: Dataset, folder: Path, config: RereConfig, **options):
    align = AlignConfig(method="rere", rere=config, guard=GUARD)
    inputs = AlignmentInputs(prepared, ring_ids(), ring_policy(prepared), align, DecodeConfig(), seed=5, **options)
    return align_policy(inputs, folder, QUIET)


def learning(prepared: Dataset, config: RereConfig, reward_set: RewardSet | None = None) -> RankingRewardLearning:
    policy = ring_policy(prepared)
    method = RankingRewardLearning(
        config,
        Learner(policy, config.optimiser, total_steps=50),
        RequestStream(prepared, 6, config.requests_per_step, seed=0),
        RolloutSampler(ring_ids(), config.rollouts),
        reward_set or RewardSet(config.rewards),
        seed=0,
    )
    method.begin(None)
    return method


def work_of(folder: Path, smaller_steps: SmallerSteps | None = None) -> RoundWork:
    return RoundWork(1, folder, 0, smaller_steps or SmallerSteps(), RoundCurve(), QUIET, lambda steps: None)


@pytest.mark.parametrize("task", ["next_item", "session"])
def test_targets_become_more_probable(tmp_path: Path, task: str) -> None:
    prepared = (next_item_ring if task == "next_item" else session_ring)(tmp_path / "data")
    summary = run(prepared, tmp_path / "align", settings())
    assert summary["kept_round"] == 2
    assert summary["after"]["beam_ndcg@10"] > summary["before"]["beam_ndcg@10"] + 0.1
    curves = pl.read_parquet(tmp_path / "align" / "curves.parquet")
    rule = curves.filter(pl.col("name") == "training/reward_rule").sort("step")["value"].to_numpy()
    assert rule[-10:].mean() > rule[:10].mean() + 0.02


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ({"loss_type": "dapo"}, {}),
        ({"loss_type": "gspo"}, {"num_iterations": 2}),
        ({"loss_type": "dr_grpo", "beta": 0.0}, {}),
        ({"loss_type": "tawin"}, {}),
        ({"loss_type": "ecpo"}, {"num_iterations": 2}),
        ({"loss_type": "gbpo"}, {"num_iterations": 2}),
        ({}, {"rewards": {"rule": 1.0, "first_difference": 0.5}}),
        ({}, {"rewards": {"prefix_match": 1.0}}),
        ({}, {"rollouts": RolloutConfig(num_generations=8, strategy="sampling")}),
        ({}, {"rollouts": RolloutConfig(num_generations=8, strategy="dynamic")}),
        ({}, {"rollouts": RolloutConfig(num_generations=4, add_ground_truth=True)}),
        ({}, {"zero_signal_weight": 1.0, "rollouts": RolloutConfig(num_generations=2)}),
        ({}, {"supervised": SupervisedConfig(weight=0.5, dense_weight=1.0)}),
    ],
)
def test_every_variant_learns(tmp_path: Path, loss: dict, changes: dict) -> None:
    prepared = next_item_ring(tmp_path / "data")
    config = settings(rounds=1, steps_per_round=30, loss=PolicyGradientConfig(**loss), **changes)
    summary = run(prepared, tmp_path / "align", config)
    assert summary["after"]["beam_ndcg@10"] > summary["before"]["beam_ndcg@10"]


def test_one_step_by_hand(tmp_path: Path) -> None:
    """Two candidates, one of them the target: rewards 1 and 0, on-policy. The loss is minus the mean advantage, 0; the
    gradient raises the target's codes and lowers the other's by the same weight, so the target gains."""
    prepared = next_item_ring(tmp_path)
    config = settings(
        rewards={"rule": 1.0},
        loss=PolicyGradientConfig(beta=0.0),
        rollouts=RolloutConfig(num_generations=2, add_ground_truth=True),
    )
    method = learning(prepared, config)
    rows = method.stream.rows(0)
    group = method.sampler.roll_out(method.learner.policy, method.stream.requests(rows), torch.Generator())
    batch = method.stream.collate(rows)
    before = method.learner.policy.log_prob(batch).mean()
    work = work_of(tmp_path)
    method._step(work, rows, torch.Generator())
    after = method.learner.policy.log_prob(batch).mean()
    assert after > before
    assert (group.items == group.target[:, None]).all(-1).any(1).all()
    figures = work.curve.means()
    assert figures["reward_rule"] == pytest.approx(0.5)
    assert figures["ratio_max"] == 1.0
    assert figures["clip_share"] == 0.0
    assert figures["distinct_share"] == 1.0


def test_equal_rewards_move_nothing_and_are_counted(tmp_path: Path) -> None:
    """A reward model that gives everybody 1: every group is without signal; filtered, no update is made."""

    class Content(EvenTaste):
        def values(self, histories, items_BGM):
            return torch.ones(*items_BGM.shape[:2], 1)

    prepared = next_item_ring(tmp_path)
    config = settings(rewards={"learned": 1.0})
    method = learning(prepared, config, RewardSet({"learned": 1.0}, learned=Content()))
    before = weights_of(method.learner.policy)
    work = work_of(tmp_path)
    method._step(work, method.stream.rows(0), torch.Generator())
    assert work.curve.counts["groups_without_signal"] == work.curve.counts["groups"] > 0
    assert work.curve.counts["steps_without_signal"] == 1
    assert method.learner.step == 0
    assert all(torch.equal(t, before[name]) for name, t in method.learner.policy.state_dict().items())

    kept = learning(prepared, config.model_copy(update={"zero_signal_weight": 1.0}), method.reward_set)
    work = work_of(tmp_path)
    kept._step(work, kept.stream.rows(0), torch.Generator())
    assert kept.learner.step == 1  # advantages are 0, and at the reference the divergence has no gradient either
    assert work.curve.means()["gradient_norm"] < 1e-6


def test_filtering_equals_weighing_with_nearly_nothing(tmp_path: Path) -> None:
    """Leaving groups out of the gradient pass is the same update as multiplying them by almost 0."""
    prepared = next_item_ring(tmp_path)
    loss = PolicyGradientConfig(beta=0.0)
    results = []
    for weight in (0.0, 1e-12):
        config = settings(rewards={"rule": 1.0}, loss=loss, zero_signal_weight=weight)
        method = learning(prepared, config.model_copy(update={"rollouts": RolloutConfig(num_generations=3)}))
        work = work_of(tmp_path)
        method._step(work, method.stream.rows(0), torch.Generator())
        assert 0 < work.curve.counts["groups_without_signal"] < work.curve.counts["groups"]
        results.append((work.curve.means()["gradient_norm"], weights_of(method.learner.policy)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)


def test_the_reference_has_no_gradient_and_is_synchronised(tmp_path: Path) -> None:
    """After two of the three updates: reference = 0.6 * policy + 0.4 * start."""
    prepared = next_item_ring(tmp_path)
    method = learning(prepared, settings(reference_sync_every=2, steps_per_round=2))
    start = weights_of(method.learner.policy)
    method.train(work_of(tmp_path))
    assert method.learner.step == 2
    policy, reference = method.learner.policy, method.reference
    assert reference is not None
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())
    for (name, own), current in zip(reference.named_parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(own, 0.6 * current.detach() + 0.4 * start[name], atol=1e-6, rtol=1e-5)


def test_several_updates_per_group_are_clipped(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    config = settings(
        rounds=1,
        num_iterations=4,
        optimiser=OptimiserConfig(learning_rate=2e-2),
        loss=PolicyGradientConfig(epsilon=0.1),
    )
    run(prepared, tmp_path / "align", config)
    report = json.loads((tmp_path / "align" / "alignment_report.json").read_text())
    training = report["rounds"][1]["training"]
    assert 0 < training["clip_share"] < 1
    assert training["ratio_max"] > 1.1
    steps = pl.read_parquet(tmp_path / "align" / "curves.parquet").filter(pl.col("name") == "training/kl")
    assert steps["step"].to_list() == list(range(100))


def test_a_reward_without_its_source_is_refused(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    with pytest.raises(ConfigError, match="'semantic' compares item embeddings and got none"):
        run(prepared, tmp_path / "a", settings(rewards={"semantic": 1.0}))
    with pytest.raises(ConfigError, match="scorer and got none"):
        run(prepared, tmp_path / "b", settings(rewards={"collaborative": 1.0}))
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 3)))
    scorer = lambda histories: torch.arange(12.0).expand(len(histories), -1)  # noqa: E731
    rewards = {"rule": 1.0, "semantic": 0.3, "collaborative": 0.1}
    summary = run(
        prepared,
        tmp_path / "c",
        settings(rounds=1, steps_per_round=2, rewards=rewards),
        item_vectors=vectors,
        collaborative=scorer,
    )
    assert summary["kept_round"] == 1


def test_divergence_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path)
    method = learning(prepared, settings())
    with torch.no_grad():
        method.learner.policy.decoder.code_bias += torch.nan
    loss = method.learner.policy.decoder.code_bias.sum()
    with pytest.raises(DataError, match=r"diverged at step 0.*lower optimiser.learning_rate"):
        method.learner.update(loss)

"""Requests are dropped when their beam has lost the target: the groups left and the step are those of the plain search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recsys.alignment import rere
from recsys.alignment.config import OptimiserConfig, RereConfig, RolloutConfig
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.losses.policy_gradient import PolicyGradientResult
from recsys.alignment.rere import RankingRewardLearning
from recsys.alignment.rewards.functions import target_share
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.lost_targets import search_for_targets
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner, RoundCurve
from recsys.alignment.rounds.loop import RoundWork, SmallerSteps
from recsys.model.generative_recommender import GenerativeRecommender
from tests.toy.alignment import QUIET, have_seen_everything, next_item_ring, ring_policy, session_ring, weights_of
from tests.toy.dataset import ring_ids


def method_of(folder: Path, **changes: object) -> RankingRewardLearning:
    prepared = next_item_ring(folder)
    values = {
        "requests_per_step": 24,
        "rollouts": RolloutConfig(num_generations=2),
        "rewards": {"rule": 1.0, "ranking": 1.0},
    }
    config = RereConfig(**{**values, "optimiser": OptimiserConfig(learning_rate=3e-3), **changes})
    policy = ring_policy(prepared)
    stream = RequestStream(prepared, 6, config.requests_per_step, seed=0)
    learner = Learner(policy, config.optimiser, total_steps=50)
    method = RankingRewardLearning(
        config, learner, stream, RolloutSampler(ring_ids(), config.rollouts), RewardSet(config.rewards), seed=0
    )
    method.begin(None)
    return method


def step(method: RankingRewardLearning, folder: Path) -> RoundCurve:
    work = RoundWork(1, folder, 0, SmallerSteps(), RoundCurve(), QUIET, lambda steps: None)
    method._step(work, method.stream.rows(0), torch.Generator())
    return work.curve


def test_the_groups_left_are_those_that_hold_their_target(tmp_path: Path) -> None:
    method = method_of(tmp_path)
    requests = method.stream.requests(method.stream.rows(0))
    whole = method.sampler.roll_out(method.learner.policy, requests, torch.Generator())
    found, rows = method.sampler.roll_out_where_found(method.learner.policy, requests)
    holds = (target_share(whole) > 0).any(1)
    assert 0 < len(rows) < len(requests)
    assert rows.tolist() == holds.nonzero()[:, 0].tolist()
    assert torch.equal(found.items, whole.items[holds])
    assert torch.equal(found.target, whole.target[holds])
    assert torch.equal(found.codes, whole.codes[holds])
    torch.testing.assert_close(found.scores, whole.scores[holds])
    assert torch.equal(found.history.item_BH, whole.history.take(holds).item_BH)


def test_lower_levels_are_computed_for_requests_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(tmp_path)
    asked: list[int] = []
    next_codes = GenerativeRecommender.next_codes

    def counted(self, state, codes):
        asked.append(len(state.visible))
        return next_codes(self, state, codes)

    monkeypatch.setattr(GenerativeRecommender, "next_codes", counted)
    requests = method.stream.requests(method.stream.rows(0))
    _, rows = method.sampler.roll_out_where_found(method.learner.policy, requests)
    assert asked[0] == len(requests)
    assert len(rows) <= asked[1] < asked[0]


@pytest.mark.parametrize("kept", [True, False])
def test_all_or_no_target_found(tmp_path: Path, kept: bool) -> None:
    """A beam as wide as the catalogue loses nobody; one of a single item loses all whose target is their least probable."""
    method = method_of(tmp_path)
    policy, sampler = method.learner.policy, method.sampler
    requests = method.stream.requests(method.stream.rows(0))
    history, targets = sampler._inputs(policy, requests)
    everything, _ = search_for_targets(policy, history, sampler._search_index, 12, targets[:, 0])
    assert len(everything.items) == len(requests)
    if not kept:
        worst = everything.items[:, -1, 0].clone()
        nothing, rows = search_for_targets(policy, history, sampler._search_index, 1, worst)
        assert nothing.items.shape == (0, 1, 1)
        assert len(rows) == 0


@pytest.mark.parametrize("average", ["all", "informative"])
def test_the_step_is_that_of_groups_that_are_generated_and_then_filtered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    results = []
    for early in (True, False):
        method = method_of(tmp_path / str(early), group_average=average)
        assert method.drops_early
        monkeypatch.setattr(RankingRewardLearning, "drops_early", early)
        curve = step(method, tmp_path)
        results.append((curve, weights_of(method.learner.policy)))
        monkeypatch.undo()
    (early_curve, early_weights), (late_curve, late_weights) = results
    assert early_curve.counts["groups_dropped_early"] == late_curve.counts["groups_without_signal"] > 0
    for name in ("groups", "groups_without_signal", "groups_with_target"):
        assert early_curve.counts[name] == late_curve.counts[name]
    assert early_curve.means() == pytest.approx(late_curve.means(), rel=1e-4, abs=1e-6)
    for name, weight in early_weights.items():
        torch.testing.assert_close(weight, late_weights[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_step_without_any_signal_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every target is the request's least probable item, and a beam of two never holds it."""
    method = method_of(tmp_path)

    def hopeless(policy, history, index, width, target):
        everything, _ = search_for_targets(policy, history, index, 12, target)
        return search_for_targets(policy, history, index, width, everything.items[:, -1, 0].clone())

    monkeypatch.setattr("recsys.alignment.rollouts.sampler.search_for_targets", hopeless)
    before = weights_of(method.learner.policy)
    curve = step(method, tmp_path)
    assert curve.counts["groups"] == curve.counts["groups_dropped_early"] == curve.counts["groups_without_signal"] == 24
    assert curve.counts["steps_without_signal"] == 1
    assert curve.means()["reward"] == 0.0
    assert all(torch.equal(t, before[name]) for name, t in method.learner.policy.state_dict().items())


def test_the_loss_is_divided_by_all_groups_of_the_step(tmp_path: Path) -> None:
    """Gradient norms before clipping: by all groups it is the share of informative ones times that by those alone."""
    curves = {a: step(method_of(tmp_path / a, group_average=a), tmp_path) for a in ("all", "informative")}
    counts = curves["all"].counts
    share = 1 - counts["groups_without_signal"] / counts["groups"]
    assert 0 < share < 1
    norms = {average: curve.means()["gradient_norm"] for average, curve in curves.items()}
    assert norms["all"] == pytest.approx(share * norms["informative"], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"rewards": {"rule": 1.0, "prefix_match": 0.5}},
        {"rewards": {"rule": 1.0, "ranking_paper": 1.0}},
        {"zero_signal_weight": 0.5},
        {"rollouts": RolloutConfig(num_generations=2, strategy="sampling")},
        {"rollouts": RolloutConfig(num_generations=2, exclude_seen=True)},
        {"rollouts": RolloutConfig(num_generations=2, add_ground_truth=True)},
        {"rollouts": RolloutConfig(num_generations=2, guided=True)},
    ],
)
def test_nothing_is_dropped_where_a_group_without_its_target_may_count(tmp_path: Path, changes: dict) -> None:
    method = method_of(tmp_path, **changes)
    assert not method.drops_early
    assert step(method, tmp_path).counts["groups_dropped_early"] == 0


def test_sessions_are_never_dropped(tmp_path: Path) -> None:
    prepared = session_ring(tmp_path)
    assert not RolloutSampler(ring_ids(), RolloutConfig(num_generations=2)).finds_targets(ring_policy(prepared))


def test_the_policy_gradient_of_a_step_is_the_published_mean(tmp_path: Path) -> None:
    """By hand, on-policy, no reference: the sum over informative groups of the group's own mean loss, over all groups."""
    method = method_of(tmp_path, loss=PolicyGradientConfig(beta=0.0), group_average="all", rewards={"rule": 1.0})
    policy = method.learner.policy
    requests = method.stream.requests(method.stream.rows(0))
    group = method.sampler.roll_out(policy, requests, torch.Generator())
    rewards = target_share(group)
    log_probs = candidate_log_probs(policy, group.history, group.items).codes.mean((2, 3))
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    loss = -(advantages * log_probs).mean()  # groups of equal rewards have advantage 0 and count in the mean
    loss.backward()
    grads = [p.grad for p in policy.parameters() if p.grad is not None]
    expected = float(torch.stack([g.norm() for g in grads]).norm())
    policy.zero_grad(set_to_none=True)
    assert step(method, tmp_path).means()["gradient_norm"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_signal_weight": 1.0},
        {"zero_signal_weight": 1.0, "recall": {"lambda_loss": {}}, "loss": {"beta": 0.0}},
        {"zero_signal_weight": 1.0, "recall": {"narrowing": {}}},
        {"recall": {"repair": {}}},
    ],
)
def test_a_step_of_users_who_may_be_shown_nothing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    """Groups without a candidate weigh nothing, whatever groups without a signal weigh; figures of theirs are 0, not NaN."""
    method = method_of(tmp_path / "data", rollouts=RolloutConfig(num_generations=4, exclude_seen=True), **changes)
    asked = method.stream.requests
    monkeypatch.setattr(method.stream, "requests", lambda rows: have_seen_everything(asked(rows), 12))
    before = weights_of(method.learner.policy)
    curve = step(method, tmp_path)
    assert curve.counts["steps_without_signal"] == 1
    assert curve.means() == {"reward_rule": 0.0, "reward_ranking": 0.0, "reward": 0.0, "distinct_share": 0.0}
    after = weights_of(method.learner.policy)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_figures_of_a_step_are_those_of_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(tmp_path / "data")
    real = rere.policy_gradient_loss

    def known(*arguments: object, **named: object) -> PolicyGradientResult:
        figures = {"clip_share": 0.25, "mean_ratio": 1.5, "max_ratio": 3.0, "kl": 0.5}
        return replace(real(*arguments, **named), **{name: torch.tensor(value) for name, value in figures.items()})

    monkeypatch.setattr(rere, "policy_gradient_loss", known)
    means = step(method, tmp_path).means()
    assert [means[name] for name in ("clip_share", "ratio_max", "kl")] == [0.25, 3.0, 0.5]

"""Faults that a review found in the methods of alignment, each as a test of what is right; A8, A12, A13 are its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from recsys.alignment.config import (
    GuardConfig,
    IpaConfig,
    OptimiserConfig,
    RereConfig,
    RolloutConfig,
    SupervisedConfig,
)
from recsys.alignment.ipa import IterativePreferenceAlignment
from recsys.alignment.losses.config import PolicyGradientConfig, PreferenceLossConfig
from recsys.alignment.rere import RankingRewardLearning
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner, RoundCurve, TargetPass, supervised_loss
from recsys.alignment.rounds.loop import RoundWork, SmallerSteps
from recsys.contracts.errors import ArtifactError, DataError
from recsys.decoding.config import DecodeConfig
from tests.alignment.test_findings_a import GUARD, aligned, evaluator_of, ipa_config
from tests.toy.alignment import NO_FALL_STOPS, QUIET, EvenTaste, next_item_ring, ring_policy, session_ring
from tests.toy.dataset import ring_ids

# A8


@pytest.mark.parametrize(
    "loss_type", ["dpo", "ipo", "cdpo", "rdpo", "cpo", "simpo", "sdpo", "plackett_luce", "listwise"]
)
def test_a8_a_back_off_is_gentler_for_every_loss(tmp_path: Path, loss_type: str) -> None:
    """The gradient at the reference, and the rate, shrink from back-off to back-off."""
    prepared = next_item_ring(tmp_path)
    rule = "best_all" if loss_type in ("plackett_luce", "listwise") else "best_worst"
    config = ipa_config(
        loss=PreferenceLossConfig(loss_type=loss_type), pair_rule=rule, supervised=SupervisedConfig(weight=0.0)
    ).ipa
    norms, rates = [], []
    for back_offs in range(3):
        smaller = SmallerSteps.after(back_offs, GUARD)
        policy = ring_policy(prepared)
        learner = Learner(policy, config.optimiser, 10)
        learner.learning_rate_scale = smaller.learning_rate
        stream = RequestStream(prepared, 6, config.batch_size, seed=0)
        method = IterativePreferenceAlignment(
            config,
            learner,
            stream,
            RolloutSampler(ring_ids(), config.rollouts),
            RewardSet(config.rewards, learned=EvenTaste()),
            0,
        )
        rows = stream.rows(0)
        pairs = method.make_pairs(stream.requests(rows), np.arange(len(rows)), rows, seeded(0), QUIET)
        work = RoundWork(1, tmp_path, 0, smaller, RoundCurve(), QUIET, lambda steps: None)
        method._update(work, rows, pairs, torch.ones(len(pairs)))
        norms.append(work.curve.means()["gradient_norm"])
        rates.append(work.curve.means()["learning_rate"])
    assert norms[0] > 1.5 * norms[1] > 2.25 * norms[2] > 0
    assert rates == pytest.approx([rates[0], rates[0] / 2, rates[0] / 4])


@pytest.mark.parametrize(
    ("loss_type", "turned"),
    [
        ("ipo", {"beta": 0.3}),
        ("simpo", {"simpo_gamma": 0.25}),
        ("listwise", {"temperature": 2.0}),
        ("dpo", {}),
        ("sdpo", {}),
    ],
)
def test_a8_only_a_setting_with_a_gentle_direction_is_turned(loss_type: str, turned: dict[str, float]) -> None:
    loss = PreferenceLossConfig(loss_type=loss_type, beta=0.15)
    assert loss.gentler(2.0) == loss.model_copy(update=turned)
    assert loss.gentler(1.0) == loss


def test_a8_a_back_off_lowers_the_weight_of_the_policy_gradient_too(tmp_path: Path) -> None:
    """Without a reference the loss is all weight: a quarter of it is a quarter of the gradient."""
    prepared = next_item_ring(tmp_path)
    config = RereConfig(
        rewards={"rule": 1.0},
        loss=PolicyGradientConfig(beta=0.0),
        rollouts=RolloutConfig(num_generations=4),
    )
    norms = []
    for weight in (1.0, 0.25):
        method = rere_method(prepared, config)
        work = RoundWork(1, tmp_path, 0, SmallerSteps(weight=weight), RoundCurve(), QUIET, lambda steps: None)
        method._step(work, method.stream.rows(0), seeded(0))
        norms.append(work.curve.means()["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0] / 4, rel=1e-4)


# A12, A13


def test_a12_the_guard_decodes_no_deeper_than_it_reads_or_serves(tmp_path: Path) -> None:
    """By default the deepest cut-off is the one whose recall is guarded; a larger one would be decoded for nobody."""
    assert max(GuardConfig().ks) == GuardConfig().recall_at == 50
    prepared = next_item_ring(tmp_path)
    evaluator = evaluator_of(prepared, ring_policy(prepared), decode=DecodeConfig(beam_width=4))
    assert evaluator._decode.beam_width == 10


def test_a13_rewards_are_put_together_once(tmp_path: Path) -> None:
    rewards = RewardSet({"learned": 1.0, "rule": 0.5}, learned=EvenTaste())
    assert rewards.reward is rewards.reward


def test_a12_without_parents_rounds_of_another_policy_are_not_taken_over(tmp_path: Path) -> None:
    """The same folder, settings and seed; the policy alone is another."""
    prepared = next_item_ring(tmp_path / "data")
    aligned(prepared, tmp_path / "run", ring_policy(prepared, seed=3), ipa_config())
    with pytest.raises(ArtifactError, match="belongs to an alignment with other settings or parents"):
        aligned(prepared, tmp_path / "run", ring_policy(prepared, seed=4), ipa_config())
    again = aligned(prepared, tmp_path / "run", ring_policy(prepared, seed=3), ipa_config())
    assert again["rounds"] == 1


def test_a12_the_next_token_loss_can_be_summed_over_a_session(tmp_path: Path) -> None:
    """OneRec's eq. 4: sessions of three items weigh three times the mean over items, exactly."""
    prepared = session_ring(tmp_path)
    policy = ring_policy(prepared)
    batch = RequestStream(prepared, 6, 16, seed=0).collate(np.arange(16))
    mean, summed = (
        supervised_loss(
            policy, TargetPass.of(policy, batch), SupervisedConfig(dense_weight=0.0, session_reduction=reduction)
        ).item()
        for reduction in ("mean", "sum")
    )
    items = (batch.target_BPM > 0).sum(-1)
    assert items.max() == 3
    assert summed == pytest.approx(mean * (items.sum() / (items > 0).sum()).item(), rel=1e-5)
    assert summed > 1.5 * mean


def test_a12_dropped_groups_can_stay_in_the_denominator(tmp_path: Path) -> None:
    """With a quarter of the groups informative, ReRe's own mean over all groups is a quarter of the mean over those."""
    prepared = next_item_ring(tmp_path)
    norms = {}
    for reduction in ("informative", "all"):
        config = RereConfig(
            rewards={"rule": 1.0},
            requests_per_step=32,
            group_average=reduction,
            loss=PolicyGradientConfig(beta=0.0),
            rollouts=RolloutConfig(num_generations=3),
        )
        method = rere_method(prepared, config)
        work = RoundWork(1, tmp_path, 0, SmallerSteps(), RoundCurve(), QUIET, lambda steps: None)
        method._step(work, method.stream.rows(0), seeded(0))
        norms[reduction] = work.curve.means()["gradient_norm"]
        share = 1 - work.curve.counts["groups_without_signal"] / work.curve.counts["groups"]
    assert 0 < share < 1
    assert norms["all"] == pytest.approx(share * norms["informative"], rel=1e-4)


def rere_method(prepared, config: RereConfig) -> RankingRewardLearning:
    method = RankingRewardLearning(
        config,
        Learner(ring_policy(prepared), config.optimiser, 50),
        RequestStream(prepared, 6, config.requests_per_step, seed=0),
        RolloutSampler(ring_ids(), config.rollouts),
        RewardSet(config.rewards),
        seed=0,
    )
    method.begin(None)
    return method


def test_a12_divergence_is_no_error_of_the_configuration(tmp_path: Path) -> None:
    learner = Learner(ring_policy(next_item_ring(tmp_path)), OptimiserConfig(), 10)
    with pytest.raises(DataError, match="diverged at step 0"):
        learner.update(sum(p.sum() for p in learner.policy.parameters()) * torch.inf)


def test_a13_no_preference_loss_is_spelled_none(tmp_path: Path) -> None:
    """No roll-out, no pair, and the weights of a run whose pairs weigh next to nothing."""
    prepared = next_item_ring(tmp_path / "data")
    guard = GUARD.model_copy(update={**NO_FALL_STOPS, "reward_falls": "record"})
    ends = []
    for name, changes in (("none", {"preference": "none"}), ("tiny", {"preference_weight": 1e-12})):
        policy = ring_policy(prepared)
        aligned(prepared, tmp_path / name, policy, ipa_config(guard, **changes))
        ends.append(policy.state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], atol=1e-4, rtol=1e-3)
    pairs = load_file(tmp_path / "none" / "rounds" / "01" / "pairs.safetensors")
    assert len(pairs["row_Q"]) == 0
    with pytest.raises(ValidationError, match=r"supervised\.weight is 0"):
        IpaConfig(preference="none", supervised=SupervisedConfig(weight=0.0))

"""Pairs carry what the snapshot gave them: the roll-out's own scores, or for a target put behind it, a second look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.alignment.config import IpaConfig, RolloutConfig
from recsys.alignment.ipa import IterativePreferenceAlignment
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner
from recsys.data.batch import collate_histories
from tests.toy.alignment import QUIET, EvenTaste, have_seen_everything, next_item_ring, ring_policy, session_ring
from tests.toy.dataset import ring_ids


@pytest.mark.parametrize("strategy", ["beam", "sampling"])
@pytest.mark.parametrize("rule", ["best_worst", "rank_spaced", "target_rest"])
@pytest.mark.parametrize("task", ["next_item", "session"])
def test_pairs_carry_the_snapshots_log_probabilities(tmp_path: Path, task: str, rule: str, strategy: str) -> None:
    prepared = (next_item_ring if task == "next_item" else session_ring)(tmp_path)
    policy = ring_policy(prepared)
    config = IpaConfig(pair_rule=rule, num_negatives=2, rollouts=RolloutConfig(num_generations=6, strategy=strategy))
    stream = RequestStream(prepared, 6, 16, seed=0)
    method = IterativePreferenceAlignment(
        config,
        Learner(policy, config.optimiser, total_steps=10),
        stream,
        RolloutSampler(ring_ids(), config.rollouts),
        RewardSet(config.rewards, learned=EvenTaste()),
        seed=0,
    )
    rows = np.arange(12)
    pairs = method.make_pairs(stream.requests(rows), rows, rows, torch.Generator().manual_seed(0), QUIET)
    assert len(pairs) > 0
    history = collate_histories(stream.samples.histories.take(pairs.row_Q.numpy()), 6)
    with torch.no_grad():
        scored = candidate_log_probs(policy, history, pairs.candidates_QGM).sessions
    torch.testing.assert_close(pairs.ref_chosen_Q, scored[:, 0], atol=1e-5, rtol=1e-5)
    exists = pairs.exists_QN
    torch.testing.assert_close(pairs.ref_rejected_QN[exists], scored[:, 1:][exists], atol=1e-5, rtol=1e-5)
    assert (pairs.ref_rejected_QN[~exists] == 0).all()


@pytest.mark.parametrize("rule", ["best_worst", "target_rest"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_log_ratio_begins_at_zero_in_every_precision(tmp_path: Path, rule: str, precision: str) -> None:
    """The snapshot is the policy, and what pairs carry of it is scored as the policy will be.

    In bfloat16 the roll-out's own scores, of float32, are .013 nats off; what is left are candidates that other candidates
    beside them round otherwise.
    """
    prepared = next_item_ring(tmp_path)
    config = IpaConfig(pair_rule=rule, rollouts=RolloutConfig(num_generations=6))
    stream = RequestStream(prepared, 6, 16, seed=0)
    learner = Learner(ring_policy(prepared), config.optimiser, total_steps=10, precision=precision)
    sampler = RolloutSampler(ring_ids(), config.rollouts)
    method = IterativePreferenceAlignment(
        config, learner, stream, sampler, RewardSet(config.rewards, learned=EvenTaste()), seed=0
    )
    rows = np.arange(40)
    pairs = method.make_pairs(stream.requests(rows), rows, rows, torch.Generator().manual_seed(0), QUIET)
    assert len(pairs) > 10
    history = collate_histories(stream.samples.histories.take(pairs.row_Q.numpy()), 6)
    with torch.no_grad(), learner.mixed():
        now = candidate_log_probs(learner.policy, history, pairs.candidates_QGM).sessions
    ratio = now - torch.cat([pairs.ref_chosen_Q[:, None], pairs.ref_rejected_QN], dim=1)
    assert ratio.abs().mean() < (2e-6 if precision == "32-true" else 1.5e-3)
    _, figures = method._preference(pairs, torch.ones(len(pairs)), 1.0)
    assert figures["preference"] == pytest.approx(np.log(2), abs=2e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("rule", ["best_worst", "target_rest"])
def test_a_block_without_any_pair_is_no_pair(tmp_path: Path, rule: str, precision: str) -> None:
    """Users who have seen everything: no candidate, nothing to be scored."""
    prepared = next_item_ring(tmp_path)
    config = IpaConfig(pair_rule=rule, rollouts=RolloutConfig(num_generations=4, exclude_seen=True))
    stream = RequestStream(prepared, 6, 16, seed=0)
    learner = Learner(ring_policy(prepared), config.optimiser, total_steps=10, precision=precision)
    rewards = RewardSet({"rule": 1.0})
    method = IterativePreferenceAlignment(
        config, learner, stream, RolloutSampler(ring_ids(), config.rollouts), rewards, seed=0
    )
    rows = np.arange(3)
    requests = have_seen_everything(stream.requests(rows), 12)
    pairs = method.make_pairs(requests, rows, rows, torch.Generator().manual_seed(0), QUIET)
    assert len(pairs) == 0
    assert pairs.candidates_QGM.shape == (0, 2, 1)

"""Recall with a soft edge."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.alignment.config import GuardConfig
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rounds.policy_evaluator import PolicyEvaluator
from recsys.alignment.rounds.soft_recall import soft_recall
from recsys.data.batch import collate_histories
from recsys.decoding.config import DecodeConfig
from tests.toy.alignment import QUIET, EvenTaste, next_item_ring, ring_policy, session_ring
from tests.toy.dataset import ring_ids

LISTED = np.array([[-1.0, -2.0, -3.0, -4.0]])


def test_by_hand() -> None:
    """Cut at four: the edge is -4, place 2 is two above it. A target at -3 is half a step inside: sigmoid(1)."""
    asked = np.array([[-4.0], [-2.0], [-6.0], [-3.0]])
    expected = [0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-1))]
    np.testing.assert_allclose(soft_recall(asked, LISTED.repeat(4, 0), 4), expected)


def test_targets_of_a_session_are_averaged_and_missing_ones_left_out() -> None:
    """On the edge and never shown: a fourth. Nothing asked: 0."""
    assert soft_recall(np.array([[-4.0, -np.inf, np.nan]]), LISTED, 4).tolist() == [0.25]
    assert soft_recall(np.array([[np.nan, np.nan]]), LISTED, 4).tolist() == [0.0]


def test_a_policy_that_is_only_more_sure_keeps_it() -> None:
    """All log-probabilities times three, and all of them lower by one."""
    generator = np.random.default_rng(0)
    scores = -np.sort(generator.exponential(3.0, (50, 20)), axis=1) - 1
    asked = -generator.exponential(3.0, (50, 2)) - 1
    once = soft_recall(asked, scores, 10)
    np.testing.assert_allclose(soft_recall(3 * asked - 1, 3 * scores - 1, 10), once)


def test_a_short_list_holds_all_that_may_be_shown() -> None:
    short = np.array([[-1.0, -2.0, -np.inf, -np.inf]])
    assert soft_recall(np.array([[-9.0, -np.inf]]), short, 4).tolist() == [0.5]


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("ring", [next_item_ring, session_ring])
def test_it_is_measured_on_what_the_beam_knows(tmp_path: Path, ring, exclude_seen: bool) -> None:
    """Each target scored alone; one that may not come again counts 0; where the recall is whole, so is half of this one."""
    prepared = ring(tmp_path)
    policy = ring_policy(prepared)
    guard = GuardConfig(ks=(1, 5), recall_at=5, num_generations=4, users=30, exclude_seen=exclude_seen)
    evaluator = PolicyEvaluator(
        prepared, ring_ids(), policy, guard, DecodeConfig(), RewardSet({"rule": 1.0}), EvenTaste(), seed=0
    )
    measured = evaluator.measure(policy, None, QUIET)
    assert measured.values["beam_soft_recall@5"] == pytest.approx(measured.rows["beam_soft_recall@5"].mean())
    found = evaluator._target_log_probs(policy)
    for row in range(5):
        one = evaluator.requests.take(np.array([row]))
        history = collate_histories(one.histories, policy.spec.model.max_history)
        for place, item in enumerate(one.targets_NM[0].tolist()):
            if item < 0:
                assert math.isnan(found[row, place])
            elif exclude_seen and item in one.histories.seen_items()[0]:
                assert found[row, place] == -math.inf
            else:
                with torch.no_grad():
                    alone = candidate_log_probs(policy, history, torch.tensor([[[item]]])).sessions
                assert found[row, place] == pytest.approx(float(alone), abs=1e-5)
    whole = measured.rows["beam_recall@5"] == 1
    assert measured.rows["beam_soft_recall@5"][whole].min() >= 0.5 - 1e-6


def test_an_odd_cut_off_is_measured_by_the_place_in_its_middle() -> None:
    """Cut at three of -1, -2, -5: the edge is -5, place 2 is three above it. A target at -2 is a step inside: sigmoid(2)."""
    found = soft_recall(np.array([[-2.0]]), np.array([[-1.0, -2.0, -5.0]]), 3)
    np.testing.assert_allclose(found, [1 / (1 + math.exp(-2))])

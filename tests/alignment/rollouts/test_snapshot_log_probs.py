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
from tests.toy.alignment import QUIET, EvenTaste, next_item_ring, ring_policy, session_ring
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

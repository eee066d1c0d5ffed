"""Objective weights as an input of the policy: neutral until trained, then they change the answer; refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.contracts.errors import ConfigError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.config import ModelConfig
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_ids, ring_prepared


@pytest.mark.parametrize("encoder", ["plain", "pathways"])
def test_weights_are_neutral_until_trained(tmp_path, encoder: str) -> None:
    prepared, ids = ring_prepared(tmp_path), ring_ids()
    shape = {"width": 16, "num_heads": 2, "max_history": 6, "encoder_attention": "bidirectional"}
    torch.manual_seed(0)
    policy = build_policy(prepared, ids, ModelConfig(**shape, encoder=encoder, num_objectives=2), None).eval()
    batch = collate_histories(Histories.from_targets(prepared.history, prepared.all_users()), 6).take(torch.arange(3))
    plain = policy.next_codes(policy.start(batch), None)
    steered = replace(batch, objective_BO=torch.tensor([[1.0, 0.0]] * 3))
    torch.testing.assert_close(policy.next_codes(policy.start(steered), None), plain)
    with torch.no_grad():
        policy.objective.projection.weight.normal_()
    assert not torch.allclose(policy.next_codes(policy.start(steered), None), plain, atol=1e-3)
    other = replace(batch, objective_BO=torch.tensor([[0.0, 1.0]] * 3))
    assert not torch.allclose(
        policy.next_codes(policy.start(steered), None), policy.next_codes(policy.start(other), None), atol=1e-3
    )


@pytest.mark.parametrize("decoder", ["standard", "lazy"])
def test_equal_weights_are_no_weights_and_searching_scores_as_training_does(tmp_path: Path, decoder: str) -> None:
    prepared, ids = ring_prepared(tmp_path), ring_ids()
    torch.manual_seed(0)
    shape = {"width": 16, "num_heads": 2, "max_history": 6, "decoder": decoder, "num_objectives": 3}
    policy = build_policy(prepared, ids, ModelConfig(**shape), None).eval()
    policy.objective.projection.weight.data.normal_()
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=4, rescore="none"))
    plain = recommender.recommend(histories, 4, exclude_seen=False)
    alike = recommender.recommend(histories.with_objective(np.full(3, 1 / 3)), 4, exclude_seen=False)
    np.testing.assert_array_equal(alike.items, plain.items)
    np.testing.assert_allclose(alike.scores, plain.scores, atol=1e-5)
    objective = histories.with_objective(np.array([0.7, 0.2, 0.1]))
    found = recommender.recommend(objective, 4, exclude_seen=False)
    assert np.abs(found.scores - plain.scores).max() > 1e-2
    history = collate_histories(objective, 6)
    again = candidate_log_probs(policy, history, torch.from_numpy(found.items).long()[..., None]).sessions
    np.testing.assert_allclose(again.detach().numpy(), found.scores, atol=1e-4)


def test_a_model_without_the_input_refuses_weights(tmp_path) -> None:
    prepared, ids = ring_prepared(tmp_path), ring_ids()
    policy = build_policy(prepared, ids, ModelConfig(width=16, num_heads=2, max_history=6), None).eval()
    batch = collate_histories(Histories.from_targets(prepared.history, prepared.all_users()), 6)
    with pytest.raises(ConfigError, match="carry 2 objective weights, the model takes 0"):
        policy.start(replace(batch, objective_BO=torch.ones(len(batch), 2)))


def test_one_objective_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_objectives is 1: one weight has nothing to be weighed against"):
        ModelConfig(num_objectives=1)

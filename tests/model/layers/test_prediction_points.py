"""Prediction points: gaps are not decoded, and what is decoded does not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.prediction_points import PredictionPoints
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_ids, ring_prepared


def test_places_and_masks_by_hand() -> None:
    """Two users, two points, one position each, three memory positions; the second point of user 0 asks for nothing."""
    points = PredictionPoints.from_places((2, 2), torch.tensor([[0, 1], [2, 1]]), torch.tensor([0, 2, 3]), 1, 3)
    assert points.place_N is not None
    assert points.place_N.tolist() == [0, 2, 3]
    assert points.visible is not None
    assert points.visible[:, 0].int().tolist() == [[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 0]]]
    full = torch.arange(4.0)[:, None]
    assert points.pick(full)[:, 0].tolist() == [0, 2, 3]
    assert points.spread(points.pick(full) + 1)[:, 0].tolist() == [1, 0, 3, 4]


@pytest.mark.parametrize("asked", [None, torch.arange(4)])
def test_nothing_is_moved_where_all_ask(asked: torch.Tensor | None) -> None:
    points = PredictionPoints.from_places((2, 2), None, asked, positions=3, memory_size=4)
    assert points.place_N is None
    assert points.visible is None
    full = torch.randn(4, 3, 8)
    assert points.pick(full) is full
    assert points.spread(full) is full


def test_one_point_stands_in_where_none_asks() -> None:
    none = torch.empty(0, dtype=torch.int64)
    points = PredictionPoints.from_places((2, 2), None, none, positions=3, memory_size=4)
    assert points.pick(torch.arange(4)).tolist() == [0]


@pytest.mark.parametrize("decoder", ["standard", "lazy"])
def test_a_target_is_decoded_alike_with_and_without_gaps_beside_it(tmp_path: Path, decoder: str) -> None:
    """Log-probabilities and gradients of a batch with gaps are those of each point alone; experts count no gap."""
    torch.manual_seed(0)
    shape = {"width": 16, "num_heads": 2, "ffn_width": 32, "expert_width": 16, "max_history": 6, "init_std": 0.5}
    config = ModelConfig.model_validate({**shape, "decoder": decoder, "dropout": 0.0, "embedding_dropout": 0.0})
    policy = build_policy(ring_prepared(tmp_path, users=10, items=12), ring_ids(), config, None).train()
    zeros = torch.zeros(2, 4, dtype=torch.int64)
    items = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    history = HistoryBatch(torch.tensor([1, 2]), items, zeros, zeros, zeros, torch.tensor([4, 2]))
    target = torch.tensor([[[2], [3], [4], [7]], [[6], [0], [9], [0]]])
    position = torch.tensor([[0, 1, 2, 4], [1, 0, 2, 0]])
    together, load = log_probs_and_gradient(policy, TrainingBatch(history, target, position))
    assert load == 6 * policy_rows(policy)
    alone = torch.zeros_like(together[0])
    gradient = torch.zeros_like(together[1])
    for user, point in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 2)):
        alone_target = target[:, point : point + 1].clone()
        alone_target[1 - user] = 0
        one = TrainingBatch(history, alone_target, position[:, point : point + 1])
        (log_prob, part), _ = log_probs_and_gradient(policy, one)
        alone[user, point] = log_prob[user, 0]
        gradient += part
    torch.testing.assert_close(together[0], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1], gradient, atol=1e-4, rtol=1e-3)


def policy_rows(policy: GenerativeRecommender) -> int:
    """Tokens a decoded target sends through the experts of one layer, times experts per token."""
    return policy.num_levels * policy.spec.model.experts_per_token


def log_probs_and_gradient(
    policy: GenerativeRecommender, batch: TrainingBatch
) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    """Log-probabilities, the gradient of their sum for one matrix, and the load that the first layer's experts counted."""
    policy.zero_grad()
    layer = policy.moe_layers()[0]
    log_probs = policy.log_prob(batch)[..., 0]
    log_probs.sum().backward()
    weight = policy.encoder.blocks[0].attention.qkv.weight
    assert weight.grad is not None
    return (log_probs.detach(), weight.grad.clone()), float(layer.last_load_E.sum())

"""One policy steered by weights: a request for even items gets even ones, one for odd items odd ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.alignment.align import align_policy
from recsys.alignment.config import (
    AlignConfig,
    GuardConfig,
    IpaConfig,
    ObjectiveConfig,
    OptimiserConfig,
    RolloutConfig,
    SupervisedConfig,
)
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rounds.learner import Learner
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.checkpoint import load_policy
from recsys.model.config import ModelConfig
from recsys.reward.scoring import DiverseScorer
from recsys.training.fit import build_policy
from tests.toy.alignment import MODEL, QUIET, EvenTaste, next_item_ring
from tests.toy.dataset import ring_ids


class EvenOrOdd:
    """Two towers of opposite taste; a request's weights decide between them."""

    towers = ("even", "odd")
    weights = torch.tensor([1.0, 1.0])

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        even = EvenTaste().values(histories, items_BGM)
        return torch.cat([even, 1 - even], dim=-1)

    def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        values = self.values(histories, items_BGM)
        weights = self.weights if histories.objective is None else torch.from_numpy(histories.objective)[:, None]
        return (values * weights).sum(-1)


def steered_config(**changes: object) -> AlignConfig:
    settings = {
        "rounds": 6,
        "samples_per_round": 320,
        "batch_size": 32,
        "preference_share": 1.0,
        "preference_reduction": "pairs",
        "rollouts": RolloutConfig(num_generations=8),
        "supervised": SupervisedConfig(weight=0.1, dense_weight=0.0),
        "optimiser": OptimiserConfig(learning_rate=1e-2, final_learning_rate_share=1.0),
        "objective": ObjectiveConfig(diversity=False),
        **changes,
    }
    guard = GuardConfig(ks=(1, 5, 10), recall_at=10, num_generations=4, users=20, resamples=50, on_violation="record")
    return AlignConfig(method="ipa", ipa=IpaConfig(**settings), guard=guard)


def steerable_policy(prepared, num_objectives: int = 2):
    torch.manual_seed(3)
    return build_policy(prepared, ring_ids(), ModelConfig(**MODEL, num_objectives=num_objectives), None).eval()


def inputs_of(prepared, policy) -> AlignmentInputs:
    return AlignmentInputs(
        prepared, ring_ids(), policy, steered_config(), DecodeConfig(), seed=5, reward_model=EvenOrOdd()
    )


def test_a_request_gets_what_it_weighs(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    policy = steerable_policy(prepared)
    align_policy(inputs_of(prepared, policy), tmp_path / "align", QUIET)
    kept = load_policy(tmp_path / "align" / "model", ring_ids().digest)
    assert kept.spec.objectives == ("even", "odd")
    recommender = Recommender(kept, ring_ids(), DecodeConfig(beam_width=12, rescore="none"))
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    shares = [
        (
            recommender.recommend(histories.with_objective(np.array(weights)), 3, exclude_seen=False).items % 2 == 0
        ).mean()
        for weights in ([0.0, 1.0], [0.5, 0.5], [1.0, 0.0])
    ]
    assert shares[0] < 0.2
    assert shares[0] <= shares[1] <= shares[2]
    assert shares[2] > 0.8


def test_the_input_for_weights_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    """One step of Adam moves each of its entries by its rate: 7 times the rate of all others, which move by theirs."""
    policy = steerable_policy(next_item_ring(tmp_path))
    objective = policy.objective.projection.weight
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    config = OptimiserConfig(learning_rate=1e-3, objective_rate=7.0, warmup_share=0.0, gradient_clip=0.0)
    learner = Learner(policy, config, total_steps=10)
    learner.update(sum(p.sum() for p in policy.parameters()))
    for name, parameter in policy.named_parameters():
        rate = 7e-3 if parameter is objective else 1e-3
        torch.testing.assert_close(parameter.detach(), before[name] - rate, atol=1e-6, rtol=1e-4)


def test_diversity_is_a_tower_of_its_own() -> None:
    """Groups 1 1 2 2. Sessions (0, 1): one group of two items, .5; (0, 2): 1. Equal inner reward: z-scores -1 and 1."""

    class Flat(EvenTaste):
        def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
            return torch.zeros(items_BGM.shape[:2])

    scorer = DiverseScorer(Flat(), torch.tensor([1, 1, 2, 2]))
    empty = np.zeros(1, np.int64)
    blank = np.zeros(0, np.uint8)
    one = Histories(np.zeros(1, np.int32), empty, empty, np.zeros(0, np.int32), blank, blank, blank)
    items = torch.tensor([[[0, 1], [0, 2]]])
    assert scorer.towers == ("even", "diversity")
    assert scorer.values(one, items)[0, :, 1].tolist() == [0.5, 1.0]
    reward = scorer.reward(one.with_objective(np.array([0.0, 2.0])), items)
    assert reward.tolist() == [[-2.0, 2.0]]
    assert scorer.reward(one, items).tolist() == [[0.0, 0.0]]


def test_refusals(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    with pytest.raises(ConfigError, match="takes 3 objective weights, the reward has the towers even, odd"):
        align_policy(inputs_of(prepared, steerable_policy(prepared, 3)), tmp_path / "align", QUIET)
    ids = ring_ids()
    turned = replace(ids, codes=ids.codes[::-1].copy(), item_ids=ids.item_ids.reverse())
    inputs = replace(inputs_of(prepared, steerable_policy(prepared, 3)), semantic_ids=turned)
    with pytest.raises(ArtifactError, match="numbers its items otherwise"):
        align_policy(inputs, tmp_path / "align", QUIET)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    with pytest.raises(DataError, match="2 rows, the histories 60"):
        histories.with_objective(np.ones((2, 3)))

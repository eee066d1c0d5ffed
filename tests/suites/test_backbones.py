"""What the rest of the system does with a policy, with either backbone: alignment, roll-outs, rules, sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from recsys.alignment.align import align_policy
from recsys.alignment.config import (
    AlignConfig,
    GuardConfig,
    IpaConfig,
    OptimiserConfig,
    RereConfig,
    RolloutConfig,
    SupervisedConfig,
)
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PreferenceLossConfig
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.contracts.columns import TRAIN
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress
from recsys.training.fit import build_policy
from tests.toy.alignment import MODEL, NO_FALL_STOPS, QUIET, EvenTaste, next_item_ring, session_ring
from tests.toy.dataset import ring_ids
from tests.toy.language_model import SHAPE

BACKBONES: dict[str, dict[str, Any]] = {
    "encoder_decoder": {},
    "llm": {"backbone": "llm", "language_model": {"shape": SHAPE}},
    "llm, adapters": {"backbone": "llm", "language_model": {"shape": SHAPE, "tune": "lora", "lora": {"rank": 4}}},
    "llm, vocabulary": {"backbone": "llm", "language_model": {"shape": SHAPE, "softmax": "vocabulary"}},
}
GUARD = GuardConfig(ks=(1, 5, 10), recall_at=10, num_generations=4, users=30, resamples=50, **NO_FALL_STOPS)
FAST = OptimiserConfig(learning_rate=3e-3)
ROLLOUTS = RolloutConfig(num_generations=6)
METHODS = {
    "rere": AlignConfig(
        method="rere",
        rere=RereConfig(rounds=1, steps_per_round=30, requests_per_step=32, rollouts=ROLLOUTS, optimiser=FAST),
        guard=GUARD,
    ),
    "softmax-DPO": AlignConfig(
        method="ipa",
        ipa=IpaConfig(
            rounds=1,
            samples_per_round=480,
            batch_size=32,
            preference_share=1.0,
            loss=PreferenceLossConfig(loss_type="sdpo"),
            supervised=SupervisedConfig(weight=0.1, dense_weight=0.0),
            rollouts=ROLLOUTS,
            optimiser=FAST,
        ),
        guard=GUARD,
    ),
}


class KillInRound(SilentProgress):
    """Stops the process, so to speak, in the middle of a round of alignment."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def track(self, items: Iterable, label: str, total: int | None = None) -> Iterator:
        for number, item in enumerate(items):
            if label.startswith("round") and number == self.steps:
                raise KeyboardInterrupt(label)
            yield item


backbones = pytest.mark.parametrize("backbone", BACKBONES)


def policy_for(dataset: Dataset, backbone: str) -> GenerativeRecommender:
    if "adapters" in backbone:
        pytest.importorskip("peft")
    torch.manual_seed(3)
    return build_policy(dataset, ring_ids(), ModelConfig.model_validate({**MODEL, **BACKBONES[backbone]}), None).eval()


def test_every_backbone_is_in_the_suite() -> None:
    chosen = {ModelConfig.model_validate({**MODEL, **values}).backbone for values in BACKBONES.values()}
    assert chosen == set(get_args(ModelConfig.model_fields["backbone"].annotation))


def align(dataset: Dataset, folder: Path, policy: GenerativeRecommender, config: AlignConfig, progress=QUIET):
    scorers = {"reward_model": EvenTaste(), "held_out_reward_model": EvenTaste()} if config.method == "ipa" else {}
    inputs = AlignmentInputs(dataset, ring_ids(), policy, config, DecodeConfig(), seed=5, **scorers)
    return align_policy(inputs, folder, progress)


@backbones
@pytest.mark.parametrize("method", METHODS)
def test_alignment_gets_more_of_what_it_rewards(tmp_path: Path, backbone: str, method: str) -> None:
    dataset = next_item_ring(tmp_path / "data")
    policy = policy_for(dataset, backbone)
    frozen = {name: weight.clone() for name, weight in policy.named_parameters() if not weight.requires_grad}
    summary = align(dataset, tmp_path / "align", policy, METHODS[method])
    assert summary["kept_round"] == 1
    figure = "beam_ndcg@10" if method == "rere" else "reward"
    assert summary["after"][figure] > summary["before"][figure]
    for name, weight in policy.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name]), name


@pytest.mark.parametrize("backbone", ["llm", "llm, adapters"])
def test_a_killed_alignment_ends_with_equal_weights(tmp_path: Path, backbone: str) -> None:
    dataset, config = (
        next_item_ring(tmp_path / "data"),
        METHODS["rere"].model_copy(update={"checkpoint_every_steps": 1}),
    )
    whole, killed = policy_for(dataset, backbone), policy_for(dataset, backbone)
    align(dataset, tmp_path / "whole", whole, config)
    with pytest.raises(KeyboardInterrupt):
        align(dataset, tmp_path / "killed", killed, config, KillInRound(3))
    again = policy_for(dataset, backbone)
    align(dataset, tmp_path / "killed", again, config)
    for (name, weight), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other), name


@backbones
@pytest.mark.parametrize("strategy", ["beam", "sampling"])
def test_rollouts_carry_their_probabilities(tmp_path: Path, backbone: str, strategy: str) -> None:
    """A group's scores are what teacher forcing gives the same items."""
    dataset = next_item_ring(tmp_path / "data")
    policy = policy_for(dataset, backbone)
    config = RolloutConfig(num_generations=5, strategy=strategy)
    requests = Requests.from_targets(dataset, dataset.targets(1)).take(np.arange(8))
    group = RolloutSampler(ring_ids(), config).roll_out(policy, requests, torch.Generator().manual_seed(0))
    assert group.history is not None
    expected = candidate_log_probs(policy, group.history, group.items).sessions
    torch.testing.assert_close(group.scores, expected.detach(), atol=1e-4, rtol=1e-4)


@backbones
def test_seen_items_are_left_out_and_the_dense_head_orders_the_rest(tmp_path: Path, backbone: str) -> None:
    dataset = next_item_ring(tmp_path / "data")
    recommender = Recommender(policy_for(dataset, backbone), ring_ids(), DecodeConfig(beam_width=12))
    histories = Histories.from_targets(dataset.history, dataset.all_users())
    beam, served = recommender.both_orders(histories, 3, exclude_seen=True)
    for ranked in (beam, served):
        for row, items in enumerate(ranked.items):
            seen = set(histories.item[histories.start[row] : histories.end[row]].tolist())
            assert not seen & set(items[items >= 0].tolist())
    assert (np.diff(served.scores, axis=1) <= 0).all()
    assert not np.array_equal(beam.items, served.items)


@backbones
def test_sessions_do_not_repeat_an_item(tmp_path: Path, backbone: str) -> None:
    dataset = session_ring(tmp_path / "data")
    assert dataset.spec.session_length > 1
    histories = Histories.from_targets(dataset.history, dataset.targets(TRAIN).take(np.arange(5)))
    recommender = Recommender(policy_for(dataset, backbone), ring_ids(), DecodeConfig(beam_width=6))
    items, scores = recommender.recommend_sessions(histories, 4, exclude_seen=False)
    assert items.shape == (5, 4, dataset.spec.session_length)
    assert all(len(set(session)) == len(session) for row in items.tolist() for session in row)
    assert (np.diff(scores, axis=1) <= 0).all()

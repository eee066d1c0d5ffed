"""What a round of IPA draws: requests, candidates and weights of its own; and what its pairs are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.alignment import ipa
from recsys.alignment.config import IpaConfig, RolloutConfig
from recsys.alignment.ipa import IterativePreferenceAlignment
from recsys.alignment.losses.config import CurriculumConfig
from recsys.alignment.losses.preference_pairs import PreferencePairs
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner, RoundCurve
from recsys.alignment.rounds.loop import RoundWork, SmallerSteps
from recsys.alignment.sample_config import ObjectiveConfig
from tests.alignment.test_ipa_objectives import EvenOrOdd, steerable_policy
from tests.toy.alignment import QUIET, EvenTaste, next_item_ring
from tests.toy.dataset import ring_ids


def method_of(folder: Path, **changes: Any) -> IterativePreferenceAlignment:
    prepared = next_item_ring(folder)
    rollouts = RolloutConfig(num_generations=6, strategy="sampling")
    config = IpaConfig(**{"samples_per_round": 64, "batch_size": 16, "rollouts": rollouts, **changes})
    return IterativePreferenceAlignment(
        config,
        Learner(steerable_policy(prepared), config.optimiser, total_steps=10),
        RequestStream(prepared, 6, config.batch_size, seed=0),
        RolloutSampler(ring_ids(), config.rollouts),
        RewardSet(config.rewards, learned=EvenOrOdd() if config.objective else EvenTaste()),
        seed=0,
    )


def work_of(number: int, folder: Path) -> RoundWork:
    scratch = folder / str(number)
    scratch.mkdir(parents=True, exist_ok=True)
    return RoundWork(number, scratch, 0, SmallerSteps(), RoundCurve(), QUIET, lambda steps: None)


def pairs_of(method: IterativePreferenceAlignment, number: int, folder: Path) -> PreferencePairs:
    """Pairs of a round on samples that are the same in every round."""
    rows = np.concatenate([method.stream.rows(step) for step in range(4)])
    pairs, _ = method._pairs(work_of(number, folder), rows)
    return pairs


def test_every_round_asks_other_requests(tmp_path: Path) -> None:
    beam = RolloutConfig(num_generations=6)  # draws nothing itself
    method = method_of(tmp_path / "data", preference_share=0.5, rollouts=beam)
    first, second, again = (
        pairs_of(method, number, tmp_path / name) for number, name in ((1, "a"), (2, "a"), (1, "b"))
    )
    assert set(first.position_Q.tolist()) != set(second.position_Q.tolist())
    assert first.position_Q.tolist() == again.position_Q.tolist()


@pytest.mark.parametrize("objective", [None, ObjectiveConfig(diversity=False)])
def test_every_round_draws_other_candidates_and_other_weights(
    tmp_path: Path, objective: ObjectiveConfig | None
) -> None:
    """Of the same requests: all are asked, and nothing is trained in between."""
    method = method_of(tmp_path / "data", preference_share=1.0, objective=objective)
    first, second, again = (
        pairs_of(method, number, tmp_path / name) for number, name in ((1, "a"), (2, "a"), (1, "b"))
    )
    both = torch.tensor(sorted(set(first.position_Q.tolist()) & set(second.position_Q.tolist())))
    assert len(both) > 20
    one, two = (pairs.take(torch.isin(pairs.position_Q, both)) for pairs in (first, second))
    assert not torch.equal(one.candidates_QGM, two.candidates_QGM)
    assert torch.equal(first.candidates_QGM, again.candidates_QGM)
    assert torch.equal(first.objective_QO, again.objective_QO)
    if objective is not None:
        assert not torch.isclose(one.objective_QO, two.objective_QO).all(1).any()


def test_files_of_one_round_draw_other_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of two files are not given the same draws."""
    monkeypatch.setattr(ipa, "REQUESTS_PER_FILE", 32)
    method = method_of(tmp_path / "data", preference_share=1.0, objective=ObjectiveConfig(diversity=False))
    weights = pairs_of(method, 1, tmp_path / "a").objective_QO
    assert len(weights.unique(dim=0)) == len(weights)


def test_the_target_is_worth_one_and_the_others_nothing(tmp_path: Path) -> None:
    """The rule's own rewards: what the reward model says of the candidates plays no part, in the books neither."""
    pairs = pairs_of(method_of(tmp_path / "data", preference_share=1.0, pair_rule="target_rest"), 1, tmp_path)
    assert len(pairs) > 20
    assert (pairs.reward_chosen_Q == 1).all()
    assert (pairs.reward_rejected_QN == 0).all()
    assert (pairs.reward_gap_Q == 1).all()


def test_the_curriculum_goes_on_with_the_steps_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps: nothing, a quarter, half, three quarters of the round are done; and anew in the next round."""
    seen: list[float] = []
    weigh = ipa.pair_weights

    def noted(pairs: PreferencePairs, config: CurriculumConfig, progress: float) -> torch.Tensor:
        seen.append(progress)
        return weigh(pairs, config, progress)

    monkeypatch.setattr(ipa, "pair_weights", noted)
    method = method_of(tmp_path / "data", preference_share=1.0, curriculum=CurriculumConfig(by="reward"))
    for number in (1, 2):
        method.train(work_of(number, tmp_path))
    assert seen == [0.0, 0.25, 0.5, 0.75] * 2

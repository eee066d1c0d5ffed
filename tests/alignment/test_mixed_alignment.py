"""Alignment in bfloat16: every log-probability of a step is computed alike, and ends in float32."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from recsys.alignment import ipa, rere
from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig, IpaConfig, OptimiserConfig, RereConfig, RolloutConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rounds.learner import Learner
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import load_policy
from tests.alignment.test_rere import GUARD
from tests.toy.alignment import QUIET, EvenTaste, next_item_ring, ring_policy
from tests.toy.dataset import ring_ids

SMALL: dict[str, Any] = {"rounds": 1, "optimiser": OptimiserConfig(learning_rate=3e-3)}
METHODS = {
    "rere": RereConfig(steps_per_round=2, requests_per_step=8, rollouts=RolloutConfig(num_generations=4), **SMALL),
    "ipa": IpaConfig(samples_per_round=256, preference_share=1.0, rollouts=RolloutConfig(num_generations=4), **SMALL),
}


@pytest.mark.parametrize("method", ["rere", "ipa"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_policy_and_reference_are_scored_in_the_configured_precision(
    tmp_path: Path, method: str, precision: str
) -> None:
    prepared, seen = next_item_ring(tmp_path / "data"), []

    def noted(*arguments: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        scored = candidate_log_probs(*arguments)
        assert scored.codes.dtype == torch.float32
        return scored

    align = AlignConfig(method=method, guard=GUARD, precision=precision, **{method: METHODS[method]})
    policy = ring_policy(prepared)
    inputs = AlignmentInputs(
        prepared,
        ring_ids(),
        policy,
        align,
        DecodeConfig(),
        seed=5,
        reward_model=EvenTaste(),
        held_out_reward_model=EvenTaste(),
    )
    with patch.object({"rere": rere, "ipa": ipa}[method], "candidate_log_probs", noted):
        align_policy(inputs, tmp_path / "out", QUIET)
    assert len(seen) >= (3 if method == "rere" else 1)
    assert set(seen) == {precision == "bf16-mixed"}
    kept = load_policy(tmp_path / "out" / "model", ring_ids().digest)
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.float32}


def test_mixed_log_probabilities_are_those_of_float32_to_bfloat16s_rounding(tmp_path: Path) -> None:
    """Products have 8 bits of mantissa: log-probabilities of about -4 move in their third digit, and do move.

    A few move further, where another expert is chosen.
    """
    prepared = next_item_ring(tmp_path)
    targets = prepared.targets(1)
    history = collate_histories(Histories.from_targets(prepared.history, targets), 6)
    items = torch.from_numpy(np.tile(np.arange(12), (len(history), 1)))[..., None]
    found = []
    for precision in ("32-true", "bf16-mixed"):
        learner = Learner(ring_policy(prepared), OptimiserConfig(), 10, precision)
        with learner.mixed(), torch.no_grad():
            found.append(candidate_log_probs(learner.policy, history, items).sessions)
    assert 1e-4 < (found[0] - found[1]).abs().median() < 0.04

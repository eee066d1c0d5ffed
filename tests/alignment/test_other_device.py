"""A round of alignment runs where the policy is: roll-outs, rewards, losses, updates, measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.decoding.config import DecodeConfig
from tests.alignment.test_ipa import QUIET, RING_GUARD, EvenTaste, ipa, next_item_ring, ring_ids, ring_policy
from tests.alignment.test_rere import settings as rere
from tests.toy.other_device import other_device


@pytest.mark.parametrize("method", ["ipa", "rere"])
def test_a_round_moves_the_policy_as_on_the_cpu(tmp_path: Path, method: str) -> None:
    prepared = next_item_ring(tmp_path / "data")
    if method == "ipa":
        config = ipa(rounds=1)
    else:
        config = AlignConfig(method="rere", rere=rere(rounds=1, steps_per_round=2), guard=RING_GUARD)

    def aligned(folder: Path, device: torch.device | str) -> dict[str, float]:
        policy = ring_policy(prepared).to(device)
        models = {"reward_model": EvenTaste(), "held_out_reward_model": EvenTaste()} if method == "ipa" else {}
        inputs = AlignmentInputs(prepared, ring_ids(), policy, config, DecodeConfig(), seed=5, **models)
        return align_policy(inputs, folder, QUIET)["after"]

    expected = aligned(tmp_path / "cpu", "cpu")
    with other_device() as device:
        found = aligned(tmp_path / "other", device)
    # Adam turns the rounding of attention into steps of other signs, so that few of sixty users may rank another item first
    assert found == pytest.approx(expected, abs=0.1)

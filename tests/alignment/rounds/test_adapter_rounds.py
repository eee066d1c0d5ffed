"""Rounds of a policy of which only adapters and what is new move: files without the base, the same end after kills."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig, GuardConfig, OptimiserConfig, RereConfig, RolloutConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.rounds.learner import Learner
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.decoding.config import DecodeConfig
from recsys.language_model.base import from_shape
from recsys.language_model.language_policy import LanguagePolicy
from recsys.model.checkpoint import load_policy, save_policy
from tests.toy.alignment import NO_FALL_STOPS, QUIET, KillAfter, ring_policy, weights_of
from tests.toy.language_model import SHAPE, language_policy_for, ring_ids_of_three_levels, ring_world

pytest.importorskip("peft")
RERE = AlignConfig(
    method="rere",
    rere=RereConfig(
        rounds=2,
        steps_per_round=4,
        requests_per_step=8,
        reference_sync_every=3,
        rollouts=RolloutConfig(num_generations=4),
        loss=PolicyGradientConfig(beta=0.05),
        optimiser=OptimiserConfig(learning_rate=3e-3),
    ),
    guard=GuardConfig(ks=(1, 5), recall_at=5, num_generations=4, users=12, resamples=50, **NO_FALL_STOPS),
    checkpoint_every_steps=3,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """A ring, and a folder of transformers with a random model."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(1)
    from_shape(SHAPE, 0.5).model.save_pretrained(folder / "base")
    return ring_world(folder, users=24), folder / "base"


def policy_of(world: tuple[Dataset, Path], keep_base: str = "inside") -> LanguagePolicy:
    dataset, source = world
    return language_policy_for(dataset, source=str(source), tune="lora", keep_base=keep_base)


def go(world: tuple[Dataset, Path], folder: Path, progress=QUIET) -> LanguagePolicy:
    policy = policy_of(world)
    align_policy(
        AlignmentInputs(world[0], ring_ids_of_three_levels(), policy, RERE, DecodeConfig(), seed=5), folder, progress
    )
    return policy


def base_names(names) -> list[str]:
    return [name for name in names if ".layers." in name and "lora_" not in name]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_round_holds_adapters_and_comes_back_equal(world: tuple[Dataset, Path], tmp_path: Path) -> None:
    policy = go(world, tmp_path)
    model = tmp_path / "rounds" / "02" / "model"
    written = load_file(model / "model.safetensors")
    assert base_names(written) == []
    assert any("lora_" in name for name in written)
    assert {"codes.weight", "vocabulary.marks", "dense_query.weight"} <= written.keys()
    assert equal(weights_of(load_policy(model)), weights_of(policy))  # all of them, the base's too

    state = torch.load(tmp_path / "rounds" / "02" / ".state.pt", weights_only=True)
    for part in (state["learner"]["policy"], state["method"]["reference"]):
        assert base_names(part) == []
        assert any("lora_" in name for name in part)

    inside = load_file(tmp_path / "model" / "model.safetensors")  # the result is what keep_base says
    assert base_names(inside)
    assert inside.keys() - written.keys() == {name for name in policy.base_weights if name in inside}


def test_a_round_is_not_read_with_another_base(world: tuple[Dataset, Path], tmp_path: Path) -> None:
    source = world[1]
    save_policy(tmp_path / "round", policy_of(world), name_base=True)
    weights = load_file(source / "model.safetensors")
    changed = {**weights, "model.norm.weight": weights["model.norm.weight"] + 1}
    try:
        save_file(changed, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match="put that model back"):
            load_policy(tmp_path / "round")
    finally:
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


def test_a_policy_without_a_named_base_is_written_whole(world: tuple[Dataset, Path], tmp_path: Path) -> None:
    """All weights move, or the base was drawn at random and lies nowhere else."""
    for name, options in {"all": {}, "drawn": {"tune": "lora"}}.items():
        policy = language_policy_for(world[0], **options)
        save_policy(tmp_path / name, policy, name_base=True)
        assert base_names(load_file(tmp_path / name / "model.safetensors"))
        assert equal(weights_of(load_policy(tmp_path / name)), weights_of(policy))


def test_killed_again_and_again_it_ends_the_same(world: tuple[Dataset, Path], tmp_path: Path) -> None:
    """Killed after 2, 4, 6, … items of any loop, between and within rounds."""
    whole = go(world, tmp_path / "whole")
    start = policy_of(world)
    assert not equal(weights_of(whole), weights_of(start))
    for name, weight in start.named_parameters():
        if not weight.requires_grad:
            assert torch.equal(weight, whole.get_parameter(name)), name
    kills = 0
    while True:
        try:
            pieces = go(world, tmp_path / "pieces", KillAfter(2 + 2 * kills))
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 3
    assert equal(weights_of(pieces), weights_of(whole))


def test_a_state_of_other_weights_is_refused(world: tuple[Dataset, Path]) -> None:
    learner = Learner(policy_of(world), RERE.rere.optimiser, 4)
    state = learner.state_dict()
    whole = Learner(ring_policy(world[0], ids=ring_ids_of_three_levels()), RERE.rere.optimiser, 4).state_dict()
    with pytest.raises(ArtifactError, match=r"does not fit the model: .* delete it and run again"):
        learner.load_state_dict({**state, "policy": whole["policy"]})
    learner.load_state_dict(state)

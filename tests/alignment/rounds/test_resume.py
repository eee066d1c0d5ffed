"""A kill at any instant: started again, the run ends with the same weights and the same books."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig, GuardConfig, IpaConfig, OptimiserConfig, RereConfig, RolloutConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.rounds import loop as round_loop
from recsys.alignment.rounds import store as round_state
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.decoding.config import DecodeConfig
from tests.toy.alignment import NO_FALL_STOPS, QUIET, EvenTaste, KillAfter, next_item_ring, ring_policy, weights_of
from tests.toy.dataset import ring_ids

GUARD = GuardConfig(ks=(1, 5), recall_at=5, num_generations=4, users=20, resamples=50, **NO_FALL_STOPS)
FAST = OptimiserConfig(learning_rate=3e-3)
IPA = AlignConfig(
    method="ipa",
    ipa=IpaConfig(
        rounds=2,
        samples_per_round=160,
        batch_size=16,
        preference_share=0.5,
        rollouts=RolloutConfig(num_generations=4, rows_per_batch=64, strategy="sampling"),
        optimiser=FAST,
        pair_rule="best_random",
    ),
    guard=GUARD,
    checkpoint_every_steps=3,
)
RERE = AlignConfig(
    method="rere",
    rere=RereConfig(
        rounds=2,
        steps_per_round=10,
        requests_per_step=16,
        num_iterations=2,
        reference_sync_every=7,
        rollouts=RolloutConfig(num_generations=6, strategy="dynamic"),
        loss=PolicyGradientConfig(beta=0.05),
        optimiser=FAST,
    ),
    guard=GUARD,
    checkpoint_every_steps=3,
)
BACKING_OFF = IPA.model_copy(
    update={"guard": GUARD.model_copy(update={"held_out_falls": None, "on_violation": "back_off"})}
)

RERE_BACKING_OFF = RERE.model_copy(
    update={"guard": GUARD.model_copy(update={"max_kl": 1e-4, "on_violation": "back_off", "max_back_offs": 1})}
)


def go(prepared: Dataset, folder: Path, config: AlignConfig, progress=QUIET, held_out_sign: float = 1.0):
    policy = ring_policy(prepared)
    inputs = AlignmentInputs(
        prepared,
        ring_ids(),
        policy,
        config,
        DecodeConfig(),
        seed=5,
        reward_model=EvenTaste() if config.needs_reward_model else None,
        held_out_reward_model=EvenTaste(held_out_sign) if config.needs_reward_model else None,
    )
    summary = align_policy(inputs, folder, progress)
    return weights_of(policy), summary, json.loads((folder / "alignment_report.json").read_text())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return next_item_ring(tmp_path_factory.mktemp("ring"))


@pytest.mark.parametrize(
    ("config", "held_out_sign"),
    [(IPA, 1.0), (RERE, 1.0), (BACKING_OFF, -1.0), (RERE_BACKING_OFF, 1.0)],
    ids=["ipa", "rere", "back_off", "rere_back_off"],
)
def test_killed_again_and_again_it_ends_the_same(
    prepared: Dataset, tmp_path: Path, config: AlignConfig, held_out_sign: float
) -> None:
    """Killed after 4, 5, 6, … items of any loop, until a life is long enough to finish."""
    whole = go(prepared, tmp_path / "whole", config, held_out_sign=held_out_sign)
    kills = 0
    while True:
        try:
            pieces = go(prepared, tmp_path / "pieces", config, KillAfter(4 + kills), held_out_sign)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 4
    assert all(torch.equal(tensor, whole[0][name]) for name, tensor in pieces[0].items())
    assert pieces[1] == whole[1]
    assert pieces[2] == whole[2]


@pytest.mark.parametrize(
    ("config", "held_out_sign"), [(BACKING_OFF, -1.0), (RERE_BACKING_OFF, 1.0)], ids=["ipa", "rere"]
)
def test_killed_inside_the_guard_and_after_random_steps_it_backs_off_to_the_same_end(
    prepared: Dataset,
    tmp_path: Path,
    config: AlignConfig,
    held_out_sign: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each life dies where the guard is asked, after its bootstrap, or at a random item of a loop; the next goes on."""
    whole = go(prepared, tmp_path / "whole", config, held_out_sign=held_out_sign)
    assert len(whole[2]["rounds"]) == 3  # the start, a round, and the one that the back-off led to
    assert [entry["smaller_steps"]["learning_rate"] for entry in whole[2]["rounds"][1:]] == [1.0, 0.5]
    generator = np.random.default_rng(4)
    for items in generator.integers(1, 6, size=2):
        with contextlib.suppress(KeyboardInterrupt):
            go(prepared, tmp_path / "pieces", config, KillAfter(int(items)), held_out_sign)
    for passes, after in ((0, False), (0, True), (1, False), (0, True)):  # round 1, again, round 2, again
        with monkeypatch.context() as patch:
            patch.setattr(round_loop, "check_round", _dies(round_loop.check_round, passes, after))
            with pytest.raises(KeyboardInterrupt):
                go(prepared, tmp_path / "pieces", config, held_out_sign=held_out_sign)
    pieces = go(prepared, tmp_path / "pieces", config, held_out_sign=held_out_sign)
    assert all(torch.equal(tensor, whole[0][name]) for name, tensor in pieces[0].items())
    assert pieces[1:] == whole[1:]


def _dies(real, passes: int, after: bool):
    """Let so many calls pass; then die, before or after the work is done."""
    calls = itertools.count()

    def call(*args, **options):
        if next(calls) < passes:
            return real(*args, **options)
        if after:
            real(*args, **options)
        raise KeyboardInterrupt

    return call


@pytest.mark.parametrize("config", [IPA, RERE], ids=["ipa", "rere"])
def test_killed_while_a_round_is_published(
    prepared: Dataset, tmp_path: Path, config: AlignConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moments before a finished round is described, and before its folder moves."""
    whole = go(prepared, tmp_path / "whole", config)
    for name in ("write_json", "describe_files"):
        with monkeypatch.context() as patch:
            patch.setattr(round_state, name, _second_call_dies(getattr(round_state, name)))
            with pytest.raises(KeyboardInterrupt):
                go(prepared, tmp_path / name, config)
        again = go(prepared, tmp_path / name, config)
        assert all(torch.equal(tensor, whole[0][key]) for key, tensor in again[0].items())


def _second_call_dies(real):
    calls = iter([True])

    def call(*args, **options):
        if not next(calls, False):
            raise KeyboardInterrupt
        return real(*args, **options)

    return call


def test_a_finished_run_does_nothing_again(prepared: Dataset, tmp_path: Path) -> None:
    first = go(prepared, tmp_path / "run", RERE)
    again = go(prepared, tmp_path / "run", RERE, KillAfter(0))
    assert again[1] == first[1]
    assert all(torch.equal(tensor, first[0][name]) for name, tensor in again[0].items())


def test_same_seed_same_weights(prepared: Dataset, tmp_path: Path) -> None:
    first, second = (go(prepared, tmp_path / name, IPA) for name in ("a", "b"))
    assert all(torch.equal(tensor, first[0][name]) for name, tensor in second[0].items())
    assert first[1] == second[1]


def test_damage_is_found(prepared: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(prepared, tmp_path / "run", IPA, KillAfter(30))
    (state,) = (tmp_path / "run" / ".scratch").glob("*/.state.pt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="delete it and run again"):
        go(prepared, tmp_path / "run", IPA)
    state.unlink()
    whole = go(prepared, tmp_path / "whole", IPA)
    again = go(prepared, tmp_path / "run", IPA)
    assert all(torch.equal(tensor, whole[0][name]) for name, tensor in again[0].items())


@pytest.mark.parametrize("other", [{"precision": "bf16-mixed"}, {"decode": DecodeConfig(beam_width=9)}])
def test_rounds_of_another_precision_or_decoding_are_not_gone_on_with(tmp_path: Path, other: dict) -> None:
    """Both decide the result: one how updates are computed, the other what the guard measures."""
    prepared = next_item_ring(tmp_path / "data")
    config = IPA.model_copy(update={"ipa": IPA.ipa.model_copy(update={"rounds": 1, "samples_per_round": 32})})

    def run(decode: DecodeConfig = DecodeConfig(), precision: str = "32-true") -> None:  # noqa: B008
        policy, scorer = ring_policy(prepared), EvenTaste()
        chosen = config.model_copy(update={"precision": precision})
        align_policy(
            AlignmentInputs(prepared, ring_ids(), policy, chosen, decode, 5, scorer, scorer), tmp_path / "run", QUIET
        )

    run()
    run()
    with pytest.raises(ArtifactError, match="belongs to an alignment with other settings"):
        run(**other)

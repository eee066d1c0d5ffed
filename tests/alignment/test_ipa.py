"""Iterative preference alignment on the ring: a reward model that likes even items gets more of them, and the books are
right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch

from recsys.alignment.align import align_policy
from recsys.alignment.config import (
    AlignConfig,
    CurriculumConfig,
    IpaConfig,
    OptimiserConfig,
    RolloutConfig,
    SupervisedConfig,
)
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PreferenceLossConfig
from recsys.alignment.rounds.loop import SmallerSteps
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import open_artifact
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import load_policy
from tests.toy.alignment import (
    QUIET,
    RING_GUARD,
    EvenTaste,
    next_item_ring,
    ring_policy,
    session_ring,
    weights_of,
)
from tests.toy.dataset import ring_ids


def ipa(**changes: object) -> AlignConfig:
    settings = {
        "rounds": 2,
        "samples_per_round": 320,
        "batch_size": 32,
        "preference_share": 0.5,
        "rollouts": RolloutConfig(num_generations=8),
        "supervised": SupervisedConfig(weight=0.1, dense_weight=0.0),
        "optimiser": OptimiserConfig(learning_rate=3e-3),
        **changes,
    }
    return AlignConfig(method="ipa", ipa=IpaConfig(**settings), guard=RING_GUARD)


def run(prepared: Dataset, folder: Path, config: AlignConfig, **options):
    policy = ring_policy(prepared)
    options = {
        "reward_model": EvenTaste(),
        "held_out_reward_model": EvenTaste(),
        "parents": {"train": "abc"},
        **options,
    }
    inputs = AlignmentInputs(prepared, ring_ids(), policy, config, DecodeConfig(), seed=5, **options)
    return policy, align_policy(inputs, folder, QUIET)


@pytest.mark.parametrize("task", ["next_item", "session"])
def test_a_reward_of_even_items_gets_more_of_them(tmp_path: Path, task: str) -> None:
    prepared = (next_item_ring if task == "next_item" else session_ring)(tmp_path / "data")
    _, summary = run(prepared, tmp_path / "align", ipa(preference_reduction="pairs"))
    assert summary["kept_round"] == 2
    report = json.loads((tmp_path / "align" / "alignment_report.json").read_text())
    even = [finished["measured"]["held_out_reward_even"] for finished in report["rounds"]]
    assert even[0] < even[1] < even[2]
    assert even[2] > even[0] + 0.15
    assert summary["after"]["kl_to_start"] > 0.01
    assert report["rounds"][2]["training"]["accuracy"] > 0.6


@pytest.mark.parametrize("loss_type", ["ipo", "simpo", "sdpo", "plackett_luce", "listwise"])
def test_every_kind_of_loss_trains(tmp_path: Path, loss_type: str) -> None:
    prepared = next_item_ring(tmp_path / "data")
    rule = "best_all" if loss_type in ("plackett_luce", "listwise") else "rank_spaced"
    negatives = 3 if loss_type == "sdpo" else 1
    config = ipa(rounds=1, loss=PreferenceLossConfig(loss_type=loss_type), pair_rule=rule, num_negatives=negatives)
    config = config.model_copy(update={"ipa": config.ipa.model_copy(update={"preference_reduction": "pairs"})})
    _, summary = run(prepared, tmp_path / "align", config)
    assert summary["after"]["held_out_reward"] > 0


def test_the_books_of_a_round(tmp_path: Path) -> None:
    """320 samples in 10 steps; every request drawn gives a pair or is counted as skipped; manifests form a chain."""
    prepared = next_item_ring(tmp_path / "data")
    policy, summary = run(prepared, tmp_path / "align", ipa())
    rounds = [open_artifact(tmp_path / "align" / "rounds" / f"{number:02d}").manifest for number in range(3)]
    named = {"train": "abc", "policy_weights": rounds[0].parents["policy_weights"]}
    assert rounds[0].parents == named
    assert rounds[1].parents == {**named, "round": rounds[0].digest}
    assert rounds[2].parents == {**named, "round": rounds[1].digest}
    facts = rounds[1].summary
    assert facts["samples"] == 320 or 300 < facts["samples"] <= 320  # the last batch of an epoch is shorter
    assert facts["requests"] == facts["pairs"] + facts["skipped_indistinguishable"]
    assert 0.35 < facts["requests"] / facts["samples"] < 0.65
    kept = load_policy(tmp_path / "align" / "model", ring_ids().digest)
    for name, tensor in weights_of(kept).items():
        assert torch.equal(tensor, policy.state_dict()[name])
    curves = pl.read_parquet(tmp_path / "align" / "curves.parquet")
    steps = curves.filter(pl.col("name") == "training/preference")["step"].to_list()
    assert steps == list(range(20))
    first = curves.filter(pl.col("name") == "training/preference").sort("step")["value"][0]
    assert first == pytest.approx(math.log(2), abs=1e-5)  # at the reference every log-ratio is 0
    assert summary["before"]["kl_to_start"] == 0


def test_pairs_of_what_users_took_need_no_reward_model(tmp_path: Path) -> None:
    """The target against the rest of the beam, softmax over negatives: the ring's next item becomes more probable."""
    prepared = next_item_ring(tmp_path / "data")
    config = ipa(
        rounds=1,
        preference_share=1.0,
        rewards={"rule": 1.0},
        pair_rule="target_rest",
        num_negatives=7,
        loss=PreferenceLossConfig(loss_type="sdpo", beta=1.0),
        supervised=SupervisedConfig(weight=0.0),
        optimiser=OptimiserConfig(learning_rate=1e-2),
    )
    _, summary = run(prepared, tmp_path / "align", config, reward_model=None, held_out_reward_model=None)
    assert summary["after"]["beam_ndcg@10"] > summary["before"]["beam_ndcg@10"] + 0.05


def test_a_curriculum_starts_with_easy_pairs(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    _, plain = run(prepared, tmp_path / "plain", ipa(rounds=1))
    _, easy_first = run(
        prepared, tmp_path / "easy", ipa(rounds=1, curriculum=CurriculumConfig(by="reference", start_share=0.2))
    )
    assert easy_first["after"] != plain["after"]


def test_the_guard_stops_and_keeps_the_last_good_round(tmp_path: Path) -> None:
    """The held-out reward model dislikes what the reward likes: the first round is over-optimisation, and the start is
    kept."""
    prepared = next_item_ring(tmp_path / "data")
    guard = RING_GUARD.model_copy(update={"held_out_falls": "stop"})
    config = ipa(rounds=3, preference_reduction="pairs").model_copy(update={"guard": guard})
    start = weights_of(ring_policy(prepared))
    policy, summary = run(prepared, tmp_path / "align", config, held_out_reward_model=EvenTaste(-1.0))
    assert summary["kept_round"] == 0
    assert summary["rounds"] == 1
    assert "held_out_reward fell by" in summary["stopped"]
    assert all(torch.equal(tensor, start[name]) for name, tensor in policy.state_dict().items())


def test_the_guard_backs_off_with_smaller_steps(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    guard = RING_GUARD.model_copy(update={"held_out_falls": None, "on_violation": "back_off", "max_back_offs": 2})
    config = ipa(rounds=5, samples_per_round=96, preference_reduction="pairs").model_copy(update={"guard": guard})
    _, summary = run(prepared, tmp_path / "align", config, held_out_reward_model=EvenTaste(-1.0))
    report = json.loads((tmp_path / "align" / "alignment_report.json").read_text())
    steps = [SmallerSteps(**finished["smaller_steps"]) for finished in report["rounds"][1:]]
    assert steps[:3] == [SmallerSteps(), SmallerSteps(0.5, 0.5, 2.0), SmallerSteps(0.25, 0.25, 4.0)]
    assert summary["kept_round"] == 0


def test_recording_goes_on_whatever_happens(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    guard = RING_GUARD.model_copy(update={"held_out_falls": None, "on_violation": "record"})
    config = ipa(preference_reduction="pairs").model_copy(update={"guard": guard})
    _, summary = run(prepared, tmp_path / "align", config, held_out_reward_model=EvenTaste(-1.0))
    assert summary["kept_round"] == 2
    assert summary["stopped"] == ""


def test_refusals(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path / "data")
    with pytest.raises(ConfigError, match="no reward model is given"):
        run(prepared, tmp_path / "a", ipa(), reward_model=None)
    with pytest.raises(ConfigError, match=r"align\.method is 'none'"):
        run(prepared, tmp_path / "b", AlignConfig())
    with pytest.raises(ConfigError, match="raise preference_share"):
        run(prepared, tmp_path / "c", ipa(preference_share=1e-6))
    run(prepared, tmp_path / "d", ipa(rounds=1, samples_per_round=32))
    with pytest.raises(ArtifactError, match="belongs to an alignment with other settings"):
        run(prepared, tmp_path / "d", ipa(rounds=1, samples_per_round=64))

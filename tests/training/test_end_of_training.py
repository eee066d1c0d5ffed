"""Where a run ends, and what it goes on from: patience, the clock, and epochs of a single step."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recsys.runtime import SilentProgress, set_threads
from recsys.training import fit
from recsys.training.config import TrainConfig
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN, Killed

ALWAYS = {"checkpoint_every_s": 1e-6}
STILL = ALWAYS | {"learning_rate": 1e-30, "max_epochs": 9}
"""No weight moves, so the first validation is the best and every later one is as good."""


UNBIASED = MODEL.model_copy(update={"balance_rate": 0.0})
"""Balancing would move the choice of experts though no weight moves."""


class Steps(lightning.Callback):
    """Optimiser steps of this process."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1


def run(folder: Path, kill_at: int | None = None, **changes: Any) -> tuple[dict[str, Any], int]:
    """Train in ``folder``; return the report, empty after a kill, and the steps that this process took."""
    set_threads(1)
    config = TrainConfig.model_validate({**TRAIN.model_dump(), **changes})
    inputs = TrainingInputs(ring_prepared(folder / "data"), ring_ids(), UNBIASED, config, DECODE, seed=5)
    steps = Steps()

    def kill(module: PolicyModule, _: object) -> None:
        if module.trainer.global_step == kill_at:
            raise Killed

    with patch.object(PolicyModule, "on_before_zero_grad", kill):
        try:
            return fit.train_policy(inputs, folder / "run", SilentProgress(), watchers=[steps]), steps.count
        except Killed:
            return {}, steps.count


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "model" / "model.safetensors")


def validations(folder: Path) -> list[float]:
    curves = pl.read_parquet(folder / "run" / "curves.parquet")
    return curves.filter(pl.col("name") == "valid/ndcg_at_10")["epoch"].to_list()


def equal_runs(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    a, b = (pl.read_parquet(folder / "run" / "curves.parquet") for folder in (one, other))
    assert a.equals(b)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_epochs_of_one_step_are_resumed(tmp_path: Path, accumulate: int) -> None:
    """At 7be21f4 such an epoch never had a checkpoint: whatever came before a kill was trained again."""
    one_step = ALWAYS | {"max_epochs": 4, "batch_size": -(-85 // accumulate), "accumulate_batches": accumulate}
    report, steps = run(tmp_path / "undisturbed", **one_step)
    assert report["steps"] == 4
    assert steps == 4 * accumulate
    for kill_at in (1, 2, 3):
        _, done = run(tmp_path / "killed", kill_at, **one_step)
        assert done == accumulate
    assert run(tmp_path / "killed", **one_step)[1] == accumulate  # the last epoch alone is left
    equal_runs(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_run_killed_before_it_wrote_its_model_trains_nothing_again(tmp_path: Path) -> None:
    with patch.object(fit, "save_policy", side_effect=Killed):
        assert run(tmp_path, **ALWAYS | {"max_epochs": 2})[1] > 0
    report, steps = run(tmp_path, **ALWAYS | {"max_epochs": 2})
    assert steps == 0
    assert report["steps"] > 0
    assert weights(tmp_path)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_counts_validations_without_a_better_one(tmp_path: Path, patience: int) -> None:
    report, _ = run(tmp_path, patience=patience, **STILL)
    assert validations(tmp_path) == [1.0 + epoch for epoch in range(patience + 1)]
    assert report["best_epoch"] == 0


@pytest.mark.parametrize("kill_at", [7, 12, 13])
def test_best_value_and_patience_survive_a_kill(tmp_path: Path, kill_at: int) -> None:
    """Epochs of 6 steps and patience 2: the end is after 18 steps, wherever a process ended before."""
    run(tmp_path, kill_at, patience=2, **STILL)
    report, steps = run(tmp_path, patience=2, **STILL)
    assert report["steps"] == 18
    assert steps == 18 - kill_at
    assert report["best_epoch"] == 0
    assert validations(tmp_path) == [1.0, 2.0, 3.0]


def test_a_run_out_of_patience_that_was_killed_at_its_end_only_ends(tmp_path: Path) -> None:
    with patch.object(fit, "save_policy", side_effect=Killed):
        run(tmp_path, patience=1, **STILL)
    report, steps = run(tmp_path, patience=1, **STILL)
    assert (report["steps"], steps) == (12, 0)


@pytest.mark.parametrize("every", [1, 3])
def test_the_clock_is_looked_at_after_every_step_and_its_end_is_whole(tmp_path: Path, every: int) -> None:
    """It stops after a single step, evaluates what it has and keeps it; with more time it goes on as if never stopped.

    At 7be21f4 the first look was after the first validation.
    """
    options = {"max_epochs": 2, "validate_every_epochs": every, "checkpoint_every_s": 1e9}
    report, steps = run(tmp_path / "stopped", max_minutes=1e-9, **options)
    assert (report["steps"], steps) == (1, 1)
    assert len(validations(tmp_path / "stopped")) == 1
    assert weights(tmp_path / "stopped")
    assert run(tmp_path / "stopped", **options)[1] == 11
    run(tmp_path / "undisturbed", **options)
    equal_runs(tmp_path / "stopped", tmp_path / "undisturbed")

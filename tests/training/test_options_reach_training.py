"""Every option of training reaches the place it is for: losses, groups of the optimiser, schedule, balancing."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.contracts.dataset import Dataset
from recsys.data.samples import PrefixWindows
from recsys.model.config import ModelConfig
from recsys.runtime import SilentProgress, set_threads
from recsys.training.config import TrainConfig
from recsys.training.fit import build_policy, train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from recsys.training.schedule import adamw
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN


@pytest.fixture
def prepared(tmp_path: Path) -> Dataset:
    return ring_prepared(tmp_path / "data")


def logged_losses(prepared: Dataset, **options: Any) -> dict[str, float]:
    torch.manual_seed(3)
    policy = build_policy(prepared, ring_ids(), MODEL, None).eval()
    config = TrainConfig.model_validate({**TRAIN.model_dump(), **options})
    module, logged = PolicyModule(policy, config, DECODE, ring_ids(), total_steps=10), {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    batch = PrefixWindows.from_dataset(prepared, MODEL.max_history).collate(np.arange(8))
    logged["loss"] = module.training_step(batch, 0).item()
    with torch.no_grad():
        hidden, _ = policy(batch)
        for level in range(2):
            log_probs = policy.decoder.code_logits(batch.asked.items(hidden)[..., level, :], level).log_softmax(-1)
            logged[f"even {level}"] = -log_probs.mean().item()  # against a distribution that is spread evenly
    return logged


def test_label_smoothing_mixes_the_loss_of_an_even_distribution_in(prepared: Dataset) -> None:
    """With s = .3: .7 · loss + .3 · (loss against even codes of both levels)."""
    plain, smoothed = logged_losses(prepared), logged_losses(prepared, label_smoothing=0.3)
    even = plain["even 0"] + plain["even 1"]
    assert smoothed["train/next_token"] == pytest.approx(0.7 * plain["train/next_token"] + 0.3 * even, rel=1e-5)
    assert smoothed["train/next_token"] != pytest.approx(plain["train/next_token"], rel=1e-3)


def test_the_mean_over_two_codes_is_half_their_sum(prepared: Dataset) -> None:
    summed, mean = (logged_losses(prepared, loss_reduction=reduction) for reduction in ("sum", "mean"))
    assert mean["train/next_token"] == pytest.approx(summed["train/next_token"] / 2)


@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_the_dense_loss_is_weighted(prepared: Dataset, weight: float) -> None:
    logged = logged_losses(prepared, dense_weight=weight)
    assert logged["loss"] == pytest.approx(logged["train/next_token"] + weight * logged["train/dense"])
    assert logged["train/dense"] == pytest.approx(logged_losses(prepared)["train/dense"])


def test_matrices_decay_tables_have_a_decay_of_their_own_and_norms_none(prepared: Dataset) -> None:
    policy = build_policy(prepared, ring_ids(), MODEL, None)
    options = {"weight_decay": 0.1, "table_weight_decay": 0.02, "table_learning_rate": 0.5}
    optimizer = adamw(policy, TrainConfig.model_validate({**TRAIN.model_dump(), **options}))
    found = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = {name: found.pop(id(parameter)) for name, parameter in policy.named_parameters()}
    assert not found
    rate = TRAIN.learning_rate
    expected = {}
    for name in named:
        if name.startswith("tables."):
            expected[name] = (0.02, 0.5)
        elif name == "codes.weight":
            expected[name] = (0.02, rate)
        elif "norm" in name or "bias" in name or name.endswith(("start_D", "bos_D", "position.weight")):
            expected[name] = (0.0, rate)
        else:
            expected[name] = (0.1, rate)
    assert named == expected
    assert {decay for decay, _ in named.values()} == {0.0, 0.02, 0.1}


class Rates(lightning.Callback):
    """Learning rate of the coming step, after every batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def run(
    prepared: Dataset, folder: Path, *watchers: lightning.Callback, model: ModelConfig = MODEL, **options: Any
) -> None:
    set_threads(1)
    config = TrainConfig.model_validate({**TRAIN.model_dump(), "max_epochs": 2, **options})
    inputs = TrainingInputs(prepared, ring_ids(), model, config, DECODE, seed=5)
    train_policy(inputs, folder, SilentProgress(), watchers=list(watchers))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_schedule_ends_with_the_last_optimiser_step(prepared: Dataset, tmp_path: Path, accumulate: int) -> None:
    """6 batches of 2 epochs are 12 steps, or 4 of three batches each: the rate is at its end after them, not before."""
    rates = Rates()
    options = {"accumulate_batches": accumulate, "learning_rate": 1e-3, "final_learning_rate_share": 0.1}
    run(prepared, tmp_path / "run", rates, **options)
    assert rates.seen[-1] == pytest.approx(1e-4)
    assert rates.seen[-1 - accumulate] > 1.1e-4
    assert len({round(rate, 12) for rate in rates.seen}) <= 12 // accumulate + 1


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (6, 1)])
def test_balancing_moves_every_bias_once_per_optimiser_step(
    prepared: Dataset, tmp_path: Path, accumulate: int, steps: int
) -> None:
    """By the rate, up or down: after n steps every bias is n, n - 2, … times the rate, and some expert is out of balance."""
    model = MODEL.model_copy(update={"balance_rate": 0.25})
    run(prepared, tmp_path / "run", model=model, accumulate_batches=accumulate, max_epochs=1)
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    biases = torch.stack([tensor for name, tensor in weights.items() if name.endswith("bias_E")])
    moved = biases / 0.25
    assert torch.equal(moved, moved.round())
    assert 0 < moved.abs().max() <= steps
    if steps == 1:
        assert (moved.abs() <= 1).all()
        assert (moved > 0).any()
        assert (moved < 0).any()

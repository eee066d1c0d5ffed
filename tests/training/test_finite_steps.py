"""A loss, gradient or weight that is not finite stops a run, is told with its step, and harms no weight before."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import pytest
import torch
from torch import nn

from recsys.contracts.errors import DataError
from recsys.runtime import SilentProgress, set_threads
from recsys.training.config import TrainConfig
from recsys.training.finite_steps import FiniteModule, FiniteSteps
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from recsys.training.table_optimizers import AdamWWithTables
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN


def test_clipping_by_hand() -> None:
    """Gradients (3, 0) and (4): norm 5, limit 1, so AdamW sees .6 and .8; a table under Adagrad keeps its 12.

    The first AdamW step moves every weight by the learning rate whatever the gradient's size, so the moments tell:
    (1 - beta1) · g = .1 · .6 = .06 and .08.
    """
    first, second, table = (nn.Parameter(torch.zeros(shape)) for shape in ((2,), (1,), (1, 1)))
    groups = [{"params": [first, second]}, {"params": [table], "table_rule": "adagrad"}]
    optimizer = AdamWWithTables(groups, lr=0.1, betas=(0.9, 0.98), fused=True)
    first.grad, second.grad, table.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0]), torch.tensor([[12.0]])
    steps = FiniteSteps()
    steps.note_loss(torch.tensor(1.0))
    assert steps.clip(optimizer, 1.0, step=1).item() == pytest.approx(5.0)
    optimizer.step()
    assert optimizer.state[first]["exp_avg"].tolist() == pytest.approx([0.06, 0.0], abs=1e-6)
    assert optimizer.state[second]["exp_avg"].item() == pytest.approx(0.08, abs=1e-6)
    assert optimizer.state[table]["sum"].item() == pytest.approx(144.0)
    assert steps.fault() is None


@pytest.mark.parametrize("limit", [0.0, None, 5.1])
def test_gradients_within_the_limit_and_without_one_are_left_alone(limit: float | None) -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = AdamWWithTables([weight], lr=0.1, betas=(0.9, 0.98), fused=True)
    weight.grad = torch.tensor([3.0, 4.0])
    FiniteSteps().clip(optimizer, limit, step=1)
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["exp_avg"], torch.tensor([3.0, 4.0]) * (1 - 0.9))


@pytest.mark.parametrize("rule", ["adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)])
def test_weights_and_moments_stay_as_they_were_before_the_first_broken_step(
    rule: str, loss: float, gradient: float
) -> None:
    """Steps 1 and 2 are fine, 3 is broken, 4 is fine again and skipped too; nothing is read before the end."""
    weight, table = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [weight]}, {"params": [table], "table_rule": rule}]
    optimizer, steps = AdamWWithTables(groups, lr=0.1, fused=True), FiniteSteps()
    kept: list[torch.Tensor] = []
    for step, (value, slope) in enumerate([(1.0, 1.0), (2.0, -1.0), (loss, gradient), (1.0, 1.0)], 1):
        weight.grad, table.grad = torch.tensor([1.0, slope]), torch.full((2, 2), slope)
        steps.note_loss(torch.tensor(value))
        steps.note_loss(torch.tensor(1.0))  # a second batch of the same step does not hide the first
        steps.clip(optimizer, 1.0, step)
        optimizer.step()
        state = optimizer.state[weight]
        if step == 2:
            kept = [tensor.clone() for tensor in (weight, table, state["exp_avg"], state["exp_avg_sq"], state["step"])]
    state = optimizer.state[weight]
    for before, after in zip(kept, (weight, table, state["exp_avg"], state["exp_avg_sq"], state["step"]), strict=True):
        assert torch.equal(before, after)
    fault = steps.fault()
    assert fault is not None
    assert fault[0] == 3
    assert math.isfinite(fault[1]) == math.isfinite(loss)
    assert math.isfinite(fault[2]) == math.isfinite(gradient)


def run(folder: Path, *watchers: lightning.Callback, **changes: Any) -> None:
    set_threads(1)
    config = TrainConfig.model_validate({**TRAIN.model_dump(), "max_epochs": 3, **changes})
    inputs = TrainingInputs(ring_prepared(folder / "data"), ring_ids(), MODEL, config, DECODE, seed=5)
    train_policy(inputs, folder / "run", SilentProgress(), watchers=list(watchers))


class Break(lightning.Callback):
    """Puts a number into a weight once a step is done."""

    def __init__(self, name: str, value: float, after: int, row: int = 1) -> None:
        self.name, self.value, self.after, self.row = name, value, after, row

    def on_train_batch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.after:
            assert isinstance(module, PolicyModule)
            with torch.no_grad():
                dict(module.policy.named_parameters())[self.name][self.row] = self.value


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_learning_rate_that_blows_the_model_up_stops_the_run(tmp_path: Path, rate: float) -> None:
    """At 7be21f4 such a run ended with all weights NaN, a `model/` and a report."""
    with pytest.raises(DataError) as told:
        run(tmp_path, learning_rate=rate, checkpoint_every_s=1e-6)
    assert "train: step" in str(told.value)
    assert f"Lower train.learning_rate (now {rate:g})" in str(told.value)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("name", "value", "after"),
    [
        ("encoder.blocks.0.attention.qkv.weight", math.nan, 0),
        ("encoder.blocks.0.attention.qkv.weight", math.nan, 7),
        ("tables.collection.embeddings.table_item.weight", math.inf, 5),
    ],
)
def test_a_broken_weight_is_found_at_its_step_and_named(tmp_path: Path, name: str, value: float, after: int) -> None:
    with pytest.raises(DataError) as told:
        run(tmp_path, Break(name, value, after), checkpoint_every_s=1e-6)
    # where attention's fused kernel takes NaN for "nothing to see", the gradient alone tells
    assert f"step {after + 1} has loss" in str(told.value)
    assert "gradient norm nan" in str(told.value)
    assert f"of weight '{name}' are not finite" in str(told.value)
    assert not (tmp_path / "run" / "model").exists()


def test_a_weight_that_no_step_reads_is_found_before_it_is_kept(tmp_path: Path) -> None:
    """The dense head is off, so nothing reads its query; the policy would be kept with it."""
    with pytest.raises(DataError, match=r"weight 'dense_query\.weight' are not finite; no model is written"):
        run(tmp_path, Break("dense_query.weight", math.inf, 3), dense_weight=0.0)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(("every_s", "last"), [(1e9, 4), (1e-6, 3)])
def test_what_is_noted_on_a_device_is_read_every_few_steps_and_before_a_checkpoint(
    tmp_path: Path, every_s: float, last: int
) -> None:
    """As on a GPU: the fault of step 3 is read at step 4 of every 4; a checkpoint that is due after step 3 reads it then."""
    started: list[int] = []

    class Count(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            started.append(trainer.global_step + 1)

    def every_four(module: FiniteModule, *_: Any) -> None:
        if module.trainer.global_step % 4 == 0:
            module.check_steps()

    broken = Break("encoder.blocks.0.attention.qkv.weight", math.nan, 2)
    with patch.object(FiniteModule, "on_train_batch_end", every_four), pytest.raises(DataError, match="step 3 has"):
        run(tmp_path, broken, Count(), checkpoint_every_s=every_s)
    assert started[-1] == last

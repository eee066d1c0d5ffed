"""Parts of the loss: how they add up, and which parameters each of them teaches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.alignment.config import SupervisedConfig
from recsys.alignment.rounds.learner import TargetPass, supervised_loss
from recsys.contracts.dataset import Dataset
from recsys.data.batch import TrainingBatch
from recsys.data.samples import PrefixWindows, TargetRows
from recsys.model.summary import training_flops
from recsys.training.callbacks import ArithmeticDone
from recsys.training.config import TrainConfig
from recsys.training.fit import build_policy
from recsys.training.losses import next_token_loss, prefix_loss
from recsys.training.module import PolicyModule
from tests.toy.alignment import session_ring
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN

ALL_ON = {"prefix_weight": 0.5, "prefix_adaptivity": 1.0, "distillation_weight": 2.0, "distillation_share": 1.0}


@pytest.fixture
def prepared(tmp_path: Path) -> Dataset:
    return ring_prepared(tmp_path)


def module_of(prepared: Dataset, **options: float) -> PolicyModule:
    torch.manual_seed(3)
    policy = build_policy(prepared, ring_ids(), MODEL, None).eval()  # without dropout
    config = TrainConfig.model_validate({**TRAIN.model_dump(), **options})
    return PolicyModule(policy, config, DECODE, ring_ids(), total_steps=10)


def batch_of(prepared: Dataset) -> TrainingBatch:
    return PrefixWindows.from_dataset(prepared, MODEL.max_history).collate(np.arange(8))


def test_the_loss_is_the_weighted_sum_of_its_parts(prepared: Dataset) -> None:
    """next token + 0.5 · prefix + 1 · dense + 2 · distillation, each under its name in the log."""
    module, logged = module_of(prepared, **ALL_ON), {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    loss = module.training_step(batch_of(prepared), 0)
    parts = {"next_token": 1.0, "prefix": 0.5, "dense": 1.0, "distillation": 2.0}
    assert set(logged) == {"train/loss", *(f"train/{name}" for name in parts)}
    assert loss.item() == pytest.approx(sum(weight * logged[f"train/{name}"] for name, weight in parts.items()))
    assert logged["train/loss"] == pytest.approx(loss.item())


def test_parts_that_are_off_are_neither_computed_nor_logged(prepared: Dataset) -> None:
    module, logged = module_of(prepared, dense_weight=0.0), {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    batch = batch_of(prepared)
    loss = module.training_step(batch, 0)
    assert set(logged) == {"train/loss", "train/next_token"}
    hidden, _ = module.policy(batch)
    asked = batch.target_BPM > 0
    expected = next_token_loss(module.policy.code_losses(hidden[asked], batch.target_BPM[asked]), "sum")
    assert loss.item() == pytest.approx(expected.item())


def test_the_prefix_part_is_that_of_the_batchs_targets(prepared: Dataset) -> None:
    module, batch = module_of(prepared, **ALL_ON), batch_of(prepared)
    hidden, _ = module.policy(batch)
    asked = batch.target_BPM > 0
    expected = prefix_loss(module.policy.code_losses(hidden[asked], batch.target_BPM[asked]), 1.0)
    assert module._losses(batch, None)["prefix"].mean.item() == pytest.approx(expected.item())


def test_the_dense_head_learns_every_item_of_a_session(tmp_path: Path) -> None:
    """Sessions of one to three items, cut where three do not fit: each item is a target of its session's query."""
    prepared = session_ring(tmp_path)
    rows = TargetRows.from_dataset(prepared, MODEL.max_history)
    batch = rows.collate(np.arange(8))
    batch = TrainingBatch(batch.history, batch.target_BPM.clone(), batch.visible_BP)
    batch.target_BPM[1, 0, 1:] = batch.target_BPM[4, 0, 2:] = 0  # rows of one and of two items
    batch = TrainingBatch(batch.history, batch.target_BPM, batch.visible_BP)
    module = module_of(prepared)
    _, query_BPD = module.policy(batch)
    logits_BI = query_BPD[:, 0] @ module.policy.item_vectors()[1:].T
    sessions = [[item - 1 for item in row if item] for row in batch.target_BPM[:, 0].tolist()]
    assert {len(session) for session in sessions} >= {1, 2}
    losses = [-logits_BI[row].log_softmax(0)[item].item() for row, session in enumerate(sessions) for item in session]
    term = module._losses(batch, None)["dense"]
    assert term.count == len(losses) > 8
    assert term.mean.item() == pytest.approx(np.mean(losses), rel=1e-5)
    done = ArithmeticDone()
    done.on_train_batch_end(None, module, None, batch, 0)  # type: ignore[arg-type]
    assert done.flops == training_flops(module.policy, batch.asked.counts, len(losses), prepared.spec.num_items)
    anchor = supervised_loss(
        module.policy, TargetPass.of(module.policy, batch), SupervisedConfig(session_reduction="mean")
    )
    next_token = module._losses(batch, None)["next_token"].mean.item()
    assert anchor.item() == pytest.approx(next_token + np.mean(losses), rel=1e-5)


def test_distillation_teaches_the_decoder_and_leaves_its_teacher_alone(prepared: Dataset) -> None:
    module = module_of(prepared, **ALL_ON)
    module._losses(batch_of(prepared), None)["distillation"].mean.backward()
    policy = module.policy
    assert policy.dense_query.weight.grad is None
    assert policy.decoder.code_bias.grad is not None
    assert policy.decoder.code_bias.grad.abs().sum() > 0


def test_a_share_of_the_targets_is_distilled(prepared: Dataset) -> None:
    """Half of 400 targets is 200, with a deviation of 10."""
    module = module_of(prepared, distillation_weight=1.0, distillation_share=0.5)
    samples = PrefixWindows.from_dataset(prepared, MODEL.max_history)
    batch = samples.collate(np.arange(len(samples)))
    count = module._losses(batch, None)["distillation"].count
    asked = int((batch.target_BPM > 0).sum())
    assert abs(count - asked / 2) < 5 * (asked / 4) ** 0.5
    assert module._losses(batch, None)["next_token"].count == asked

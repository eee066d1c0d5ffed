"""Training in bfloat16 with float32 where it matters: it learns as much, survives a kill, and clips."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recsys.model.config import ModelConfig
from recsys.runtime import SilentProgress, set_threads
from recsys.training.config import TrainConfig
from recsys.training.finite_steps import FiniteSteps
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN, Killed

MIXED = {"precision": "bf16-mixed"}
EVERYTHING = MIXED | {
    "max_epochs": 2,
    "accumulate_batches": 2,
    "gradient_clip": 0.5,
    "average_decay": 0.9,
    "prefix_weight": 0.5,
    "distillation_weight": 0.5,
    "checkpoint_every_s": 1e-6,
}


STEPS = (0.6, 0.3, 0.1)
BEST = 0.6 + 0.3 * 0.6309 + 0.1 * 0.5
"""NDCG@10 of the right order of the three items that can follow: .8393 expected, over the users drawn a little else."""


def run(
    folder: Path, *watchers: lightning.Callback, users: int = 60, model: ModelConfig = MODEL, **changes: Any
) -> dict[str, Any]:
    set_threads(1)
    config = TrainConfig.model_validate({**TRAIN.model_dump(), **changes})
    prepared = ring_prepared(folder / "data", users=users, steps=STEPS)
    inputs = TrainingInputs(prepared, ring_ids(), model, config, DECODE, seed=5)
    return train_policy(inputs, folder / "run", SilentProgress(), watchers=list(watchers))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "model" / "model.safetensors")


def validations(folder: Path) -> list[float]:
    curves = pl.read_parquet(folder / "run" / "curves.parquet")
    return curves.filter(pl.col("name") == "valid/ndcg_at_10")["value"].to_list()


class Types(lightning.Callback):
    """Number types of what a training step computes."""

    def __init__(self) -> None:
        self.found: dict[str, set[torch.dtype]] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        for name, module in pl_module.policy.named_modules():
            if name.endswith(".qkv"):
                module.register_forward_hook(self._note("projection"))
        policy = pl_module.policy
        for name in ("code_losses", "_dense_query", "item_vectors"):
            self._wrap(policy, name)
        for layer in policy.moe_layers():
            self._wrap(layer, "route")
            self._wrap(layer, "_experts")

    def _note(self, name: str) -> Any:
        def hook(module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
            if module.training:
                self.found.setdefault(name, set()).add(output.dtype)

        return hook

    def _wrap(self, owner: torch.nn.Module, name: str) -> None:
        original = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            output = original(*arguments, **options)
            if owner.training:
                self.found.setdefault(name, set()).add((output[0] if isinstance(output, tuple) else output).dtype)
            return output

        setattr(owner, name, noted)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.found.setdefault("loss", set()).add(outputs["loss"].dtype)
        self.found.setdefault("gradients", set()).update(
            p.grad.dtype for p in module.parameters() if p.grad is not None
        )


def test_a_whole_run_learns_as_much_as_in_float32_and_keeps_what_matters_in_float32(tmp_path: Path) -> None:
    """Which of three items follows is a matter of chance, so the score of a right order lies in the middle of the scale.

    The last item tells all, and the model sees no other. Two of the three the other way round after one item of twelve
    costs .0025 at least. At 7be21f4 the run ended with "AdamWWithTables does not allow for gradient clipping".
    """
    model = MODEL.model_copy(update={"max_history": 1, "dropout": 0.0, "embedding_dropout": 0.0})
    options = {"users": 300, "model": model, "max_epochs": 6, "batch_size": 32, "validation_users": 300}
    plain, mixed, types = tmp_path / "plain", tmp_path / "mixed", Types()
    run(plain, **options)
    run(mixed, types, **options, **MIXED)
    in_float32, in_mixed = validations(plain), validations(mixed)
    assert in_float32[0] < 0.78  # there was something to learn
    assert abs(in_float32[-1] - BEST) < 0.02
    assert abs(in_float32[-1] - in_mixed[-1]) <= 0.002
    assert not torch.equal(weights(plain)["dense_query.weight"], weights(mixed)["dense_query.weight"])
    assert {tensor.dtype for tensor in weights(mixed).values() if tensor.is_floating_point()} == {torch.float32}
    low = {"projection", "_experts"}
    assert types.found == {
        name: {torch.bfloat16 if name in low else torch.float32}
        for name in (*low, "route", "code_losses", "_dense_query", "item_vectors", "loss", "gradients")
    }


@pytest.mark.parametrize("kill_at", [2, 5])
def test_a_kill_changes_nothing_with_clipping_accumulation_and_averages(tmp_path: Path, kill_at: int) -> None:
    run(tmp_path / "undisturbed", **EVERYTHING)

    def kill(module: PolicyModule, _: object) -> None:
        if module.trainer.global_step == kill_at:
            raise Killed

    with patch.object(PolicyModule, "on_before_zero_grad", kill), pytest.raises(Killed):
        run(tmp_path / "killed", **EVERYTHING)
    run(tmp_path / "killed", **EVERYTHING)
    expected, actual = weights(tmp_path / "undisturbed"), weights(tmp_path / "killed")
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())
    curves = [pl.read_parquet(tmp_path / name / "run" / "curves.parquet") for name in ("undisturbed", "killed")]
    assert curves[0].equals(curves[1])


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """With a limit of .5 every step of the run has a norm above it and is divided by norm / .5."""
    scales: list[float] = []
    original = FiniteSteps.clip

    def noted(steps: FiniteSteps, optimizer: Any, limit: float | None, step: int) -> torch.Tensor:
        norm = original(steps, optimizer, limit, step)
        scales.append(float(optimizer.grad_scale) / (float(norm) / 0.5))
        return norm

    with patch.object(FiniteSteps, "clip", noted):
        run(tmp_path, **EVERYTHING | {"max_epochs": 1, "checkpoint_every_s": 1e9})
    assert scales == pytest.approx([1.0] * len(scales), rel=1e-4)
    assert len(scales) == 3

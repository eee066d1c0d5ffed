"""Weight averaging: by hand, what is validated and kept, and what a kill must not change."""

from pathlib import Path
from unittest.mock import patch

import lightning
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recsys.data.options import AugmentConfig
from recsys.runtime import SilentProgress, set_threads
from recsys.training.averaging import WeightAverage, effective_decay
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN

AVERAGED = TRAIN.model_copy(update={"max_epochs": 3, "average_decay": 0.9, "checkpoint_every_s": 1e-6})


def test_an_average_by_hand() -> None:
    """Decay min(.9, 2/11) after step 1 and min(.9, 3/12) after step 2; weights 0, then 11, then 9.

    After step 1: 2/11 · 0 + 9/11 · 11 = 9. After step 2: 1/4 · 9 + 3/4 · 9 = 9; with weight 1 instead: 9/4 + 3/4 = 3.
    """
    average = WeightAverage(0.9)
    average.averages = {"w": torch.tensor([0.0])}
    average.update({"w": torch.tensor([11.0])}, step=1)
    assert average.averages["w"].item() == pytest.approx(9.0)
    average.update({"w": torch.tensor([1.0])}, step=2)
    assert average.averages["w"].item() == pytest.approx(3.0)


def test_the_decay_rises_to_its_limit() -> None:
    decays = [effective_decay(0.95, step) for step in range(1, 400)]
    assert decays == sorted(decays)
    assert max(decays) == 0.95


class Recorder(lightning.Callback):
    """Weights after every step, and during validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    @staticmethod
    def _weights(module: lightning.LightningModule) -> dict[str, torch.Tensor]:
        assert isinstance(module, PolicyModule)
        return {name: weight.detach().clone() for name, weight in module.policy.named_parameters()}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object) -> None:
        self.steps.append(self._weights(pl_module))

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self.validated.append(self._weights(pl_module))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.after.append(self._weights(pl_module))


def test_validated_and_kept_weights_are_the_averages_and_training_goes_on_from_its_own(tmp_path: Path) -> None:
    """The averages are computed anew from the weights that were seen after every step."""
    set_threads(1)
    prepared = ring_prepared(tmp_path / "data")
    config = AVERAGED.model_copy(update={"patience": 30})
    averaged, plain = Recorder(), Recorder()
    inputs = TrainingInputs(prepared, ring_ids(), MODEL, config, DECODE, seed=5)
    report = train_policy(inputs, tmp_path / "averaged", SilentProgress(), watchers=[averaged])
    without = TrainingInputs(prepared, ring_ids(), MODEL, config.model_copy(update={"average_decay": 0.0}), DECODE, 5)
    train_policy(without, tmp_path / "plain", SilentProgress(), watchers=[plain])
    for ours, theirs in zip(averaged.steps, plain.steps, strict=True):  # averaging watches, and changes no step
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    per_epoch = len(averaged.steps) // 3
    name = "dense_query.weight"
    average = torch.eye(MODEL.width)  # how the query of the dense head begins
    for step, weights in enumerate(averaged.steps, 1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights[name]
        if step % per_epoch == 0:
            epoch = step // per_epoch - 1
            assert torch.allclose(averaged.validated[epoch][name], average, atol=1e-6)
            assert torch.equal(averaged.after[epoch][name], weights[name])
    kept = load_file(tmp_path / "averaged" / "model" / "model.safetensors")
    best = averaged.validated[report["best_epoch"]]
    assert all(torch.equal(kept[name], weight) for name, weight in best.items() if name in kept)


@pytest.mark.parametrize("step", [2, 5, 9])
def test_a_kill_changes_no_average_and_no_draw(tmp_path: Path, step: int) -> None:
    """All options of training that draw or remember are on."""
    set_threads(1)
    options = {
        "augment": AugmentConfig(crop_share=0.5, reorder_share=0.5, mask_share=0.1),
        "prefix_weight": 0.5,
        "distillation_weight": 1.0,
        "distillation_share": 0.5,
    }
    config = AVERAGED.model_copy(update=options)
    inputs = TrainingInputs(ring_prepared(tmp_path / "data"), ring_ids(), MODEL, config, DECODE, seed=5)
    train_policy(inputs, tmp_path / "undisturbed", SilentProgress())

    class Killed(Exception):
        pass

    def kill(module: PolicyModule, _: object) -> None:
        if module.trainer.global_step == step:
            raise Killed

    with patch.object(PolicyModule, "on_before_zero_grad", kill), pytest.raises(Killed):
        train_policy(inputs, tmp_path / "killed", SilentProgress())
    train_policy(inputs, tmp_path / "killed", SilentProgress())
    expected, actual = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("undisturbed", "killed"))
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())
    curves = pl.read_parquet(tmp_path / "undisturbed" / "curves.parquet")
    assert curves.equals(pl.read_parquet(tmp_path / "killed" / "curves.parquet"))

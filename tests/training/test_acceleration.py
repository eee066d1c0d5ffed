"""TF32 is set for a GPU alone, and a whole optimiser step makes the host wait for nothing."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import numpy as np
import pytest
import torch

from recsys.data.samples import PrefixWindows
from recsys.decoding.prefix_index import PrefixIndex
from recsys.runtime import SilentProgress, set_threads
from recsys.training.acceleration import float32_products
from recsys.training.config import TrainConfig
from recsys.training.fit import build_policy, train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from tests.toy.dataset import ring_ids, ring_prepared
from tests.toy.host_reads import no_host_reads
from tests.training.test_fit import DECODE, MODEL, TRAIN


def run(folder: Path, *watchers: lightning.Callback, device: str = "cpu", **changes: Any) -> dict[str, Any]:
    set_threads(1)
    config = TrainConfig.model_validate({**TRAIN.model_dump(), "max_epochs": 2, **changes})
    inputs = TrainingInputs(
        ring_prepared(folder / "data"), ring_ids(), MODEL, config, DECODE, seed=5, device=torch.device(device)
    )
    return train_policy(inputs, folder / "run", SilentProgress(), watchers=list(watchers))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("options", [{}, {"dense_sampled_items": 5, "table_optimizer": "rowwise_adagrad"}])
def test_an_optimiser_step_of_fit_reads_nothing_back(tmp_path: Path, precision: str, options: dict[str, Any]) -> None:
    """Forward, backward, clipping, the optimiser and the balancing of experts, as Lightning calls them.

    At 7be21f4 the first step stopped at a mask as an index.
    """
    original, steps = PolicyModule.optimizer_step, []

    def watched(module: PolicyModule, *arguments: Any, **named: Any) -> None:
        # state of the optimiser is made at the first step
        if module.trainer.global_step == 0:
            original(module, *arguments, **named)
            return
        with no_host_reads():
            original(module, *arguments, **named)
        steps.append(module.trainer.global_step)

    with patch.object(PolicyModule, "optimizer_step", watched):
        run(tmp_path, precision=precision, **options)
    assert len(steps) == 11


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_on_a_gpu_torch_finds_no_wait_in_a_step(tmp_path: Path, precision: str) -> None:
    """From the second optimiser step of ``fit`` on, torch raises at whatever makes the host wait."""
    original, steps = PolicyModule.optimizer_step, []

    def watched(module: PolicyModule, *arguments: Any, **named: Any) -> None:
        if module.trainer.global_step == 0:  # state of the optimiser is made, kernels are loaded
            original(module, *arguments, **named)
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(module, *arguments, **named)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps.append(module.trainer.global_step)

    with patch.object(PolicyModule, "optimizer_step", watched):
        run(tmp_path, device="cuda:0", precision=precision)
    assert len(steps) == 11


@pytest.mark.parametrize(("device", "names"), [("cpu", {"train/next_token"}), ("cuda", set())])
def test_no_figure_of_a_step_is_read_for_a_progress_bar_on_a_gpu(tmp_path: Path, device: str, names: set[str]) -> None:
    """Lightning turns what a bar shows into a number after every step."""
    prepared = ring_prepared(tmp_path)
    module = PolicyModule(build_policy(prepared, ring_ids(), MODEL, None), TRAIN, DECODE, ring_ids(), total_steps=10)
    shown = set()
    module.log = lambda name, _, prog_bar=False: shown.add(name) if prog_bar else None  # type: ignore[method-assign]
    with patch.object(PolicyModule, "device", torch.device(device)):
        module.training_step(PrefixWindows.from_dataset(prepared, MODEL.max_history).collate(np.arange(8)), 0)
    assert shown == names


@pytest.mark.parametrize(("tf32", "inside"), [(True, "high"), (False, "highest")])
def test_tf32_is_set_for_a_gpu_alone_and_put_back(tf32: bool, inside: str) -> None:
    before = torch.get_float32_matmul_precision()
    with float32_products(torch.device("cuda", 0), tf32=tf32):
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == before
    with float32_products(torch.device("cpu"), tf32=True):
        assert torch.get_float32_matmul_precision() == before


def test_validations_share_one_prefix_index(tmp_path: Path) -> None:
    original, built = PrefixIndex.build, []
    with patch.object(PrefixIndex, "build", lambda *arguments: built.append(1) or original(*arguments)):
        run(tmp_path, max_epochs=3)
    assert len(built) == 1

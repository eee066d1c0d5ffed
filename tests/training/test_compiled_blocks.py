"""Compiled blocks: the eager losses and gradients, a bounded number of graphs, and a run that is kept as usual."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from recsys.data.samples import PrefixWindows
from recsys.model.config import ModelConfig
from recsys.runtime import SilentProgress, set_threads
from recsys.training import fit
from recsys.training.acceleration import compile_blocks
from recsys.training.config import TrainConfig
from recsys.training.fit import build_policy, train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN

STILL = {"dropout": 0.0, "embedding_dropout": 0.0}
"""Dropout draws otherwise in a compiled block."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    set_threads(1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "precision"), [("tiny", "32-true"), ("tiny_lazy", "bf16-mixed")])
def test_losses_and_gradients_are_the_eager_ones(tmp_path: Path, preset: str, precision: str) -> None:
    """Batches of several shapes through torch's ahead-of-time graphs, run eagerly: what inductor would make code of."""
    prepared = ring_prepared(tmp_path, users=48)
    model = ModelConfig.model_validate({"preset": preset, "width": 32, "max_history": 6, **STILL})
    samples = PrefixWindows.from_dataset(prepared, 6)
    counter, found = CompileCounterWithBackend("aot_eager"), []
    for compiled in (False, True):
        torch.manual_seed(3)
        policy = build_policy(prepared, ring_ids(), model, None).train()
        names = list(policy.state_dict())
        if compiled:
            assert compile_blocks(policy, precision, counter) >= 2
            assert list(policy.state_dict()) == names
        module = PolicyModule(policy, TRAIN, DECODE, ring_ids(), total_steps=10)
        for count in (8, 11, 5):
            policy.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                terms = module._losses(samples.collate(np.arange(count)), None)
            sum(term.weight * term.mean for term in terms.values()).backward()
            gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
            found.append((terms["next_token"].mean.item(), terms["dense"].mean.item(), gradients))
    exact = {"rel": 1e-5} if precision == "32-true" else {"rel": 2e-2}
    for eager, other in zip(found[:3], found[3:], strict=True):
        assert other[:2] == pytest.approx(eager[:2], **exact)
        assert eager[2].keys() == other[2].keys()
        if precision == "32-true":
            for name, gradient in eager[2].items():
                torch.testing.assert_close(other[2][name], gradient, atol=1e-5, rtol=1e-3)
    assert 0 < counter.frame_count <= 24


@pytest.mark.slow
def test_later_shapes_compile_nothing_new(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path, users=48)
    model = ModelConfig.model_validate({"preset": "tiny", "width": 32, "max_history": 6, **STILL})
    samples, counter = PrefixWindows.from_dataset(prepared, 6), CompileCounterWithBackend("aot_eager")
    policy = build_policy(prepared, ring_ids(), model, None).train()
    compile_blocks(policy, "32-true", counter)
    module, counts = PolicyModule(policy, TRAIN, DECODE, ring_ids(), total_steps=10), []
    for rows in (8, 11, 5, 17, 9, 14):
        terms = module._losses(samples.collate(np.arange(rows)), None)
        sum(term.weight * term.mean for term in terms.values()).backward()
        counts.append(counter.frame_count)
    assert counts[-1] == counts[3]
    policy.eval()
    with torch.no_grad():
        module._losses(samples.collate(np.arange(12)), None)
    assert counter.frame_count == counts[-1]  # what does not train runs as it was


@pytest.mark.parametrize(("compile", "calls"), [("none", 0), ("blocks", 1)])
def test_the_option_reaches_training(tmp_path: Path, compile: str, calls: int) -> None:
    prepared, seen = ring_prepared(tmp_path / "data"), []
    config = TrainConfig.model_validate({**TRAIN.model_dump(), "max_epochs": 1, "compile": compile})
    inputs = TrainingInputs(prepared, ring_ids(), MODEL, config, DECODE, seed=5)
    with patch.object(fit, "compile_blocks", lambda policy, precision: seen.append(precision)):
        train_policy(inputs, tmp_path / "run", SilentProgress())
    assert seen == ["32-true"] * calls

"""No step of training or decoding makes the host wait for the device; on a CPU, by watching what is called."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.data.samples import PrefixWindows, TargetRows
from recsys.model.config import ModelConfig
from recsys.model.layers.moe import MixtureOfExperts
from recsys.training.config import TrainConfig
from recsys.training.fit import build_policy
from recsys.training.module import PolicyModule
from tests.toy.dataset import ring_ids, ring_prepared
from tests.toy.host_reads import HostRead, no_host_reads
from tests.training.test_fit import DECODE, TRAIN

ALL_ON = {
    "prefix_weight": 0.5,
    "dense_targets_share": 0.5,
    "label_smoothing": 0.1,
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("negatives", [None, 5])
@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_a_training_step_reads_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, negatives: int | None, precision: torch.dtype
) -> None:
    prepared = ring_prepared(tmp_path)
    model = ModelConfig.model_validate(
        {"preset": preset, "features": ("item", "codes", "user", "gap"), "max_history": 6}
    )
    samples = (TargetRows if preset == "tiny_pathways" else PrefixWindows).from_dataset(prepared, 6)
    batch = samples.collate(np.arange(8))
    policy = build_policy(prepared, ring_ids(), model, None).train()
    dense = {"distillation_weight": 1.0, "distillation_share": 0.5} if negatives is None else {}
    options = {**TRAIN.model_dump(), **ALL_ON, **dense, "dense_sampled_items": negatives}
    config = TrainConfig.model_validate(options)
    module = PolicyModule(policy, config, DECODE, ring_ids(), total_steps=10)
    if precision == torch.float32:  # as a GPU runs float32 experts
        monkeypatch.setattr(MixtureOfExperts, "_products_wait", lambda self, x_ND: True)
    with no_host_reads(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        terms = module._losses(batch, None)
        sum(term.weight * term.mean for term in terms.values()).backward()
    assert terms["next_token"].count == int((batch.target_BPM > 0).sum())
    assert policy.decoder.code_bias.grad is not None


@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_decoding_reads_nothing_back(tmp_path: Path, preset: str) -> None:
    prepared = ring_prepared(tmp_path)
    policy = build_policy(prepared, ring_ids(), ModelConfig.model_validate({"preset": preset}), None).eval()
    history = collate_histories(Histories.from_targets(prepared.history, prepared.all_users()), 6)
    with torch.inference_mode(), no_host_reads():
        state = policy.start(history)
        log_probs = policy.next_codes(state, None)
        assert log_probs is not None
        state.cache.reorder(torch.zeros(len(history), 3, dtype=torch.int64))
        second = policy.next_codes(state, log_probs[:, 0].topk(3).indices)
    assert second is not None
    assert second.shape[:2] == (len(history), 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_on_a_gpu_torch_finds_no_wait_in_decoding(tmp_path: Path, preset: str, precision: torch.dtype) -> None:
    """The same two levels on a GPU, once to load kernels and once with torch raising at whatever makes the host wait."""
    prepared = ring_prepared(tmp_path)
    policy = build_policy(prepared, ring_ids(), ModelConfig.model_validate({"preset": preset}), None).eval().cuda()
    history = collate_histories(Histories.from_targets(prepared.history, prepared.all_users()), 6).to(
        torch.device("cuda", 0)
    )
    beams = torch.zeros(len(history), 3, dtype=torch.int64, device="cuda")

    def decode() -> torch.Tensor | None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            state = policy.start(history)
            log_probs = policy.next_codes(state, None)
            assert log_probs is not None
            state.cache.reorder(beams)
            return policy.next_codes(state, log_probs[:, 0].topk(3).indices)

    decode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert decode() is not None
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_watch_sees_what_would_wait() -> None:
    values = torch.arange(4)
    for waits in (
        lambda: values[values > 1],
        lambda: bool(values.any()),
        lambda: values.nonzero(),
        lambda: values.masked_select(values > 1),
        lambda: values.unique(),
        lambda: torch.tensor([1], device="cpu"),
    ):
        with pytest.raises(HostRead), no_host_reads():
            waits()
        with pytest.raises(HostRead), torch.inference_mode(), no_host_reads():
            waits()
    with no_host_reads():
        values[torch.arange(2)] + values.index_select(0, torch.arange(2))


def test_a_moved_batch_is_not_counted_again(tmp_path: Path) -> None:
    batch = PrefixWindows.from_dataset(ring_prepared(tmp_path), 6).collate(np.arange(3))
    with no_host_reads():
        moved = batch.to("cpu")
    assert moved.asked.point_N.tolist() == batch.asked.point_N.tolist()
    assert moved.asked.point_N is moved.asked.item_N  # one item a point: one tensor travels
    with pytest.raises(HostRead), no_host_reads():
        TrainingBatch(batch.history, batch.target_BPM, batch.visible_BP)

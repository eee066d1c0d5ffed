"""A policy in bfloat16: the numbers of autocast without its conversions, and everything else shared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.bfloat16 import bfloat16_policy
from recsys.model.config import ModelConfig
from recsys.model.layers.precision import float32_linear, rounded_linear
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_prepared, toy_ids

IDS = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=10, items=20)


@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_it_computes_what_autocast_computes(prepared: Dataset, preset: str) -> None:
    """Keys, values and queries are the same bits; log-probabilities differ by the rounding of what enters the heads."""
    torch.manual_seed(0)
    policy = build_policy(prepared, IDS, ModelConfig.model_validate({"preset": preset}), None).eval()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    half = bfloat16_policy(policy)
    history = collate_histories(Histories.from_targets(prepared.history, prepared.all_users()), 6)
    found = []
    for each in (policy, half):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            state = each.start(history)
            first = each.next_codes(state, None)
            assert first is not None
            state.cache.reorder(torch.zeros(len(history), 3, dtype=torch.int64))
            second = each.next_codes(state, first[:, 0].topk(3).indices)
        assert second is not None
        assert second.dtype == torch.float32
        found.append((state, first, second))
    (state, first, second), (half_state, half_first, half_second) = found
    assert torch.equal(state.dense_query_BD, half_state.dense_query_BD)
    for own, other in zip(state.keys_values, half_state.keys_values, strict=True):
        assert torch.equal(own[0], other[0])
        assert torch.equal(own[1], other[1])
    torch.testing.assert_close(half_first, first, atol=0.03, rtol=0)
    torch.testing.assert_close(half_second, second, atol=0.05, rtol=0)
    assert not torch.equal(half_first, first)  # the heads are of 16 bits
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_weights_are_converted_once_and_the_rest_is_shared(prepared: Dataset) -> None:
    policy = build_policy(prepared, IDS, ModelConfig.model_validate({"preset": "tiny"}), None).eval()
    half = bfloat16_policy(policy)
    layer = half.decoder.blocks[0]
    assert layer.cross_attention.query.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert half.moe_layers()[0].up_EDF.dtype == torch.bfloat16
    assert half.moe_layers()[0].centroids_ED.dtype == torch.float32
    assert half.codes is policy.codes
    assert half.encoder.tables is policy.tables
    assert half.decoder.codes is policy.codes
    assert policy.decoder.blocks[0].cross_attention.query.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_a_held_head_by_hand() -> None:
    """1.00390625 = 1 + 2^-8 is 1 in bfloat16, so x @ w = 1 * 3 + 2 * 0.5 = 4, plus a bias of .25; sums are float32."""
    x, weight = torch.tensor([[1.00390625, 2.0]]), torch.tensor([[3.0, 0.5]])
    held = rounded_linear(x, weight.bfloat16(), torch.tensor([0.25]), torch.bfloat16)
    assert held.tolist() == [[4.25]]
    assert float32_linear(x, weight, torch.tensor([0.25])).tolist() == [[4.26171875]]
    many = rounded_linear(
        torch.ones(1, 4096), torch.full((1, 4096), 1.0).bfloat16(), torch.tensor([1.0]), torch.bfloat16
    )
    assert many.item() == 4097.0  # which bfloat16 cannot hold


def test_sizes_that_a_gpu_cannot_multiply_are_refused(prepared: Dataset) -> None:
    config = ModelConfig.model_validate({"preset": "tiny", "width": 16, "num_heads": 2, "expert_width": 12})
    policy = build_policy(prepared, IDS, config, None)
    with pytest.raises(ConfigError, match=r"decode.precision asks for bfloat16.*model.expert_width 12"):
        bfloat16_policy(policy)

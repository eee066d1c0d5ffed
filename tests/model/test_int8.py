"""Int8 products: by hand, within their rounding error, and the compiled kernels against PyTorch."""

import numpy as np
import pytest
import torch

from recsys import native
from recsys.contracts.errors import ConfigError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.config import ModelConfig
from recsys.model.int8 import Int8Experts, Int8Weight, int8_policy, quantise_rows
from recsys.model.layers.moe import MixtureOfExperts
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_prepared, toy_ids


def test_a_product_by_hand() -> None:
    """Row (1, -2): scale 2/127, rounded to (64, -127). Weight (3, 1): scale 3/127, rounded to (127, 42).

    Sum 64 * 127 - 127 * 42 = 2794; times 2/127 * 3/127 gives 1.039, where the exact product is 1.
    """
    product = Int8Weight(torch.tensor([[3.0, 1.0]]))(torch.tensor([[1.0, -2.0]]))
    assert product.item() == pytest.approx(2794 * 6 / 127**2, abs=1e-6)


def test_zero_rows_stay_zero() -> None:
    quantised, scale = quantise_rows(torch.zeros(2, 3))
    assert quantised.tolist() == [[0] * 3] * 2
    assert scale.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 32), (33, 96, 257), (5, 31, 7)])
def test_products_are_within_the_rounding_error(rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    exact = x @ weight.T
    found = Int8Weight(weight)(x)
    # each factor is off by at most half a step of its scale
    step_x, step_w = x.abs().amax(1, keepdim=True) / 254, weight.abs().amax(1) / 254
    bound = step_x * weight.abs().sum(1) + x.abs().sum(1, keepdim=True) * step_w + inputs * step_x * step_w
    assert ((found - exact).abs() <= bound + 1e-4).all()


@pytest.mark.skipif(not native.available(), reason="the kernels are not compiled (python -m recsys.native)")
def test_kernels_equal_pytorch() -> None:
    torch.manual_seed(1)
    x = torch.randn(17, 33)
    x[3] = 0
    theirs, their_scale = quantise_rows(x)
    ours, our_scale = native.quantise_rows(x)
    assert (theirs.int() - ours.int()).abs().max() <= 1  # a value half way between two steps may go either way
    torch.testing.assert_close(our_scale, their_scale)
    sums = torch.randint(-1000, 1000, (4, 5), dtype=torch.int32)
    expected = sums.float() * torch.arange(1.0, 5)[:, None] * torch.arange(5.0)
    torch.testing.assert_close(native.dequantise_(sums.clone(), torch.arange(1.0, 5), torch.arange(5.0)), expected)


def test_experts_follow_the_float_layer() -> None:
    torch.manual_seed(2)
    moe = MixtureOfExperts(32, 4, 64, 2, init_std=0.2).eval()
    x = torch.randn(3, 11, 32)
    expected, found = moe(x), Int8Experts(moe)(x)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_the_recommender_decodes_in_int8(tmp_path) -> None:
    prepared = ring_prepared(tmp_path, users=10, items=20)
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    torch.manual_seed(0)
    config = ModelConfig(width=64, num_heads=2, ffn_width=64, expert_width=64, max_history=6, init_std=0.5)
    policy = build_policy(prepared, ids, config, None).eval()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    exact = Recommender(policy, ids, DecodeConfig(beam_width=20, rescore="none")).recommend(histories, 5)
    rounded = Recommender(policy, ids, DecodeConfig(beam_width=20, rescore="none", precision="int8"))
    answer = rounded.recommend(histories, 5)
    shared = [len(set(a) & set(b)) for a, b in zip(exact.items.tolist(), answer.items.tolist(), strict=True)]
    assert np.mean(shared) > 4
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert any(isinstance(module, Int8Experts) for module in int8_policy(policy).modules())


def test_bfloat16_without_a_gpu_is_refused(tmp_path) -> None:
    prepared = ring_prepared(tmp_path, users=4, items=20)
    ids = toy_ids(np.stack([np.arange(20) // 5, np.arange(20) % 5], 1), (4, 5))
    policy = build_policy(prepared, ids, ModelConfig(width=16, num_heads=2, max_history=6), None)
    with pytest.raises(ConfigError, match="bfloat16, which needs a GPU"):
        Recommender(policy, ids, DecodeConfig(precision="bfloat16"))
    with pytest.raises(ConfigError, match="cuda_graph needs a GPU"):
        Recommender(policy, ids, DecodeConfig(cuda_graph=True)).recommend(
            Histories.from_targets(prepared.history, prepared.all_users()), 3
        )

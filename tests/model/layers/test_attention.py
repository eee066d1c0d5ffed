"""Attention over a handful of positions: by hand, and against the masked form."""

import math

import pytest
import torch

from recsys.model.layers.attention import SelfAttention, attend, attend_few, gated


def test_two_positions_by_hand() -> None:
    """One head, one channel, scale 1. Position 0 takes its own value, 3.

    Position 1 asks with ln 3 for keys (0, 1): scores (0, ln 3), weights (1, 3) / 4, so (1 * 3 + 3 * 7) / 4 = 6.
    """
    q = torch.tensor([5.0, math.log(3.0)]).view(1, 2, 1, 1)
    k = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    v = torch.tensor([3.0, 7.0]).view(1, 2, 1, 1)
    assert attend_few(q, k, v).flatten().tolist() == pytest.approx([3.0, 6.0])


@pytest.mark.parametrize("positions", [1, 2, 3, 4])
def test_few_positions_equal_the_causal_mask_in_result_and_gradients(positions: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 5, positions, 2, 4, requires_grad=True)  # query, key, value; N, T, A, C
    causal = torch.ones(positions, positions, dtype=torch.bool).tril()
    few = attend_few(*qkv.unbind(0))
    masked = attend(*(part.transpose(1, 2) for part in qkv.unbind(0)), causal).transpose(1, 2)
    torch.testing.assert_close(few, masked)
    weights = torch.randn_like(few)
    (few_grad,) = torch.autograd.grad((few * weights).sum(), qkv)
    (masked_grad,) = torch.autograd.grad((masked * weights).sum(), qkv)
    torch.testing.assert_close(few_grad, masked_grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", [3, 9])
def test_causal_attention_equals_a_triangular_mask(positions: int) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2), torch.randn(3, positions, 8)
    triangle = torch.ones(positions, positions, dtype=torch.bool).tril().expand(3, 1, -1, -1)
    torch.testing.assert_close(layer(x, causal=True), layer(x, triangle))
    assert (layer(x) - layer(x, causal=True)).abs().max() > 1e-3
    torch.testing.assert_close(layer(x), layer(x, torch.ones(3, 1, 1, positions, dtype=torch.bool)))


def test_gate_by_hand_with_and_without_gradients() -> None:
    """``silu(ln 3) = ln 3 * 3/4``, times 8 is ``6 ln 3``; the input is left as it was."""
    up = torch.tensor([math.log(3.0), 8.0], requires_grad=True)
    assert gated(up).item() == pytest.approx(6 * math.log(3.0))
    with torch.no_grad():
        assert gated(up).item() == pytest.approx(6 * math.log(3.0))
    assert up.tolist() == pytest.approx([math.log(3.0), 8.0])

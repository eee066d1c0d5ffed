"""Attention of beams over their own prefixes: by hand, against dense attention, and the compiled kernel against PyTorch."""

import math

import pytest
import torch

from recsys import native
from recsys.model.layers.beam_cache import BeamCache, attend_to_prefix


def random_prefixes(users: int, beams: int, heads: int, channels: int, steps: int, seed: int = 0):
    """Blocks and ancestry of ``steps`` steps, the first of them one row per user."""
    generator = torch.Generator().manual_seed(seed)
    row = 3 * heads * channels
    blocks = [torch.randn(users, 1 if step == 0 else beams, row, generator=generator) for step in range(steps)]
    ancestry = [torch.randint(0, block.shape[1], (users, beams), generator=generator) for block in blocks[:-1]]
    return blocks, ancestry


def test_attention_by_hand() -> None:
    """One head of one channel. Beam 0 descends from row 1 of step 0.

    Query 2, keys 1 (ancestor) and 0 (own), scale 1: scores 2 and 0, weights e^2 / (e^2 + 1) = .881 and .119;
    values 10 (ancestor) and 20 (own) mix to 10 * .881 + 20 * .119 = 11.19.
    """
    first = torch.tensor([[[0.0, 5.0, 7.0], [0.0, 1.0, 10.0]]])
    newest = torch.tensor([[[2.0, 0.0, 20.0], [2.0, 0.0, 20.0]]])
    mixed = attend_to_prefix([first, newest], [torch.tensor([[1, 0]])], 1, 1.0)
    weight = math.exp(2) / (math.exp(2) + 1)
    assert mixed[0, 0, 0].item() == pytest.approx(10 * weight + 20 * (1 - weight), abs=1e-5)


def test_equals_dense_attention_over_each_beams_own_prefix() -> None:
    blocks, ancestry = random_prefixes(users=2, beams=3, heads=2, channels=4, steps=4)
    mixed = attend_to_prefix(blocks, ancestry, 2, 0.5)
    for user in range(2):
        for beam in range(3):
            rows = [block[user, columns[user, beam]] for block, columns in zip(blocks, ancestry, strict=False)]
            rows.append(blocks[-1][user, beam])
            q, k, v = torch.stack(rows).view(4, 3, 2, 4).unbind(1)
            expected = torch.nn.functional.scaled_dot_product_attention(
                q[-1:].transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), scale=0.5
            )
            torch.testing.assert_close(mixed[user, beam], expected[:, 0].flatten(), atol=1e-5, rtol=1e-5)


def test_reordering_moves_ancestry_only() -> None:
    cache = BeamCache.empty(1)
    cache.attend(0, torch.zeros(1, 1, 6), 1, 1.0)
    cache.finish_step()
    cache.reorder(torch.zeros(1, 2, dtype=torch.int64))
    cache.attend(0, torch.zeros(1, 2, 6), 1, 1.0)
    cache.finish_step()
    cache.reorder(torch.tensor([[1, 1]]))
    assert cache.width == 2
    assert [columns.tolist() for columns in cache.ancestry] == [[[0, 0]], [[1, 1]]]
    assert cache.blocks[0][1].shape == (1, 2, 6)


@pytest.mark.skipif(not native.available(), reason="the kernels are not compiled (python -m recsys.native)")
@pytest.mark.parametrize(("beams", "heads", "channels", "steps"), [(1, 1, 1, 2), (7, 3, 8, 4), (5, 2, 24, 9)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_kernel_equals_pytorch(beams: int, heads: int, channels: int, steps: int, with_bias: bool) -> None:
    blocks, ancestry = random_prefixes(3, beams, heads, channels, steps)
    bias = torch.randn(heads, steps) if with_bias else None
    expected = attend_to_prefix(blocks, ancestry, heads, channels**-0.5, bias)
    found = native.prefix_attention(blocks, ancestry, heads, channels**-0.5, bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_missing_compiler_is_said() -> None:
    with pytest.raises(RuntimeError, match="could not compile"):
        native.compile_kernels(compiler="/bin/false")


@pytest.mark.skipif(not native.available(), reason="the kernels are not compiled (python -m recsys.native)")
def test_loading_the_kernels_leaves_small_numbers_alone() -> None:
    """Libraries built with -ffast-math make the whole process round subnormal numbers to zero."""
    smallest = 2.0**-1074
    assert smallest * 1.0 > 0.0
    assert torch.tensor([2.0**-140], dtype=torch.float32).mul(1.0).item() > 0.0

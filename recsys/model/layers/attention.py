"""Attention and feed-forward blocks.

Legend: N rows, T query positions, S key positions, A heads, C = D / A channels per head, D width, B users, W beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from recsys import native
from recsys.model.layers.beam_cache import BeamCache
from recsys.model.layers.rows import Linear, decodes_on_cpu, linear, whole_tiles

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a memory for one layer, ``[N, A, S, C]`` each."""

QUERIES_TOGETHER: Final = 32
"""Queries that a thread of the CPU's attention kernel takes at a time."""

QUERY_TILE: Final = 16
"""The kernel's threads work in one block of memory. With fewer than :data:`QUERIES_TOGETHER` queries that are no multiple of
this, the shares of all threads but the first begin beside a cache line, where products round otherwise."""

CHANNEL_TILE: Final = 16
"""torch's ``silu`` computes so many elements together, and rounds those otherwise that are left over."""


def _splits_lines(queries: int) -> bool:
    """Whether threads of the CPU's kernel share cache lines."""
    return queries % QUERY_TILE > 0 and queries < QUERIES_TOGETHER and torch.get_num_threads() > 1


def attend(
    q_NATC: torch.Tensor,
    k_NASC: torch.Tensor,
    v_NASC: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention with float32 softmax.

    Args:
        mask: Boolean, true where a query may look, broadcastable to ``[N, A, T, S]``; every query must see something.
            ``None``: everywhere; a GPU has its fastest kernel for that and for ``causal``.
        causal: Without a mask: position ``t`` looks at positions up to ``t``.
    """
    queries = q_NATC.shape[2]
    if decodes_on_cpu(q_NATC) and _splits_lines(queries) and (mask is None or mask.shape[2] == 1):
        q_NATC = whole_tiles(q_NATC, dim=2, tile=QUERY_TILE)
        return attend(q_NATC, k_NASC, v_NASC, mask, causal=causal)[:, :, :queries]
    # the fused kernel, in training on a CPU too: half the time of plain products over 80 positions, equal over 50
    return F.scaled_dot_product_attention(q_NATC, k_NASC, v_NASC, attn_mask=mask, is_causal=causal)


def attend_few(q_NTAC: torch.Tensor, k_NTAC: torch.Tensor, v_NTAC: torch.Tensor) -> torch.Tensor:
    """Causal attention over a handful of positions, by elementwise products.

    A batched 3 x 3 matmul per head costs far more in dispatch than in arithmetic; here N is the long axis instead. Position
    by position, what the mask would hide is never computed.
    """
    scaled_NTAC = q_NTAC * q_NTAC.shape[-1] ** -0.5
    mixed = [v_NTAC[:, 0]]  # one position to look at
    for last in range(1, q_NTAC.shape[1]):
        seen = slice(last + 1)
        weights = (scaled_NTAC[:, last, None] * k_NTAC[:, seen]).sum(-1).softmax(1)
        mixed.append((weights[..., None] * v_NTAC[:, seen]).sum(1))
    return torch.stack(mixed, dim=1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection and no biases."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)

    def project(self, x_NTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys, values, each ``[N, T, A, C]``."""
        n, t, d = x_NTD.shape
        q, k, v = self.qkv(x_NTD).view(n, t, 3, self.num_heads, d // self.num_heads).unbind(2)
        return q, k, v

    def forward(self, x_NTD: torch.Tensor, mask: torch.Tensor | None = None, *, causal: bool = False) -> torch.Tensor:
        """Attend within each row.

        Args:
            mask: Boolean, true where a query may look, ``[N, 1, 1, T]`` or ``[N, 1, T, T]``; ``None``: everywhere.
            causal: Without a mask: look at no later position.
        """
        q, k, v = self.project(x_NTD)
        if x_NTD.shape[1] <= 4 and causal:
            mixed = attend_few(q, k, v)
        else:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            mixed = attend(q, k, v, mask, causal=causal).transpose(1, 2)
        return self.out(mixed.reshape(x_NTD.shape))

    def step(self, x_BWD: torch.Tensor, cache: BeamCache, layer: int) -> torch.Tensor:
        """Attend from the newest position of W beams of B users to their own prefixes, which the cache remembers."""
        mixed_BWD = cache.attend(layer, self.qkv(x_BWD), self.num_heads, self.head_width**-0.5)
        return self.out(mixed_BWD)


class CrossAttention(nn.Module):
    """Attention from decoder positions to the encoded history; keys and values are projected once per user."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)

    def forward(self, x_NTD: torch.Tensor, keys_values: KeysValues, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend; ``mask`` is true where a query may look, broadcastable to ``[N, A, T, S]``; ``None``: everywhere."""
        n, t, d = x_NTD.shape
        q = self.query(x_NTD).view(n, t, self.num_heads, d // self.num_heads).transpose(1, 2)
        mixed = attend(q, *keys_values, mask)
        return self.out(mixed.transpose(1, 2).reshape(n, t, d))


def project_memory(layers: Sequence[CrossAttention], memory_NSD: torch.Tensor) -> list[KeysValues]:
    """Keys and values of all layers by one matrix product; they serve every decoder position and every beam."""
    n, s = memory_NSD.shape[:2]
    weight = torch.cat([layer.key_value.weight for layer in layers])
    projected = linear(memory_NSD, weight).view(n, s, len(layers), 2, layers[0].num_heads, -1)
    keys_values = projected.permute(2, 3, 0, 4, 1, 5)  # [layers, 2, N, A, S, C]
    return [(layer[0].contiguous(), layer[1].contiguous()) for layer in keys_values]


class FeedForward(nn.Module):
    """SwiGLU feed-forward layer, two thirds of the parameters of which gate the rest (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply position by position."""
        return self.down(gated(self.up(x)))


def silu(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(x)``, element by element the same wherever it lies in a batch."""
    if x.shape[-1] % CHANNEL_TILE and decodes_on_cpu(x):
        # torch's silu rounds an element by where it lies among those of a thread; its exp does not
        return x.neg().exp_().add_(1.0).reciprocal_().mul_(x)
    return F.silu(x)


def gated(up: torch.Tensor) -> torch.Tensor:
    """SwiGLU's middle: ``silu`` of the first half of the channels times the second half, ``[..., 2 * F] -> [..., F]``."""
    if decodes_on_cpu(up) and native.available() and up.dtype == torch.float32:
        return native.gate_rows(up.contiguous())
    gate, value = up.chunk(2, dim=-1)
    activated = silu(gate)
    # autograd wants both factors afterwards; without it a third of the memory traffic is saved
    return activated * value if torch.is_grad_enabled() else activated.mul_(value)

"""Matrix products whose rows know nothing of their neighbours: a user's answer is the same in any batch.

A product of N rows is N independent sums in exact arithmetic. In float32 a library may sum a row that lies in an incomplete
tile in another order than one in a full tile, so the last bits of a row depend on how many rows there are: with MKL on up to
16 threads this happens below 32 rows, wherever their number is no multiple of four. Where no gradient is asked for, products
of few rows are therefore filled up with zero rows to whole tiles; large products lose nothing by it.

Legend: N rows, D inputs, K outputs.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

TILE: Final = 16
"""Rows, or attention queries, that are always computed together."""

FEW: Final = 256
"""Products of at least so many rows have complete tiles for every row."""


def whole_tiles(x: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Fill dimension ``dim`` up with zeros to the next multiple of :data:`TILE`.

    Example:
        >>> whole_tiles(torch.ones(3, 2)).shape, whole_tiles(torch.ones(2, 5), dim=1).shape
        (torch.Size([16, 2]), torch.Size([2, 16]))
    """
    missing = -x.shape[dim] % TILE
    if not missing:
        return x
    return torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim=dim)


def decodes_on_cpu(x: torch.Tensor) -> bool:
    """Whether rows must be kept apart here: where answers are computed, and not where a policy is trained."""
    return x.is_cpu and not torch.is_grad_enabled()


def product(left_ND: torch.Tensor, right_DK: torch.Tensor) -> torch.Tensor:
    """``left @ right`` of two matrices, row by row the same whatever other rows there are."""
    rows = len(left_ND)
    if rows >= FEW or not decodes_on_cpu(left_ND):
        return left_ND @ right_DK
    return (whole_tiles(left_ND) @ right_DK)[:rows]


def linear(x: torch.Tensor, weight_KD: torch.Tensor, bias_K: torch.Tensor | None = None) -> torch.Tensor:
    """``x weight^T + bias`` over the last dimension, row by row the same whatever other rows there are."""
    if not decodes_on_cpu(x):
        return F.linear(x, weight_KD, bias_K)
    flat_ND = x.reshape(-1, x.shape[-1])
    rows = len(flat_ND)
    if rows < FEW:
        flat_ND = whole_tiles(flat_ND)
    return F.linear(flat_ND, weight_KD, bias_K)[:rows].view(*x.shape[:-1], len(weight_KD))


class Linear(nn.Linear):
    """A linear layer by :func:`linear`; weights, names and gradients are those of ``nn.Linear``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to the last dimension."""
        return linear(x, self.weight, self.bias)

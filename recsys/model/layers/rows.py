"""Matrix products whose rows know nothing of their neighbours: a user's answer is the same in any batch.

A product of N rows is N independent sums in exact arithmetic. In float32 a library may sum the rows of a small product in
another order than those of a large one, so that the last bits of a row depend on how many rows there are: with MKL on one
thread this happens below 4 rows, on up to 16 threads below 12 wherever their number is no multiple of four (measured for
16 shapes and every number of rows up to 70). Where no gradient is asked for, products of few rows are therefore filled up
with zero rows to whole tiles.

Legend: N rows, D inputs, K outputs.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

TILE: Final = 8
"""Rows that are always computed together: twice as many as a difference was seen for."""

FEW: Final = 48
"""From so many rows on products of several threads are left as they are: four times the most that a difference was seen for.
On one thread that is so from one tile on."""


def whole_tiles(x: torch.Tensor, dim: int = 0, tile: int = TILE) -> torch.Tensor:
    """Fill dimension ``dim`` up with zeros to the next multiple of ``tile``.

    Example:
        >>> whole_tiles(torch.ones(3, 2)).shape, whole_tiles(torch.ones(2, 5), dim=1).shape
        (torch.Size([8, 2]), torch.Size([2, 8]))
    """
    missing = -x.shape[dim] % tile
    if not missing:
        return x
    return torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim=dim)


def decodes_on_cpu(x: torch.Tensor) -> bool:
    """Whether rows must be kept apart here: where answers are computed, and not where a policy is trained."""
    return x.is_cpu and not torch.is_grad_enabled()


def wants_filling(x: torch.Tensor, rows: int) -> bool:
    """Whether a product of so many rows is to be filled up."""
    # first what is no question of shapes: a compiled training step would be compiled again for every answer
    if not decodes_on_cpu(x):
        return False
    return rows % TILE > 0 and rows < FEW and (rows < TILE or torch.get_num_threads() > 1)


def product(left_ND: torch.Tensor, right_DK: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``left @ right`` of two matrices, row by row the same whatever other rows there are.

    Args:
        out: Where the result goes, ``[N, K]``.
    """
    rows = len(left_ND)
    if not wants_filling(left_ND, rows):
        return torch.mm(left_ND, right_DK, out=out)
    filled = torch.mm(whole_tiles(left_ND), right_DK)[:rows]
    return filled if out is None else out.copy_(filled)


def linear(x: torch.Tensor, weight_KD: torch.Tensor, bias_K: torch.Tensor | None = None) -> torch.Tensor:
    """``x weight^T + bias`` over the last dimension, row by row the same whatever other rows there are."""
    if not decodes_on_cpu(x):
        return F.linear(x, weight_KD, bias_K)
    rows = x.numel() // max(1, x.shape[-1])
    if wants_filling(x, rows):
        filled_NK = F.linear(whole_tiles(x.reshape(rows, -1)), weight_KD, bias_K)
        return filled_NK[:rows].view(*x.shape[:-1], len(weight_KD))
    return F.linear(x.contiguous(), weight_KD, bias_K)  # strided, it may become a product per user


class Linear(nn.Linear):
    """A linear layer by :func:`linear`; weights, names and gradients are those of ``nn.Linear``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to the last dimension."""
        return linear(x, self.weight, self.bias)

"""Decoding with int8 matrix products: an option for CPUs with 8-bit dot products (VNNI).

Weights are rounded once, one scale per output channel; activations are rounded when they arrive, one scale per row. Only
the linear layers of encoder and decoder change; embeddings, attention, norms, routing and the code logits stay float32, so
log-probabilities are float32 sums as before, of slightly different hidden states. How often the answers differ is measured
by ``python -m tests.benchmarks.int8``.

Legend: N rows, K input channels, M output channels, E experts, J experts per token, D width, F hidden width of an expert.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from recsys import native
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.attention import gated
from recsys.model.layers.moe import MixtureOfExperts

SMALLEST_PRODUCT = 2048
"""Weights with fewer entries than this stay float32: rounding the activations would cost more than it saves."""


def quantise_rows(values_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to int8 with a scale of its own: ``values ≈ quantised * scale``.

    Example:
        >>> quantised, scale = quantise_rows(torch.tensor([[1.27, -0.635, 0.0]]))
        >>> quantised.tolist(), round(scale.item(), 3)
        ([[127, -64, 0]], 0.01)
    """
    highest = values_NK.abs().amax(1)
    factor = torch.where(highest > 0, 127.0 / highest, 0.0)
    return (values_NK * factor[:, None]).round().to(torch.int8), highest / 127.0


class Int8Weight(nn.Module):
    """One weight matrix, ``[M, K]``, applied to rows of ``[N, K]``."""

    weight_MK: torch.Tensor
    scale_M: torch.Tensor

    def __init__(self, weight_MK: torch.Tensor) -> None:
        super().__init__()
        quantised, scale = quantise_rows(weight_MK.detach())
        self.register_buffer("weight_MK", quantised)
        self.register_buffer("scale_M", scale)

    def forward(self, x_NK: torch.Tensor) -> torch.Tensor:
        """Multiply, ``[N, K] -> [N, M]`` float32."""
        fast = native.available() and x_NK.is_cpu
        rows, row_scale = native.quantise_rows(x_NK) if fast else quantise_rows(x_NK)
        sums = torch._int_mm(rows, self.weight_MK.t())
        if fast:
            return native.dequantise_(sums, row_scale, self.scale_M)
        return sums.float() * row_scale[:, None] * self.scale_M


class Int8Linear(nn.Module):
    """A linear layer without bias, in int8."""

    matrix: Int8Weight

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        assert linear.bias is None
        self.matrix = Int8Weight(linear.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to the last dimension."""
        result = self.matrix.forward(x.reshape(-1, x.shape[-1]))
        return result.view(*x.shape[:-1], -1)


class Int8Experts(nn.Module):
    """A mixture of experts whose experts are int8; routing is the float32 layer's own."""

    def __init__(self, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.router = moe
        self.up = nn.ModuleList(Int8Weight(weight.T) for weight in moe.up_EDF)
        self.down = nn.ModuleList(Int8Weight(weight.T) for weight in moe.down_EFD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to tokens of any leading shape, as :meth:`MixtureOfExperts.forward`."""
        x_ND = x.reshape(-1, x.shape[-1])
        gates_NJ, experts_NJ = self.router.route(x_ND)
        order = experts_NJ.flatten().argsort(stable=True)
        token = order // experts_NJ.shape[1]
        counts = torch.bincount(experts_NJ.flatten(), minlength=self.router.num_experts).tolist()
        gate = gates_NJ.flatten()[order, None]
        result, start = torch.zeros_like(x_ND), 0
        for up, down, count in zip(self.up, self.down, counts, strict=True):
            if count:
                rows = token[start : start + count]
                result.index_add_(0, rows, down(gated(up(x_ND[rows]))) * gate[start : start + count])
            start += count
        return result.view(x.shape)


def int8_policy(policy: GenerativeRecommender) -> GenerativeRecommender:
    """Return a copy of a policy whose encoder and decoder blocks multiply in int8; for decoding only."""
    result = copy.deepcopy(policy).eval().requires_grad_(False)
    for part in (result.encoder, result.decoder):
        for parent in list(part.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear) and child.bias is None and name != "key_value":
                    if child.weight.numel() >= SMALLEST_PRODUCT:
                        setattr(parent, name, Int8Linear(child))
                elif isinstance(child, MixtureOfExperts):
                    setattr(parent, name, Int8Experts(child))
    return result

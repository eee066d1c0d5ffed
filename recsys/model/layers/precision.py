"""Where mixed precision ends: probabilities and routing are float32, and so are the statistics of norms.

Legend: N rows, D inputs, K outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from recsys import native
from recsys.model.layers.rows import decodes_on_cpu, linear


def float32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x weight^T + bias`` in float32, inside an autocast region too."""
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.float(), weight.float(), None if bias is None else bias.float())


def product_dtype(device: torch.device) -> torch.dtype:
    """What factors of the large products before a softmax are rounded to: on a GPU inside autocast its type, else float32.

    On a CPU float32 products are the faster ones, and these stay float32 in mixed precision, too.
    """
    mixed = device.type == "cuda" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if mixed else torch.float32


def float32_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``left @ right`` with float32 sums and a float32 result, whatever the factors are; outside autocast regions."""
    if left.is_cuda and left.dtype != torch.float32:  # tensor cores
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    return torch.mm(left.float(), right.float(), out=out)


class _RoundedLinear(torch.autograd.Function):
    """A linear layer whose factors are rounded, in the backward pass too, and whose sums are float32."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: torch.Tensor, weight_KD: torch.Tensor, bias_K: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        rounded_ND, rounded_KD = x_ND.to(dtype), weight_KD.to(dtype)
        ctx.save_for_backward(rounded_ND, rounded_KD)
        ctx.types = x_ND.dtype, weight_KD.dtype, bias_K.dtype
        return float32_product(rounded_ND, rounded_KD.T).add_(bias_K)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rounded_ND, rounded_KD = ctx.saved_tensors
        rounded_NK = grad_NK.to(rounded_ND.dtype)
        x_grad, weight_grad = float32_product(rounded_NK, rounded_KD), float32_product(rounded_NK.T, rounded_ND)
        x_type, weight_type, bias_type = ctx.types
        return x_grad.to(x_type), weight_grad.to(weight_type), grad_NK.sum(0).to(bias_type), None


def rounded_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x weight^T + bias`` of factors rounded to ``dtype``, with float32 sums and a float32 result.

    Args:
        dtype: See :func:`product_dtype`; float32 rounds nothing.
    """
    if dtype == torch.float32:
        return float32_linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        flat: torch.Tensor = _RoundedLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, dtype)
        return flat.view(*x.shape[:-1], -1)


class Norm(nn.RMSNorm):
    """Root mean square norm with float32 statistics, whose result has the type of its input.

    The weight is brought to that type, because the fused kernel wants one type; and epsilon is float32's for every type:
    torch's default, the input's own, is .0078 in bfloat16, more than the variance of an embedding at the start (.0004).
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=torch.finfo(torch.float32).eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to the last dimension."""
        if decodes_on_cpu(x) and native.available() and x.dtype == self.weight.dtype == torch.float32:
            assert self.eps is not None
            return native.norm_rows(x.contiguous(), self.weight, self.eps)
        if not torch.is_autocast_enabled(x.device.type):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        with torch.autocast(x.device.type, enabled=False):  # some versions of torch would make it float32
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)

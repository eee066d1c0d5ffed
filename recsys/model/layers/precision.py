"""Where mixed precision ends: probabilities and routing are computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def float32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x weight^T + bias`` in float32, inside an autocast region too."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def held_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``x weight^T + bias`` of factors in the weight's 16 bits, summed and returned in float32; for inference."""
    with torch.autocast(x.device.type, enabled=False):
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        if rows.is_cuda:  # tensor cores
            product = torch.mm(rows, weight.T, out_dtype=torch.float32)
        else:
            product = torch.mm(rows.float(), weight.float().T)
        return product.add_(bias).view(*x.shape[:-1], -1)

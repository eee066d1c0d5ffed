"""Where mixed precision ends: probabilities and routing are computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def float32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x weight^T + bias`` in float32, inside an autocast region too."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())

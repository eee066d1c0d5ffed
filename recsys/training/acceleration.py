"""What makes training faster on a device and changes no more than rounding: TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Let float32 matrix products on a GPU round their inputs to TF32, or forbid it, inside the ``with`` block.

    Nothing changes for a CPU, where the same setting of torch would let some processors round to bfloat16.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""How much of the machine's arithmetic a run uses: model FLOPs per second over what the device can do (MFU).

FLOPs are the model's own, counted by :mod:`recsys.model.summary`: useful multiply-adds times two, no recomputation, no
padding. The denominator is the data-sheet figure for GPUs we know, and a measured matrix product everywhere else; the text
says which, because the two cannot be compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

import torch

Precision = Literal["float32", "bfloat16"]

DATA_SHEET_TFLOPS: Final[dict[str, dict[Precision, float]]] = {
    # dense tensor-core figures of the vendor's data sheets; float32 is TF32
    "H200": {"bfloat16": 989.0, "float32": 494.0},
    "H100": {"bfloat16": 989.0, "float32": 494.0},
    "A100": {"bfloat16": 312.0, "float32": 156.0},
}
MEASURED_SIZE: Final = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Peak:
    """What a device can do.

    Attributes:
        flops: FLOP/s.
        source: ``data sheet`` or ``measured matmul``.
    """

    flops: float
    source: str


def peak_of(device: torch.device, precision: Precision = "float32") -> Peak:
    """Look up or measure; measuring takes some milliseconds, and on a busy machine gives what is left of it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, tflops in DATA_SHEET_TFLOPS.items():
            if known in name:
                return Peak(tflops[precision] * 1e12, f"{name} data sheet")
    size = MEASURED_SIZE.get(device.type, 1024)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return Peak(2 * size**3 / min(seconds), "measured matmul")


def describe(
    count: int, what: str, mflops_each: float, seconds: float, device: torch.device, precision: Precision
) -> str:
    """One line for the log.

    Example:
        >>> line = describe(1000, "targets", 10.0, 2.0, torch.device("cpu"), "float32")
        >>> line.startswith("500 targets/s, 10.0 MFLOP each: 5.0 GFLOP/s, "), line.endswith("% of the measured matmul rate")
        (True, True)
    """
    achieved = count * mflops_each * 1e6 / seconds
    peak = peak_of(device, precision)
    share = achieved / peak.flops
    against = "the measured matmul rate" if peak.source == "measured matmul" else f"{peak.source} (MFU)"
    return (
        f"{count / seconds:,.0f} {what}/s, {mflops_each:.1f} MFLOP each: {achieved / 1e9:.1f} GFLOP/s, "
        f"{share:.1%} of {against}"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

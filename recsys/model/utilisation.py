"""How much of the machine's arithmetic a run uses: useful FLOPs per second over what the device can do (MFU).

FLOPs are the model's own, counted by :func:`recsys.model.summary.training_flops` and
:func:`~recsys.model.summary.decoding_flops` from what was asked for: multiply-adds times two, no recomputation, no padding.
They are compared with two roofs, both named in the text: the fastest matrix product that this process measured on this
device, and the vendor's data sheet where the card is known.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch

Precision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class DataSheet:
    """Dense TFLOP/s of a card, sums in float32, as its vendor prints them; half of what is printed for sparse ones."""

    card: str
    bfloat16: float
    tf32: float
    float32: float


DATA_SHEETS: Final[dict[str, DataSheet]] = {
    # first match wins; a pattern is looked for in torch's name of the device
    r"H200 NVL": DataSheet("H200 NVL", 835.0, 417.0, 60.0),
    r"H200": DataSheet("H200 SXM", 989.0, 494.0, 67.0),
    r"GH200": DataSheet("GH200", 989.0, 494.0, 67.0),
    r"H100 NVL": DataSheet("H100 NVL", 835.0, 417.0, 60.0),
    r"H100 PCIe": DataSheet("H100 PCIe", 756.0, 378.0, 51.0),
    r"H100": DataSheet("H100 SXM", 989.0, 494.0, 67.0),
    r"A100": DataSheet("A100", 312.0, 156.0, 19.5),
    r"A30\b": DataSheet("A30", 165.0, 82.0, 10.3),
    r"A10\b": DataSheet("A10", 125.0, 62.5, 31.2),
    r"L40S": DataSheet("L40S", 362.0, 183.0, 91.6),
    r"L40\b": DataSheet("L40", 181.0, 90.5, 90.5),
    r"L4\b": DataSheet("L4", 121.0, 60.0, 30.3),
    r"RTX 4090": DataSheet("RTX 4090", 165.2, 82.6, 82.6),
    r"RTX 3090": DataSheet("RTX 3090", 71.0, 35.6, 35.6),
}

_SHAPES: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "cpu": ((512, 512, 512), (1024, 1024, 1024), (4096, 256, 256), (256, 2048, 1024)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192)),
}
_REPEATS: Final = 5


@dataclass(frozen=True)
class Roof:
    """What a device can do.

    Attributes:
        flops: FLOP/s.
        source: Where the number is from.
    """

    flops: float
    source: str


def data_sheet(name: str) -> DataSheet | None:
    """Look a card up by torch's name of it; ``None``: not known here.

    Example:
        >>> data_sheet("NVIDIA H100 80GB HBM3").card, data_sheet("NVIDIA A10G")
        ('H100 SXM', None)
    """
    return next((sheet for pattern, sheet in DATA_SHEETS.items() if re.search(pattern, name)), None)


def data_sheet_roof(device: torch.device, precision: Precision) -> Roof | None:
    """The data sheet's figure for what a GPU runs; ``None``: no GPU, or none that is known here."""
    sheet = data_sheet(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if sheet is None:
        return None
    if precision == "bfloat16":
        return Roof(sheet.bfloat16 * 1e12, f"{sheet.card}, bfloat16")
    tf32 = torch.get_float32_matmul_precision() != "highest"
    flops, kind = (sheet.tf32, "TF32") if tf32 else (sheet.float32, "float32")
    return Roof(flops * 1e12, f"{sheet.card}, {kind}")


def measured_roof(device: torch.device, precision: Precision = "float32") -> Roof:
    """Rate of the fastest of several matrix products, measured once per process, device and number of threads.

    The precision's own products and float32 ones are tried, as a run computes in both. It takes a fraction of a second, and
    on a busy machine gives what is left of it.
    """
    return _measured(device, precision, torch.get_num_threads())


@functools.lru_cache
def _measured(device: torch.device, precision: Precision, threads: int) -> Roof:
    best, source = 0.0, ""
    for kind in dict.fromkeys((precision, "float32")):
        for m, k, n in _SHAPES.get(device.type, _SHAPES["cpu"]):
            product = _product(device, kind, m, k, n)
            if product is None:
                continue
            flops = 2 * m * k * n / min(_seconds(product, device) for _ in range(_REPEATS))
            if flops > best:
                best, source = flops, f"{kind}, {m} x {k} x {n}"
    where = f"{threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return Roof(best, f"{source}, {where}")


def _product(device: torch.device, kind: str, m: int, k: int, n: int) -> Callable[[], torch.Tensor] | None:
    if kind == "int8":
        if device.type != "cpu":
            return None
        rows, columns = (torch.randint(-127, 127, shape, dtype=torch.int8) for shape in ((m, k), (n, k)))
        return lambda: torch._int_mm(rows, columns.t())
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    left, right = (torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (n, k)))
    return lambda: left @ right.t()


def _seconds(product: Callable[[], torch.Tensor], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    product()
    wait_for(device)
    return time.perf_counter() - start


def describe(
    count: int, what: str, flops: float, seconds: float, device: torch.device, precision: Precision = "float32"
) -> str:
    """One line for the log: rate, FLOP/s and the share of both roofs. For training, search, roll-outs and batch jobs alike.

    A run that was faster than the measured products (they met a busier moment) is its own roof, and the line says so: no
    share is above 100 %.

    Args:
        count: Things that were done, named by ``what``.
        flops: Useful FLOPs of all of them together.
        seconds: What they took, nothing else included.
    """
    achieved = flops / seconds
    roof = measured_roof(device, precision)
    measured = f"{roof.flops / 1e9:,.1f} GFLOP/s measured here ({roof.source})"
    if achieved > roof.flops:
        share = f"100.0% of this run's own rate, above the {measured}"
    else:
        share = f"{achieved / roof.flops:.1%} of {measured}"
    sheet = data_sheet_roof(device, precision)
    name = "this processor" if device.type != "cuda" else torch.cuda.get_device_name(device)
    of_sheet = (
        f"no data sheet of {name} is known here"
        if sheet is None
        else f"{achieved / sheet.flops:.1%} of the data sheet's {sheet.flops / 1e12:,.0f} TFLOP/s ({sheet.source})"
    )
    return (
        f"{count / seconds:,.0f} {what}/s, {flops / count / 1e6:.1f} MFLOP each: {achieved / 1e9:.1f} GFLOP/s, "
        f"{share}; {of_sheet}"
    )


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What hit rates and NDCG of one table can be at all, where every row asks for one item.

A hit at rank r adds 1 to HR@k and 1 / log2(r + 1) to NDCG@k. So between two cut-offs ``j < k`` the gain of NDCG lies
between ``1 / log2(k + 1)`` and ``1 / log2(j + 2)`` times the gain of the hit rate, and NDCG@k itself between
``1 / log2(k + 1)`` and 1 times HR@k. A printed table that breaks this holds a misprint, whoever printed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import log2
from typing import Final

ROUNDING: Final = 1e-4
"""Two figures of four digits are each off by half a unit of the last, and so is what is added to them."""


def impossible_cells(values: Mapping[str, float]) -> list[str]:
    """Name the cells that cannot stand together.

    Args:
        values: ``{metric@k: value}``; ``hr`` and ``ndcg`` of the same cut-offs are compared, the rest is passed over.

    Returns:
        One sentence per contradiction; empty where the figures can be those of one ranking.

    Example:
        >>> impossible_cells({"hr@5": 0.0454, "ndcg@5": 0.0321, "hr@10": 0.0648, "ndcg@10": 0.0384})
        []
        >>> impossible_cells({"hr@5": 0.1356, "ndcg@5": 0.1110, "hr@10": 0.1587, "ndcg@10": 0.1255})
        ['ndcg@10 - ndcg@5 is .0145, but hr@10 - hr@5 = .0231 allows .0067 to .0082']
    """
    cuts = sorted(k for k in map(_cut, values) if f"hr@{k}" in values and f"ndcg@{k}" in values)
    cuts = list(dict.fromkeys(cuts))
    found = []
    for k in cuts:
        low, high = values[f"hr@{k}"] / log2(k + 1), values[f"hr@{k}"]
        if not low - ROUNDING <= values[f"ndcg@{k}"] <= high + ROUNDING:
            found.append(_sentence(f"ndcg@{k}", values[f"ndcg@{k}"], f"hr@{k}", values[f"hr@{k}"], low, high))
    for j, k in pairwise(cuts):
        hits, gain = values[f"hr@{k}"] - values[f"hr@{j}"], values[f"ndcg@{k}"] - values[f"ndcg@{j}"]
        low, high = hits / log2(k + 1), hits / log2(j + 2)
        if not min(low, high) - ROUNDING <= gain <= max(low, high) + ROUNDING or hits < -ROUNDING:
            found.append(_sentence(f"ndcg@{k} - ndcg@{j}", gain, f"hr@{k} - hr@{j}", hits, low, high))
    return found


def _cut(metric: str) -> int:
    return int(metric.partition("@")[2])


def _sentence(what: str, value: float, of: str, hits: float, low: float, high: float) -> str:
    return f"{what} is {_short(value)}, but {of} = {_short(hits)} allows {_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)

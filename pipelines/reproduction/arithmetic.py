"""What hit rates and NDCG of one table can be at all, where every row asks for one item.

A hit at rank r adds 1 to HR@k and 1 / log2(r + 1) to NDCG@k. So between two cut-offs ``j < k`` the gain of NDCG lies
between ``1 / log2(k + 1)`` and ``1 / log2(j + 2)`` times the gain of the hit rate; where the table has hit rates at cut-offs
in between, the bounds are the sums of those of the steps. Neither can fall. A printed table that breaks this holds a
misprint, whoever printed it. Figures are known to half a unit of their last digit, and a contradiction is one that no
such rounding explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Final

HALF_UNIT: Final = 5e-5
"""Of figures of four digits."""
_SLACK: Final = 1e-9


def impossible_cells(values: Mapping[str, float], half_units: Mapping[str, float] | None = None) -> list[str]:
    """Name the cells that cannot stand together.

    Args:
        values: ``{metric@k: value}``; only ``hr`` and ``ndcg`` are looked at.
        half_units: By how much each may be rounded; ``None``, or one that is not named: :data:`HALF_UNIT`.

    Returns:
        One sentence per contradiction; empty where the figures can be those of one ranking.

    Example:
        >>> impossible_cells({"hr@5": 0.0454, "ndcg@5": 0.0321, "hr@10": 0.0648, "ndcg@10": 0.0384})
        []
        >>> impossible_cells({"hr@5": 0.1356, "ndcg@5": 0.1110, "hr@10": 0.1587, "ndcg@10": 0.1255})
        ['ndcg@10 - ndcg@5 is .0145, but hr@10 - hr@5 = .0231 allows .0067 to .0082']
        >>> impossible_cells({"hr@10": 0.15, "ndcg@10": 0.16}, {"hr@10": 0.005, "ndcg@10": 0.005})
        []
    """
    table = _Table(values, half_units or {})
    return [*table.falls(), *table.wrong_levels(), *table.wrong_gains()]


@dataclass(frozen=True)
class _Table:
    values: Mapping[str, float]
    half_units: Mapping[str, float]

    def cuts(self, metric: str) -> list[int]:
        """Cut-offs at which there is a figure, ascending."""
        return sorted(int(k) for name, _, k in (name.partition("@") for name in self.values) if name == metric)

    def known_to(self, name: str) -> float:
        return self.half_units.get(name, HALF_UNIT)

    def falls(self) -> list[str]:
        """Hit rates that fall, and NDCG that falls where no hit rates say how it may rise."""
        found = []
        for metric in ("hr", "ndcg"):
            for j, k in pairwise(self.cuts(metric)):
                if metric == "ndcg" and self._has_hits(j, k):
                    continue
                low, high = f"{metric}@{j}", f"{metric}@{k}"
                if self.values[high] < self.values[low] - self.known_to(low) - self.known_to(high) - _SLACK:
                    found.append(f"{high} is {short(self.values[high])}, less than {low} = {short(self.values[low])}")
        return found

    def wrong_levels(self) -> list[str]:
        """NDCG that the hit rate of the same cut-off does not allow."""
        return [found for k in self.cuts("ndcg") if self._has_hits(k) and (found := self._wrong(0, k)) is not None]

    def wrong_gains(self) -> list[str]:
        """Gains of NDCG from one cut-off to the next that the hit rates do not allow."""
        return [
            found
            for j, k in pairwise(self.cuts("ndcg"))
            if self._has_hits(j, k) and (found := self._wrong(j, k)) is not None
        ]

    def _has_hits(self, *cuts: int) -> bool:
        return all(f"hr@{k}" in self.values for k in cuts)

    def _wrong(self, j: int, k: int) -> str | None:
        """Compare the gain from ``j`` to ``k`` with what the hits allow; from 0 with those at ``k`` alone."""
        steps = [j, *(cut for cut in self.cuts("hr") if j < cut < k and j), k]
        low, low_off = self._bound(steps, [1 / log2(end + 1) for end in steps[1:]])
        high, high_off = self._bound(steps, [1 / log2(start + 2) for start in steps[:-1]])
        hits = self.values[f"hr@{k}"] - (self.values[f"hr@{j}"] if j else 0.0)
        gain = self.values[f"ndcg@{k}"] - (self.values[f"ndcg@{j}"] if j else 0.0)
        off = _SLACK + sum(self.known_to(f"ndcg@{cut}") for cut in (j, k) if cut)
        fell = any(self.values[f"hr@{b}"] < self.values[f"hr@{a}"] for a, b in pairwise(steps) if a)
        if fell or low - low_off - off <= gain <= high + high_off + off:
            return None  # hit rates that fall are a sentence of their own
        what, of = (f"ndcg@{k}", f"hr@{k}") if not j else (f"ndcg@{k} - ndcg@{j}", f"hr@{k} - hr@{j}")
        return f"{what} is {short(gain)}, but {of} = {short(hits)} allows {short(low)} to {short(high)}"

    def _bound(self, steps: list[int], worth: list[float]) -> tuple[float, float]:
        """The sum over steps of new hits times what one is worth, and by how much rounding can move it."""
        weights = dict.fromkeys(steps, 0.0)
        for (start, end), each in zip(pairwise(steps), worth, strict=True):
            weights[end] += each
            weights[start] -= each
        weights.pop(0, None)  # nothing is hit within no place
        total = sum(weight * self.values[f"hr@{cut}"] for cut, weight in weights.items())
        return total, sum(abs(weight) * self.known_to(f"hr@{cut}") for cut, weight in weights.items())


def short(value: float) -> str:
    """Return a figure as tables print it, with four digits.

    Example:
        >>> short(0.0145), short(-0.0002)
        ('.0145', '-.0002')
    """
    return f"{value:.4f}".replace("0.", ".", 1)

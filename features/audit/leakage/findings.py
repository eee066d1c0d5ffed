"""What the audit found: one leak each, how many rows it touches, and what hit rate it could buy.

The price has three numbers. ``hr_bound`` is counted: the share of the rows whose right item stands in the leaked
information, so no recommender can gain more hits from it. ``hr_at_10`` is measured: the hit rate of a recommender that
reads nothing but the leak. ``hr_without`` is the same recommender on what it may know, where there is such a twin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

Severity = Literal["severe", "warning", "note"]

_ORDER = {"severe": 0, "warning": 1, "note": 2}

EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One leak.

    Attributes:
        code: Short name, for programs.
        title: What it is, for people.
        severity: ``severe``: the metrics cannot be trusted; ``warning``: they are better than serving will be, or depend on
            an arbitrary choice; ``note``: good to know.
        split: Rows it is about, ``valid`` or ``test``; empty where it is about the data set.
        rows: Rows (or items, or columns) touched.
        of: Out of how many.
        unit: What is counted.
        words: What was found, with its numbers.
        advice: What to do.
        examples: Ids of up to three users, items or columns.
        hr_bound, hr_at_10, hr_without: The price, see above; ``None`` where it was not counted or measured.
    """

    code: str
    title: str
    severity: Severity
    split: str
    rows: int
    of: int
    words: str
    advice: str
    unit: str = "rows"
    examples: tuple[str, ...] = ()
    hr_bound: float | None = None
    hr_at_10: float | None = None
    hr_without: float | None = None

    @property
    def share(self) -> float:
        """Rows touched, of all."""
        return self.rows / self.of if self.of else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values; shares with six digits."""
        values = {**asdict(self), "share": self.share, "examples": list(self.examples)}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, the worst first; test rows before validation rows."""
    return sorted(findings, key=lambda found: (_ORDER[found.severity], found.code, found.split != "test", found.split))


def example_ids(ids: pl.Series, places: npt.NDArray[np.integer]) -> tuple[str, ...]:
    """Return the ids at the first different places, as text."""
    first = list(dict.fromkeys(places[:1000].tolist()))[:EXAMPLES]
    return tuple(str(ids[place]) for place in first)

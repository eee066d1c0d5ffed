"""Validation rows that settings are chosen by; test rows are never looked at.

Reads a prepared data set; produces one number per fitted baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import FittedRanker
from recsys.metrics.ranking import Values, row_metrics

PLACES: Final = 10
METRIC: Final = f"ndcg@{PLACES}"


@dataclass(frozen=True)
class ValidationRows:
    """Rows of the validation split, and how they are ranked.

    Attributes:
        exclude_seen: Whether items of the history are left out, as in the first column of the table.
    """

    histories: Histories
    targets: Targets
    exclude_seen: bool

    @classmethod
    def of(cls, prepared: Dataset, rows: int, seed: int, exclude_seen: bool) -> ValidationRows:
        """Draw at most ``rows`` rows; the same seed draws the same ones."""
        targets = prepared.targets(VALID)
        drawn = np.random.default_rng(seed).permutation(len(targets))[:rows]
        targets = targets.take(np.sort(drawn))
        return cls(Histories.from_targets(prepared.history, targets), targets, exclude_seen)

    def __len__(self) -> int:
        return len(self.targets)

    def values(self, ranker: FittedRanker) -> Values:
        """NDCG of a fitted baseline, row by row."""
        return row_metrics(ranker.rank(self.histories, PLACES, self.exclude_seen), self.targets, [PLACES])[METRIC]

    def value(self, ranker: FittedRanker) -> float:
        """Mean NDCG of a fitted baseline."""
        return float(self.values(ranker).mean())

    def value_of(self, ranked: RankedItems) -> float:
        """Mean NDCG of a ranking of these rows."""
        return float(row_metrics(ranked, self.targets, [PLACES])[METRIC].mean())

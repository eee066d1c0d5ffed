"""Repeat the user's own last items: strong where people replay or re-order, useless where targets never repeat.

Reads a history; produces its distinct items, latest first, then popularity.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import DenseRanker, fitted
from recsys.evaluation.baselines.config import RepeatLastConfig, Scale
from recsys.scorers.config import Until
from recsys.scorers.events import CountedEvents, FloatArray, ragged_rows
from recsys.scorers.popularity import popularity_shares


class RepeatLast(DenseRanker):
    """Recommend the history backwards; with seen items excluded only the popularity back-off is left."""

    name: ClassVar[str] = "repeat_last"
    scale: ClassVar[Scale] = "counts"

    def __init__(self, config: RepeatLastConfig | None = None) -> None:
        self.config = config or RepeatLastConfig()
        self._shares: FloatArray | None = None

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count the back-off; nothing is drawn, so the seed has no influence."""
        events = CountedEvents.from_dataset(prepared, until)
        self._shares = popularity_shares(events, prepared.spec.num_items, self.config.popularity)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(fitted(self._shares, self.name))

    def scores(self, histories: Histories) -> FloatArray:
        """Score the history's items above all others; a share is at most 1, a repeat scores between 1 and 2 more."""
        scores = np.tile(fitted(self._shares, self.name), (len(histories), 1))
        row, flat = ragged_rows(histories.start, histories.end)
        item = np.asarray(histories.item)[flat]
        # 1/2048 is a power of two, so the steps are exact in float32; all older events share the lowest step
        recency = 3.0 - np.minimum(histories.end[row] - 1 - flat, 2047) / 2048
        np.maximum.at(scores, (row[item >= 0], item[item >= 0]), recency[item >= 0].astype(np.float32))
        return scores

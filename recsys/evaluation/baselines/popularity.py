"""Recent popularity: the same list for everybody, and the back-off of all other baselines.

Reads the counted events; produces one share per item. With timestamps an event loses half its weight every
``half_life_days``; without them time is unknown, and "recent" can only mean the last events of each user.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import numpy as np

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import DenseRanker, fitted
from recsys.evaluation.baselines.config import Scale
from recsys.scorers.config import PopularityConfig, Until
from recsys.scorers.events import CountedEvents, FloatArray
from recsys.scorers.popularity import popularity_shares

logger = logging.getLogger(__name__)


class Popularity(DenseRanker):
    """Recommend what was recently popular."""

    name: ClassVar[str] = "popularity"
    scale: ClassVar[Scale] = "counts"

    def __init__(self, config: PopularityConfig | None = None) -> None:
        self.config = config or PopularityConfig()
        self._shares: FloatArray | None = None

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count; nothing is drawn, so the seed has no influence."""
        if self.config.half_life_days is not None and not prepared.spec.has_timestamps:
            logger.info("popularity: the data have no timestamps, all counted events weigh the same")
        events = CountedEvents.from_dataset(prepared, until)
        self._shares = popularity_shares(events, prepared.spec.num_items, self.config)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(fitted(self._shares, self.name))

    def scores(self, histories: Histories) -> FloatArray:
        """Score by share of traffic, alike for every row."""
        return np.tile(fitted(self._shares, self.name), (len(histories), 1))

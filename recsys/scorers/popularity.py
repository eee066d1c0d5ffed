"""Shares of the traffic: how much of what people did goes to each item, recently or ever.

With timestamps an event loses half its weight every ``half_life_days``; without them time is unknown, and "recent" can only
mean the last events of each user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.scorers.config import PopularityConfig
from recsys.scorers.events import CountedEvents, FloatArray
from recsys.scorers.item_scorer import ItemArray, Scale, WeighedHistories

MICROSECONDS_PER_DAY: Final = 86_400_000_000


def popularity_shares(events: CountedEvents, num_items: int, config: PopularityConfig) -> FloatArray:
    """Return each item's share of the (decayed) traffic, ``[I]``, summing to 1.

    An event without a time weighs as much as the oldest that has one.

    Example:
        >>> day = MICROSECONDS_PER_DAY
        >>> events = CountedEvents(
        ...     np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0, 30 * day, 30 * day]), np.array([1, 0, 0]))
        >>> popularity_shares(events, 3, PopularityConfig(half_life_days=30)).round(2).tolist()
        [0.20000000298023224, 0.800000011920929, 0.0]
    """
    weight = np.ones(len(events.item))
    timed = events.timestamp >= 0
    if config.half_life_days is not None and bool(timed.any()):
        # an event of a prehistory is older than all that have a time; how much older nobody knows
        age_us = events.timestamp.max() - np.where(timed, events.timestamp, events.timestamp[timed].min())
        weight = np.exp2(-age_us / MICROSECONDS_PER_DAY / config.half_life_days)
    if config.last_events is not None:
        weight = np.where(events.age < config.last_events, weight, 0.0)
    counts = np.bincount(events.item, weights=weight, minlength=num_items)
    return (counts / counts.sum()).astype(np.float32)


@dataclass(frozen=True)
class PopularityScorer:
    """The same scores for everybody.

    Attributes:
        shares: ``[I]`` float32 shares of the traffic.
    """

    name: str
    scale: Scale
    shares: FloatArray

    def scores(self, rows: WeighedHistories) -> FloatArray:
        """Return the shares, once per row."""
        return np.tile(self.shares, (len(rows), 1))

    def add_scaled(self, rows: WeighedHistories, weight: float, out: FloatArray) -> None:
        """Add one row to all."""
        out += self.scale.apply(self.shares) * np.float32(weight)

    def scaled_at(self, rows: WeighedHistories, items: ItemArray) -> FloatArray:
        """Look the items up."""
        return self.scale.apply(self.shares)[items]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The shares."""
        return {"shares": self.shares}

"""What is counted and how; without scipy and torch, so that a recipe is read at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config import FrozenConfig

Until = Literal["train", "valid"]
"""Up to the end of which split events may be looked at."""


class PopularityConfig(FrozenConfig):
    """How popularity is counted.

    Attributes:
        half_life_days: Age at which an event counts half; ``None`` counts all alike. Data without timestamps have no
            age, so there it has no effect, and ``fit`` says so in the log.
        last_events: Count only so many last events of each user; ``None`` counts all.
    """

    half_life_days: float | None = Field(default=30.0, gt=0)
    last_events: int | None = Field(default=None, ge=1)

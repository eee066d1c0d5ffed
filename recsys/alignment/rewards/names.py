"""Names of the rewards that a configuration can ask for; :mod:`functions` says what each is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator

RewardName = Literal[
    "rule", "ranking", "ranking_paper", "semantic", "collaborative", "prefix_match", "first_difference", "learned"
]
REWARD_NAMES: Final[tuple[str, ...]] = get_args(RewardName)


def is_weight(weight: float) -> bool:
    """Whether a reward can be weighed by it: a finite number other than 0."""
    return math.isfinite(weight) and weight != 0


def _all_count(weights: Mapping[RewardName, float]) -> Mapping[RewardName, float]:
    for name, weight in weights.items():
        if not is_weight(weight):
            raise ValueError(f"{name} has weight {weight}, expected a finite number other than 0; leave the reward out")
    return weights


RewardWeights = Annotated[dict[RewardName, float], AfterValidator(_all_count)]

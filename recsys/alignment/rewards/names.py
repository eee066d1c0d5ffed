"""Names of the rewards that a configuration can ask for; :mod:`functions` says what each is."""

from __future__ import annotations

from typing import Final, Literal, get_args

RewardName = Literal[
    "rule", "ranking", "ranking_paper", "semantic", "collaborative", "prefix_match", "first_difference", "learned"
]
REWARD_NAMES: Final[tuple[str, ...]] = get_args(RewardName)

"""The rewards of a run, put together from their functions.

Legend: B users, I items, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from recsys.alignment.rewards.functions import RolloutGroup, WeightedSum, build_reward
from recsys.alignment.rewards.names import RewardName
from recsys.data.histories import Histories
from recsys.reward.scoring import SessionScorer


@dataclass(frozen=True)
class RewardSet:
    """What the rewards of a run are made of.

    Attributes:
        weights: Weight by reward name.
        item_vectors: ``[I, D]`` for ``semantic``.
        collaborative: Histories to finite logits ``[B, I]``, for ``collaborative``.
        learned: For ``learned``.
    """

    weights: Mapping[RewardName, float]
    item_vectors: torch.Tensor | None = None
    collaborative: Callable[[Histories], torch.Tensor] | None = None
    learned: SessionScorer | None = None

    @cached_property
    def reward(self) -> WeightedSum:
        """The reward of a group, put together once.

        Raises:
            ConfigError: A configured reward lacks what it needs.
        """
        learned, scorer = self.learned, self.collaborative

        def from_model(group: RolloutGroup) -> torch.Tensor:
            assert learned is not None
            assert group.histories is not None
            return learned.reward(group.histories, group.items)

        def from_scorer(group: RolloutGroup) -> torch.Tensor:
            assert scorer is not None
            assert group.histories is not None
            return scorer(group.histories).to(group.items.device)

        return build_reward(
            {str(name): weight for name, weight in self.weights.items()},
            item_vectors=self.item_vectors,
            scorer=None if scorer is None else from_scorer,
            learned=None if learned is None else from_model,
        )

    def without_learned(self) -> RewardSet | None:
        """The other rewards, or ``None`` if there are none."""
        weights: dict[RewardName, float] = {name: w for name, w in self.weights.items() if name != "learned"}
        return dataclasses.replace(self, weights=weights) if weights else None

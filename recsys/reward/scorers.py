"""A reward model behind the two questions that alignment asks: who is best in this group, and is the level rising?

The first is answered by the model's combined reward, which compares the candidates of one group and is free to be relative
(z-scores). The second needs numbers that mean the same in every round: the towers' own values.

Legend: B users, G candidates, M items per session, T towers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch

from recsys.data.histories import Histories
from recsys.reward.combination import combine_rewards
from recsys.reward.model import SessionRewardModel
from recsys.reward.scoring import reward_sessions, score_sessions

DIVERSITY: Final = "diversity"


class SessionScorer(Protocol):
    """Judges sessions of users; a reward model, or in tests a rule."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of the T numbers that :meth:`values` gives."""
        ...

    @property
    def weights(self) -> torch.Tensor:
        """``[T]`` weights of the towers in the reward."""
        ...

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        """Return the towers' values ``[B, G, T]``, comparable between users and rounds; NaN for an empty candidate."""
        ...

    def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        """Return one reward per candidate ``[B, G]``, comparable inside a group; anything for an empty candidate."""
        ...


@dataclass(frozen=True)
class ModelScorer:
    """A :class:`~recsys.reward.model.SessionRewardModel` as a scorer, with the model's own combination."""

    model: SessionRewardModel

    @property
    def _fused(self) -> bool:
        return self.model.spec.combination.mode == "fused"

    @property
    def towers(self) -> tuple[str, ...]:
        """The signals, or the fused tower alone where that is the reward."""
        return ("fused",) if self._fused else self.model.spec.names

    @property
    def weights(self) -> torch.Tensor:
        """The model's own weights."""
        return torch.ones(1) if self._fused else self.model.default_weights()

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        """Return probabilities, or the fused tower's logit."""
        scored = score_sessions(self.model, histories, items_BGM.cpu().numpy())
        if self._fused:
            assert scored.fused is not None
            return torch.from_numpy(scored.fused)[..., None]
        return torch.from_numpy(scored.probabilities)

    def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        """Return the combined reward, by the request's own weights where it has any; ``-inf`` for an empty candidate."""
        reward = reward_sessions(self.model, histories, items_BGM.cpu().numpy(), histories.objective)
        return torch.from_numpy(reward).to(items_BGM.device)


@dataclass(frozen=True)
class DiverseScorer:
    """Another scorer with one tower more: the share of different groups (categories) among a session's items.

    Attributes:
        inner: Judges everything else.
        group_I: int64 ``[I]`` group of each item_index.
    """

    inner: SessionScorer
    group_I: torch.Tensor

    @property
    def towers(self) -> tuple[str, ...]:
        """The inner scorer's and ``diversity``."""
        return (*self.inner.towers, DIVERSITY)

    @property
    def weights(self) -> torch.Tensor:
        """The inner scorer's; diversity counts only where a request asks for it."""
        return torch.cat([self.inner.weights, torch.zeros(1)])

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        """Return ``[B, G, T + 1]``."""
        inner = self.inner.values(histories, items_BGM)
        return torch.cat([inner, self.diversity(items_BGM).to(inner)[..., None]], dim=-1)

    def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        """Return the inner reward plus the z-scored diversity times its weight in the request."""
        if histories.objective is None:
            return self.inner.reward(histories, items_BGM)
        inner = self.inner.reward(histories.with_objective(histories.objective[:, :-1]), items_BGM)
        weight_B1 = torch.from_numpy(histories.objective[:, -1:]).to(inner)
        diversity = self.diversity(items_BGM).to(inner)[..., None]
        return inner + combine_rewards(diversity, weight_B1, "zscore", torch.isfinite(inner))

    def diversity(self, items_BGM: torch.Tensor) -> torch.Tensor:
        """Different groups among the items over the number of items, ``[B, G]``; 0 for an empty candidate.

        Example:
            >>> scorer = DiverseScorer(inner=None, group_I=torch.tensor([1, 1, 2]))
            >>> scorer.diversity(torch.tensor([[[0, 1], [0, 2]]])).tolist()
            [[0.5, 1.0]]
        """
        group = self.group_I.to(items_BGM.device)[items_BGM.clamp(min=0)]
        exists = items_BGM >= 0
        same = (group[..., None] == group[..., None, :]) & exists[..., None] & exists[..., None, :]
        first = exists & ~same.tril(-1).any(-1)
        return first.sum(-1) / exists.sum(-1).clamp(min=1)

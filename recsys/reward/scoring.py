"""A reward model applied to many users: NumPy histories and candidates in, NumPy rewards out, in bounded memory.

Two questions are asked of a reward model: who is best in this group, and does the level rise? The first is answered by the
combined reward, which compares the candidates of one group and is free to be relative (z-scores). The second needs numbers
that mean the same in every round: the towers' own values. :class:`ModelScorer` answers both, for alignment and serving.

Legend: N users, C candidates; B users, G candidates of a group; M items of a session, T towers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import DataError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.batches import cut_batches, padded_width
from recsys.reward.combining.combination import combine_rewards, tower_weights
from recsys.reward.combining.personal import personal_weights, reactions
from recsys.reward.config import CombinationMode
from recsys.reward.model import RewardScores, SessionRewardModel

FloatArray = npt.NDArray[np.float32]
DIVERSITY: Final = "diversity"
ITEMS_PER_BATCH = 16_384
"""Candidate items that are scored at a time; with 50 history events their attention weights take about 15 MB."""


@dataclass(frozen=True)
class ScoredSessions:
    """Towers' answers for the candidates of many users.

    Attributes:
        logits: ``[N, C, T]``, NaN for a candidate without items.
        fused: ``[N, C]``, or ``None``.
    """

    logits: FloatArray
    fused: FloatArray | None

    @property
    def probabilities(self) -> FloatArray:
        """``[N, C, T]``."""
        return torch.from_numpy(self.logits).sigmoid().numpy()


@torch.inference_mode()
def score_sessions(model: SessionRewardModel, histories: Histories, items: npt.NDArray[np.integer]) -> ScoredSessions:
    """Ask every tower about the candidates of every user.

    Args:
        items: ``[N, C, M]`` item_index in order of exposure, -1 for no item.

    Raises:
        DataError: Shapes do not fit, or an item is not in the catalogue.
    """
    spec, device = model.spec, model.start_D.device
    if items.ndim != 3 or len(items) != len(histories) or items.shape[2] > spec.max_items:
        raise DataError(
            f"reward model: candidates have shape {items.shape}, expected [{len(histories)} users, candidates, "
            f"at most {spec.max_items} items]"
        )
    if items.size and not -1 <= items.min() <= items.max() < spec.dataset.num_items:
        raise DataError(
            f"reward model: item_index runs from {items.min()} to {items.max()}, expected -1 to "
            f"{spec.dataset.num_items - 1}; candidates and reward model belong to different catalogues"
        )
    was_training = model.training
    model.eval()
    logits = np.empty((*items.shape[:2], len(spec.signals)), np.float32)
    fused = np.empty(items.shape[:2], np.float32) if spec.model.fused_tower else None
    step = max(1, ITEMS_PER_BATCH // max(1, items.shape[1] * items.shape[2]))
    most = spec.model.max_history
    for rows in cut_batches(np.arange(len(items)), histories.lengths, most, step):
        width = padded_width(min(int(histories.lengths[rows].max()), most), most)
        batch = collate_histories(histories.take(rows), most, width).to(device)
        scores = model.score(batch, torch.from_numpy(items[rows].astype(np.int64)).to(device))
        logits[rows] = scores.logits.cpu().numpy()
        if fused is not None and scores.fused is not None:
            fused[rows] = scores.fused.cpu().numpy()
    model.train(was_training)
    return ScoredSessions(logits, fused)


def reward_sessions(
    model: SessionRewardModel,
    histories: Histories,
    items: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating] | dict[str, float] | None = None,
    mode: CombinationMode | None = None,
) -> FloatArray:
    """Return one reward per candidate session, ``[N, C]``; ``-inf`` for one without items.

    Args:
        items: ``[N, C, M]`` item_index, -1 for no item.
        weights: ``[T]``, per request ``[N, T]``, or by tower name (the others keep theirs); ``None``: the model's own, each
            user's where its combination is personal.
        mode: ``None``: the model's own. Z-scores and ranks compare the C candidates of one user.
    """
    scored = score_sessions(model, histories, items)
    scores = RewardScores(
        torch.from_numpy(scored.logits), None if scored.fused is None else torch.from_numpy(scored.fused)
    )
    if weights is None and model.spec.combination.personal is not None:
        return model.reward(scores, weights_of_users(model, histories), mode).numpy()
    return model.reward(scores, _weights(model, weights), mode).numpy()


def weights_of_users(model: SessionRewardModel, histories: Histories) -> torch.Tensor:
    """Each user's own weights of the towers, ``[N, T]``; the common ones where the combination is not personal."""
    spec = model.spec
    personal, common_T = spec.combination.personal, model.default_weights()
    if personal is None:
        return common_T.expand(len(histories), -1)
    columns = [signal.column for signal in spec.signals]
    sums, counts = reactions(histories, columns, spec.dataset.signals, spec.model.max_history)
    return personal_weights(
        common_T,
        sums,
        counts,
        model.average_reactions_T,
        shrinkage=personal.shrinkage,
        largest=personal.largest,
    )


def fit_average_reactions(model: SessionRewardModel, histories: Histories) -> None:
    """Set what an average event of these users brings, in place; of each user the longest of the histories is read."""
    order = np.lexsort((histories.lengths, histories.user_index))
    last = np.append(np.diff(histories.user_index[order]) != 0, True)
    columns = [signal.column for signal in model.spec.signals]
    sums, counts = reactions(
        histories.take(order[last]), columns, model.spec.dataset.signals, model.spec.model.max_history
    )
    average = sums.sum(0, dtype=np.float64) / np.maximum(counts.sum(0, dtype=np.float64), 1.0)
    model.average_reactions_T.copy_(torch.from_numpy(average))


def raw_reward(probabilities: FloatArray, weights: torch.Tensor) -> FloatArray:
    """Weighted sum of ``[N, T]`` probabilities: a reward that can be compared between users, ``[N]``."""
    return combine_rewards(torch.from_numpy(probabilities)[:, None], weights, "raw")[:, 0].numpy()


def rank_by_reward(
    model: SessionRewardModel,
    histories: Histories,
    items: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating] | dict[str, float] | None = None,
    mode: CombinationMode | None = None,
) -> FloatArray:
    """Second stage: reward of every candidate *item* of a user, as a session of one.

    Args:
        items: ``[N, C]`` item_index, -1 for no candidate.

    Returns:
        ``[N, C]``; sort descending to rank, ``-inf`` (no candidate) comes last.
    """
    return reward_sessions(model, histories, items[:, :, None], weights, mode)


def _weights(
    model: SessionRewardModel, weights: npt.NDArray[np.floating] | dict[str, float] | None
) -> torch.Tensor | None:
    if weights is None:
        return None
    if isinstance(weights, dict):
        own = dict(zip(model.spec.names, model.default_weights().tolist(), strict=True))
        return tower_weights(own, weights, "reward weights")
    return torch.from_numpy(np.asarray(weights, np.float32))


def objective_of(scorer: SessionScorer, objective: npt.NDArray[np.floating]) -> FloatArray:
    """Weights of the towers that a request's objective weights stand for, of the same shape.

    A request says how much a tower counts, from 0 on; in which direction is the reward's own to say. A tower that lowers the
    reward, such as dislikes, lowers it the more, the more a request lets it count.

    Args:
        objective: ``[N, T]`` or ``[T]``.

    Example:
        >>> class Scorer:
        ...     weights = torch.tensor([1.0, -1.0, 0.0])
        >>> objective_of(Scorer(), np.array([0.5, 0.25, 0.25])).tolist()
        [0.5, -0.25, 0.25]
    """
    return np.asarray(np.where(scorer.weights.numpy() < 0, -objective, objective), np.float32)


class SessionScorer(Protocol):
    """Evaluates sessions of users; a reward model, or in tests a rule."""

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
        weights = None if histories.objective is None else objective_of(self, histories.objective)
        reward = reward_sessions(self.model, histories, items_BGM.cpu().numpy(), weights)
        return torch.from_numpy(reward).to(items_BGM.device)


@dataclass(frozen=True)
class DiverseScorer:
    """Another scorer with one tower more: the share of different groups (categories) among a session's items.

    Attributes:
        inner: Evaluates everything else.
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

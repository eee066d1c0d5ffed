"""A reward model applied to many users: NumPy histories and candidates in, NumPy rewards out, in bounded memory.

Legend: N users, C candidates, M items of a session, T towers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import DataError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.reward.combination import combine_rewards, tower_weights
from recsys.reward.config import CombinationMode
from recsys.reward.model import RewardScores, SessionRewardModel

FloatArray = npt.NDArray[np.float32]
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
    if items.size and not -1 <= items.min() <= items.max() < spec.vocabulary.num_items:
        raise DataError(
            f"reward model: item_index runs from {items.min()} to {items.max()}, expected -1 to "
            f"{spec.vocabulary.num_items - 1}; candidates and reward model belong to different catalogues"
        )
    was_training = model.training
    model.eval()
    logits = np.empty((*items.shape[:2], len(spec.signals)), np.float32)
    fused = np.empty(items.shape[:2], np.float32) if spec.model.fused_tower else None
    step = max(1, ITEMS_PER_BATCH // max(1, items.shape[1] * items.shape[2]))
    for begin in range(0, len(items), step):
        rows = np.arange(begin, min(begin + step, len(items)))
        batch = collate_histories(histories.take(rows), spec.model.max_history).to(device)
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
        weights: ``[T]``, per request ``[N, T]``, or by tower name (the others keep theirs); ``None``: the model's own.
        mode: ``None``: the model's own. Z-scores and ranks compare the C candidates of one user.
    """
    scored = score_sessions(model, histories, items)
    scores = RewardScores(
        torch.from_numpy(scored.logits), None if scored.fused is None else torch.from_numpy(scored.fused)
    )
    return model.reward(scores, _weights(model, weights), mode).numpy()


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

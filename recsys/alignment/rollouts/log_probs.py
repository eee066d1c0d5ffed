"""Log-probabilities of several candidates per user from one pass through the encoder.

The policy's prediction points share a user's memory (:class:`~recsys.data.batch.TrainingBatch`); here a point is a
candidate, and all of them look at the whole history. The encoder, by far the longer half, then runs once per user
instead of once per candidate, with gradient or without. The last code of an item is predicted and never read, so single
items that differ in it alone are one point: of a beam of 16 on Amazon Beauty, 11.4 are left.

Legend: B users, G candidates per user, P points per user, M items per session, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.model.generative_recommender import GenerativeRecommender


@dataclass(frozen=True)
class CandidateLogProbs:
    """Log-probabilities of the candidates' codes.

    Attributes:
        codes: float32 ``[B, G, M, L]``, 0 where there is no item.
        mask: bool ``[B, G, M, L]``, true where there is one.
    """

    codes: torch.Tensor
    mask: torch.Tensor

    @property
    def sessions(self) -> torch.Tensor:
        """Log-probability of each candidate: the sum over its codes, ``[B, G]``; BOS is forced and contributes 0."""
        return self.codes.sum((2, 3))

    @property
    def lengths(self) -> torch.Tensor:
        """Number of codes of each candidate, int64 ``[B, G]``."""
        return self.mask.sum((2, 3))


def candidate_batch(history: HistoryBatch, items_BGM: torch.Tensor) -> TrainingBatch:
    """Let every candidate be a prediction point that sees the whole history.

    Args:
        items_BGM: int64 item_index, -1 where there is none.
    """
    visible_BG = history.lengths_B[:, None].expand(-1, items_BGM.shape[1])
    return TrainingBatch(history, items_BGM + 1, visible_BG.contiguous())


def candidate_log_probs(
    policy: GenerativeRecommender, history: HistoryBatch, items_BGM: torch.Tensor
) -> CandidateLogProbs:
    """Score candidates; the gradient flows unless the caller switched it off.

    Args:
        items_BGM: int64 item_index, -1 where there is none. Full-vocabulary probabilities: the prefix index plays no
            part, as in the published systems (ReRe, MiniOneRec).
    """
    mask = (items_BGM >= 0)[..., None].expand(*items_BGM.shape, policy.num_levels)
    if items_BGM.shape[2] == 1:
        codes = _item_log_probs(policy, history, items_BGM[..., 0])[:, :, None]
    else:
        batch = candidate_batch(history, items_BGM)
        hidden, _ = policy(batch)
        codes = policy.code_log_probs(hidden, batch.target_BPM)
    return CandidateLogProbs(codes.masked_fill(~mask, 0.0), mask)


def _item_log_probs(policy: GenerativeRecommender, history: HistoryBatch, items_BG: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the codes of single items, ``[B, G, L]``; where the item is -1, any finite numbers."""
    codes_BGL = policy.item_tower.codes_IL[items_BG + 1]
    item_BP, place_BG = shared_points(items_BG, codes_BGL[..., :-1], policy.spec.level_sizes)
    hidden, _ = policy(candidate_batch(history, item_BP[..., None]))
    found = []
    for level in range(policy.num_levels):
        if level == 0:  # the first code is predicted from the history alone: any point of the user will do
            log_probs_BPK = policy.decoder.code_logits(hidden[:, :1, 0, 0], 0).log_softmax(-1)
            entry_BG = codes_BGL[..., 0]
        else:
            log_probs_BPK = policy.decoder.code_logits(hidden[:, :, 0, level], level).log_softmax(-1)
            entry_BG = place_BG * log_probs_BPK.shape[2] + codes_BGL[..., level]
        found.append(log_probs_BPK.flatten(1).gather(1, entry_BG))
    return torch.stack(found, dim=-1)


def shared_points(
    items_BG: torch.Tensor, prefix_BGl: torch.Tensor, sizes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one item for all of a user that have the same prefix.

    Args:
        prefix_BGl: int64 the codes that count.
        sizes: Codes per level.

    Returns:
        ``(item_BP, place_BG)``: the chosen items, -1 where a user has fewer than P, and whose place each candidate takes.

    Example:
        Items 7 and 9 share their first code; the fourth candidate does not exist.

        >>> items, codes = torch.tensor([[7, 4, 9, -1]]), torch.tensor([[[1], [2], [1], [0]]])
        >>> item, place = shared_points(items, codes, (3, 3))
        >>> item.tolist(), place.tolist()
        ([[9, 4, -1]], [[0, 1, 0, 2]])
    """
    key_BG = torch.zeros_like(items_BG)
    for level in range(prefix_BGl.shape[2]):
        key_BG = key_BG * sizes[level] + prefix_BGl[..., level]
    key_BG = key_BG.masked_fill(items_BG < 0, torch.iinfo(torch.int64).max)
    ordered_BG, order_BG = key_BG.sort(dim=1, stable=True)
    is_new_BG = torch.ones_like(ordered_BG, dtype=torch.bool)
    is_new_BG[:, 1:] = ordered_BG[:, 1:] != ordered_BG[:, :-1]
    place_BG = torch.empty_like(key_BG).scatter_(1, order_BG, is_new_BG.cumsum(1) - 1)
    width = int(place_BG.max()) + 1 if place_BG.numel() else 0
    item_BP = torch.full((len(items_BG), width), -1, dtype=torch.int64, device=items_BG.device)
    return item_BP.scatter_reduce_(1, place_BG, items_BG, "amax"), place_BG


def level_distributions(policy: GenerativeRecommender, batch: TrainingBatch) -> list[torch.Tensor]:
    """Log-softmax over the codes of each level along the targets' prefixes: L float32 tensors ``[B, P, M, K_l]``."""
    hidden, _ = policy(batch)
    return [
        policy.decoder.code_logits(hidden[..., level, :], level).log_softmax(-1) for level in range(policy.num_levels)
    ]

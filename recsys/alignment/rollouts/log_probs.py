"""Log-probabilities of several candidates per user from one pass through the encoder.

The policy's prediction points share a user's memory (:class:`~recsys.data.batch.TrainingBatch`); here a point is a
candidate, and all of them look at the whole history. The encoder, by far the longer half, then runs once per user
instead of once per candidate, with gradient or without. Single items go further: their prefixes are one tree, and each is
decoded once (:mod:`recsys.model.layers.prefix_tree`).

Legend: B users, G candidates per user, M items per session, L levels, N nodes of a tree, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.prefix_tree import PrefixTree


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
        items_BGM: int64 item_index, -1 where there is none; without users, or with an item at least. Full-vocabulary
            probabilities: the prefix index plays no part, as in the published systems (ReRe, MiniOneRec).
    """
    mask = (items_BGM >= 0)[..., None].expand(*items_BGM.shape, policy.num_levels)
    if not len(items_BGM):  # nothing to encode
        return CandidateLogProbs(torch.zeros(mask.shape, device=mask.device), mask)
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
    tree = PrefixTree.from_codes(codes_BGL, items_BG >= 0, policy.spec.level_sizes)
    found = []
    for level, log_probs_NK in enumerate(policy.log_probs_along(history, tree)):
        entry_BG = tree.node_BG[level] * log_probs_NK.shape[1] + codes_BGL[..., level]
        found.append(log_probs_NK.flatten().index_select(0, entry_BG.flatten()).view_as(entry_BG))
    return torch.stack(found, dim=-1)


def level_distributions(policy: GenerativeRecommender, batch: TrainingBatch) -> list[torch.Tensor]:
    """Log-softmax over the codes of each level along the targets' prefixes: L float32 tensors ``[B, P, M, K_l]``."""
    hidden, _ = policy(batch)
    return [
        policy.decoder.code_logits(hidden[..., level, :], level).log_softmax(-1) for level in range(policy.num_levels)
    ]

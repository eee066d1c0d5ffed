"""Losses on tensors. They know no trainer, device or logger.

Legend: N targets, L levels, I item rows, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F


def next_token_loss(log_probs_NL: torch.Tensor, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """Negative log-likelihood of the target codes, mean over targets.

    Args:
        log_probs_NL: Log-probabilities of the codes of N target items.
        reduction: ``sum`` over an item's codes (OneRec v1, eq. 4) or their ``mean`` (OneRec-V2).

    Example:
        >>> log_probs = torch.log(torch.tensor([[0.5, 0.25], [1.0, 0.5]]))
        >>> round(next_token_loss(log_probs, "sum").item(), 4)  # (ln 2 + ln 4 + ln 1 + ln 2) / 2
        1.3863
    """
    per_item = log_probs_NL.sum(-1) if reduction == "sum" else log_probs_NL.mean(-1)
    return -per_item.mean()


def dense_loss(query_ND: torch.Tensor, item_vectors_ID: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the dense head over the whole catalogue, mean over targets.

    Args:
        item_vectors_ID: Item tower of all rows; row 0 is padding and takes no probability.
        target_N: Target rows, at least 1.
    """
    logits_NI = query_ND @ item_vectors_ID[1:].T
    return F.cross_entropy(logits_NI.float(), target_N - 1)


def sampled_dense_loss(
    query_ND: torch.Tensor, target_vectors_ND: torch.Tensor, sampled_vectors_SD: torch.Tensor, collisions_NS: torch.Tensor
) -> torch.Tensor:
    """Sampled softmax with uniformly drawn negatives.

    Uniform sampling needs no correction of the logits beyond a constant, which the softmax ignores.

    Args:
        collisions_NS: True where a sampled item is the row's own target; it takes no probability there.
    """
    positive_N1 = (query_ND * target_vectors_ND).sum(-1, keepdim=True)
    negative_NS = (query_ND @ sampled_vectors_SD.T).masked_fill(collisions_NS, -torch.inf)
    logits = torch.cat([positive_N1, negative_NS], dim=1).float()
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

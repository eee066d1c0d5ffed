"""What a reward model is trained on; pure functions on tensors.

Legend: B users, N sessions of a user, T towers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recsys.reward.model import RewardScores


def reward_loss(scores: RewardScores, labels_BNT: torch.Tensor, weights_T: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy with soft labels: mean over known labels, sum over towers (eq. 7).

    The fused tower adds its weighted cross-entropy against every label; of a signal with a negative weight it learns the
    opposite, so that more is better.

    Args:
        labels_BNT: In [0, 1], NaN where not known.
        weights_T: Weight of every signal in the fused tower's loss; not read without one.

    Example:
        >>> scores = RewardScores(torch.zeros(2, 1, 2), None)
        >>> labels = torch.tensor([[[1.0, 0.0]], [[0.25, torch.nan]]])
        >>> round(reward_loss(scores, labels, torch.ones(2)).item(), 4)  # ln 2 per tower
        1.3863
    """
    loss = tower_losses(scores.logits, labels_BNT).sum()
    if scores.fused is not None:
        wanted_BNT = torch.where(weights_T < 0, 1.0 - labels_BNT, labels_BNT)
        per_label = tower_losses(scores.fused[..., None].expand_as(labels_BNT), wanted_BNT)
        loss = loss + (weights_T.abs() * per_label).sum()
    return loss


def tower_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``[T]`` mean cross-entropy of each tower over its known labels; 0 for a tower without any."""
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none") * known
    return losses.flatten(0, -2).sum(0) / known.flatten(0, -2).sum(0).clamp(min=1)

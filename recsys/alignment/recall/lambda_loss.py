"""A ranking loss on the whole beam: pairs of candidates weighed by what swapping them would do to NDCG.

Source: the LambdaLoss framework (Wang et al., CIKM 2018) with the weights of LambdaRank, ``|gain_i - gain_j|
|1 / D_i - 1 / D_j| / maxDCG``, where ``D_r = log2(1 + r)`` at the candidate's present rank r. Departures: the gain is the
reward itself, less the least of the group, and not ``2^y - 1``, as rewards are no grades; natural logarithm.

Legend: B users, G candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recsys.contracts.errors import DataError


def lambda_loss(
    scores_BG: torch.Tensor, rewards_BG: torch.Tensor, exists_BG: torch.Tensor, sigma: float = 1.0
) -> torch.Tensor:
    """Sum over pairs with different rewards, one loss per group, ``[B]``; 0 for a group of equal rewards.

    Args:
        scores_BG: What candidates are ordered by, log-probabilities; the gradient flows here.
        rewards_BG: One per candidate.
        sigma: Steepness, per nat.

    Raises:
        DataError: Shapes differ.

    Example:
        The target stands second of two, equally probable: the swap is worth 1 - 1 / log2(3) = .3691, times log 2.

        >>> equal, exist = torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
        >>> [round(value, 4) for value in lambda_loss(equal, torch.tensor([[0.0, 1.0]]), exist).tolist()]
        [0.2558]
    """
    if not scores_BG.shape == rewards_BG.shape == exists_BG.shape:
        raise DataError(
            f"lambda loss: scores {tuple(scores_BG.shape)}, rewards {tuple(rewards_BG.shape)}, candidates "
            f"{tuple(exists_BG.shape)}; expected one shape, a reward per candidate"
        )
    scores_BG = scores_BG.masked_fill(~exists_BG, 0.0)
    rewards_BG = rewards_BG.detach().float()
    least_B1 = rewards_BG.masked_fill(~exists_BG, torch.inf).amin(1, keepdim=True)
    gain_BG = (rewards_BG - least_B1).masked_fill(~exists_BG, 0.0)
    order = scores_BG.detach().masked_fill(~exists_BG, -torch.inf).argsort(dim=1, descending=True, stable=True)
    discount_G = 1.0 / torch.arange(2, scores_BG.shape[1] + 2, device=scores_BG.device).log2()
    discount_BG = torch.empty_like(gain_BG).scatter_(1, order, discount_G.expand_as(gain_BG))
    ideal_B = (gain_BG.sort(dim=1, descending=True).values * discount_G).sum(1)
    better = (gain_BG[:, :, None] > gain_BG[:, None]) & exists_BG[:, :, None] & exists_BG[:, None]
    swap = (gain_BG[:, :, None] - gain_BG[:, None]).abs() * (discount_BG[:, :, None] - discount_BG[:, None]).abs()
    margins = sigma * (scores_BG[:, :, None] - scores_BG[:, None])
    pairs = (swap * F.softplus(-margins)).masked_fill(~better, 0.0)
    return pairs.sum((1, 2)) / torch.where(ideal_B > 0, ideal_B, 1.0)

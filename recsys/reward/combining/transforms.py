"""What is done to a tower's answers before they are weighed, so that none rules by its scale alone.

A transform has constants per tower, fitted on the train sessions of the reward model's own users and saved with its
weights. Each is increasing: no tower alone changes its order, only what it counts beside the others.

standard       (p - mean) / standard deviation        a unit is what tells train sessions apart
rank           share of train sessions below p        between 0 and 1; beyond what training showed nothing is gained
log_sigmoid    log sigmoid(logit - reference)         what is good already gains little more, what is bad costs much

Source: ``log_sigmoid`` is the LSC transform of Wang et al., "Transforming and Combining Rewards for Aligning Large
Language Models" (arXiv 2402.00742): a sum of such terms is the log-probability that a candidate is good by every tower.
Departure: the reference is one quantile of a tower's logits over train sessions; the paper takes one per prompt.

Legend: N sessions, T towers, C constants of a tower.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from recsys.reward.config import TransformName

NUM_QUANTILES: Final = 257
"""Of a tower's train answers, for ``rank``; between two of them the share is interpolated."""
_NEUTRAL: Final[dict[str, tuple[float, ...]]] = {"identity": (), "standard": (0.0, 1.0), "log_sigmoid": (0.0,)}


def neutral_constants(transform: TransformName, num_towers: int) -> torch.Tensor:
    """Constants of a model that is not fitted yet, ``[T, C]``: with them ``standard`` and ``rank`` change nothing."""
    one = torch.linspace(0.0, 1.0, NUM_QUANTILES) if transform == "rank" else torch.tensor(_NEUTRAL[transform])
    return one.repeat(num_towers, 1).view(num_towers, -1)


def fit_constants(transform: TransformName, logits_NT: torch.Tensor, reference_quantile: float) -> torch.Tensor:
    """Read the constants off a model's answers to its train sessions.

    A tower that gives all sessions one answer gets 0 from ``standard`` and 1/2 from ``rank`` for that answer.

    Args:
        logits_NT: Finite, N >= 1.
        reference_quantile: Of the logits, for ``log_sigmoid``.

    Returns:
        float32 ``[T, C]``: mean and 1 / standard deviation; ascending quantiles; the reference.

    Raises:
        ValueError: No sessions, or an answer that is not finite.

    Example:
        >>> logits = torch.tensor([[0.25], [0.75]]).logit()  # mean 1/2, deviation 1/4
        >>> fit_constants("standard", logits, 0.5).tolist()
        [[0.5, 4.0]]
    """
    if not len(logits_NT) or not torch.isfinite(logits_NT).all():
        raise ValueError(f"logits {tuple(logits_NT.shape)} must be finite, of one session or more")
    logits_NT = logits_NT.double()
    p_NT = logits_NT.sigmoid()  # quantiles are NumPy's: torch has none of more than 2^24 rows
    if transform == "standard":
        deviation = p_NT.std(0, correction=0)
        varies = deviation > torch.finfo(torch.float32).eps
        return torch.stack([p_NT.mean(0), torch.where(varies, 1.0 / deviation, 0.0)], dim=1).float()
    if transform == "rank":
        shares = np.linspace(0.0, 1.0, NUM_QUANTILES)
        return torch.from_numpy(np.quantile(p_NT.cpu().numpy(), shares, axis=0).T.copy()).float()
    if transform == "log_sigmoid":
        return torch.from_numpy(np.quantile(logits_NT.cpu().numpy(), reference_quantile, axis=0))[:, None].float()
    return torch.empty(logits_NT.shape[1], 0)


def transformed(
    logits_BNT: torch.Tensor, constants_TC: torch.Tensor, transform: TransformName, weights: torch.Tensor
) -> torch.Tensor:
    """Values of the towers to weigh, ``[B, N, T]``; NaN stays NaN.

    Args:
        constants_TC: Of :func:`fit_constants`.
        weights: ``[T]`` or ``[B, T]``. A tower with a negative weight says what is bad: ``log_sigmoid`` takes the
            log-probability that it does *not* happen, so that its term stays below 0 as well.

    Example:
        >>> at_reference = transformed(torch.tensor([[[2.0]]]), torch.tensor([[2.0]]), "log_sigmoid", torch.ones(1))
        >>> round(at_reference.item(), 4)  # log 1/2
        -0.6931
    """
    logits, constants_TC = logits_BNT, constants_TC.to(logits_BNT.device)
    if transform == "standard":
        return (logits.sigmoid() - constants_TC[:, 0]) * constants_TC[:, 1]
    if transform == "rank":
        towers = [
            _share_below(values, quantiles)
            for values, quantiles in zip(logits.sigmoid().unbind(-1), constants_TC, strict=True)
        ]
        return torch.stack(towers, dim=-1)
    if transform == "log_sigmoid":
        sign_B1T = torch.where(weights < 0, -1.0, 1.0).to(logits).view(-1, 1, logits.shape[-1])
        return sign_B1T * F.logsigmoid(sign_B1T * (logits - constants_TC[:, 0]))
    return logits.sigmoid()


def _share_below(values: torch.Tensor, quantiles_C: torch.Tensor) -> torch.Tensor:
    """Share of the sessions below each value: linear between quantiles, the middle of those that are equal to it."""
    values = values.contiguous()
    last = len(quantiles_C) - 1
    below, not_above = (torch.searchsorted(quantiles_C, values, right=right) for right in (False, True))
    left, right = quantiles_C[(below - 1).clamp(0, last)], quantiles_C[below.clamp(0, last)]
    inside = below - 1 + (values - left) / (right - left).where(right > left, 1.0)
    place = torch.where(not_above > below, (below + not_above - 1) / 2, inside)
    share = place.masked_fill(below > last, last).masked_fill(not_above == 0, 0.0) / last
    return share.masked_fill(values.isnan(), torch.nan)

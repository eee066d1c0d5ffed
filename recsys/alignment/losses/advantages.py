"""Advantages: rewards of a group compared with one another, so that no value model is needed. Pure maths.

Legend: B users (one group each), G rollouts per group, C codes of a row. Functions take ``[B, G]``, or ``[B, G, C]`` when
codes have rewards of their own; then each code position is compared over the group by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from recsys.contracts.errors import ConfigError, DataError


@dataclass(frozen=True)
class GroupSignal:
    """Which groups give a gradient.

    Attributes:
        informative: Bool ``[B]``, rewards differ between rows of the group. In the others every advantage is 0; ReRe's
            users report such groups to be around 70 % with a sparse reward.
    """

    informative: torch.Tensor

    @property
    def num_groups(self) -> int:
        """B."""
        return len(self.informative)

    @property
    def num_zero_signal(self) -> int:
        """Groups without any difference in reward."""
        return self.num_groups - int(self.informative.sum())

    def weights(self, zero_signal_weight: float) -> torch.Tensor:
        """Weight ``[B]`` of each group in the loss: 1, or ``zero_signal_weight`` (0 filters, 1 keeps) without signal."""
        if not 0 <= zero_signal_weight <= 1:
            raise ConfigError(f"zero_signal_weight is {zero_signal_weight}, expected a share in [0, 1]")
        return torch.where(self.informative, 1.0, zero_signal_weight)


def group_advantages(
    rewards: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: Literal["group_std", "none"] = "group_std",
    eps: float = 1e-4,
) -> torch.Tensor:
    """Subtract the group's mean reward and divide by its standard deviation.

    Args:
        rewards: ``[B, G]`` or ``[B, G, C]``.
        mask: Bool of the same shape, or ``[B, G]``; what is masked out is in no mean and has advantage 0.
        scale: ``group_std``: divide by the unbiased standard deviation plus ``eps`` (GRPO, ReRe); ``none``: only centre
            (Dr. GRPO, which removes the weight that the division gives to easy and to hopeless groups).

    Returns:
        Shape of ``rewards``, float32, no gradient; exactly 0 in a group of equal rewards or of a single row.

    Example:
        Mean 0.25, unbiased variance (0.75^2 + 3 * 0.25^2) / 3 = 0.25.

        >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), eps=0.0).tolist()
        [[1.5, -0.5, -0.5, -0.5]]

    Source: ReRe's public code; its ``eps`` is added to the standard deviation.
    """
    rewards, mask = _values_and_mask(rewards, mask)
    count = mask.sum(1, keepdim=True)
    mean = rewards.sum(1, keepdim=True) / count.clamp(min=1)
    centred = (rewards - mean).masked_fill(~mask, 0.0)
    if scale == "group_std":
        variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)
    # rounding leaves a remainder of 1e-8 around the mean of equal rewards; divided by eps it would look like a signal
    return torch.where(_differs(rewards, mask), centred, 0.0)


def informative_groups(rewards: torch.Tensor, mask: torch.Tensor | None = None) -> GroupSignal:
    """Separate groups with different rewards from groups without; arguments as in :func:`group_advantages`."""
    rewards, mask = _values_and_mask(rewards, mask)
    return GroupSignal(_differs(rewards, mask).flatten(1).any(1))


def tawin_advantages(
    advantages_BG: torch.Tensor,
    mask_BG: torch.Tensor | None = None,
    *,
    target_rank: int = 2,
    temperature: float = 1.0,
    threshold: float = 0.0,
) -> torch.Tensor:
    """Move the weight of the negative advantages to the ranks around the cut-off that matters.

    A row at rank k with a negative advantage is weighted by ``min(1, exp((x - threshold) / temperature))`` with
    ``x = -|k - target_rank|``; the group's negative advantages are then rescaled to their former sum, so that positive
    and negative mass stay in balance.

    Args:
        target_rank: Rank, from 1, at which negatives weigh most; the authors take 2 for recall at 3 and 4 for recall at 5.
        threshold: Ranks nearer than ``-threshold`` all weigh 1; 0 leaves a single peak.

    Source: TAWin (arXiv 2604.22504). The value of its threshold is not known to us.
    """
    if advantages_BG.ndim != 2:
        raise DataError(
            f"tawin weighs rows by their rank; advantages have shape {tuple(advantages_BG.shape)}, expected [B, G]"
        )
    advantages_BG, mask_BG = _values_and_mask(advantages_BG, mask_BG)
    rank = torch.arange(1, advantages_BG.shape[1] + 1, device=advantages_BG.device)
    weight = torch.exp((-(rank - target_rank).abs() - threshold) / temperature).clamp(max=1.0)
    negative = advantages_BG.clamp(max=0.0)
    weighted = negative * weight
    # 0 / 0 where a group has no negative advantage: nothing to rescale
    total = weighted.sum(1, keepdim=True)
    share = torch.where(total < 0, negative.sum(1, keepdim=True) / torch.where(total < 0, total, 1.0), 0.0)
    return advantages_BG.clamp(min=0.0) + weighted * share


def _values_and_mask(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Detach, widen to float32, expand the mask, and put 0 where it is false."""
    if values.ndim not in (2, 3):
        raise DataError(f"a group's values have shape {tuple(values.shape)}, expected [B, G] or [B, G, C]")
    values = values.detach()
    values = values if values.dtype == torch.float64 else values.float()
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    elif mask.ndim == 2 and values.ndim == 3 and mask.shape == values.shape[:2]:
        mask = mask[..., None].expand_as(values)
    if mask.shape != values.shape:
        raise DataError(f"a group's mask has shape {tuple(mask.shape)}, expected {tuple(values.shape)} like its values")
    values = values.masked_fill(~mask, 0.0)
    if not torch.isfinite(values).all():
        raise DataError("a group's rewards hold NaN or infinity; expected finite numbers, mask rows that do not exist")
    return values, mask


def _differs(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Whether the unmasked values of a group differ, with the group axis kept at size 1."""
    highest = values.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    lowest = values.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    return highest > lowest

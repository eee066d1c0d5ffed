"""Advantages of prefixes among their siblings: which turn was right, at the node where the ways part.

A group's advantage gives every code of a candidate one number, also the codes that it shares with the target. Here a node
(a prefix) is worth the mean reward of the group's candidates below it, and is compared with the nodes that have the same
parent; where all siblings are worth the same, or a node has none in the group, it gets 0.

Source: Sibling-GRPO of V-STAR (arXiv 2602.10699), eq. 15 to 19 as its public code quotes them: mean rewards as values,
standard scores among siblings, each node counted once; the authors add it to the group's advantage. Departure: the standard
deviation is the unbiased one, as elsewhere here.

Legend: B users, G candidates, L levels, C = L codes of a single item.
"""

from __future__ import annotations

from typing import Literal

import torch

from recsys.contracts.errors import DataError


def sibling_advantages(
    rewards_BG: torch.Tensor,
    codes_BGL: torch.Tensor,
    exists_BG: torch.Tensor,
    *,
    scale: Literal["group_std", "none"] = "group_std",
    eps: float = 1e-4,
) -> torch.Tensor:
    """Give every code of every candidate the advantage of its prefix among the siblings.

    Args:
        codes_BGL: int64, anything where the candidate does not exist.
        scale: ``group_std``: divide by the siblings' unbiased standard deviation plus ``eps``; ``none``: only centre.

    Returns:
        float32 ``[B, G, L]``. The advantage of a node is divided evenly among the candidates that run through it, so the
        sum over candidates counts it once.

    Raises:
        DataError: Rewards differ by code: a prefix has no value of its own then.

    Example:
        Items (0, 0) the target, (0, 1) and (1, 0). First code: 0 is worth 1/2, 1 is worth 0, so plus and minus 1/4, the
        former shared by two; second code: below 0 the target is worth 1, its sibling 0; the third item has no sibling.

        >>> codes = torch.tensor([[[0, 0], [0, 1], [1, 0]]])
        >>> rewards, exist = torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
        >>> sibling_advantages(rewards, codes, exist, scale="none")[0].tolist()
        [[0.125, 0.5], [0.125, -0.5], [-0.25, 0.0]]
    """
    if rewards_BG.shape != exists_BG.shape:
        raise DataError(
            f"sibling advantages: rewards have shape {tuple(rewards_BG.shape)}, expected {tuple(exists_BG.shape)}, one per "
            "candidate; leave rewards of single codes out, or set recall.sibling_share: 0"
        )
    rewards_BG = rewards_BG.detach().float().masked_fill(~exists_BG, 0.0)
    together = exists_BG[:, :, None] & exists_BG[:, None]
    found = []
    for level in range(codes_BGL.shape[-1]):
        same_parent = together
        together = together & (codes_BGL[:, :, None, level] == codes_BGL[:, None, :, level])
        through_BG = together.sum(-1).clamp(min=1)
        value_BG = torch.einsum("bgh,bh->bg", together.float(), rewards_BG) / through_BG
        # one sibling node has `through` candidates, which share its weight in the sums over siblings
        share_BGG = same_parent / through_BG[:, None]
        nodes_BG = share_BGG.sum(-1).clamp(min=1)
        mean_BG = (share_BGG * value_BG[:, None]).sum(-1) / nodes_BG
        centred_BG = value_BG - mean_BG
        if scale == "group_std":
            spread_BGG = share_BGG * (value_BG[:, None] - mean_BG[..., None]).square()
            variance_BG = spread_BGG.sum(-1) / (nodes_BG - 1).clamp(min=1)
            centred_BG = centred_BG / (variance_BG.sqrt() + eps)
        # rounding leaves a remainder around equal values, which the division would turn into a signal
        highest = value_BG[:, None].masked_fill(~same_parent, -torch.inf).amax(-1)
        lowest = value_BG[:, None].masked_fill(~same_parent, torch.inf).amin(-1)
        found.append(torch.where(highest - lowest > 1e-6, centred_BG / through_BG, 0.0))
    return torch.stack(found, dim=-1).masked_fill(~exists_BG[..., None], 0.0)

"""Guided search: what item scores promise below every prefix, so that the beam keeps what the final order will want.

A beam of prefixes knows nothing of the items below them but the policy's probability of the prefix; whatever orders the
answer afterwards (the dense head, a ranker) finds only what survived. A guided search adds, to the log-probability of a
prefix ``p``, ``strength * (g(p) - g(root))``, where ``g(p)`` is the log of the summed exponentials of the scores of the
items below ``p`` that the user's rules allow. At a leaf that is the item's own score, so the search ends in the order
``log p_policy(item) + strength * (score(item) - g(root))`` and no candidate comes from anywhere but the search.

Exact per user: one segment sum over the prefix index per level. With log-probabilities as scores, ``g(p) - g(root)`` is the
log of the probability that the scorer gives to the set below ``p``.

Legend: B users, I items, V nodes of a level (the last level's nodes are the leaves), N any nodes of a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from recsys.decoding.rules.batch_rules import NO_NODE, BatchRules
from recsys.decoding.search_index import SearchIndex

NEGLIGIBLE: Final = -80.0
"""Scores further below a user's best than this count as this far below it above the leaves: ``exp`` is 0 in float32 soon
after, and a prefix of such items alone must stay possible."""


@dataclass(frozen=True)
class PrefixGuide:
    """What is added to the log-probability of every prefix.

    Attributes:
        bonus_BV: Per level, float32 ``[B, V]``: ``strength * (g(node) - g(root))``; ``-inf`` below which nothing is allowed.
    """

    bonus_BV: tuple[torch.Tensor, ...]

    @classmethod
    def from_item_scores(
        cls, score_BI: torch.Tensor, strength: float, index: SearchIndex, rules: BatchRules
    ) -> PrefixGuide:
        """Sum the scores up the prefix index.

        Args:
            score_BI: float32 log-scores of all items, in the order of item_index; any constant per user cancels.
            strength: Weight of the scores beside the log-probabilities of the policy.
            rules: Items that they forbid count for no prefix.
        """
        leaf_VB = score_BI.float().T[index.leaf_item[torch.arange(score_BI.shape[1], device=score_BI.device)]]
        allowed_VB = _allowed_leaves(index, rules, leaf_VB)
        if allowed_VB is not None:
            leaf_VB = leaf_VB.masked_fill(~allowed_VB, -torch.inf)
        best_B = leaf_VB.amax(0).clamp(min=torch.finfo(leaf_VB.dtype).min)  # finite where nothing is allowed
        relative_VB = leaf_VB - best_B
        mass_VB = relative_VB.clamp(min=NEGLIGIBLE).exp_()
        if allowed_VB is not None:
            mass_VB = mass_VB.masked_fill_(~allowed_VB, 0.0)
        levels = [relative_VB]
        for level in reversed(range(index.num_levels - 1)):
            parent_V = index.parents[level]
            above_VB = mass_VB.new_zeros(len(index.codes[level].bits), mass_VB.shape[1])
            mass_VB = above_VB.index_add_(0, parent_V, mass_VB)
            levels.insert(0, mass_VB.log())
        root_B = mass_VB.sum(0).log().clamp(min=NEGLIGIBLE)
        return cls(tuple(((log_VB - root_B) * strength).T.contiguous() for log_VB in levels))

    def at(self, level: int, node_BWC: torch.Tensor) -> torch.Tensor:
        """The bonus of any nodes of a level, shaped like ``node_BWC``."""
        bonus_BV = self.bonus_BV[level]
        first_B = bonus_BV.shape[1] * torch.arange(len(bonus_BV), device=bonus_BV.device)
        return bonus_BV.flatten()[node_BWC + first_B.view(-1, *[1] * (node_BWC.dim() - 1))]


def _allowed_leaves(index: SearchIndex, rules: BatchRules, leaf_VB: torch.Tensor) -> torch.Tensor | None:
    """Which items the rules leave to each user, ``[V, B]``; ``None``: all."""
    last = index.num_levels - 1
    closed_BR = rules.closed(last, leaf_VB.device)
    if rules.alive is None and (closed_BR is None or not closed_BR.shape[1]):
        return None
    allowed_VB = torch.ones_like(leaf_VB, dtype=torch.bool)
    if rules.alive is not None:
        alive_SV = rules.alive[last].to(leaf_VB.device)
        allowed_VB = (
            alive_SV.T[:, :1].expand_as(allowed_VB) if rules.segment_B is None else alive_SV.T[:, rules.segment_B]
        )
        allowed_VB = allowed_VB.clone()
    if closed_BR is not None and closed_BR.shape[1]:
        closed_RB = closed_BR.T
        padded_VB = torch.cat([allowed_VB, allowed_VB[:1]])  # padding of the lists is written into a row of its own
        padded_VB.scatter_(0, closed_RB.masked_fill(closed_RB == NO_NODE, len(allowed_VB)), False)
        allowed_VB = padded_VB[:-1]
    return allowed_VB

"""Rules of one batch of users, as the beam search applies them (stage 3 of 3).

:meth:`~recsys.decoding.rules.constraints.CompiledRules.for_batch` makes them; nothing here knows a history or an outside id.

Legend: B users, R longest personal list, S segments, V nodes of a level, W beams, C children of a node, N any nodes of a
user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from recsys.decoding.rules.item_rules import Quotas
from recsys.decoding.search_index import SearchIndex
from recsys.decoding.transfers import to_device

NO_NODE: Final = -1


@dataclass(frozen=True)
class Denied:
    """What personal deny lists take away below the nodes of one level.

    Attributes:
        node_BR: int64 ``[B, R]`` nodes with a denied item below them, ascending, then :data:`NO_NODE`.
        count_BR: int64 ``[B, R]`` how many allowed items the user's list takes away below each.
    """

    node_BR: torch.Tensor
    count_BR: torch.Tensor

    def below(self, node_BN: torch.Tensor) -> torch.Tensor:
        """Denied items below any nodes, ``[B, N]``."""
        if self.node_BR.shape[1] == 0:
            return torch.zeros_like(node_BN)
        ordered_BR = self.node_BR.masked_fill(self.node_BR == NO_NODE, torch.iinfo(torch.int64).max)
        place = torch.searchsorted(ordered_BR, node_BN.contiguous()).clamp(max=ordered_BR.shape[1] - 1)
        return self.count_BR.gather(1, place).masked_fill(ordered_BR.gather(1, place) != node_BN, 0)

    def to(self, device: torch.device | str) -> Denied:
        """Move both tensors."""
        return Denied(to_device(self.node_BR, device), to_device(self.count_BR, device))


@dataclass(frozen=True)
class PersonalRules:
    """What each user's own list of denied items does to the nodes of the index.

    Attributes:
        closed: Per level, int64 ``[B, R_l]`` nodes below which the list leaves no allowed item, ascending, padded with
            :data:`NO_NODE`; ``R_l`` is the longest list of the level.
        denied: Per level, how many items the list takes away below which nodes. Sessions need the counts: an item already in
            the session may be the last one that the list left below a node. ``None`` where they were not asked for.
    """

    closed: list[torch.Tensor]
    denied: list[Denied] | None = None

    def to(self, device: torch.device | str) -> PersonalRules:
        """Move all tensors, once for all steps of a search."""
        denied = None if self.denied is None else [level.to(device) for level in self.denied]
        return PersonalRules([to_device(nodes, device) for nodes in self.closed], denied)


@dataclass(frozen=True)
class BatchRules:
    """What restricts the search for one batch of users.

    Attributes:
        alive: Per level, bool ``[S, V]``: the node leads to an item that the segment allows; ``None`` when all are allowed.
        below: Per level, int64 ``[S, V]``: how many allowed items are below the node; sessions need it.
        segment_B: Segment of each user; ``None`` puts all into the first.
        personal: What the users' own lists close and deny; ``None`` without such lists.
        quotas: Limits per group: on the W items of a next-item search, on the M items of each session.
    """

    alive: tuple[torch.Tensor, ...] | None = None
    below: tuple[torch.Tensor, ...] = ()
    segment_B: torch.Tensor | None = None
    personal: PersonalRules | None = None
    quotas: Quotas | None = None

    def leads_on(self, level: int, child_BWC: torch.Tensor) -> torch.Tensor | None:
        """Whether each child leads to an item that its user's segment allows, ``[B, W, C]``; ``None``: all do."""
        if self.alive is None:
            return None
        alive_SV = self.alive[level].to(child_BWC.device)
        if self.segment_B is None:
            return alive_SV[0][child_BWC]
        return alive_SV.flatten()[child_BWC + self.segment_B[:, None, None] * alive_SV.shape[1]]

    def possible_below(self, index: SearchIndex, level: int, node_BWC: torch.Tensor) -> torch.Tensor:
        """How many items below each node the shared and personal rules leave to its user, ``[B, W, C]``."""
        if self.alive is None:
            possible = index.items_below[level][node_BWC]
        else:
            below_SV = self.below[level].to(node_BWC.device)
            segment = 0 if self.segment_B is None else self.segment_B[:, None, None] * below_SV.shape[1]
            possible = below_SV.flatten()[node_BWC + segment]
        if self.personal is None or self.personal.denied is None:
            return possible
        denied = self.personal.denied[level].to(node_BWC.device)
        return possible - denied.below(node_BWC.flatten(1)).view(node_BWC.shape)

    def closed(self, level: int, device: torch.device) -> torch.Tensor | None:
        """Nodes of a level that personal rules close, ``[B, R]``; ``None`` without personal rules."""
        return None if self.personal is None else self.personal.closed[level].to(device)


def is_in(node_BN: torch.Tensor, closed_BR: torch.Tensor) -> torch.Tensor:
    """Whether each node is on its user's list; a sorted search keeps this linear in N.

    Args:
        closed_BR: int64, padded with :data:`NO_NODE`, in any order.
    """
    if closed_BR.shape[1] == 0:
        return torch.zeros_like(node_BN, dtype=torch.bool)
    ordered = closed_BR.masked_fill(closed_BR == NO_NODE, torch.iinfo(torch.int64).max).sort(dim=1).values
    place = torch.searchsorted(ordered, node_BN.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, place) == node_BN

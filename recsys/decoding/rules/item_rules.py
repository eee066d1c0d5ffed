"""Rules as a caller gives them: which items a search may return, in item_index and before any search (stage 1 of 3).

Three kinds compose, and none touches the prefix index, so rules can change between two calls:

- *shared* rules, one mask over items per segment of users (availability, a tenant's or region's allow and deny lists);
- *personal* rules (items already seen, items that this user may not be shown), short lists per user;
- *quotas*: at most so many items of one group (a category, a seller) in one answer; checked where an item is chosen.

:class:`~recsys.decoding.rules.constraints.CompiledRules` is what they become for one catalogue (stage 2), and
:class:`~recsys.decoding.rules.batch_rules.BatchRules` what one batch of users is searched with (stage 3).

Legend: B users of a batch, U users, S segments, I items, N candidates of a user, G groups, W beams, C children of a node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import DataError
from recsys.decoding.rules.personal_lists import PersonalLists


@dataclass(frozen=True)
class ItemRules:
    """Which items may be recommended to whom.

    Attributes:
        allow, deny: Masks over item_index, ``[I]``, or ``[S, I]`` for S segments of users (tenants, regions); an item is
            possible when allowed and not denied. ``None`` sets no rule.
        segments: int64 ``[U]`` segment of each user, in the order of the histories; needed when a mask has segments.
        quotas: At most so many items of one group per list, or per session.
        exclude_seen: Leave out items of the user's history; ``None`` does as the decode configuration says.
        personal: Items that single users may not be shown whatever they have seen, in the order of the histories.
    """

    allow: npt.NDArray[np.bool_] | None = None
    deny: npt.NDArray[np.bool_] | None = None
    segments: npt.NDArray[np.int64] | None = None
    quotas: Quotas | None = None
    exclude_seen: bool | None = None
    personal: PersonalLists | None = None

    @property
    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """Both masks as one; ``None`` allows everything.

        Example:
            >>> ItemRules(np.array([True, True, False]), np.array([True, False, False])).allowed.tolist()
            [False, True, False]
        """
        if self.deny is None:
            return self.allow
        return ~self.deny if self.allow is None else self.allow & ~self.deny


@dataclass(frozen=True)
class Quotas:
    """At most ``limit`` items of a group in one answer.

    Attributes:
        group_I: int64 ``[I]`` group of each item_index; 0 is "no group" and has no limit.
        limit_G: int64 ``[G]`` limit per group; entry 0 is not used.
        list_length: The limits are those of a list of so many items, which is cut later from the longer list that is chosen
            here: that one may hold proportionally more of each group. ``None``: they are the limits of what is chosen.
    """

    group_I: torch.Tensor
    limit_G: torch.Tensor
    list_length: int | None = None

    @classmethod
    def from_groups(cls, group_I: npt.NDArray[np.integer], limits: int | npt.NDArray[np.integer]) -> Quotas:
        """Build from arrays; one number limits every group alike.

        Raises:
            DataError: A limit is below 0, or a group has no limit.
        """
        num_groups = int(group_I.max(initial=0)) + 1
        limit_G = np.full(num_groups, limits, np.int64) if np.ndim(limits) == 0 else np.asarray(limits, np.int64)
        if (limit_G < 0).any():
            raise DataError(f"a quota is {int(limit_G.min())}, expected 0 or more items per group")
        if len(limit_G) < num_groups:
            raise DataError(f"quotas name {len(limit_G)} groups, the items belong to {num_groups}; give one limit each")
        return cls(torch.from_numpy(np.asarray(group_I, np.int64)), torch.from_numpy(limit_G))

    def to(self, device: torch.device | str) -> Quotas:
        """Move both tensors."""
        return replace(self, group_I=self.group_I.to(device), limit_G=self.limit_G.to(device))

    def of_pool(self, list_length: int) -> Quotas:
        """The same limits for whoever chooses a pool from which a list of ``list_length`` is cut later.

        What is said already stays: the list that is cut last counts.
        """
        return self if self.list_length is not None else replace(self, list_length=list_length)

    def admitted(self, items_BN: torch.Tensor, length: int) -> torch.Tensor:
        """Mark what stays of ordered items in a choice of ``length``, going from left to right; items below 0 never do.

        A pool holds the list that would be cut from these items in this order, so whatever order it is brought into, a list
        as long can be cut from it; the other places go to the best of what proportionally higher limits leave.

        Example:
            >>> quotas = Quotas.from_groups(np.array([1, 1, 1, 1, 2, 2]), 1)
            >>> items = torch.tensor([[0, 1, 2, 3, 4, 5]])
            >>> quotas.admitted(items, 4).int().tolist()
            [[1, 0, 0, 0, 1, 0]]
            >>> quotas.of_pool(2).admitted(items, 4).int().tolist()
            [[1, 1, 0, 0, 1, 1]]
            >>> quotas.of_pool(2).admitted(items, 3).int().tolist()
            [[1, 1, 0, 0, 1, 0]]
        """
        keeps_BN = ~self.over(items_BN) & (items_BN >= 0)
        first_BN = keeps_BN & (keeps_BN.cumsum(1) <= min(length, self.list_length or length))
        if self.list_length is None or self.list_length >= length:
            return first_BN
        wider = replace(self, limit_G=self.limit_G * -(-length // self.list_length))
        others_BN = ~wider.over(items_BN) & (items_BN >= 0) & ~first_BN
        return first_BN | (others_BN & (others_BN.cumsum(1) <= length - first_BN.sum(1, keepdim=True)))

    def is_filled(self, items_BN: torch.Tensor, length: int) -> torch.Tensor:
        """Whether these ordered items suffice for a choice of ``length``, bool ``[B]``; more of them would not change it."""
        keeps_B = (~self.over(items_BN) & (items_BN >= 0)).sum(1)
        enough_B = keeps_B >= min(length, self.list_length or length)
        return enough_B & (self.admitted(items_BN, length).sum(1) >= length)

    def over(self, items_BN: torch.Tensor) -> torch.Tensor:
        """Mark items that exceed their group's quota, going from left to right; items below 0 are never marked.

        Example:
            >>> quotas = Quotas.from_groups(np.array([1, 1, 2, 0]), 1)
            >>> quotas.over(torch.tensor([[0, 2, 1, 3, 3]])).tolist()
            [[False, False, True, False, False]]
        """
        group_BN = self.group_I[items_BN.clamp(min=0)].masked_fill(items_BN < 0, 0)
        by_group, order = group_BN.sort(dim=1, stable=True)
        place = torch.arange(items_BN.shape[1], device=items_BN.device)
        first = by_group.new_zeros(by_group.shape)
        starts = torch.nn.functional.pad(by_group[:, 1:] != by_group[:, :-1], (1, 0), value=True)
        first = torch.where(starts, place, first).cummax(1).values
        exceeds = (place - first >= self.limit_G[by_group]) & (by_group > 0)
        return torch.zeros_like(exceeds).scatter(1, order, exceeds)

    def full(self, chosen_BWm: torch.Tensor, candidates_BWC: torch.Tensor) -> torch.Tensor:
        """Mark candidates whose group's quota is used up by the items already in each beam's session."""
        group_BWC = self.group_I[candidates_BWC]
        chosen_group = self.group_I[chosen_BWm.clamp(min=0)].masked_fill(chosen_BWm < 0, 0)
        used = (chosen_group[:, :, None] == group_BWC[..., None]).sum(-1)
        return (used >= self.limit_G[group_BWC]) & (group_BWC > 0)

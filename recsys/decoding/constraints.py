"""Which items a search may return, per call and per user, evaluated inside the beam search.

Three kinds of rule compose, and none touches the index, so rules can change between two calls:

- *shared* rules, one mask over items per segment of users (availability, a tenant's or region's allow and deny lists);
  they become, per level, "does this node still lead to an allowed item";
- *personal* rules (items already seen), short lists per user; they become, per level, the nodes that the user's list
  leaves without any allowed item;
- *quotas*: at most so many items of one group (a category, a seller) in one answer; checked where an item is chosen.

Legend: B users, R longest personal list, S segments, I items, N candidates of a user, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import DataError
from recsys.decoding.prefix_index import PrefixIndex

NO_NODE = -1


@dataclass(frozen=True)
class SharedRules:
    """Rules of one call, compiled.

    Attributes:
        alive: Per level, bool ``[S, nodes_l]``: the node leads to an item that the segment allows. ``None`` when all are
            allowed.
        allowed_below: Per level, int64 ``[S, nodes_l]``: how many allowed items are below the node.
    """

    alive: tuple[torch.Tensor, ...] | None
    allowed_below: tuple[npt.NDArray[np.int64], ...]

    @property
    def num_segments(self) -> int:
        """S."""
        return len(self.allowed_below[0])

    @property
    def num_allowed(self) -> npt.NDArray[np.int64]:
        """Items that each segment allows, ``[S]``."""
        return self.allowed_below[0].sum(1)

    @classmethod
    def compile(cls, index: PrefixIndex, allowed_items: npt.NDArray[np.bool_] | None) -> SharedRules:
        """Turn masks over item_index into node masks.

        Args:
            allowed_items: ``[I]`` for one segment, ``[S, I]`` for several; ``None`` allows everything.

        Raises:
            DataError: A mask has another length than the catalogue, or all of them together allow nothing.
        """
        if allowed_items is None:
            return cls(None, tuple(count[None] for count in index.leaf_counts(np.ones(index.num_items, bool))))
        masks_SI = np.atleast_2d(allowed_items)
        if masks_SI.shape[1] != index.num_items:
            raise DataError(
                f"allow/deny mask has shape {allowed_items.shape}, expected ({index.num_items},): one flag per item_index"
            )
        if not masks_SI.any():
            raise DataError("allow and deny lists together leave no item of the catalogue; nothing can be recommended")
        per_segment = [index.leaf_counts(mask[index.leaf_item]) for mask in masks_SI]
        counts = tuple(np.stack(level) for level in zip(*per_segment, strict=True))
        return cls(tuple(torch.from_numpy(count > 0) for count in counts), counts)


@dataclass(frozen=True)
class Quotas:
    """At most ``limit`` items of a group in one answer.

    Attributes:
        group_I: int64 ``[I]`` group of each item_index; 0 is "no group" and has no limit.
        limit_G: int64 ``[G]`` limit per group; entry 0 is not used.
    """

    group_I: torch.Tensor
    limit_G: torch.Tensor

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
        return Quotas(self.group_I.to(device), self.limit_G.to(device))

    def widened(self, factor: int) -> Quotas:
        """Multiply every limit: a list ``factor`` times longer may hold that many more of each group."""
        return Quotas(self.group_I, self.limit_G * factor)

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
        return Denied(self.node_BR.to(device), self.count_BR.to(device))


def closed_nodes(
    index: PrefixIndex,
    rules: SharedRules,
    leaf_of_item: npt.NDArray[np.int64],
    ancestors: tuple[npt.NDArray[np.int64], ...],
    personal: Sequence[npt.NDArray[np.integer]],
    segments: npt.NDArray[np.int64] | None = None,
) -> list[torch.Tensor]:
    """Per level, the nodes that each user's personal deny list closes: :func:`denied_below` says the rest.

    A node is closed for a user when every item below it that the user's segment allows is on the list.

    Args:
        leaf_of_item: Leaf number of each item_index.
        ancestors: Per level, the node above each leaf (for the last level, the leaf itself).
        personal: Per user, the denied item_index; repeats are harmless.
        segments: Segment of each user; ``None`` puts all into the first.

    Returns:
        Per level, int64 ``[B, R_l]``, padded with :data:`NO_NODE`; ``R_l`` is the longest list of the level.
    """
    segment = segments if segments is not None else np.zeros(len(personal), np.int64)
    result = []
    for level, (owner, node, count) in enumerate(_denied(index, rules, leaf_of_item, ancestors, personal, segment)):
        closed = count == rules.allowed_below[level][segment[owner], node]
        result.append(_pad_lists(owner[closed], node[closed], len(personal)))
    return result


def denied_below(
    index: PrefixIndex,
    rules: SharedRules,
    leaf_of_item: npt.NDArray[np.int64],
    ancestors: tuple[npt.NDArray[np.int64], ...],
    personal: Sequence[npt.NDArray[np.integer]],
    segments: npt.NDArray[np.int64] | None = None,
) -> list[Denied]:
    """Per level, how many items each user's list takes away below which nodes; arguments as for :func:`closed_nodes`.

    Sessions need the counts: an item already in the session may be the last one that the list left below a node.
    """
    segment = segments if segments is not None else np.zeros(len(personal), np.int64)
    return [
        Denied(_pad_lists(owner, node, len(personal)), _pad_lists(owner, count, len(personal)))
        for owner, node, count in _denied(index, rules, leaf_of_item, ancestors, personal, segment)
    ]


def _denied(
    index: PrefixIndex,
    rules: SharedRules,
    leaf_of_item: npt.NDArray[np.int64],
    ancestors: tuple[npt.NDArray[np.int64], ...],
    personal: Sequence[npt.NDArray[np.integer]],
    segment: npt.NDArray[np.int64],
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Per level ``(user, node, number of denied items below it)``, sorted by user and node."""
    lengths = np.array([len(items) for items in personal])
    if lengths.sum() == 0:
        nothing = np.empty(0, np.int64)
        return [(nothing, nothing, nothing)] * index.num_levels
    user = np.repeat(np.arange(len(personal)), lengths)
    leaf = leaf_of_item[np.concatenate(personal).astype(np.int64)]
    pairs = np.unique(user * index.num_items + leaf)  # a repeated item counts once
    user, leaf = pairs // index.num_items, pairs % index.num_items
    if rules.alive is not None:  # what is not allowed anyway closes nothing more
        keep = rules.allowed_below[-1][segment[user], leaf] > 0
        user, leaf = user[keep], leaf[keep]
    result = []
    for level in range(index.num_levels):
        nodes_at_level = len(index.codes[level])
        keys, counts = np.unique(user * nodes_at_level + ancestors[level][leaf], return_counts=True)
        result.append((keys // nodes_at_level, keys % nodes_at_level, counts))
    return result


def _pad_lists(user: npt.NDArray[np.int64], node: npt.NDArray[np.int64], num_users: int) -> torch.Tensor:
    """Turn sorted (user, node) pairs into ``[B, R]``."""
    counts = np.bincount(user, minlength=num_users)
    padded = np.full((num_users, int(counts.max(initial=0))), NO_NODE, np.int64)
    column = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded[user, column] = node
    return torch.from_numpy(padded)


def leaf_lookups(index: PrefixIndex) -> tuple[npt.NDArray[np.int64], tuple[npt.NDArray[np.int64], ...]]:
    """Return ``(leaf of each item, per level the node above each leaf)``."""
    leaf_of_item = np.empty(index.num_items, np.int64)
    leaf_of_item[index.leaf_item.astype(np.int64)] = np.arange(index.num_items)
    above = np.arange(index.num_items)
    ancestors = [above]
    for packed in reversed(index.first_child):
        pointers = packed.full()
        above = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))[above]
        ancestors.insert(0, above)
    return leaf_of_item, tuple(ancestors)

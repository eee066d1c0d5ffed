"""Which items a search may return, per call and per user, evaluated inside the beam search.

Two kinds of rule compose. *Shared* rules (availability, a tenant's allow list, a deny list) are one mask over items per
call; they become, per level, "does this node still lead to an allowed item". *Personal* rules (items already seen) are
short lists per user; they become, per level, the nodes that the user's list leaves without any allowed item. Nothing is
rebuilt in the index, so rules can change between calls.

Legend: B users, R longest personal list, W beams, C children.
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
        alive: Per level, bool ``[nodes_l]``: the node leads to an allowed item. ``None`` when all are allowed.
        allowed_below: Per level, int64 ``[nodes_l]``: how many allowed items are below the node.
    """

    alive: tuple[torch.Tensor, ...] | None
    allowed_below: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def compile(cls, index: PrefixIndex, allowed_items: npt.NDArray[np.bool_] | None) -> SharedRules:
        """Turn a mask over item_index (``None``: everything is allowed) into node masks.

        Raises:
            DataError: The mask has another length than the catalogue, or allows nothing.
        """
        if allowed_items is None:
            return cls(None, tuple(index.leaf_counts(np.ones(index.num_items, bool))))
        if allowed_items.shape != (index.num_items,):
            raise DataError(
                f"allow/deny mask has shape {allowed_items.shape}, expected ({index.num_items},): one flag per item_index"
            )
        if not allowed_items.any():
            raise DataError("allow and deny lists together leave no item of the catalogue; nothing can be recommended")
        counts = index.leaf_counts(allowed_items[index.leaf_item])
        return cls(tuple(torch.from_numpy(count > 0) for count in counts), tuple(counts))


def dead_nodes(
    index: PrefixIndex,
    rules: SharedRules,
    leaf_of_item: npt.NDArray[np.int64],
    ancestors: tuple[npt.NDArray[np.int64], ...],
    personal: Sequence[npt.NDArray[np.integer]],
) -> list[torch.Tensor]:
    """Per level, the nodes that each user's personal deny list closes.

    A node is closed for a user when every allowed item below it is on the list.

    Args:
        leaf_of_item: Leaf number of each item_index.
        ancestors: Per level, the node above each leaf (for the last level, the leaf itself).
        personal: Per user, the denied item_index; repeats are harmless.

    Returns:
        Per level, int64 ``[B, R_l]``, padded with :data:`NO_NODE`; ``R_l`` is the longest list of the level.
    """
    lengths = np.array([len(items) for items in personal])
    if lengths.sum() == 0:
        return [torch.full((len(personal), 0), NO_NODE) for _ in range(index.num_levels)]
    user = np.repeat(np.arange(len(personal)), lengths)
    leaf = leaf_of_item[np.concatenate(personal).astype(np.int64)]
    pairs = np.unique(user * index.num_items + leaf)  # a repeated item counts once
    user, leaf = pairs // index.num_items, pairs % index.num_items
    if rules.alive is not None:  # what is not allowed anyway closes nothing more
        keep = rules.allowed_below[-1][leaf] > 0
        user, leaf = user[keep], leaf[keep]
    result = []
    for level in range(index.num_levels):
        nodes_at_level = len(index.codes[level])
        keys, counts = np.unique(user * nodes_at_level + ancestors[level][leaf], return_counts=True)
        closed = counts == rules.allowed_below[level][keys % nodes_at_level]
        result.append(_pad_lists(keys[closed] // nodes_at_level, keys[closed] % nodes_at_level, len(personal)))
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
    for pointers in reversed(index.first_child):
        parent_of_node = np.repeat(np.arange(len(pointers) - 1), (pointers[1:] - pointers[:-1]).astype(np.int64))
        above = parent_of_node[above]
        ancestors.insert(0, above)
    return leaf_of_item, tuple(ancestors)

"""Seen items as tensors: what the users' histories close, computed where the search runs.

:meth:`~recsys.decoding.rules.constraints.CompiledRules.personal` does the same in NumPy, which a CPU does faster; beside a
GPU it would be the slowest part. Every shape follows from the longest history of the batch, so that nothing is read back:
leaves below one node stand side by side, so a sorted history has the leaves of every node in one run.

Legend: B users, R events of the longest history, S segments, V nodes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from recsys.data.batch import pad_ragged
from recsys.data.histories import Histories
from recsys.decoding.rules.batch_rules import NO_NODE, Denied, PersonalRules
from recsys.decoding.search_index import SearchIndex

_NONE = torch.iinfo(torch.int64).max


def padded_items(histories: Histories) -> torch.Tensor:
    """Items of whole histories, int64 ``[B, R]``, -1 behind the last.

    Example:
        >>> events = (np.array([4, 5, 6], np.int32), *[np.zeros(3, np.uint8)] * 3)
        >>> padded_items(Histories(np.array([0, 1]), np.array([0, 2]), np.array([2, 3]), *events)).tolist()
        [[4, 5], [6, -1]]
    """
    width = int(histories.lengths.max(initial=0))
    return pad_ragged(histories.item, histories.start, histories.end, width, offset=1) - 1


def padded_lists(lists: Sequence[npt.NDArray[np.integer]]) -> torch.Tensor:
    """The same of lists of items, int64 ``[B, R]``, -1 behind the last.

    Example:
        >>> padded_lists([np.array([4, 5]), np.array([], int)]).tolist()
        [[4, 5], [-1, -1]]
    """
    lengths = np.array([len(items) for items in lists], np.int64)
    ends = lengths.cumsum()
    items = np.concatenate(lists).astype(np.int32) if len(lists) else np.empty(0, np.int32)
    return pad_ragged(items, ends - lengths, ends, int(lengths.max(initial=0)), offset=1) - 1


def close_seen(
    seen_BR: torch.Tensor,
    index: SearchIndex,
    below: Sequence[torch.Tensor],
    segment_B: torch.Tensor | None,
    *,
    count: bool,
) -> PersonalRules:
    """What each user's seen items close, and take away below other nodes; as ``CompiledRules.personal``.

    Args:
        seen_BR: From :func:`padded_items`, on the search's device.
        below: Per level, int64 ``[S, V]``: how many items below a node the segment allows.
        segment_B: int64 segment of each user; ``None`` puts all into the first.
        count: Return the counts as well, which only sessions need.
    """
    last = index.num_levels - 1
    item_BR = seen_BR.clamp(min=0)
    leaf_BR = index.node_of_item[last][item_BR]
    counts = (seen_BR >= 0) & (_at(below[last], leaf_BR, segment_B) > 0)  # what is not allowed closes nothing more
    leaf_BR, order = leaf_BR.masked_fill(~counts, _NONE).sort(dim=1)
    again_BR = torch.nn.functional.pad(leaf_BR[:, 1:] == leaf_BR[:, :-1], (1, 0))  # a repeated item counts once
    leaf_BR, kept = leaf_BR.masked_fill(again_BR, _NONE).sort(dim=1)
    item_BR, real_BR = item_BR.gather(1, order).gather(1, kept), leaf_BR != _NONE

    closed, denied = [], []
    for level in range(index.num_levels):
        node_BR = index.node_of_item[level][item_BR].masked_fill(~real_BR, _NONE)
        first_BR = torch.searchsorted(node_BR, node_BR)
        taken_BR = torch.searchsorted(node_BR, node_BR, right=True) - first_BR
        opens_BR = real_BR & (first_BR == torch.arange(node_BR.shape[1], device=node_BR.device))
        there_BR = node_BR.masked_fill(~real_BR, 0)
        shut_BR = opens_BR & (taken_BR == _at(below[level], there_BR, segment_B))
        closed.append(there_BR.masked_fill(~shut_BR, NO_NODE))
        if count:
            node_BR, order = node_BR.masked_fill(~opens_BR, _NONE).sort(dim=1)
            denied.append(Denied(node_BR.masked_fill(node_BR == _NONE, NO_NODE), taken_BR.gather(1, order)))
    return PersonalRules(closed, denied if count else None)


def _at(below_SV: torch.Tensor, node_BR: torch.Tensor, segment_B: torch.Tensor | None) -> torch.Tensor:
    """Counts at nodes of each user's segment."""
    if segment_B is None:
        return below_SV[0][node_BR]
    return below_SV.flatten()[node_BR + segment_B[:, None] * below_SV.shape[1]]

"""A beam search that drops a request as soon as its target has fallen out of the beam.

Rewards that know nothing but the target (``rule``, ``ranking``) are 0 for every candidate of a group that lacks it: such a
group has no advantage and no gradient, and four groups of five are of this kind. A beam keeps a prefix or loses it for good,
so a target whose prefix is not among a request's beams after some level cannot be in its group; the request is dropped
there, and the levels below are computed for the others alone.

This is exact: the groups that are left are those of the plain search (:func:`recsys.decoding.beam_search.beam_search`), but
for rounding in matrix products of another size, and what is dropped would have had advantage 0.

Legend: B requests, W beams.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from recsys.data.batch import HistoryBatch
from recsys.decoding.beam_search import Beams, _extend, _Frontier
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.search_index import SearchIndex
from recsys.model.generative_recommender import GenerativeRecommender


@torch.inference_mode()
def search_for_targets(
    policy: GenerativeRecommender, history: HistoryBatch, index: SearchIndex, width: int, target_B: torch.Tensor
) -> tuple[Beams, torch.Tensor]:
    """Find the beams of the requests whose target is among them.

    Args:
        target_B: int64 item_index, on the policy's device.

    Returns:
        ``(beams, rows)``: next-item beams of N requests, and their numbers among the B, int64 ``[N]`` ascending.
    """
    state: Any = policy.start(history)
    device = target_B.device
    row_N = torch.arange(len(target_B), device=device)
    blank = torch.zeros(len(target_B), 1, device=device)
    nothing = torch.empty(len(target_B), 1, 0, dtype=torch.int64, device=device)
    frontier = _Frontier(blank.long(), blank, blank, blank, nothing)
    codes: torch.Tensor | None = None
    for level in range(index.num_levels):
        log_probs = policy.next_codes(state, codes)
        assert log_probs is not None
        frontier, codes, parent = _extend(
            log_probs, frontier, index, level, width, 1, BatchRules(), None, sessions=False
        )
        state.cache.reorder(parent)
        here = frontier.node == index.node_of_item[level][target_B[row_N], None]
        kept = (here & (frontier.score > -torch.inf)).any(1).nonzero()[:, 0]
        if len(kept) < len(row_N):
            row_N, frontier, codes, state = take_users((row_N, frontier, codes, state), kept)
        if len(row_N) == 0:
            break
    items = index.leaf_item[frontier.node].masked_fill(frontier.score == -torch.inf, -1)
    return Beams(items[..., None], frontier.score, state.dense_query_BD, frontier.score), row_N


def take_users(value: Any, row_N: torch.Tensor) -> Any:
    """Some of the users of anything that is made of tensors with a user axis in front.

    Example:
        >>> take_users([torch.arange(3), (torch.eye(3), None)], torch.tensor([2]))
        [tensor([2]), (tensor([[0., 0., 1.]]), None)]
    """
    if isinstance(value, torch.Tensor):
        return value.index_select(0, row_N)
    if isinstance(value, list | tuple):
        return type(value)(take_users(part, row_N) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: take_users(getattr(value, f.name), row_N) for f in fields(value) if f.init})
    return value

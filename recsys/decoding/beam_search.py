"""Exact constrained beam search over a prefix index, for next items and for sessions.

Keys and values of the history are computed once per user; beams are the query axis; a beam's own prefix is found through
an ancestry table instead of re-ordering caches; scores are gathered only at codes that exist under the beam's prefix.
Path scores are sums of *unconstrained* log-probabilities: the constraint masks and does not renormalise, as in
Hugging Face generate, MiniOneRec and ReRe.

Legend: B users, W beams, C children of a node, K codes, R closed nodes of a user, M items per session, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys.data.batch import HistoryBatch
from recsys.decoding.constraints import NO_NODE, SharedRules
from recsys.decoding.prefix_index import PrefixIndex
from recsys.model.generative_recommender import DecodingState, GenerativeRecommender


@dataclass(frozen=True)
class SearchIndex:
    """A prefix index as tensors of one device."""

    codes: tuple[torch.Tensor, ...]
    first_child: tuple[torch.Tensor, ...]
    leaf_item: torch.Tensor
    max_children: tuple[int, ...]

    @classmethod
    def of(cls, index: PrefixIndex, device: torch.device | str = "cpu") -> SearchIndex:
        """Copy the flat arrays to a device; int32 because torch indexes with signed integers."""

        def tensor(array: object) -> torch.Tensor:
            return torch.as_tensor(array, dtype=torch.int32, device=device)

        return cls(
            tuple(tensor(codes.astype("int32")) for codes in index.codes),
            tuple(tensor(pointers.astype("int64")) for pointers in index.first_child),
            torch.as_tensor(index.leaf_item.astype("int64"), device=device),
            index.max_children,
        )

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.codes)


@dataclass(frozen=True)
class Beams:
    """What a search found, best first.

    Attributes:
        items: int64 ``[B, W, M]`` item_index; -1 in every slot of a beam that does not exist.
        scores: float32 ``[B, W]`` log-probability of the path; ``-inf`` for a beam that does not exist.
        dense_query: float32 ``[B, D]`` query of the dense head, for re-scoring.
    """

    items: torch.Tensor
    scores: torch.Tensor
    dense_query: torch.Tensor


@dataclass
class _Frontier:
    """Live beams: node of the current level, score, items finished so far."""

    node: torch.Tensor  # [B, W]
    score: torch.Tensor  # [B, W]
    items: torch.Tensor  # [B, W, finished]


@torch.inference_mode()
def beam_search(
    policy: GenerativeRecommender,
    history: HistoryBatch,
    index: SearchIndex,
    width: int,
    *,
    rules: SharedRules | None = None,
    closed: list[torch.Tensor] | None = None,
    num_items: int = 1,
) -> Beams:
    """Find the ``width`` most probable items, or sessions of ``num_items`` different items.

    Exact in the sense of beam search: at every level the best ``width`` allowed prefixes survive; with ``width`` at
    least the number of items (next-item form) it is exhaustive search. A prefix survives only if an allowed item lies
    below it, so no beam is lost to a rule. Fewer than ``width`` allowed items give fewer rows, never an illegal one.

    Args:
        rules: Shared rules of the call.
        closed: Per level, int64 ``[B, R]`` nodes closed by personal rules, from
            :func:`~recsys.decoding.constraints.dead_nodes`.
        num_items: M; an item already in the session is not repeated.
    """
    state = policy.start(history)
    users, device = len(history), state.visible.device
    frontier = _Frontier(
        node=torch.zeros(users, 1, dtype=torch.int64, device=device),
        score=torch.zeros(users, 1, device=device),
        items=torch.empty(users, 1, 0, dtype=torch.int64, device=device),
    )
    for _ in range(num_items):
        codes: torch.Tensor | None = None
        for level in range(index.num_levels):
            frontier, codes, parent = _extend(policy, state, frontier, index, level, width, codes, rules, closed)
            state.cache.reorder(parent)
        found = index.leaf_item[frontier.node].masked_fill(frontier.score == -torch.inf, -1)
        frontier.items = torch.cat([frontier.items, found[..., None]], dim=2)
        if frontier.items.shape[2] < num_items:
            policy.next_codes(state, codes)  # the last code is fed; what follows it is a forced BOS
        frontier.node = torch.zeros_like(frontier.node)
    dead = frontier.score == -torch.inf
    return Beams(frontier.items.masked_fill(dead[..., None], -1), frontier.score, state.dense_query_BD)


def _extend(
    policy: GenerativeRecommender,
    state: DecodingState,
    frontier: _Frontier,
    index: SearchIndex,
    level: int,
    width: int,
    codes_BW: torch.Tensor | None,
    rules: SharedRules | None,
    closed: list[torch.Tensor] | None,
) -> tuple[_Frontier, torch.Tensor, torch.Tensor]:
    """Advance all beams by one code; return the new frontier, its codes and its parents, ``[B, W']`` each."""
    log_probs_BWK = policy.next_codes(state, codes_BW)
    assert log_probs_BWK is not None
    child_BWC, exists_BWC = _children(frontier.node, index, level)
    code_BWC = index.codes[level][child_BWC].long()
    score_BWC = frontier.score[..., None] + log_probs_BWK.gather(2, code_BWC)
    if rules is not None and rules.alive is not None:
        exists_BWC = exists_BWC & rules.alive[level].to(child_BWC.device)[child_BWC]
    if level == index.num_levels - 1 and frontier.items.shape[2]:
        item_BWC = index.leaf_item[child_BWC]
        exists_BWC = exists_BWC & (item_BWC[..., None] != frontier.items[:, :, None]).all(-1)
    score_BWC = score_BWC.masked_fill(~exists_BWC, -torch.inf)

    flat_score, flat_child = score_BWC.flatten(1), child_BWC.flatten(1)
    closed_BR = closed[level].to(flat_child.device) if closed is not None else None
    # A user's list closes at most R nodes, so the best width + R contain the best `width` open ones. In a session a node
    # can be reached by every beam, so there all candidates are checked.
    if closed_BR is not None and closed_BR.shape[1]:
        shared_prefixes = frontier.items.shape[2] > 0
        reach = flat_score.shape[1] if shared_prefixes else min(width + closed_BR.shape[1], flat_score.shape[1])
        flat_score, picked = flat_score.topk(reach, dim=1)
        flat_child = flat_child.gather(1, picked)
        flat_score = flat_score.masked_fill(_is_in(flat_child, closed_BR), -torch.inf)
        score, best = flat_score.topk(min(width, reach), dim=1)
        picked = picked.gather(1, best)
    else:
        score, picked = flat_score.topk(min(width, flat_score.shape[1]), dim=1)
    parent = picked // score_BWC.shape[2]
    node = child_BWC.flatten(1).gather(1, picked)
    items = frontier.items.gather(1, parent[..., None].expand(-1, -1, frontier.items.shape[2]))
    return _Frontier(node, score, items), code_BWC.flatten(1).gather(1, picked), parent


def _children(node_BW: torch.Tensor, index: SearchIndex, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Child nodes at ``level`` of every beam's node, ``[B, W, C]``, and which of them exist."""
    fan_out = torch.arange(index.max_children[level], device=node_BW.device)
    if level == 0:
        child = fan_out.expand(*node_BW.shape, -1)
        return child, torch.ones_like(child, dtype=torch.bool)
    pointers = index.first_child[level - 1]
    child = pointers[node_BW].long()[..., None] + fan_out
    exists = child < pointers[node_BW + 1].long()[..., None]
    return child.masked_fill(~exists, 0), exists


def _is_in(nodes_BN: torch.Tensor, closed_BR: torch.Tensor) -> torch.Tensor:
    """Whether each node is on its user's list; a sorted search keeps this linear in N."""
    ordered = closed_BR.masked_fill(closed_BR == NO_NODE, torch.iinfo(torch.int64).max).sort(dim=1).values
    place = torch.searchsorted(ordered, nodes_BN.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, place) == nodes_BN

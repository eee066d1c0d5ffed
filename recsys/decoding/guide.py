"""Guided search: what item scores promise below every prefix, so that the beam keeps what the final order will want.

A beam of prefixes knows nothing of the items below them but the policy's probability of the prefix; whatever orders the
answer afterwards (the dense head, a ranker) finds only what survived. A guided search adds, to the log-probability of a
prefix ``p``, ``strength * (g(p) - g(root))``, where ``g(p)`` is the log of the summed exponentials of the scores of the
items below ``p`` that the user's rules allow. At a leaf that is the item's own score, so the search ends in the order
``log p_policy(item) + strength * (score(item) - g(root))`` and no candidate comes from anywhere but the search.

Exact per user. Scores are brought into the order of the leaves, where the items below a prefix stand side by side, or made
in that order (:meth:`PrefixGuide.from_dense_head`). Levels of few prefixes are summed as a whole; in a large catalogue the
levels near the leaves are summed at the children of live prefixes only. With log-probabilities as scores, ``g(p) - g(root)``
is the log of the probability that the scorer gives to what is below ``p``.

Legend: B users, I items, V nodes of a level (the last level's nodes are the leaves), N any nodes of a user, R closed nodes
of a user, S leaves below one node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch

from recsys import native
from recsys.data.histories import Histories
from recsys.decoding.rules.batch_rules import NO_NODE, BatchRules, is_in
from recsys.decoding.search_index import SearchIndex
from recsys.model.layers.rows import product
from recsys.scorers.products import catalogue_scores, one_pass
from recsys.scorers.scorer_set import ScorerSet

NEGLIGIBLE: Final = -80.0
"""Scores further below a user's best than this count as this far below it above the leaves: ``exp`` is 0 in float32 soon
after, and a prefix of such items alone must stay possible."""

SMALL_CATALOGUE: Final = 1 << 16
"""Up to so many items every level is summed as a whole; that takes a tenth of a millisecond per user."""

FEW_LEAVES: Final = 64
"""In a larger catalogue a level is summed node by node if it has at least a quarter as many nodes as there are leaves, and
no node has more leaves than this."""

CACHED_SCORES: Final = 1 << 18
"""Scores that take all steps together on a CPU (1 MB of float32), so that they stay in its cache; at least one user's."""


LEAVES_TOGETHER: Final = 1 << 11
"""Leaves that are scored together on a CPU: with 64 users half a megabyte, which stays in the cache until it is summed."""


@dataclass(frozen=True)
class PrefixGuide:
    """What is added to the log-probability of every prefix: ``strength * (g(node) - g(root))``.

    Attributes:
        index: Of the search.
        strength: Weight of the scores beside the log-probabilities of the policy.
        at_leaves: Log-scores of given leaves, int64 ``[B, N]`` to float32 ``[B, N]``; ``-inf`` where the rules forbid the
            item.
        root_B: ``g(root)``; finite even where nothing is allowed.
        best_B: The best allowed score of each row, finite too; sums are of ``exp(score - best)``.
        summed: Per level but the last, float32 ``[B, V]``: ``g(node) - best``; ``None`` where it is summed when asked for.
    """

    index: SearchIndex
    strength: float
    at_leaves: Callable[[torch.Tensor], torch.Tensor]
    root_B: torch.Tensor
    best_B: torch.Tensor
    summed: tuple[torch.Tensor | None, ...]

    @classmethod
    def from_item_scores(
        cls, score_BI: torch.Tensor, strength: float, index: SearchIndex, rules: BatchRules
    ) -> PrefixGuide:
        """Sum the scores up the prefix index.

        Args:
            score_BI: log-scores of all items, in the order of item_index; any constant per user cancels. They are read again
                during the search, and no other matrix of this size is made.
            strength: Weight of the scores beside the log-probabilities of the policy.
            rules: Items that they forbid count for no prefix.
        """
        score_BI = score_BI.float()
        users, leaves = score_BI.shape
        mass = [score_BI.new_empty(users, size) for size in _whole_levels(index)]
        best_B, total_B = score_BI.new_empty(users), score_BI.new_empty(users)
        is_large = score_BI.is_cpu and leaves > SMALL_CATALOGUE and len(mass) > 0
        block = users if not score_BI.is_cpu else min(users, max(1, CACHED_SCORES // leaves))
        buffer_bV = score_BI.new_empty(block, leaves)
        for start in range(0, users, block):
            rows = slice(start, min(start + block, users))
            leaf_bV = buffer_bV[: rows.stop - start]
            torch.index_select(score_BI[rows], 1, index.item_of_leaf, out=leaf_bV)
            restricted = _forbid(leaf_bV, index.num_levels - 1, rules, rows)
            if is_large:
                sums_bV, best_B[rows] = _exp_sums(leaf_bV, index.first_leaf[len(mass) - 1])
                torch.add(sums_bV.log_(), best_B[rows, None], out=mass[-1][rows])
                continue
            best_B[rows] = leaf_bV.amax(1).clamp_(min=torch.finfo(leaf_bV.dtype).min)
            below_bV = _masses(leaf_bV, best_B[rows], restricted=restricted)
            total_B[rows] = _sum_up(below_bV, [level_BV[rows] for level_BV in mass], index, from_leaves=True)
        if is_large:
            total_B = _sum_up_logs(mass, best_B, index, rules)

        def at_leaves(leaf_BN: torch.Tensor) -> torch.Tensor:
            return _forbid_leaves(_take(score_BI, index.item_of_leaf[leaf_BN]), leaf_BN, index, rules)

        return cls._of(index, strength, at_leaves, best_B, total_B, mass)

    @classmethod
    def from_dense_head(
        cls,
        query_BD: torch.Tensor,
        leaf_vectors_ID: torch.Tensor,
        strength: float,
        index: SearchIndex,
        rules: BatchRules,
    ) -> PrefixGuide:
        """Score every item by the dense head and sum the scores up the prefix index.

        On a CPU a large catalogue is scored some leaves at a time, so that exp and sums find the scores in the cache; the
        product is the most of the cost, and the more users share it the cheaper it is for each.

        Args:
            query_BD: Queries of the dense head.
            leaf_vectors_ID: Item vectors in the order of the leaves.
        """
        query_BD, leaf_vectors_ID = query_BD.float(), leaf_vectors_ID.float()
        users, leaves = len(query_BD), len(leaf_vectors_ID)
        mass = [query_BD.new_empty(users, size) for size in _whole_levels(index)]
        if query_BD.is_cpu and leaves > SMALL_CATALOGUE and mass:
            vectors = leaf_vectors_ID

            def at_leaves(leaf_BN: torch.Tensor) -> torch.Tensor:
                """Few are asked for: less work than to write all down and to find them there."""
                parts = zip(query_BD[:, None].unbind(), leaf_BN.unbind(), strict=True)  # a user's vectors fit the cache
                score_BN = torch.stack([vectors.index_select(0, leaf_N).mul_(query).sum(-1) for query, leaf_N in parts])
                return _forbid_leaves(score_BN, leaf_BN, index, rules)

            best_B = _score_blocks(query_BD, leaf_vectors_ID, mass[-1], index, rules)
            total_B = _sum_up_logs(mass, best_B, index, rules)
        else:
            score_BI = product(query_BD, leaf_vectors_ID.T)
            restricted = _forbid(score_BI, index.num_levels - 1, rules, slice(None))
            best_B = score_BI.amax(1).clamp_(min=torch.finfo(score_BI.dtype).min)
            total_B = _sum_up(_masses(score_BI.clone(), best_B, restricted=restricted), mass, index, from_leaves=True)
            at_leaves = partial(_take, score_BI)
        return cls._of(index, strength, at_leaves, best_B, total_B, mass)

    @classmethod
    def _of(
        cls,
        index: SearchIndex,
        strength: float,
        at_leaves: Callable[[torch.Tensor], torch.Tensor],
        best_B: torch.Tensor,
        total_B: torch.Tensor,
        mass: list[torch.Tensor],
    ) -> PrefixGuide:
        """From sums of ``exp(score - best)``, of the levels that are summed as a whole and of the root."""
        missing = [None] * (index.num_levels - 1 - len(mass))
        return cls(
            index=index,
            strength=strength,
            at_leaves=at_leaves,
            root_B=best_B + total_B.log().clamp(min=NEGLIGIBLE),
            best_B=best_B,
            summed=(*(level_BV.log_() for level_BV in mass), *missing),
        )

    def at(self, level: int, node_BWC: torch.Tensor) -> torch.Tensor:
        """The bonus of any nodes of a level, float32 shaped like ``node_BWC``; ``-inf`` where nothing below is allowed."""
        node_BN = node_BWC.flatten(1)
        if level == self.index.num_levels - 1:
            value_BN = self.at_leaves(node_BN).sub_(self.root_B[:, None])
        else:
            level_BV = self.summed[level]
            value_BN = _take(level_BV, node_BN) if level_BV is not None else self._sum_below(level, node_BN)
            value_BN.sub_((self.root_B - self.best_B)[:, None])
        return value_BN.mul_(self.strength).view(node_BWC.shape)

    def _sum_below(self, level: int, node_BN: torch.Tensor) -> torch.Tensor:
        """``g(node) - best`` from the leaves below the given nodes alone."""
        first_leaf = self.index.first_leaf[level]
        first_BN = first_leaf[node_BN]
        count_BN = first_leaf[node_BN + 1] - first_BN
        steps_S = torch.arange(self.index.most_leaves[level], device=node_BN.device)
        leaf_BNS = (first_BN[..., None] + steps_S).clamp_(max=len(self.index.item_of_leaf) - 1)
        score_BNS = self.at_leaves(leaf_BNS.flatten(1)).view(leaf_BNS.shape)
        outside_BNS = (steps_S >= count_BN[..., None]) | (score_BNS == -torch.inf)
        mass_BNS = score_BNS.sub_(self.best_B[:, None, None]).clamp_(min=NEGLIGIBLE).exp_()
        return mass_BNS.masked_fill_(outside_BNS, 0.0).sum(2).log_()


def fused_scores(
    query_BD: torch.Tensor,
    item_vectors_ID: torch.Tensor,
    histories: Histories,
    scorers: ScorerSet | None,
    weights: Mapping[str, float],
) -> torch.Tensor:
    """Sum the scores of the dense head and the weighted scores of item scorers, float32 ``[B, I]``, as a guide takes them.

    They are no log-probabilities: a constant per user, which a guide takes out, is missing, and to find it would cost as
    much as half of the product.

    Args:
        query_BD: Queries of the dense head.
        item_vectors_ID: Of the whole catalogue.
        histories: The B users' whole histories, as the scorers read them.
        weights: Of the scorers by name; the dense head has weight 1.

    Raises:
        ConfigError: A weight is for a scorer that the set lacks.
    """
    query_BD, vectors_ID = query_BD.float(), item_vectors_ID.float()
    if scorers is None:
        return catalogue_scores(query_BD, vectors_ID)
    score_BI = query_BD.new_zeros(len(query_BD), len(vectors_ID))
    if one_pass(score_BI):
        scorers.add_fused(histories, weights, score_BI.numpy(), [(query_BD, vectors_ID)])
        return score_BI
    on_host_BI = catalogue_scores(query_BD, vectors_ID).cpu()
    scorers.add_fused(histories, weights, on_host_BI.numpy())  # shares memory with the tensor
    return on_host_BI.to(query_BD.device)


def _take(values_BV: torch.Tensor, node_BN: torch.Tensor) -> torch.Tensor:
    """Values of nodes; on a CPU far cheaper than ``gather``."""
    first_B = values_BV.shape[1] * torch.arange(len(values_BV), device=values_BV.device)
    return values_BV.flatten()[node_BN + first_B[:, None]]


def _forbid_leaves(
    score_BN: torch.Tensor, leaf_BN: torch.Tensor, index: SearchIndex, rules: BatchRules
) -> torch.Tensor:
    """Write ``-inf`` where the rules forbid the item at a leaf."""
    last = index.num_levels - 1
    alive_BN = rules.leads_on(last, leaf_BN[:, None])
    if alive_BN is not None:
        score_BN.masked_fill_(~alive_BN[:, 0], -torch.inf)
    closed_BR = rules.closed(last, leaf_BN.device)
    if closed_BR is not None:
        score_BN.masked_fill_(is_in(leaf_BN, closed_BR), -torch.inf)
    return score_BN


def _whole_levels(index: SearchIndex) -> list[int]:
    """Sizes of the levels that are summed as a whole: the first, and those below it while that pays; never the last."""
    sizes = [len(codes.bits) for codes in index.codes]
    leaves = sizes.pop()
    whole = [
        level == 0 or leaves <= SMALL_CATALOGUE or 4 * size < leaves or index.most_leaves[level] > FEW_LEAVES
        for level, size in enumerate(sizes)
    ]
    return sizes[: whole.index(False)] if False in whole else sizes


def _masses(score_bV: torch.Tensor, best_b: torch.Tensor, *, restricted: bool) -> torch.Tensor:
    """``exp(score - best)`` in place, 0 where the score is ``-inf``, which only happens where it is ``restricted``."""
    score_bV -= best_b[:, None]
    forbidden_bV = score_bV == -torch.inf if restricted else None
    mass_bV = score_bV.clamp_(min=NEGLIGIBLE).exp_()
    return mass_bV if forbidden_bV is None else mass_bV.masked_fill_(forbidden_bV, 0.0)


def _sum_up(below_bV: torch.Tensor, mass: list[torch.Tensor], index: SearchIndex, *, from_leaves: bool) -> torch.Tensor:
    """Sum masses of leaves, or of the level under ``mass``, into every level of ``mass``; return the sum of all, ``[b]``."""
    for level in reversed(range(len(mass))):
        first = index.first_leaf[level] if from_leaves and level + 1 == len(mass) else index.first_below[level]
        below_bV = _sum_neighbours(below_bV, first, out=mass[level])
    return below_bV.sum(1)


def _sum_up_logs(mass: list[torch.Tensor], best_B: torch.Tensor, index: SearchIndex, rules: BatchRules) -> torch.Tensor:
    """Turn the log-sums of ``mass``'s last level into sums of ``exp(score - best)``, sum them up, return the sum of all."""
    lowest = len(mass) - 1
    mass[lowest].clamp_(min=best_B[:, None] + NEGLIGIBLE)
    restricted = _forbid(mass[lowest], lowest, rules, slice(None))
    return _sum_up(_masses(mass[lowest], best_B, restricted=restricted), mass[:lowest], index, from_leaves=False)


def _score_blocks(
    query_BD: torch.Tensor,
    leaf_vectors_ID: torch.Tensor,
    log_mass_BV: torch.Tensor,
    index: SearchIndex,
    rules: BatchRules,
) -> torch.Tensor:
    """Fill the log-sums of the level that ``log_mass_BV`` is for, some leaves at a time; on a CPU.

    What a sum is relative to is the same for everybody: the best below the node, or without compiled kernels the best of a
    block of leaves.

    Returns:
        The best allowed score of each row, ``[B]``, finite.
    """
    lowest, last = len(_whole_levels(index)) - 1, index.num_levels - 1
    closed_BR = rules.closed(last, query_BD.device)
    leaf_R, user_R = _closed_leaves(closed_BR) if closed_BR is not None else (torch.empty(0, dtype=torch.int64),) * 2
    alive_SI = None if rules.alive is None else rules.alive[last]
    if native.available():
        sums_BV, best_BV = native.product_sums(
            query_BD.contiguous(),
            leaf_vectors_ID.contiguous(),
            index.first_leaf[lowest],
            alive_SI=alive_SI,
            segment_B=rules.segment_B,
            closed=(leaf_R, user_R),
        )
        torch.add(sums_BV.log_(), best_BV, out=log_mass_BV)
        return best_BV.amax(1)
    first = index.first_leaf[lowest].numpy()
    bounds = np.unique(np.append(np.searchsorted(first, np.arange(0, first[-1], LEAVES_TOGETHER)), len(first) - 1))
    best_B = torch.full_like(query_BD[:, 0], torch.finfo(torch.float32).min)
    for begin, end in itertools.pairwise(bounds.tolist()):
        leaves = slice(int(first[begin]), int(first[end]))
        score_Bb = product(query_BD, leaf_vectors_ID[leaves].T)
        if alive_SI is not None:
            alive_Sb = alive_SI[:, leaves]
            score_Bb.masked_fill_(~(alive_Sb[:1] if rules.segment_B is None else alive_Sb[rules.segment_B]), -torch.inf)
        closed = slice(*np.searchsorted(leaf_R.numpy(), [leaves.start, leaves.stop]))
        score_Bb[user_R[closed], leaf_R[closed] - leaves.start] = -torch.inf
        sums_Bv, best_Bb = _exp_sums(score_Bb, index.first_leaf[lowest][begin : end + 1])
        torch.add(sums_Bv.log_(), best_Bb[:, None], out=log_mass_BV[:, begin:end])
        torch.maximum(best_B, best_Bb, out=best_B)
    return best_B


def _closed_leaves(closed_BR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves that users' own rules close, ascending, and the user of each."""
    user_N, place_N = (closed_BR != NO_NODE).nonzero(as_tuple=True)
    leaf_N, order_N = closed_BR[user_N, place_N].sort(stable=True)
    return leaf_N, user_N[order_N]


def _exp_sums(score_Bb: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of ``exp(score - best)`` over ranges of leaves, and the best score of each row, finite; scores are used up."""
    if native.available():
        return native.exp_sums(score_Bb.contiguous(), first)
    best_B = score_Bb.amax(1).clamp_(min=torch.finfo(torch.float32).min)
    mass_Bb = score_Bb.sub_(best_B[:, None]).exp_()
    sums = np.add.reduceat(mass_Bb.numpy(), (first[:-1] - first[0]).numpy(), axis=1)
    return torch.from_numpy(sums), best_B


def _forbid(value_bV: torch.Tensor, level: int, rules: BatchRules, rows: slice) -> bool:
    """Write ``-inf`` at nodes that the rules close for some users; return whether there are such rules."""
    if rules.alive is not None:
        alive_SV = rules.alive[level].to(value_bV.device)
        value_bV.masked_fill_(
            ~(alive_SV[:1] if rules.segment_B is None else alive_SV[rules.segment_B[rows]]), -torch.inf
        )
    closed_BR = rules.closed(level, value_bV.device)
    if closed_BR is None or not closed_BR.shape[1]:
        return rules.alive is not None
    closed_bR = closed_BR[rows]
    # the lower of what stands there and -inf; padding brings +inf, which changes nothing
    value_bR = torch.full_like(closed_bR, -torch.inf, dtype=value_bV.dtype)
    value_bR.masked_fill_(closed_bR == NO_NODE, torch.inf)
    value_bV.scatter_reduce_(1, closed_bR.clamp(min=0), value_bR, "amin")
    return True


def _sum_neighbours(x_bV: torch.Tensor, first: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Sum ``x[:, first[n]:first[n + 1]]`` for every n into ``out``; no range is empty."""
    if not x_bV.is_cpu:
        nodes = torch.arange(len(first) - 1, device=first.device)
        return out.zero_().index_add_(1, nodes.repeat_interleave(first.diff(), output_size=x_bV.shape[1]), x_bV)
    if 2 * (len(first) - 1) <= x_bV.shape[1]:  # for ranges of some length, several times faster than any sum of torch's
        np.add.reduceat(x_bV.numpy(), first[:-1].numpy(), axis=1, out=out.numpy())
        return out
    # most ranges hold one number: copy the first of each, add the others
    torch.index_select(x_bV, 1, first[:-1], out=out)
    is_other = torch.ones(x_bV.shape[1], dtype=torch.bool)
    is_other[first[:-1]] = False
    other = is_other.nonzero()[:, 0]
    node = torch.searchsorted(first, other, right=True) - 1
    return out.index_add_(1, node, x_bV.index_select(1, other))

"""Exact constrained beam search over a prefix index, for next items and for sessions.

Keys and values of the history are computed once per user; beams are the query axis; a beam's own prefix is found through
an ancestry table instead of re-ordering caches; scores are gathered only at codes that exist under the beam's prefix.
Path scores are sums of *unconstrained* log-probabilities: the constraint masks and does not renormalise, as in
Hugging Face generate, MiniOneRec and ReRe. The loop has a fixed number of steps and never waits for the device.

Legend: B users, W beams, C children of a node, K codes, R closed nodes of a user, M items per session, L levels, N
candidates of a user, G diversity groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from recsys.contracts.errors import ConfigError
from recsys.decoding.guide import PrefixGuide
from recsys.decoding.rules.batch_rules import BatchRules, is_in
from recsys.decoding.rules.item_rules import Quotas
from recsys.decoding.search_index import SearchIndex
from recsys.model.layers.beam_cache import BeamCache

History = TypeVar("History", contravariant=True)


class SearchState(Protocol):
    """What the search needs to know of a batch in the middle of decoding."""

    visible: torch.Tensor
    cache: BeamCache

    @property
    def dense_query_BD(self) -> torch.Tensor:
        """Query of the dense head."""


State = TypeVar("State", bound=SearchState)


@dataclass(frozen=True)
class Guidance:
    """Item scores that guide a search (:mod:`recsys.decoding.guide`).

    Attributes:
        scores: From the queries of the dense head, ``[B, D]``, to log-scores of all items, float32 ``[B, I]``; whatever else
            they depend on, such as the users' histories, belongs to the callable
            (:func:`~recsys.decoding.guide.fused_scores`).
        strength: Their weight beside the log-probabilities of the policy.
    """

    scores: Callable[[torch.Tensor], torch.Tensor]
    strength: float

    def guide(self, query_BD: torch.Tensor, index: SearchIndex, rules: BatchRules) -> PrefixGuide:
        """What is added to every prefix of a batch."""
        return PrefixGuide.from_item_scores(self.scores(query_BD), self.strength, index, rules)


@dataclass(frozen=True)
class DenseGuidance:
    """The dense head alone guides a search; cheaper than :class:`Guidance`, for the same guide.

    Attributes:
        leaf_vectors: ``[I, D]`` item vectors in the order of the leaves.
        strength: Weight of its scores beside the log-probabilities of the policy.
    """

    leaf_vectors: torch.Tensor
    strength: float

    def guide(self, query_BD: torch.Tensor, index: SearchIndex, rules: BatchRules) -> PrefixGuide:
        """What is added to every prefix of a batch."""
        return PrefixGuide.from_dense_head(query_BD, self.leaf_vectors, self.strength, index, rules)


class SearchablePolicy(Protocol[History, State]):
    """What a model must offer to be searched: :class:`~recsys.model.generative_recommender.GenerativeRecommender` does."""

    def start(self, history: History, /) -> State:
        """Encode the histories."""

    def next_codes(self, state: State, codes_BW: torch.Tensor | None, /) -> torch.Tensor | None:
        """Feed codes (``None``: BOS) and return log-probabilities of the next ones, ``[B, W, K]``."""


@dataclass(frozen=True)
class Beams:
    """What a search found, best first.

    Attributes:
        items: int64 ``[B, W, M]`` item_index; -1 in every slot of a beam that does not exist.
        scores: float32 ``[B, W]`` what the search ordered by: the log-probability of the path, and with a guide its bonus
            for every item of it; ``-inf`` for a beam that does not exist.
        dense_query: float32 ``[B, D]`` query of the dense head, for re-scoring.
        log_probs: float32 ``[B, W]`` log-probability of the path alone, guided or not; ``-inf`` as in ``scores``.
    """

    items: torch.Tensor
    scores: torch.Tensor
    dense_query: torch.Tensor
    log_probs: torch.Tensor


@dataclass
class _Frontier:
    """Live beams: node of the current level, score, log-probability of the path, bonus and numbers of finished items."""

    node: torch.Tensor  # [B, W]
    score: torch.Tensor  # [B, W], log_prob + finished_bonus + the guide's bonus at the node
    log_prob: torch.Tensor  # [B, W], without a guide the same tensor
    finished_bonus: torch.Tensor  # [B, W]
    items: torch.Tensor  # [B, W, finished]


@torch.inference_mode()
def beam_search(
    policy: SearchablePolicy[History, State],
    history: History,
    index: SearchIndex,
    width: int,
    *,
    rules: BatchRules | None = None,
    num_items: int = 1,
    widths: Sequence[int] | None = None,
    diversity_groups: int = 1,
    guidance: Guidance | DenseGuidance | None = None,
) -> Beams:
    """Find the ``width`` most probable items, or sessions of ``num_items`` different items.

    Exact in the sense of beam search: at every level the best ``width`` allowed prefixes survive; with ``width`` at
    least the number of items (next-item form) it is exhaustive search. A prefix survives only if an allowed item lies
    below it that is not in the session yet, so no beam is lost to a rule (quotas excepted). Fewer than ``width`` allowed
    items give fewer rows, never an illegal one. A path whose score is NaN lives on, so that whoever serves the answer sees
    that the policy is damaged (:func:`~recsys.decoding.answers.refuse_non_finite`).

    Args:
        num_items: M; an item already in the session is not repeated.
        widths: Beams while each of the M items is generated, for example wide for the first and narrow afterwards;
            ``None`` takes ``width`` for all.
        diversity_groups: G; after the first item the G best beams each found a group of ``width / G`` sessions that
            compete among themselves only, so the answer holds sessions with G different first items. Plain session beams
            tend to differ in their last item alone.
        guidance: What item scores add to the log-probability of every prefix; ``None``: nothing.

    Raises:
        ConfigError: ``widths`` or ``diversity_groups`` do not fit ``width`` and ``num_items``, or the catalogue.
    """
    widths = _check_shape(width, num_items, widths, diversity_groups)
    rules, state = rules or BatchRules(), policy.start(history)
    guide = guidance.guide(state.dense_query_BD, index, rules) if guidance is not None else None
    return search_from(policy, state, index, widths, rules, diversity_groups, guide)


def search_from(
    policy: SearchablePolicy[History, State],
    state: State,
    index: SearchIndex,
    widths: Sequence[int],
    rules: BatchRules,
    diversity_groups: int = 1,
    guide: PrefixGuide | None = None,
) -> Beams:
    """The search itself, from encoded histories on; arguments as for :func:`beam_search`.

    Its shapes depend on those of ``state`` and ``rules`` alone and it never reads a value back from the device, so that on
    a GPU it can be recorded once as a graph (:mod:`recsys.decoding.graphed_search`).
    """
    users, device = len(state.visible), state.visible.device
    frontier = _Frontier(
        node=torch.zeros(users, 1, dtype=torch.int64, device=device),
        score=torch.zeros(users, 1, device=device),
        log_prob=torch.zeros(users, 1, device=device),
        finished_bonus=torch.zeros(users, 1, device=device),
        items=torch.empty(users, 1, 0, dtype=torch.int64, device=device),
    )
    for place, item_width in enumerate(widths):
        codes: torch.Tensor | None = None
        groups = diversity_groups if place else 1
        for level in range(index.num_levels):
            log_probs_BWK = policy.next_codes(state, codes)
            assert log_probs_BWK is not None
            frontier, codes, parent = _extend(
                log_probs_BWK, frontier, index, level, item_width, groups, rules, guide, sessions=len(widths) > 1
            )
            state.cache.reorder(parent)
        found = index.leaf_item[frontier.node].masked_fill(frontier.score == -torch.inf, -1)
        frontier.items = torch.cat([frontier.items, found[..., None]], dim=2)
        if place + 1 < len(widths):
            if place == 0 and diversity_groups > 1:  # beams are sorted: the first G found the groups
                if frontier.node.shape[1] < diversity_groups:
                    raise ConfigError(
                        f"decode.diversity_groups is {diversity_groups}, but a beam of {widths[0]} over this catalogue has "
                        f"{frontier.node.shape[1]} first items to found groups; set it to at most that"
                    )
                frontier = _Frontier(*(part[:, :diversity_groups] for part in vars(frontier).values()))
                assert codes is not None
                codes = codes[:, :diversity_groups]
                own = torch.arange(codes.shape[1], device=device).expand(users, -1)
                state.cache.reorder(own)
            policy.next_codes(state, codes)  # the last code is fed; what follows it is a forced BOS
        frontier.node = torch.zeros_like(frontier.node)
        if guide is not None:
            bonus = frontier.score - frontier.log_prob
            frontier.finished_bonus = bonus.masked_fill(frontier.score == -torch.inf, 0.0)
    items, scores, log_probs = frontier.items, frontier.score, frontier.log_prob
    if diversity_groups > 1:
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        items, log_probs = items.gather(1, order[..., None].expand_as(items)), log_probs.gather(1, order)
    dead = scores == -torch.inf
    return Beams(items.masked_fill(dead[..., None], -1), scores, state.dense_query_BD, log_probs)


def _check_shape(width: int, num_items: int, widths: Sequence[int] | None, diversity_groups: int) -> Sequence[int]:
    widths = [width] * num_items if widths is None else widths
    if len(widths) != num_items or min(widths) < 1:
        raise ConfigError(f"beam widths per item are {list(widths)}, expected {num_items} numbers of at least 1")
    if diversity_groups > 1 and num_items == 1:
        raise ConfigError(f"diversity_groups is {diversity_groups}, but groups need sessions of at least 2 items")
    if any(later % diversity_groups for later in widths[1:]) or diversity_groups > widths[0]:
        raise ConfigError(
            f"diversity_groups is {diversity_groups}, expected a divisor of the beam widths {list(widths[1:])}, "
            f"at most {widths[0]}"
        )
    return widths


def _extend(
    log_probs_BWK: torch.Tensor,
    frontier: _Frontier,
    index: SearchIndex,
    level: int,
    width: int,
    groups: int,
    rules: BatchRules,
    guide: PrefixGuide | None,
    *,
    sessions: bool,
) -> tuple[_Frontier, torch.Tensor, torch.Tensor]:
    """Advance all beams by one code; return the new frontier, its codes and its parents, ``[B, W']`` each.

    Args:
        sessions: Each beam grows to a session of its own, so quotas count inside a beam and not across the beams.
    """
    child_BWC, allowed_BWC = index.children(frontier.node, level)
    code_BWC = index.child_codes(frontier.node, child_BWC, level)
    log_prob_BWC = log_probs_BWK.gather(2, code_BWC).add_(frontier.log_prob[..., None])
    score_BWC = log_prob_BWC
    if guide is not None:
        score_BWC = guide.at(level, child_BWC).add_(log_prob_BWC).add_(frontier.finished_bonus[..., None])
    leads_on_BWC = rules.leads_on(level, child_BWC)
    if leads_on_BWC is not None:
        allowed_BWC = allowed_BWC & leads_on_BWC
    last = level == index.num_levels - 1
    if not last and frontier.items.shape[2]:  # the session's own items may be all that is left below a prefix
        chosen_BWm = index.node_of_item[level][frontier.items.clamp(min=0)]
        used_BWC = (chosen_BWm[:, :, None] == child_BWC[..., None]).sum(-1)
        allowed_BWC = allowed_BWC & (rules.possible_below(index, level, child_BWC) > used_BWC)
    if last and sessions:
        item_BWC = index.leaf_item[child_BWC]
        allowed_BWC = allowed_BWC & (item_BWC[..., None] != frontier.items[:, :, None]).all(-1)
        if rules.quotas is not None:  # a limit of 0 bans first items too
            allowed_BWC = allowed_BWC & ~rules.quotas.full(frontier.items, item_BWC)
    score_BWC.masked_fill_(~allowed_BWC, -torch.inf)  # without a guide both are one tensor

    closed_BR = rules.closed(level, child_BWC.device)
    list_quotas = rules.quotas if last and not sessions else None
    in_session = frontier.items.shape[2] > 0
    score, picked = _select(score_BWC, child_BWC, width, groups, in_session, closed_BR, list_quotas, index)
    parent = picked // score_BWC.shape[2]
    users, candidates = len(picked), score_BWC.shape[1] * score_BWC.shape[2]
    place = picked + candidates * torch.arange(users, device=picked.device)[:, None]  # far cheaper than gather on a CPU
    items = frontier.items.gather(1, parent[..., None].expand(-1, -1, frontier.items.shape[2]))
    log_prob, finished_bonus = score, frontier.finished_bonus
    if guide is not None:  # a beam that died stays dead at the next level
        log_prob = log_prob_BWC.flatten()[place].masked_fill(score == -torch.inf, -torch.inf)
        finished_bonus = finished_bonus.gather(1, parent)
    return (
        _Frontier(child_BWC.flatten()[place], score, log_prob, finished_bonus, items),
        code_BWC.flatten()[place],
        parent,
    )


def _select(
    score_BWC: torch.Tensor,
    child_BWC: torch.Tensor,
    width: int,
    groups: int,
    in_session: bool,
    closed_BR: torch.Tensor | None,
    quotas: Quotas | None,
    index: SearchIndex,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick the best open candidates; return scores and places in the flattened ``[W * C]``, ``[B, W']`` each."""
    score_BN, child_BN = score_BWC.flatten(1), child_BWC.flatten(1)
    if quotas is not None:
        if closed_BR is not None:
            score_BN = score_BN.masked_fill(is_in(child_BN, closed_BR), -torch.inf)
        return _select_within_quotas(score_BN, child_BN, width, quotas, index)
    if groups > 1:
        if closed_BR is not None:
            score_BN = score_BN.masked_fill(is_in(child_BN, closed_BR), -torch.inf)
        score_BGN = score_BN.unflatten(1, (groups, -1))
        score, best = best_first(score_BGN, min(width // groups, score_BGN.shape[2]))
        first = torch.arange(groups, device=best.device)[:, None] * score_BGN.shape[2]
        return score.flatten(1), (best + first).flatten(1)
    if closed_BR is None or closed_BR.shape[1] == 0:
        return best_first(score_BN, min(width, score_BN.shape[1]))
    # A user's list closes at most R nodes, so the best width + R contain the best `width` open ones. In a session several
    # beams can reach the same node, so there all candidates are checked.
    reach = score_BN.shape[1] if in_session else min(width + closed_BR.shape[1], score_BN.shape[1])
    score_BN, order = best_first(score_BN, reach)
    score_BN = score_BN.masked_fill(is_in(child_BN.gather(1, order), closed_BR), -torch.inf)
    score, best = best_first(score_BN, min(width, reach))
    return score, order.gather(1, best)


def best_first(score: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` highest scores of the last dimension and their places, best first.

    On a CPU the lower place goes first among equal scores: which of them ``topk`` takes depends on ``count``, and that on
    the longest list of seen items in the batch. A GPU would have to wait for the look whether there are any.

    Example:
        >>> best_first(torch.tensor([[0.0, 2.0, 1.0, 1.0, 2.0]]), 3)[1].tolist()
        [[1, 4, 2]]
    """
    if not _may_look(score):
        return score.topk(count, dim=-1)
    found, place = score.topk(min(count + 1, score.shape[-1]), dim=-1)  # one more shows a tie at the edge
    tied = ((found[..., 1:] == found[..., :-1]) & (found[..., 1:] > -torch.inf)).any(-1)
    if bool(tied.any()):
        ordered = score[tied].argsort(dim=-1, descending=True, stable=True)
        place[tied] = ordered[:, : place.shape[-1]]
    return found[..., :count], place[..., :count]


def _may_look(values: torch.Tensor) -> bool:
    """Whether reading a value back costs nothing; from a GPU it would wait for all that was launched before."""
    return values.is_cpu


def _select_within_quotas(
    score_BN: torch.Tensor, child_BN: torch.Tensor, width: int, quotas: Quotas, index: SearchIndex
) -> tuple[torch.Tensor, torch.Tensor]:
    """Walk down the order of scores and take what its group's quota still admits, as :func:`_select`.

    Usually a few times ``width`` candidates hold enough; where they do not, all are sorted. The look whether they do
    waits for the device, so a GPU sorts all at once.
    """
    candidates = score_BN.shape[1]
    reach = min(4 * width, candidates) if _may_look(score_BN) else candidates
    while True:
        best_BR, order = best_first(score_BN, reach)
        item_BR = index.leaf_item[child_BN.gather(1, order)].masked_fill(best_BR == -torch.inf, -1)
        if reach == candidates or bool((quotas.is_filled(item_BR, width) | (best_BR[:, -1] == -torch.inf)).all()):
            open_BR = best_BR.masked_fill(~quotas.admitted(item_BR, width), -torch.inf)
            score, best = best_first(open_BR, min(width, reach))
            return score, order.gather(1, best)
        reach = candidates

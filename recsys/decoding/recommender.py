"""Policy + semantic IDs + constraints -> ranked items for any number of users, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ranking import RankedItems, concatenate
from recsys.data.batch import HistoryBatch, collate_histories
from recsys.data.histories import Histories
from recsys.decoding.beam_search import BatchRules, Beams, beam_search
from recsys.decoding.config import DecodeConfig
from recsys.decoding.constraints import Quotas, SharedRules, closed_nodes, denied_below, leaf_lookups
from recsys.decoding.graphed_search import GraphedSearch
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.search_index import SearchIndex
from recsys.decoding.shortfall import Shortfall, explain_shortfalls
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.int8 import int8_policy
from recsys.runtime import PlainProgress, Progress
from recsys.semantic_ids.versions import SemanticIds


@dataclass(frozen=True)
class ItemRules:
    """Which items may be recommended in one call, beside the "not seen" rule.

    Attributes:
        allow, deny: Masks over item_index, ``[I]``, or ``[S, I]`` for S segments of users (tenants, regions); an item is
            possible when allowed and not denied. ``None`` sets no rule.
        segments: ``[N]`` segment of each history; needed when a mask has segments.
        quotas: At most so many items of one group per list, or per session.
    """

    allow: npt.NDArray[np.bool_] | None = None
    deny: npt.NDArray[np.bool_] | None = None
    segments: npt.NDArray[np.int64] | None = None
    quotas: Quotas | None = None

    @property
    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """Both masks as one."""
        if self.deny is None:
            return self.allow
        return ~self.deny if self.allow is None else self.allow & ~self.deny


@dataclass(frozen=True)
class _Call:
    """Rules of one call, compiled for the search."""

    shared: SharedRules
    exclude_seen: bool
    segments: npt.NDArray[np.int64] | None
    quotas: Quotas | None


class Recommender:
    """Answer histories with items.

    Args:
        policy: A trained policy; it is put into evaluation mode.
        semantic_ids: The generation that the policy was trained with.
        config: Beam width and second stage.
        index: The generation's prefix index, if it is at hand already.

    Raises:
        ArtifactError: The policy was trained with other semantic IDs.
        ConfigError: The configured precision cannot be had on the policy's device.
    """

    def __init__(
        self,
        policy: GenerativeRecommender,
        semantic_ids: SemanticIds,
        config: DecodeConfig,
        index: PrefixIndex | None = None,
    ) -> None:
        semantic_ids.check_same(policy.spec.semantic_id_digest)
        self.config = config
        self.policy = _prepared_for(config, policy.eval())
        self.index = index if index is not None else PrefixIndex.build(semantic_ids.codes, semantic_ids.level_sizes)
        self.device = policy.codes.weight.device
        self._search_index = SearchIndex.from_index(self.index, self.device)
        self._leaf_of_item, self._ancestors = leaf_lookups(self.index)
        self._item_vectors: torch.Tensor | None = None
        self._graphed_searches: dict[int, GraphedSearch] = {}

    def recommend(
        self,
        histories: Histories,
        k: int,
        *,
        exclude_seen: bool | None = None,
        rules: ItemRules | None = None,
        rescore: bool | None = None,
        progress: Progress | None = None,
    ) -> RankedItems:
        """Rank ``k`` items per history.

        Args:
            exclude_seen: Leave out items of the history; ``None`` takes the configuration's choice.
            rules: Which items are possible; may differ from call to call.
            rescore: Order the beam's items by the dense head (true) or by path probability (false); ``None`` takes
                the configuration's choice.

        Returns:
            One row per history; fewer than ``k`` possible items give -1 at the end of the row, and
            :meth:`shortfalls` says why.

        Raises:
            DataError: A mask does not fit the catalogue, or a segment does not exist.
        """
        rescore = self.config.rescore == "dense" if rescore is None else rescore
        return self._decode(histories, k, (rescore,), exclude_seen, rules, progress)[0]

    def shortfalls(
        self,
        histories: Histories,
        ranked: RankedItems,
        *,
        exclude_seen: bool | None = None,
        rules: ItemRules | None = None,
    ) -> list[Shortfall]:
        """Say for every row of an answer with fewer items than asked what stood in the way."""
        call = self._compile(exclude_seen, rules, len(histories))
        return explain_shortfalls(
            histories,
            ranked,
            call.shared,
            self._leaf_of_item,
            call.segments,
            call.exclude_seen,
            call.quotas is not None,
        )

    def both_orders(
        self, histories: Histories, k: int, *, exclude_seen: bool | None = None, progress: Progress | None = None
    ) -> tuple[RankedItems, RankedItems]:
        """Decode once and rank twice: ``(path probability, dense head)``. Evaluation and validation ask for both."""
        beam, served = self._decode(histories, k, (False, True), exclude_seen, None, progress)
        return beam, served

    def _decode(
        self,
        histories: Histories,
        k: int,
        rescores: tuple[bool, ...],
        exclude_seen: bool | None,
        rules: ItemRules | None,
        progress: Progress | None,
    ) -> list[RankedItems]:
        """Search once per history; return one ranking per entry of ``rescores``, rows in the order of the histories."""
        width = max(self.config.beam_width, k)
        call = self._compile(exclude_seen, rules, len(histories))
        # similar lengths together: padding is wasted work
        order = np.argsort(np.minimum(histories.lengths, self.policy.spec.model.max_history), kind="stable")
        per_batch = max(1, self.config.rows_per_batch // width)
        blocks = [order[start : start + per_batch] for start in range(0, len(order), per_batch)]
        empty = RankedItems(np.empty((0, k), np.int32), np.empty((0, k), np.float32))
        parts = [[empty] for _ in rescores]
        for block in (progress or PlainProgress()).track(blocks, "decoding", len(blocks)):
            # the list is cut from `width` candidates, which may hold proportionally more of each group than the list
            beams = self._search(histories.take(block), block, width, call, quota_factor=-(-width // k))
            for ranked, rescore in zip(parts, rescores, strict=True):
                ranked.append(self._rank(beams, k, rescore, call.quotas))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        rankings = [concatenate(part) for part in parts]
        return [RankedItems(ranked.items[back], ranked.scores[back]) for ranked in rankings]

    def recommend_sessions(
        self,
        histories: Histories,
        num_sessions: int,
        *,
        exclude_seen: bool | None = None,
        rules: ItemRules | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Generate whole sessions of the policy's session length.

        Returns:
            ``(items [N, sessions, M] item_index, log-probabilities [N, sessions])``, best session first; a session that
            does not exist holds -1 and ``-inf``.
        """
        length = self.policy.spec.dataset.session_length
        call = self._compile(exclude_seen, rules, len(histories))
        width = max(self.config.beam_width, num_sessions)
        items = np.full((len(histories), num_sessions, length), -1, np.int64)
        scores = np.full((len(histories), num_sessions), -np.inf, np.float32)
        per_batch = max(1, self.config.rows_per_batch // width)
        for start in range(0, len(histories), per_batch):
            block = np.arange(start, min(start + per_batch, len(histories)))
            beams = self._search(histories.take(block), block, width, call, num_items=length)
            found = min(num_sessions, beams.items.shape[1])
            items[block, :found] = beams.items[:, :found].cpu().numpy()
            scores[block, :found] = beams.scores[:, :found].cpu().numpy()
        return items, scores

    def _compile(self, exclude_seen: bool | None, rules: ItemRules | None, rows: int) -> _Call:
        rules = rules or ItemRules()
        shared = SharedRules.compile(self.index, rules.allowed)
        segments = rules.segments
        if segments is None and shared.num_segments > 1:
            raise DataError(
                f"item rules have {shared.num_segments} segments, but no segment is given for the histories"
            )
        if segments is not None:
            if segments.shape != (rows,):
                raise DataError(f"segments have shape {segments.shape}, expected ({rows},): one per history")
            if rows and not (segments.min() >= 0 and segments.max() < shared.num_segments):
                raise DataError(
                    f"segments run from {segments.min()} to {segments.max()}, expected 0..{shared.num_segments - 1}"
                )
        seen_out = self.config.exclude_seen if exclude_seen is None else exclude_seen
        return _Call(shared, seen_out, segments, rules.quotas.to(self.device) if rules.quotas else None)

    def _search(
        self,
        histories: Histories,
        block: npt.NDArray[np.int64],
        width: int,
        call: _Call,
        *,
        quota_factor: int = 1,
        num_items: int = 1,
    ) -> Beams:
        segments = call.segments[block] if call.segments is not None else None
        closed, denied = None, None
        if call.exclude_seen:
            tables = (self.index, call.shared, self._leaf_of_item, self._ancestors, histories.seen_items(), segments)
            closed = closed_nodes(*tables)
            denied = denied_below(*tables) if num_items > 1 else None
        rules = BatchRules(
            shared=call.shared,
            segment_B=torch.from_numpy(segments).to(self.device) if segments is not None else None,
            closed=closed,
            denied=denied,
            quotas=call.quotas.widened(quota_factor) if call.quotas is not None else None,
        )
        batch = collate_histories(histories, self.policy.spec.model.max_history).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            if num_items == 1 and self.config.cuda_graph:
                return self._graphed(width)(batch, rules)
            return self._plain_search(batch, width, rules, num_items)

    def _graphed(self, width: int) -> GraphedSearch:
        if width not in self._graphed_searches:
            users = max(1, self.config.rows_per_batch // width)
            self._graphed_searches[width] = GraphedSearch(self.policy, self._search_index, [width], users)
        return self._graphed_searches[width]

    def _plain_search(self, batch: HistoryBatch, width: int, rules: BatchRules, num_items: int) -> Beams:
        if num_items == 1:
            return beam_search(self.policy, batch, self._search_index, width, rules=rules)
        return beam_search(
            self.policy,
            batch,
            self._search_index,
            width,
            rules=rules,
            num_items=num_items,
            widths=self.config.session_widths(width, num_items),
            diversity_groups=self.config.diversity_groups,
        )

    @torch.inference_mode()
    def _rank(self, beams: Beams, k: int, rescore: bool, quotas: Quotas | None) -> RankedItems:
        items, scores = beams.items[..., 0], beams.scores
        if rescore:
            scores = self.dense_scores(beams.dense_query, items) + self.config.generative_weight * scores
            scores = scores.masked_fill(items < 0, -torch.inf)
            # ties go to the lower item_index, so that a result never depends on how users were batched
            by_item = items.argsort(dim=1, stable=True)
            items, scores = items.gather(1, by_item), scores.gather(1, by_item)
            order = scores.argsort(dim=1, descending=True, stable=True)
            items, scores = items.gather(1, order), scores.gather(1, order)
        if quotas is not None:
            over = quotas.over(items)
            items, scores = items.masked_fill(over, -1), scores.masked_fill(over, -torch.inf)
            back = over.sort(dim=1, stable=True).indices  # what exceeds a quota goes behind everything else
            items, scores = items.gather(1, back), scores.gather(1, back)
        found = min(k, items.shape[1])
        result = RankedItems(np.full((len(items), k), -1, np.int32), np.full((len(items), k), -np.inf, np.float32))
        result.items[:, :found] = items[:, :found].cpu().numpy()
        result.scores[:, :found] = scores[:, :found].cpu().numpy()
        return result

    def dense_scores(self, query_BD: torch.Tensor, items_BN: torch.Tensor) -> torch.Tensor:
        """Dense-head scores of given items, ``[B, N]``; whatever stands at item -1 is to be masked by the caller."""
        if self._item_vectors is None:
            with torch.inference_mode():
                self._item_vectors = self.policy.item_vectors()
        vectors_BND = self._item_vectors[items_BN + 1]
        return torch.einsum("bd,bnd->bn", query_BD, vectors_BND)


def _prepared_for(config: DecodeConfig, policy: GenerativeRecommender) -> GenerativeRecommender:
    """The policy in the configured precision."""
    device = policy.codes.weight.device.type
    if config.precision == "bfloat16" and device != "cuda":
        raise ConfigError(
            f"decode.precision is bfloat16, which needs a GPU; the policy is on '{device}': use float32 or int8"
        )
    if config.precision == "int8":
        if device != "cpu":
            raise ConfigError(f"decode.precision is int8, which needs a CPU; the policy is on '{device}': use bfloat16")
        return int8_policy(policy)
    return policy

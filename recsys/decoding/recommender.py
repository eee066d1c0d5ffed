"""Policy + semantic IDs + constraints -> ranked items for any number of users, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.answers import check_count, refuse_non_finite, sort_key, within_quotas
from recsys.decoding.batches import PreparedBatch, cut_batches
from recsys.decoding.beam_search import Beams, DenseGuidance, Guidance, beam_search
from recsys.decoding.bfloat16 import bfloat16_policy
from recsys.decoding.config import DecodeConfig
from recsys.decoding.graphed_search import CudaRecorder, GraphedSearch
from recsys.decoding.guide import fused_scores
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.rules.shortfall import rows_below_quotas, sessions_below_quotas
from recsys.decoding.search_index import SearchIndex
from recsys.decoding.transfers import Pending, collect, on_its_way, prepared_ahead, replace_rows, rows_of, stacked
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.int8 import int8_policy
from recsys.runtime import PlainProgress, Progress
from recsys.semantic_ids.versions import SemanticIds

_SILENT: Final = PlainProgress(every_s=float("inf"))

MOST_WIDTHS: Final = 2
"""Beam widths that graphs are kept for: one for the configuration, one for who asks for longer lists."""

WIDER: Final = 4
"""How many times more beams are tried for rows that quotas left too short."""


Answer = Callable[[PreparedBatch, int], list[Pending]]
"""Ranks one batch with a beam of a given width, any number of times."""

ItemScores = Callable[[Histories], torch.Tensor]
"""Log-scores of every item for every history, ``[B, I]``, that guide a search beside what the configuration names."""


class Recommender:
    """Answer histories with items.

    Args:
        policy: A trained policy; it is put into evaluation mode.
        semantic_ids: Those that the policy was trained with.
        config: Beam width and second stage.
        index: Their prefix index, if it is at hand already.

    Raises:
        ArtifactError: The policy was trained with other semantic IDs, or numbers their items otherwise.
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
        semantic_ids.check_rows(policy.item_tower.codes_IL[1:].cpu().numpy())
        self.config = config
        self.policy = _prepared_for(config, policy.eval())
        self.index = index if index is not None else PrefixIndex.build(semantic_ids.codes, semantic_ids.level_sizes)
        self.device = policy.codes.weight.device
        self.search_index = SearchIndex.from_index(self.index, self.device)
        self._item_vectors: torch.Tensor | None = None
        self._vectors_by_leaf: torch.Tensor | None = None
        self._recorder = CudaRecorder(self.device) if config.cuda_graph else None
        self._graphed_searches: dict[int, GraphedSearch] = {}

    def compile(self, rules: ItemRules | None, num_users: int, exclude_seen: bool | None = None) -> CompiledRules:
        """Compile rules for this catalogue and these users; the result serves any number of calls.

        Args:
            num_users: Histories that the rules are for.
            exclude_seen: Goes before what the rules say; where both are ``None`` the configuration decides.

        Raises:
            DataError: A mask does not fit the catalogue, a segment does not exist, or the segments are of other users.
        """
        rules = rules or ItemRules()
        asked = [choice for choice in (exclude_seen, rules.exclude_seen) if choice is not None]
        seen_out = asked[0] if asked else self.config.exclude_seen
        compiled = CompiledRules.compile(
            self.index,
            rules,
            exclude_seen=seen_out,
            device=self.device,
            search_index=self.search_index if self.device.type == "cuda" else None,
        )
        compiled.check_users(num_users)
        return compiled

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
        """Rank ``k`` items per history: :meth:`compile` and :meth:`rank` in one.

        Args:
            exclude_seen: Leave out items of the history; ``None`` takes the rules' or the configuration's choice.
            rules: Which items are possible; may differ from call to call.

        Raises:
            DataError: As in :meth:`compile`.
        """
        return self.rank(
            histories, k, self.compile(rules, len(histories), exclude_seen), rescore=rescore, progress=progress
        )

    def rank(
        self,
        histories: Histories,
        k: int,
        rules: CompiledRules,
        *,
        rescore: bool | None = None,
        progress: Progress | None = None,
        guided_by: ItemScores | None = None,
    ) -> RankedItems:
        """Rank ``k`` items per history.

        Args:
            rules: Compiled for these histories.
            rescore: Order the beam's items by the dense head (true) or by the search (false); ``None`` takes the
                configuration's choice.
            guided_by: Guides the search.

        Returns:
            One row per history; fewer than ``k`` possible items give -1 at the end of the row, and
            :func:`~recsys.decoding.rules.shortfall.explain_shortfalls` says why.

        Raises:
            ArtifactError: A score is no finite number.
            ConfigError: ``k`` is no number of items.
        """
        check_count(k, "k")
        rescore = self.config.rescore == "dense" if rescore is None else rescore
        return self._beam_orders(histories, k, (rescore,), rules, progress, guided_by)[0]

    def both_orders(
        self, histories: Histories, k: int, *, exclude_seen: bool | None = None, progress: Progress | None = None
    ) -> tuple[RankedItems, RankedItems]:
        """Decode once and rank twice: ``(path probability, dense head)``. Evaluation and validation ask for both."""
        check_count(k, "k")
        rules = self.compile(None, len(histories), exclude_seen)
        beam, served = self._beam_orders(histories, k, (False, True), rules, progress)
        return beam, served

    def _beam_orders(
        self,
        histories: Histories,
        k: int,
        rescores: tuple[bool, ...],
        rules: CompiledRules,
        progress: Progress | None,
        guided_by: ItemScores | None = None,
    ) -> list[RankedItems]:
        """Search once per history; return one ranking of the beam's items per entry of ``rescores``."""

        def answer(prepared: PreparedBatch, width: int) -> list[Pending]:
            # rows that quotas left short are few, and no graph is worth recording for them
            recorded = width == max(self.config.beam_width, k)
            beams = self._search(prepared, width, recorded=recorded, guided_by=guided_by)
            return [self._rank(beams, k, rescore, prepared.quotas) for rescore in rescores]

        per_batch = max(1, self.config.rows_per_batch // max(self.config.beam_width, k))
        return self._in_batches(histories, k, len(rescores), answer, rules, per_batch, progress)

    def _in_batches(
        self,
        histories: Histories,
        k: int,
        num_lists: int,
        answer: Answer,
        rules: CompiledRules,
        per_batch: int,
        progress: Progress | None,
    ) -> list[RankedItems]:
        """Answer batch by batch; rows of the ``num_lists`` rankings are in the order of the histories.

        Rows that quotas left shorter than they permit are searched again with more beams, up to as many as a batch may hold.
        """
        width = max(self.config.beam_width, k)

        def answers(rows: npt.NDArray[np.integer], width: int, per_batch: int, progress: Progress) -> list[RankedItems]:
            blocks = self._batches(histories, rows, per_batch)
            prepared = prepared_ahead(
                blocks, lambda block: self.prepare(histories.take(block), rules.take(block), k), self.device
            )
            parts: list[list[RankedItems]] = [[] for _ in range(num_lists)]
            pending: list[Pending] = []
            for batch in progress.track(prepared, "decoding", len(blocks)):
                launched = answer(batch, width)
                collect(parts, pending)  # of the batch before, while this one is decoded
                pending = launched
            collect(parts, pending)
            nothing = RankedItems(np.empty((0, k), np.int32), np.empty((0, k), np.float32))
            # batches have an order of their own; rows ascend
            back = np.argsort(np.concatenate([rows[:0], *blocks]), kind="stable")
            return [rows_of(stacked(part or [nothing]), back) for part in parts]

        lists = answers(np.arange(len(histories)), width, per_batch, progress or PlainProgress())
        for more in self._wider(width, rules):
            rows = np.unique(np.concatenate([rows_below_quotas(histories, ranked, rules) for ranked in lists]))
            again = answers(rows, more, max(1, self.config.rows_per_batch // more), _SILENT) if len(rows) else []
            for ranked, found in zip(lists, again, strict=False):
                replace_rows(ranked, rows, found)
        for ranked in lists:
            refuse_non_finite(ranked.scores, ranked.items >= 0, histories)
        return lists

    def _batches(
        self, histories: Histories, rows: npt.NDArray[np.integer], users: int
    ) -> list[npt.NDArray[np.integer]]:
        """Cut some of the histories into batches, in which no user's answer depends on the others."""
        return cut_batches(rows, histories.lengths[rows], self.policy.spec.model.max_history, users)

    def _wider(self, width: int, rules: CompiledRules, length: int = 1, groups: int = 1) -> Iterator[int]:
        """Numbers of beams to try where quotas left too little, up to all answers or as many beams as a batch may hold.

        An answer has ``length`` items; every number is a multiple of ``groups``, as ``width`` is.
        """
        widest = min(self.index.num_items**length, max(width, self.config.rows_per_batch)) // groups * groups
        while rules.quotas is not None and width < widest:
            width = min(WIDER * width, widest)
            yield width

    def prepare(
        self, histories: Histories, rules: CompiledRules, list_length: int | None = None, num_items: int = 1
    ) -> PreparedBatch:
        """Make a batch of these users; arguments as for :meth:`~recsys.decoding.batches.PreparedBatch.of`."""
        max_history = self.policy.spec.model.max_history
        return PreparedBatch.of(
            histories, rules, max_history, self.device, list_length=list_length, num_items=num_items
        )

    def recommend_sessions(
        self,
        histories: Histories,
        num_sessions: int,
        *,
        exclude_seen: bool | None = None,
        rules: ItemRules | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Generate whole sessions: :meth:`compile` and :meth:`generate` in one."""
        return self.generate(histories, num_sessions, self.compile(rules, len(histories), exclude_seen))

    def generate(
        self, histories: Histories, num_sessions: int, rules: CompiledRules, guided_by: ItemScores | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Generate whole sessions of the policy's session length.

        Args:
            guided_by: Guides the search, item by item.

        Returns:
            ``(items [N, sessions, M] item_index, log-probabilities [N, sessions])``, best session first; a session that
            does not exist holds -1 and ``-inf``.

        Raises:
            ArtifactError: A score is no finite number.
            ConfigError: ``num_sessions`` is no number of sessions, or ``decode.diversity_groups`` does not fit.
        """
        check_count(num_sessions, "num_sessions")
        length, groups = self.policy.spec.dataset.session_length, self.config.diversity_groups
        enough = num_sessions <= self.config.beam_width
        width = self.config.beam_width if enough else -(-num_sessions // groups) * groups
        items = np.full((len(histories), num_sessions, length), -1, np.int64)
        scores = np.full((len(histories), num_sessions), -np.inf, np.float32)

        def fill(rows: npt.NDArray[np.integer], width: int) -> None:
            blocks = self._batches(histories, rows, max(1, self.config.rows_per_batch // width))
            ready = prepared_ahead(
                blocks,
                lambda block: self.prepare(histories.take(block), rules.take(block), num_items=length),
                self.device,
            )
            for block, prepared in zip(blocks, ready, strict=True):
                beams = self._search(prepared, width, num_items=length, guided_by=guided_by)
                found = min(num_sessions, beams.items.shape[1])
                items[block, :found] = beams.items[:, :found].cpu().numpy()
                scores[block, :found] = beams.scores[:, :found].cpu().numpy()

        fill(np.arange(len(histories)), width)
        for more in self._wider(width, rules, length, groups):
            fill(sessions_below_quotas(histories, items, rules), more)
        refuse_non_finite(scores, items[:, :, 0] >= 0, histories)
        return items, scores

    def search(self, prepared: PreparedBatch, width: int, guided_by: ItemScores | None = None) -> Beams:
        """The search for single items alone, before anything orders what it found."""
        return self._search(prepared, width, guided_by=guided_by)

    def _search(
        self,
        prepared: PreparedBatch,
        width: int,
        *,
        num_items: int = 1,
        recorded: bool = False,
        guided_by: ItemScores | None = None,
    ) -> Beams:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            if recorded and self.config.cuda_graph and guided_by is None:
                return self._graphed(width)(prepared.batch, prepared.rules)
            return beam_search(
                self.policy,
                prepared.batch,
                self.search_index,
                width,
                rules=prepared.rules,
                num_items=num_items,
                widths=self.config.session_widths(width, num_items),
                diversity_groups=self.config.diversity_groups if num_items > 1 else 1,
                guidance=self._guidance(prepared.histories, guided_by),
            )

    def _guidance(self, histories: Histories, guided_by: ItemScores | None) -> Guidance | DenseGuidance | None:
        """The dense head as the configuration has it, and what this call adds."""
        strength = self.config.guidance
        if guided_by is None:
            return DenseGuidance(self._leaf_vectors(), strength) if strength else None
        own_BI = guided_by(histories).to(self.device)
        if not strength:
            return Guidance(lambda _: own_BI, 1.0)
        vectors = self.catalogue_vectors()
        return Guidance(lambda query: own_BI + strength * fused_scores(query, vectors, histories, None, {}), 1.0)

    def _graphed(self, width: int) -> GraphedSearch:
        searches = self._graphed_searches
        if width not in searches:
            if len(searches) == MOST_WIDTHS:
                del searches[next(iter(searches))]  # used longest ago
            users = max(1, self.config.rows_per_batch // width)
            searches[width] = GraphedSearch(self.policy, self.search_index, [width], users, recorder=self._recorder)
        searches[width] = searches.pop(width)
        return searches[width]

    @torch.inference_mode()
    def _rank(self, beams: Beams, k: int, rescore: bool, quotas: Quotas | None) -> Pending:
        items, scores = beams.items[..., 0], beams.scores
        if rescore:
            is_broken_B1 = scores.isnan().any(1, keepdim=True)  # such a search kept the wrong items, too
            scores = self.dense_scores(beams.dense_query, items) + self.config.generative_weight * scores
            scores = scores.masked_fill(is_broken_B1, torch.nan).masked_fill(items < 0, -torch.inf)
            # ties go to the lower item_index, so that a result never depends on how users were batched
            by_item = items.argsort(dim=1, stable=True)
            items, scores = items.gather(1, by_item), scores.gather(1, by_item)
            order = sort_key(scores).argsort(dim=1, descending=True, stable=True)
            items, scores = items.gather(1, order), scores.gather(1, order)
        items, scores = within_quotas(items, scores, quotas, k)
        return on_its_way(items, scores, k)

    def dense_scores(self, query_BD: torch.Tensor, items_BN: torch.Tensor) -> torch.Tensor:
        """Dense-head scores of given items, ``[B, N]``; whatever stands at item -1 is to be masked by the caller."""
        vectors_BND = self._vectors()[items_BN + 1]
        return vectors_BND.mul_(query_BD[:, None]).sum(-1)  # a sum per item, whoever else is in the batch

    def catalogue_vectors(self) -> torch.Tensor:
        """Item tower of the whole catalogue, ``[I, D]``, computed once."""
        return self._vectors()[1:]

    @torch.inference_mode()
    def _leaf_vectors(self) -> torch.Tensor:
        """The same in the order of the leaves, as a guided search reads them."""
        if self._vectors_by_leaf is None:
            self._vectors_by_leaf = self.catalogue_vectors()[self.search_index.item_of_leaf]
        return self._vectors_by_leaf

    def _vectors(self) -> torch.Tensor:
        if self._item_vectors is None:
            with torch.inference_mode():
                self._item_vectors = self.policy.item_vectors()
        return self._item_vectors


def _prepared_for(config: DecodeConfig, policy: GenerativeRecommender) -> GenerativeRecommender:
    """The policy in the configured precision."""
    config.check_device(policy.codes.weight.device.type)
    if config.precision == "bfloat16":
        return bfloat16_policy(policy)
    return int8_policy(policy) if config.precision == "int8" else policy

"""How the second stage answers a batch: every item scored, one guided search, candidates of all sources, their order.

Reads histories and compiled rules; the steps of :class:`CandidateSearch`, in order:

1. ``score``     encodes the histories once; scores of every item by the dense head and by every item scorer
2. ``search``    beam search, guided by the weighted sum of these scores or by nothing
3. ``unite``     what the search found and the best items of every other source, under the same rules, each once
4. ``features``  what the ranker looks at
5. ``order``     the ranker's order, cut by the quotas; the dense head's for who says in words what is wanted

The `rank` stage takes steps 1 to 4 on validation rows and fits what is missing; so nothing is gathered in two ways.

Legend: B users, I items, W beams, C candidates, F features, k places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from recsys.contracts.ranking import RankedItems, SourcedItems
from recsys.data.histories import Histories
from recsys.decoding.answers import sort_key, within_quotas
from recsys.decoding.batches import PreparedBatch
from recsys.decoding.beam_search import Beams, search_from
from recsys.decoding.config import DecodeConfig
from recsys.decoding.guide import PrefixGuide
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.rules.item_rules import Quotas
from recsys.decoding.search_index import SearchIndex
from recsys.decoding.second_stage.candidates import (
    Union,
    allowed_items,
    best_within_quotas,
    unite,
)
from recsys.decoding.second_stage.stage import BEAM, DENSE, FUSED, TRANSITIONS, candidate_sources
from recsys.decoding.transfers import on_its_way, replace_rows, rows_of
from recsys.model.generative_recommender import DecodingState, GenerativeRecommender
from recsys.ranker.config import CandidateCounts
from recsys.ranker.features import Candidates, ItemFacts, candidate_features
from recsys.ranker.fitted import FittedRanker
from recsys.ranker.fusion import Fusion
from recsys.ranker.table import FloatArray
from recsys.scorers.item_scorer import WeighedHistories
from recsys.scorers.products import catalogue_scores
from recsys.scorers.scorer_set import ScorerSet

SCORES_HELD: Final = 1 << 26
"""Scores of items held at once (256 MB of float32): a batch has as many users as this allows, at least one."""

MATRICES: Final = 8
"""Matrices of a score per user and item that a batch needs at its peak."""


@dataclass(frozen=True)
class ScoredBatch:
    """A batch of users, encoded, with scores of every item.

    Attributes:
        histories: B users.
        state: Where every search of the batch starts.
        rules: Of the search, whose quotas are those of the whole beam.
        quotas: Of the final list.
        allowed_BI: Which items the rules leave to each user; ``None``: all.
        dense_BI: float32 log-softmax of the dense head over the whole catalogue.
        fused_BI: float32 weighted sum of the dense head and the item scorers.
    """

    histories: Histories
    state: DecodingState
    rules: BatchRules
    quotas: Quotas | None
    allowed_BI: torch.Tensor | None
    dense_BI: torch.Tensor
    fused_BI: torch.Tensor

    def open(self, score_BI: torch.Tensor) -> torch.Tensor:
        """Scores with ``-inf`` for what the rules forbid."""
        return score_BI if self.allowed_BI is None else score_BI.masked_fill(~self.allowed_BI, -torch.inf)


@dataclass(frozen=True)
class Found:
    """What a search found, best first.

    Attributes:
        item_BW: int64 item_index, -1 where there is none.
        score_BW: What the search ordered by.
        path_BW: Log-probability of the path alone; NaN where there is no item.
    """

    item_BW: torch.Tensor
    score_BW: torch.Tensor
    path_BW: torch.Tensor


@dataclass(frozen=True)
class CandidateSearch:
    """Policy, index and item scorers at work.

    Attributes:
        policy: In evaluation mode.
        index: Of its semantic IDs, on its device.
        config: Beam width, precision.
        item_vectors: Gives the item tower of the whole catalogue, ``[I, D]``.
        scorers: Item scorers of the same catalogue.
        fusion: Weights of the sum.
        facts: Of the items.
        counts: Candidates of each source.
    """

    policy: GenerativeRecommender
    index: SearchIndex
    config: DecodeConfig
    item_vectors: Callable[[], torch.Tensor]
    scorers: ScorerSet
    fusion: Fusion
    facts: ItemFacts
    counts: CandidateCounts

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the candidate sources, the beam first."""
        return candidate_sources(self.counts, self.scorers.names)

    def users_per_batch(self, width: int) -> int:
        """How many users are decoded at once: bounded by beams and by scores of the whole catalogue."""
        by_beams = self.config.rows_per_batch // width
        by_scores = SCORES_HELD // (MATRICES * self.scorers.num_items)
        return max(1, min(by_beams, by_scores))

    @torch.inference_mode()
    def score(self, prepared: PreparedBatch) -> ScoredBatch:
        """Encode and score a batch."""
        histories, batch_rules = prepared.histories, prepared.rules
        device = self.policy.codes.weight.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            state = self.policy.start(prepared.batch)
        dense_BI = catalogue_scores(state.dense_query_BD.float(), self.item_vectors()).log_softmax(1)
        return ScoredBatch(
            histories=histories,
            state=state,
            rules=batch_rules,
            quotas=prepared.quotas,
            allowed_BI=allowed_items(batch_rules, self.index, len(histories)),
            dense_BI=dense_BI,
            fused_BI=self._fused(histories, dense_BI),
        )

    def _fused(self, histories: Histories, dense_BI: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the scores; the first weight is the dense head's."""
        first, *others = self.fusion.weights
        total = np.ascontiguousarray((dense_BI * first).cpu().numpy())
        self.scorers.add_fused(histories, dict(zip(self.fusion.names[1:], others, strict=True)), total)
        return torch.from_numpy(total).to(dense_BI.device)

    @torch.inference_mode()
    def search(self, batch: ScoredBatch, width: int, guidance: float) -> Found:
        """Search once; the batch can be searched any number of times."""
        guide = None
        if guidance:
            guide = PrefixGuide.from_item_scores(batch.fused_BI, guidance, self.index, batch.rules)
        state = replace(batch.state, cache=self.policy.decoder.start(), position=0)
        device = self.policy.codes.weight.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            beams: Beams = search_from(self.policy, state, self.index, [width], batch.rules, guide=guide)
        item_BW = beams.items[..., 0]
        return Found(item_BW, beams.scores, beams.log_probs.masked_fill(item_BW < 0, torch.nan))

    def unite(self, batch: ScoredBatch, found: Found, k: int) -> Union:
        """Candidates of all sources; among them is a list of ``k`` within the quotas, wherever there can be one."""
        lists = {BEAM: found.item_BW}
        for source in self.sources[1:]:
            score_BI, count = self._source(batch, source)
            count = max(count, k) if source == DENSE else count
            pool = batch.quotas.of_pool(k) if batch.quotas is not None else None
            lists[source] = best_within_quotas(batch.open(score_BI), count, pool)[0]
        return unite(lists)

    def _source(self, batch: ScoredBatch, source: str) -> tuple[torch.Tensor, int]:
        if source == DENSE:
            return batch.dense_BI, self.counts.dense
        if source == FUSED:
            return batch.fused_BI, self.counts.fused
        scorer = self.scorers.scorers[self.scorers.names.index(TRANSITIONS)]
        scores = np.zeros(tuple(batch.dense_BI.shape), np.float32)
        scorer.add_scaled(WeighedHistories(batch.histories, self.scorers.num_items), 1.0, scores)
        score_BI = torch.from_numpy(scores).to(batch.dense_BI.device)
        # an item that never followed has score 0: it is not found by this source, whatever place is left
        return score_BI.masked_fill(score_BI <= 0, -torch.inf), self.counts.transitions

    def features(self, batch: ScoredBatch, found: Found, union: Union) -> FloatArray:
        """What the ranker looks at, float32 ``[B, C, F]``."""
        place_BC = union.item_BC.clamp(min=0)
        items = union.item_BC.to(torch.int32).cpu().numpy()
        counted = self.scorers.scores_at(batch.histories, items)
        scores = {
            DENSE: batch.dense_BI.gather(1, place_BC).cpu().numpy(),
            **{name: counted[..., place] for place, name in enumerate(self.scorers.names)},
            FUSED: batch.fused_BI.gather(1, place_BC).cpu().numpy(),
        }
        path_BC = union.spread(found.item_BW, found.path_BW, torch.nan)
        candidates = Candidates(
            items=items,
            path=path_BC.float().cpu().numpy(),
            scores=scores,
            found={source: union.found_by(source).cpu().numpy() for source in self.sources},
        )
        return candidate_features(candidates, batch.histories, self.facts)

    def order(self, batch: ScoredBatch, found: Found | None, ranker: FittedRanker, k: int) -> RankedItems:
        """Rank ``k`` items by the ranker, or by the simple order that its guard chose.

        A request that says something gets the order of the dense head, the only one here that reads what is said: item
        scorers, and a ranker that was fitted without sentences, pull such a list back to what it was.

        Args:
            found: ``None`` only where the simple order is served, and nobody asks which source brought an item.
        """
        if found is None:
            return self._as_said(batch, ranked_items(*self.best_by(batch, ranker.served, k), k))
        union = self.unite(batch, found, k)
        if ranker.served in (DENSE, FUSED):
            item_Bk, score_Bk = self.best_by(batch, ranker.served, k)
        else:
            score_BC = torch.from_numpy(ranker.score(self.features(batch, found, union))).to(union.item_BC.device)
            score_BC = score_BC.masked_fill(self._unknown(batch, found, union), torch.nan)
            score_BC = score_BC.masked_fill(union.item_BC < 0, -torch.inf)
            order = sort_key(score_BC).sort(dim=1, descending=True, stable=True).indices
            item_BC, score_BC = union.item_BC.gather(1, order), score_BC.gather(1, order)
            item_Bk, score_Bk = within_quotas(item_BC, score_BC, batch.quotas, k)
        ranked = self._as_said(batch, ranked_items(item_Bk, score_Bk, k))
        shown = torch.from_numpy(ranked.items.astype(np.int64)).to(union.item_BC.device)
        return SourcedItems(ranked.items, ranked.scores, union.bits_at(shown).to(torch.uint8).cpu().numpy())

    def _as_said(self, batch: ScoredBatch, ranked: RankedItems) -> RankedItems:
        """The same lists, but for rows that say something those of the dense head."""
        words = batch.histories.words
        rows = np.flatnonzero((words > 0).any(1)) if words is not None else np.empty(0, np.int64)
        if len(rows):
            k = ranked.items.shape[1]
            replace_rows(ranked, rows, rows_of(ranked_items(*self.best_by(batch, DENSE, k), k), rows))
        return ranked

    def _unknown(self, batch: ScoredBatch, found: Found, union: Union) -> torch.Tensor:
        """Candidates whose score says nothing, bool ``[B, C]``: a ranker may read what is no number as merely missing."""
        place_BC = union.item_BC.clamp(min=0)
        sums_BC = batch.dense_BI.gather(1, place_BC) + batch.fused_BI.gather(1, place_BC)
        return ~sums_BC.isfinite() | found.score_BW.isnan().any(1, keepdim=True)

    def best_by(self, batch: ScoredBatch, name: str, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The exact ``k`` best items of the whole catalogue by the dense head or the fused score, within the quotas."""
        score_BI = batch.dense_BI if name == DENSE else batch.fused_BI
        return best_within_quotas(batch.open(score_BI), k, batch.quotas)


def ranked_items(item_BN: torch.Tensor, score_BN: torch.Tensor, k: int) -> RankedItems:
    """Cut ordered lists to ``k`` places, or fill them up with -1."""
    return on_its_way(item_BN, score_BN, k)()

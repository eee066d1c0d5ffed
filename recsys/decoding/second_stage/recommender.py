"""A recommender whose answer is ordered by a learned second stage, from candidates of several sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

from recsys.contracts.errors import ConfigError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.answers import check_count, within_quotas
from recsys.decoding.batches import PreparedBatch
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import ItemScores, Recommender
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.second_stage.candidate_search import CandidateSearch
from recsys.decoding.second_stage.stage import DENSE, SecondStage, policy_digest
from recsys.decoding.transfers import Pending, on_its_way
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.ranker.config import CandidateCounts
from recsys.ranker.features import ItemFacts
from recsys.ranker.fusion import Fusion
from recsys.runtime import Progress
from recsys.scorers.scorer_set import ScorerSet
from recsys.semantic_ids.versions import SemanticIds

Order = Literal["beam", "guided", "dense", "served"]
"""Lists of one policy: the search by the policy alone, the guided search alone, the dense head's best of the whole
catalogue, and what is served."""

ORDERS: Final[tuple[Order, ...]] = get_args(Order)


class RankedRecommender(Recommender):
    """Answer histories with items in the order of a second stage.

    Sessions are generated as without one, and so are items whose caller asks for the order of the dense head or of the
    policy.

    Args:
        policy, semantic_ids, config, index: As of :class:`~recsys.decoding.recommender.Recommender`.
        second_stage: Fitted for this policy.

    Raises:
        ArtifactError: The policy was trained with other semantic IDs, or the second stage was fitted for another policy.
        ConfigError: The configured precision cannot be had on the policy's device, or the search is recorded as a graph.
    """

    def __init__(
        self,
        policy: GenerativeRecommender,
        semantic_ids: SemanticIds,
        config: DecodeConfig,
        second_stage: SecondStage,
        index: PrefixIndex | None = None,
    ) -> None:
        _refuse_graph(config)
        digest = policy_digest(policy)  # of the weights as they were trained, whatever precision they are prepared for
        super().__init__(policy, semantic_ids, config, index)
        second_stage.check(semantic_ids.digest, digest, self.index.num_items)
        self.second_stage = second_stage
        parts = (second_stage.scorers, second_stage.fusion, second_stage.facts, second_stage.counts)
        self._candidates = candidate_search(self, *parts)

    @property
    def candidates(self) -> CandidateSearch:
        """The steps of the second stage, one by one."""
        return self._candidates

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
            rescore: Order the beam's items by the dense head (true) or by the search (false), without the second stage;
                ``None`` takes the second stage.
            guided_by: Guides a search without the second stage, whose own search is guided by what it was fitted with.
        """
        if rescore is not None:
            return super().rank(histories, k, rules, rescore=rescore, progress=progress, guided_by=guided_by)
        assert guided_by is None, "the second stage guides its search itself"
        check_count(k, "k")
        return self._orders(histories, k, ("served",), rules, progress, sourced=False)[0]

    def orders(
        self,
        histories: Histories,
        k: int,
        asked: Sequence[Order],
        *,
        exclude_seen: bool | None = None,
        progress: Progress | None = None,
    ) -> list[RankedItems]:
        """Encode once and rank once per order that is asked for.

        Returns:
            Rankings in the order of ``asked``; the one that is served is a
            :class:`~recsys.contracts.ranking.SourcedItems`.

        Raises:
            ConfigError: There is no such order.
        """
        check_count(k, "k")
        unknown = [name for name in asked if name not in ORDERS]
        if unknown:
            raise ConfigError(f"order '{unknown[0]}' does not exist; there are {', '.join(ORDERS)}")
        rules = self.compile(None, len(histories), exclude_seen)
        return self._orders(histories, k, asked, rules, progress, sourced=True)

    def _orders(
        self,
        histories: Histories,
        k: int,
        asked: Sequence[Order],
        rules: CompiledRules,
        progress: Progress | None,
        *,
        sourced: bool,
    ) -> list[RankedItems]:
        """As :meth:`orders`; without ``sourced`` nothing is searched that no order needs."""
        search, stage = self._candidates, self.second_stage
        guidance = stage.fusion.guidance
        guided = "guided" in asked or ("served" in asked and (sourced or stage.searches))

        def answer(prepared: PreparedBatch, width: int) -> list[Pending]:
            batch = search.score(prepared)
            strengths = {0.0 for name in asked if name == "beam"} | ({guidance} if guided else set())
            found = {strength: search.search(batch, width, strength) for strength in strengths}
            lists: list[Pending] = []
            for name in asked:
                if name == "served":
                    ranked = search.order(batch, found.get(guidance), stage.ranker, k)
                    lists.append(lambda ranked=ranked: ranked)  # type: ignore[misc]
                elif name == DENSE:
                    lists.append(on_its_way(*search.best_by(batch, DENSE, k), k))
                else:
                    beams = found[0.0 if name == "beam" else guidance]
                    lists.append(on_its_way(*within_quotas(beams.item_BW, beams.score_BW, batch.quotas, k), k))
            return lists

        per_batch = search.users_per_batch(max(self.config.beam_width, k))
        return self._in_batches(histories, k, len(asked), answer, rules, per_batch, progress)


def candidate_search(
    recommender: Recommender, scorers: ScorerSet, fusion: Fusion, facts: ItemFacts, counts: CandidateCounts
) -> CandidateSearch:
    """A recommender's policy at work with item scorers; the `rank` stage fits on what it gathers.

    Raises:
        ConfigError: The search is recorded as a graph, which takes no scores of items.
    """
    _refuse_graph(recommender.config)
    return CandidateSearch(
        policy=recommender.policy,
        index=recommender.search_index,
        config=recommender.config,
        item_vectors=recommender.catalogue_vectors,
        scorers=scorers,
        fusion=fusion,
        facts=facts,
        counts=counts,
    )


def _refuse_graph(config: DecodeConfig) -> None:
    if config.cuda_graph:
        raise ConfigError(
            "decode.cuda_graph records a search without item scores, and the second stage guides it by them; set "
            "decode.cuda_graph: false, or rank.method: none"
        )

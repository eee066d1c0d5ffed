"""A second stage written by hand, with weights large enough to have opinions: nothing is fitted but counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recsys.contracts.dataset import Dataset
from recsys.decoding.second_stage.stage import DENSE, FUSED, SecondStage, candidate_sources, policy_digest
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.ranker.config import CandidateCounts
from recsys.ranker.features import ItemFacts, feature_names, imputed_values
from recsys.ranker.fitted import FittedRanker
from recsys.ranker.fusion import Fusion
from recsys.ranker.guard import RankDecision, RowCounts
from recsys.ranker.linear import LinearRanker
from recsys.scorers.config import ScorersConfig
from recsys.scorers.scorer_set import ScorerSet
from recsys.semantic_ids.versions import SemanticIds


def write_second_stage(folder: Path, prepared: Dataset, policy: GenerativeRecommender, ids: SemanticIds) -> SecondStage:
    """Write one whose learned order is linear, with weights drawn from a fixed seed."""
    config = ScorersConfig(names=("transitions", "popularity"))
    stage = second_stage_of(prepared, policy, ids, config, CandidateCounts(dense=4, fused=4, transitions=3), {})
    stage.save(folder)
    return stage


def second_stage_of(
    prepared: Dataset,
    policy: GenerativeRecommender,
    ids: SemanticIds,
    config: ScorersConfig,
    counts: CandidateCounts,
    vectors: Mapping[str, npt.NDArray[np.float32]],
) -> SecondStage:
    """Count the scorers that ``config`` names, and draw the weights of a linear order."""
    scorers = ScorerSet.fit(prepared, config, vectors, "train", catalogue=ids.digest)
    names = feature_names([DENSE, *scorers.names, FUSED], candidate_sources(counts, scorers.names))
    ones = np.ones(len(names), np.float32)
    weight = np.random.default_rng(4).normal(size=len(names)).astype(np.float32)
    learned = LinearRanker(names, weight, 0 * ones, ones, imputed_values(names), 1e-3)
    rows = RowCounts(used=0, fit=0, held_out=0, fit_without_target=0, held_out_without_target=0)
    decision = RankDecision(
        served="linear",
        learned="linear",
        confidence=0.95,
        rows=rows,
        tried=(),
        comparisons=(),
        sentence="written by hand",
    )
    return SecondStage(
        scorers=scorers,
        fusion=Fusion((DENSE, *scorers.names), (1.0, *[0.3] * len(scorers.names)), 1.5),
        facts=ItemFacts.from_dataset(prepared),
        ranker=FittedRanker("linear", names, learned, decision),
        counts=counts,
        semantic_id_digest=ids.digest,
        policy_digest=policy_digest(policy),
    )

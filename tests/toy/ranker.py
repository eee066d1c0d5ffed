"""A second stage written by hand, with weights large enough to have opinions: nothing is fitted but counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
    scorers = ScorerSet.fit(prepared, config, {}, "train", catalogue=ids.digest)
    counts = CandidateCounts(dense=4, fused=4, transitions=3)
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
    stage = SecondStage(
        scorers=scorers,
        fusion=Fusion((DENSE, *scorers.names), (1.0, 0.4, 0.2), 1.5),
        facts=ItemFacts.from_dataset(prepared),
        ranker=FittedRanker("linear", names, learned, decision),
        counts=counts,
        semantic_id_digest=ids.digest,
        policy_digest=policy_digest(policy),
    )
    stage.save(folder)
    return stage

"""A second stage fitted on the ring, where the next item is the last one plus one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.second_stage.fit import fit_second_stage
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.decoding.second_stage.stage import SecondStage
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.ranker.config import CandidateCounts, RankConfig
from recsys.runtime import SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.fit import build_policy
from tests.decoding.test_beam_search import MODEL
from tests.toy.dataset import ring_prepared, toy_ids

NUM_ITEMS = 24
CODES = np.stack([np.arange(NUM_ITEMS) * 5 % NUM_ITEMS // 6, np.arange(NUM_ITEMS) * 5 % 6], 1)
DECODE = DecodeConfig(beam_width=6)
COUNTS = CandidateCounts(dense=5, fused=4, transitions=3)
SCORERS = ("transitions", "item_knn", "similar", "popularity")
RANK = RankConfig(method="linear", scorers=SCORERS, candidates=COUNTS, guidance=1.5, resamples=100)


@dataclass(frozen=True)
class Ring:
    """The data, an untrained policy, and what was fitted for it."""

    prepared: Dataset
    ids: SemanticIds
    policy: GenerativeRecommender
    stage: SecondStage
    summary: dict[str, object]

    def recommender(self, **changes: object) -> RankedRecommender:
        """With another decode configuration."""
        return RankedRecommender(self.policy, self.ids, DECODE.model_copy(update=changes), self.stage)

    @property
    def everyone(self) -> Histories:
        """Whole histories of all users."""
        return Histories.from_targets(self.prepared.history, self.prepared.all_users())


@pytest.fixture(scope="session", params=["linear", "fused"])
def ring(fitted: Ring, request: pytest.FixtureRequest) -> Ring:
    """The same fit with the learned order, and with a simple one that needs no search."""
    return replace(fitted, stage=replace(fitted.stage, ranker=replace(fitted.stage.ranker, served=request.param)))


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Ring:
    """The stage as it was fitted."""
    prepared = ring_prepared(tmp_path_factory.mktemp("ring"), users=200, items=NUM_ITEMS)
    ids = toy_ids(CODES, (4, 6))
    torch.manual_seed(1)
    policy = build_policy(prepared, ids, ModelConfig(**MODEL), None).eval()
    vectors = {"fused": np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32)}
    stage, summary = fit_second_stage(prepared, policy, ids, DECODE, RANK, vectors, 3, SilentProgress())
    return Ring(prepared, ids, policy, stage, summary)

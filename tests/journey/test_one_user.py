"""User 7 and their five events, followed from the raw rows to the recommended item; ``make journey`` prints every stage.

The world has an answer one can see: three topics (cake, bike, moon) with eight numbered videos each, and every user
watches their topic in order, round and round. User n likes topic ``n mod 3`` and starts at video ``n div 3 mod 8``, so
user 7 starts at bike 2 and has watched bike 2, 3, 4, 5, 6; the others have watched all eight. What comes next is bike 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pipelines.config import RunConfig
from pipelines.engine.runner import Runner
from pipelines.stages import stages_of
from recsys.contracts.columns import TEST, TRAIN, VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.decoding.beam_search import beam_search
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import Recommender
from recsys.decoding.search_index import SearchIndex
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.three_topics import (
    EVENTS,
    MINUTE,
    NEXT,
    NOON,
    TOPICS,
    USER,
    USERS,
    VIDEOS,
    WATCHED,
    recipe,
    write_raw,
)


@dataclass(frozen=True)
class Journey:
    """The artefacts of all stages, and what most tests look at."""

    raw: Path
    artifacts: dict[str, Artifact]

    def path(self, stage: str) -> Path:
        return self.artifacts[stage].path

    @property
    def prepared(self) -> Dataset:
        return Dataset.open(self.path("prepare"))

    @property
    def titles(self) -> list[str]:
        """item_id by item_index."""
        return self.prepared.items["item_id"].to_list()

    @property
    def user_index(self) -> int:
        return self.prepared.users["user_id"].to_list().index(USER)

    @property
    def semantic_ids(self) -> SemanticIds:
        return SemanticIds.load(self.path("tokenize"))

    @property
    def policy(self) -> GenerativeRecommender:
        return load_policy(self.path("train") / "model", self.semantic_ids.digest)

    @property
    def question(self) -> Targets:
        """User 7's row of the test split."""
        targets = self.prepared.targets(TEST)
        return targets.take(np.flatnonzero(targets.user_index == self.user_index))


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    root = tmp_path_factory.mktemp("user7")
    config = RunConfig.model_validate(recipe(write_raw(root / "raw"), root / "run"))
    runner = Runner(config, config.seed, ArtifactStore(root / "run" / "artifacts"), SilentProgress())
    runner.run_all(stages_of(config))
    return Journey(root / "raw", {name: outcome.artifact for name, outcome in runner.outcomes.items()})


def show(stage: str, *lines: object) -> None:
    """Print one stop of the journey; pytest keeps it to itself unless it runs with ``-s``."""
    print(f"\n── {stage} " + "─" * (80 - len(stage)), *lines, sep="\n")


def test_01_raw_rows(journey: Journey) -> None:
    """Five events and a repeat, in no order."""
    log = pl.read_parquet(journey.raw / "interactions.parquet")
    mine = log.filter(pl.col("user_id") == USER)
    show("raw rows", mine)
    assert sorted(mine["item_id"]) == sorted([*WATCHED, "bike 3"])
    assert len(log) == VIDEOS * (USERS - 1) + EVENTS + 1


def test_02_events(journey: Journey) -> None:
    """In order of time, the repeat merged, the last two kept for validation and test; 30 s of 40 s is 0.75."""
    events = journey.prepared.events.filter(pl.col("user_index") == journey.user_index)
    merged = pl.read_parquet(journey.path("prepare") / "merged.parquet")
    show("events", events.select("user_index", "item_index", "timestamp", "split", "watch_ratio"), "merged:", merged)
    assert [journey.titles[item] for item in events["item_index"]] == WATCHED
    assert events["split"].to_list() == [TRAIN, TRAIN, TRAIN, VALID, TEST]
    assert events["timestamp"].to_list() == [(NOON + 10 * MINUTE * step) * 1_000_000 for step in range(EVENTS)]
    assert events["watch_ratio"].to_list() == [0.75] * EVENTS
    assert merged.select("user_id", "item_id").rows() == [(USER, "bike 3")]


def test_03_histories(journey: Journey) -> None:
    """Rows of one long array: five are theirs, three to train on.

    Ten minutes are 600 s and ``2 + floor(log2 600) = 11``; a watch ratio of 0.75 is bucket 7; ``finished`` alone is the
    behaviour code ``1 + 2**0 = 2``.
    """
    history, user = journey.prepared.history, journey.user_index
    start, end = int(history.offsets[user]), int(history.offsets[user + 1])
    lines = [
        f"{name:10} {getattr(history, name)[start:end].tolist()}" for name in ("item", "gap", "watch", "behaviour")
    ]
    show("histories", f"rows {start} to {end} of {len(history.item)}", *lines)
    assert (start, end) == (VIDEOS * user, VIDEOS * user + EVENTS)
    assert (history.train_end[user] - start, history.valid_end[user] - start) == (3, 4)
    assert [journey.titles[item] for item in history.item[start:end]] == WATCHED
    assert history.gap[start:end].tolist() == [0, 11, 11, 11, 11]
    assert history.watch[start:end].tolist() == [7] * EVENTS
    assert history.behaviour[start:end].tolist() == [2] * EVENTS


def test_04_item_embeddings(journey: Journey) -> None:
    """The seven videos nearest to bike 0 are the other seven about bikes."""
    fused = np.load(journey.path("embed") / "fused.npy")
    unit = fused / np.linalg.norm(fused, axis=1, keepdims=True)
    similarity = unit @ unit[journey.titles.index("bike 0")]
    nearest = np.argsort(-similarity)[:VIDEOS]
    show("item embeddings", *(f"{journey.titles[item]}  cosine {similarity[item]:.2f}" for item in nearest))
    assert {journey.titles[item] for item in nearest} == {f"bike {number}" for number in range(VIDEOS)}


def test_05_semantic_ids(journey: Journey) -> None:
    """Three codes on the first level, three topics: the first code is the topic, and no two videos share all codes."""
    ids = journey.semantic_ids
    show("semantic IDs", *(f"{title}  {sid}" for title, sid in zip(journey.titles, ids.sids(), strict=True)))
    first_codes = {
        topic: {int(ids.codes[journey.titles.index(f"{topic} {n}"), 0]) for n in range(VIDEOS)} for topic in TOPICS
    }
    assert [len(codes) for codes in first_codes.values()] == [1, 1, 1]
    assert len(set.union(*first_codes.values())) == len(TOPICS)
    assert len(set(ids.sids())) == len(TOPICS) * VIDEOS


def test_06_batch(journey: Journey) -> None:
    """The encoder reads table rows, which are item_index + 1: four events, because the fifth is the question."""
    batch = collate_histories(Histories.from_targets(journey.prepared.history, journey.question), max_history=8)
    show("batch", f"item_BH {batch.item_BH.tolist()}", f"gap_BH  {batch.gap_BH.tolist()}")
    assert [journey.titles[row - 1] for row in batch.item_BH[0].tolist()] == WATCHED[:4]
    assert batch.lengths_B.tolist() == [4]
    assert [journey.titles[item] for item in journey.question.items] == [WATCHED[4]]


def test_07_policy(journey: Journey) -> None:
    """The first code of the next video is the bikes' code, almost surely; probabilities of the codes sum to one."""
    policy, batch = (
        journey.policy,
        collate_histories(Histories.from_targets(journey.prepared.history, journey.question), 8),
    )
    with torch.inference_mode():
        log_probs = policy.next_codes(policy.start(batch), None)
    assert log_probs is not None
    probabilities = log_probs[0, 0].exp()
    show("policy", f"P(first code) = {[round(p, 3) for p in probabilities.tolist()]}")
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(probabilities[journey.semantic_ids.codes[journey.titles.index("bike 0"), 0]]) > 0.9


def test_08_beam_search(journey: Journey) -> None:
    """At full width the beams are all 24 videos in the order of their exact probability; bike 6 comes first."""
    policy, ids = journey.policy, journey.semantic_ids
    batch = collate_histories(Histories.from_targets(journey.prepared.history, journey.question), 8)
    index = SearchIndex.from_index(PrefixIndex.build(ids.codes, ids.level_sizes))
    beams = beam_search(policy, batch, index, width=ids.num_items)
    found = beams.items[0, :, 0].tolist()
    scores = [
        f"{journey.titles[i]}  log-probability {s:.2f}" for i, s in zip(found, beams.scores[0].tolist(), strict=True)
    ]
    show("beam search", *scores[:6], "…")
    every_item = torch.arange(1, ids.num_items + 1).view(1, ids.num_items, 1)
    visible = batch.lengths_B[:, None].expand(-1, ids.num_items).contiguous()
    with torch.inference_mode():
        exact = policy.log_prob(TrainingBatch(batch, every_item, visible))[0, :, 0]
    assert torch.allclose(beams.scores[0], exact[beams.items[0, :, 0]], atol=1e-4)
    assert sorted(found) == list(range(ids.num_items))
    assert beams.scores[0].tolist() == sorted(beams.scores[0].tolist(), reverse=True)
    assert journey.titles[found[0]] == WATCHED[4]


def test_09_metrics(journey: Journey) -> None:
    """Rank r gives ``1 / log2(r + 1)``; the file of per-user results holds the number that one computes from their list."""
    recommender = Recommender(journey.policy, journey.semantic_ids, DecodeConfig(beam_width=24))
    answer = recommender.recommend(Histories.from_targets(journey.prepared.history, journey.question), 5)
    listed = [journey.titles[item] for item in answer.items[0]]
    rank = listed.index(WATCHED[4]) + 1
    results = pl.read_parquet(journey.path("evaluate") / "per_user.parquet").filter(pl.col("user_id") == USER)
    show("metrics", f"listed {listed}, wanted {WATCHED[4]}", results.select("system", "hr@1", "hr@5", "ndcg@5"))
    served = results.filter(pl.col("system") == "generative (served)").row(0, named=True)
    assert row_metrics(answer, journey.question, [5])["ndcg@5"][0] == pytest.approx(1 / math.log2(rank + 1))
    assert served["ndcg@5"] == pytest.approx(1 / math.log2(rank + 1))
    assert (rank, served["hr@1"]) == (1, 1.0)
    assert not set(listed) & set(WATCHED[:4])


def test_10_candidates(journey: Journey) -> None:
    """Served from the bundle with all five events as history: bike 7, the next in their order."""
    rows = pl.read_parquet(journey.path("recommend") / "part-*.parquet")
    mine = rows.filter(pl.col("user_id") == USER)
    show("candidates", mine.select("user_id", "rank", "item_id", "score", "model_name", "model_version"))
    assert mine["rank"].to_list() == [1, 2, 3]
    assert mine["item_id"][0] == NEXT
    assert not set(mine["item_id"]) & set(WATCHED)
    assert rows.group_by("user_id").len()["len"].unique().to_list() == [3]
    assert rows["user_id"].n_unique() == USERS
    assert rows["semantic_id_digest"].unique().to_list() == [journey.semantic_ids.digest]

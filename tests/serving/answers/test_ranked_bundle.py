"""A bundle with a ranker: one answer from every entrance, the options that go without it, and what does not belong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.decoding.second_stage.stage import SecondStage
from recsys.model.checkpoint import load_policy
from recsys.runtime import SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.config import AnswerOptions, RecommendConfig
from serving.export.export import BundleSources, export_bundle
from serving.export.parity import check_parity
from serving.inputs.user_histories import PreparedUsers
from tests.serving.conftest import frame_of, sealed
from tests.toy.ranker import write_second_stage

DECODE = DecodeConfig(beam_width=6)


@pytest.fixture(scope="module")
def ranked_sources(sources: BundleSources, tmp_path_factory: pytest.TempPathFactory) -> BundleSources:
    folder = tmp_path_factory.mktemp("ranker") / "ranker"
    ids = SemanticIds.load(sources.semantic_ids)
    write_second_stage(folder, Dataset.open(sources.prepared), load_policy(sources.model), ids)
    return replace(sources, digests={**sources.digests, "rank": "k" * 64}, ranker=folder)


@pytest.fixture(scope="module")
def ranked_bundle(ranked_sources: BundleSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "ranked"
    export_bundle(ranked_sources, "toy", DECODE, folder)
    return folder


@pytest.fixture(scope="module")
def scorer(ranked_bundle: Path) -> Scorer:
    return Scorer.open(ranked_bundle)


def test_batch_job_frame_and_evaluation_give_one_answer(
    scorer: Scorer, ranked_bundle: Path, ranked_sources: BundleSources, item_ids: list[int], tmp_path: Path
) -> None:
    prepared = Dataset.open(ranked_sources.prepared)
    users = PreparedUsers(ranked_sources.prepared, "d" * 64)
    by_frame = scorer.score_frame(frame_of(item_ids), 5)
    for size in (1, 2, 5):
        folder = tmp_path / str(size)
        write_candidates(ranked_bundle, users, RecommendConfig(k=5, users_per_shard=size), folder, SilentProgress())
        rows = pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet")))
        assert rows.select("user_id", "item_id", "rank").equals(by_frame.select("user_id", "item_id", "rank"))
        assert rows["score"].equals(by_frame["score"])  # to the last bit, whatever the batch
    ids = SemanticIds.load(ranked_sources.semantic_ids)
    assert ranked_sources.ranker is not None
    stage = SecondStage.load(ranked_sources.ranker)
    recommender = RankedRecommender(load_policy(ranked_sources.model), ids, DECODE, stage)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    (served,) = recommender.orders(histories, 5, ["served"])
    assert np.array(item_ids)[served.items].ravel().tolist() == by_frame["item_id"].to_list()
    assert check_parity(ranked_bundle, ranked_sources, prepared, DECODE, 5, k=5) == {"parity_users": 5}


def test_rescore_and_steering_go_without_the_ranker(
    scorer: Scorer, sources: BundleSources, item_ids: list[int], tmp_path: Path
) -> None:
    """The answers are those of the bundle without a ranker; the ranked one is another."""
    export_bundle(sources, "toy", DECODE, tmp_path / "plain")
    plain = Scorer.open(tmp_path / "plain")
    frame = frame_of(item_ids)
    for rescore in (True, False):
        options = AnswerOptions(rescore=rescore)
        assert scorer.score_frame(frame, 5, options=options).equals(plain.score_frame(frame, 5, options=options))
    assert scorer.score_frame(frame, 5)["item_id"].to_list() != plain.score_frame(frame, 5)["item_id"].to_list()


def test_a_list_as_long_as_the_catalogue_is_short_by_what_was_seen_alone(scorer: Scorer, item_ids: list[int]) -> None:
    """Six beams, four of each other source, twelve items: u0 has seen three, and nine are left."""
    rows = scorer.score_frame(frame_of(item_ids), 12)
    assert len(rows.filter(pl.col("user_id") == "u0")) == 9
    assert len(rows.filter(pl.col("user_id") == "u4")) == 12


def test_a_ranker_that_the_digests_do_not_name_is_refused(ranked_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(ranked_bundle, folder)
    info = json.loads((folder / "bundle.json").read_text())
    del info["digests"]["rank"]
    (folder / "bundle.json").write_text(json.dumps(info))
    with pytest.raises(ArtifactError, match="names no ranker in its digests and holds one in 'ranker'; export again"):
        Scorer.open(sealed(folder))
    shutil.rmtree(folder / "ranker")
    info["digests"]["rank"] = "k" * 64
    (folder / "bundle.json").write_text(json.dumps(info))
    with pytest.raises(ArtifactError, match="names a ranker in its digests and holds none in 'ranker'"):
        Scorer.open(sealed(folder))


def test_a_bundle_of_the_format_before_is_refused(ranked_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(ranked_bundle, folder)
    info = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**info, "format": 1}))
    with pytest.raises(ArtifactError, match="has bundle format 1, this code reads 2; export the model again"):
        Scorer.open(sealed(folder))


def test_parity_sees_another_ranker(ranked_bundle: Path, ranked_sources: BundleSources, tmp_path: Path) -> None:
    """The same stage with the opposite weights: the bundle answers otherwise, and is not published."""
    assert ranked_sources.ranker is not None
    stage = SecondStage.load(ranked_sources.ranker)
    learned = stage.ranker.learned
    assert learned is not None
    other = replace(learned, weight=-learned.weight)  # type: ignore[type-var, union-attr]
    replace(stage, ranker=replace(stage.ranker, learned=other)).save(tmp_path / "ranker")
    prepared = Dataset.open(ranked_sources.prepared)
    with pytest.raises(ArtifactError, match=r"answers user .*; not published"):
        check_parity(ranked_bundle, replace(ranked_sources, ranker=tmp_path / "ranker"), prepared, DECODE, 5, k=5)

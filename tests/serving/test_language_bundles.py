"""A language policy in a bundle: it answers as the policy does, alone, in the batch job, and names what it needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.language_model.base import from_shape
from recsys.model.checkpoint import load_policy, save_policy
from recsys.model.config import ModelConfig
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.fit import build_policy
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.config import RecommendConfig
from serving.export.export import BundleSources, export_bundle
from serving.export.parity import check_parity
from serving.inputs.user_histories import PreparedUsers
from serving.registry.requirements import language_packages, requirements
from tests.serving.conftest import HISTORIES, frame_of, write_prepared, write_semantic_ids
from tests.toy.language_model import SHAPE

DECODE = DecodeConfig(beam_width=12)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    from_shape(SHAPE, 0.3).model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def sources_of(root: Path, item_ids: list[int], **settings: object) -> BundleSources:
    """Data, semantic IDs and an untrained policy with titles in its histories."""
    prepared = write_prepared(root / "prepared", item_ids, HISTORIES)
    (root / "ids").mkdir()
    semantic_ids = write_semantic_ids(root / "ids", item_ids)
    torch.manual_seed(3)
    values = {"backbone": "llm", "max_history": 6, "init_std": 0.5, "features": ("item", "codes", "behaviour")}
    model = ModelConfig.model_validate({**values, "language_model": {"titles": True, "title_tokens": 5, **settings}})
    save_policy(root / "model", build_policy(prepared, semantic_ids, model, None))
    return BundleSources(root / "prepared", root / "ids", root / "model", {"data": "d" * 64, "train": "t" * 64})


@pytest.mark.parametrize("kind", ["inside", "reference"])
def test_a_bundle_answers_as_its_policy(tmp_path: Path, item_ids: list[int], base: Path, kind: str) -> None:
    settings: dict[str, object] = {"shape": SHAPE}
    if kind == "reference":
        pytest.importorskip("peft")
        settings = {"source": str(base), "tune": "lora", "keep_base": "reference"}
    sources = sources_of(tmp_path, item_ids, **settings)
    bundle = tmp_path / "bundle"
    export_bundle(sources, "toy", DECODE, bundle)
    prepared = write_prepared(tmp_path / "again", item_ids, HISTORIES)
    assert check_parity(bundle, sources, prepared, DECODE, 5, k=5) == {"parity_users": 5}

    answers = Scorer.open(bundle).score_frame(frame_of(item_ids), 4)
    semantic_ids = SemanticIds.load(sources.semantic_ids)
    recommender = Recommender(load_policy(sources.model, semantic_ids.digest), semantic_ids, DECODE)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    expected = recommender.recommend(histories, 4, exclude_seen=True)
    assert answers["item_id"].to_list() == [item_ids[item] for item in expected.items.flatten()]

    counts = write_candidates(
        bundle,
        PreparedUsers(sources.prepared, "d" * 64),
        RecommendConfig(k=4, users_per_shard=2),
        tmp_path / "job",
        PlainProgress(),
    )
    assert counts["users"] == len(HISTORIES)
    rows = pl.concat(pl.read_parquet(path) for path in sorted((tmp_path / "job").glob("part-*.parquet")))
    np.testing.assert_allclose(rows["score"].to_numpy(), expected.scores.flatten(), rtol=1e-4)


def test_a_registered_model_names_the_libraries_of_its_language_model(
    tmp_path: Path, item_ids: list[int], base: Path, bundle: Path
) -> None:
    pytest.importorskip("peft")
    export_bundle(sources_of(tmp_path, item_ids, source=str(base), tune="lora"), "toy", DECODE, tmp_path / "bundle")
    assert language_packages(bundle) == ()
    assert language_packages(tmp_path / "bundle") == ("transformers", "peft")
    named = [line.partition("==")[0] for line in requirements("gpu", ("transformers", "peft"))]
    assert named[-3:] == ["transformers", "peft", "fbgemm-gpu"]


def test_a_base_in_a_folder_is_registered_where_nothing_reads_gguf(
    tmp_path: Path, item_ids: list[int], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is listed is pinned as installed, so a package that is not there ended the registration."""
    pytest.importorskip("peft")
    sources_of(tmp_path, item_ids, source=str(base), tune="lora", keep_base="reference")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert language_packages(tmp_path) == ("transformers", "peft")
    installed = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is not None]
    assert language_packages(tmp_path) == ("transformers", "peft", *installed)

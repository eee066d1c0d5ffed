"""The bundle answers like the policy, obeys its rules, and cannot be opened when it is damaged or mixed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, DataError
from recsys.decoding.config import DecodeConfig
from recsys.decoding.rules.item_rules import ItemRules
from recsys.runtime import PlainProgress
from serving.answers.frame import answer_frame
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.config import RecommendConfig
from serving.export.export import BundleSources, export_bundle
from serving.export.parity import check_parity
from serving.inputs.user_histories import MappedUsers, PreparedUsers
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import HISTORIES, frame_of, sealed, write_prepared, write_semantic_ids


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return Scorer.open(bundle)


def test_every_user_gets_k_legal_unseen_items(scorer: Scorer, item_ids: list[int]) -> None:
    rows = scorer.score_frame(frame_of(item_ids), 5)
    assert rows["user_id"].unique(maintain_order=True).to_list() == ["u0", "u1", "u2", "u3", "u4"]
    assert rows["item_id"].dtype == pl.Int64
    assert set(rows["item_id"]) <= set(item_ids)
    for user, history in enumerate(HISTORIES):
        own = rows.filter(pl.col("user_id") == f"u{user}")
        assert own["rank"].to_list() == [1, 2, 3, 4, 5]
        assert own["score"].is_sorted(descending=True)
        assert not set(own["item_id"]) & {item_ids[item] for item in history}


def test_rules_are_obeyed_and_scarcity_gives_fewer_rows(scorer: Scorer, item_ids: list[int]) -> None:
    """u0 has seen items 0, 1, 2; of the allowed 2, 3, 4 with 4 denied only item 3 is left."""
    rules = ItemRules(
        allow=scorer.catalogue.mask(pl.Series(item_ids[2:5])), deny=scorer.catalogue.mask(pl.Series([item_ids[4]]))
    )
    rows = scorer.score_frame(frame_of(item_ids)[:1], 10, rules)
    assert rows["item_id"].to_list() == [item_ids[3]]


def test_frame_and_prepared_data_give_the_same_answer(
    scorer: Scorer, sources: BundleSources, item_ids: list[int]
) -> None:
    users = PreparedUsers(sources.prepared, "d" * 64)
    mapped = users.shard(0, len(users), scorer.catalogue)
    by_index = answer_frame(scorer.answer(scorer.request(MappedUsers(mapped), 6)), scorer.catalogue.item_ids)
    by_id = scorer.score_frame(frame_of(item_ids), 6)
    assert by_index.drop("score").equals(by_id.drop("score"))
    np.testing.assert_allclose(by_index["score"].to_numpy(), by_id["score"].to_numpy(), rtol=1e-5)


def test_data_of_another_day_are_matched_by_id(scorer: Scorer, item_ids: list[int], tmp_path: Path) -> None:
    """Tomorrow's catalogue lists the items backwards and one more: indices differ, ids and so answers do not."""
    backwards = [*reversed(item_ids), 5000]
    index = {item: place for place, item in enumerate(backwards)}
    histories = [[index[item_ids[item]] for item in history] for history in HISTORIES]
    histories[2].append(index[5000])  # the model does not know this item
    write_prepared(tmp_path / "tomorrow", backwards, histories)
    users = PreparedUsers(tmp_path / "tomorrow", "another day")
    mapped = users.shard(0, len(users), scorer.catalogue)
    assert mapped.num_unknown.tolist() == [0, 0, 1, 0, 0]
    rows = answer_frame(scorer.answer(scorer.request(users, 6)), scorer.catalogue.item_ids)
    assert rows.drop("score", "num_unknown_items").equals(
        scorer.score_frame(frame_of(item_ids), 6).drop("score", "num_unknown_items")
    )


def test_other_signals_are_refused(scorer: Scorer, item_ids: list[int], tmp_path: Path) -> None:
    write_prepared(tmp_path / "p", item_ids, HISTORIES)
    spec = tmp_path / "p" / "dataset.json"
    spec.write_text(spec.read_text().replace('"like"', '"follow"'))
    users = PreparedUsers(tmp_path / "p", "another day")
    with pytest.raises(DataError, match=r"trained with the signals \['like'\], these data declare \['follow'\]"):
        users.shard(0, 1, scorer.catalogue)


def test_unknown_items_are_left_out_and_counted(scorer: Scorer, caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"user_id": ["new"], "item_ids": [[1, 2, 3]]})
    rows = scorer.score_frame(frame, 3)
    assert rows["num_unknown_items"].to_list() == [3, 3, 3]
    assert "3 events of 1 users" in caplog.text


def test_exported_equals_trained(bundle: Path, sources: BundleSources) -> None:
    prepared = Dataset.open(sources.prepared)
    assert check_parity(bundle, sources, prepared, DecodeConfig(beam_width=12), num_users=5)["parity_users"] == 5


def test_parity_notices_another_model(bundle: Path, sources: BundleSources, tmp_path: Path) -> None:
    from recsys.model.checkpoint import load_policy, save_policy

    policy = load_policy(sources.model)
    policy.dense_query.weight.data.neg_()
    save_policy(tmp_path / "model", policy)
    changed = replace(sources, model=tmp_path / "model")
    with pytest.raises(ArtifactError, match="of 5 users differ"):
        check_parity(bundle, changed, Dataset.open(sources.prepared), DecodeConfig(beam_width=12), num_users=5)


def test_a_model_with_other_semantic_ids_is_refused(
    sources: BundleSources, item_ids: list[int], tmp_path: Path
) -> None:
    (tmp_path / "ids").mkdir()
    write_semantic_ids(tmp_path / "ids", item_ids, order=list(reversed(range(len(item_ids)))))
    mixed = replace(sources, semantic_ids=tmp_path / "ids")
    with pytest.raises(ArtifactError, match="trained with semantic IDs"):
        export_bundle(mixed, "toy", DecodeConfig(), tmp_path / "bundle")


def test_a_bundle_with_swapped_ids_is_refused(bundle: Path, item_ids: list[int], tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    write_semantic_ids(tmp_path / "bundle", item_ids, order=list(reversed(range(len(item_ids)))))
    with pytest.raises(ArtifactError, match="trained with semantic IDs"):
        Scorer.open(sealed(tmp_path / "bundle"))


def test_damaged_or_missing_bundles_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no serving bundle"):
        Scorer.open(tmp_path)
    shutil.copytree(bundle, tmp_path / "bundle")
    weights = tmp_path / "bundle" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"model\.safetensors' has changed since it was published"):
        Scorer.open(tmp_path / "bundle")
    with pytest.raises(ArtifactError, match=r"model.* cannot be read"):
        Scorer.open(sealed(tmp_path / "bundle"))


def test_there_is_no_pickle_in_a_bundle(bundle: Path) -> None:
    suffixes = {path.suffix for path in bundle.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".npy", ".parquet", ".safetensors"}


def test_no_entrance_serves_a_score_that_is_no_number(
    bundle: Path, sources: BundleSources, item_ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy whose training diverged, behind a callers' frame, the registered model and the batch job."""
    broken = Scorer.open(bundle)
    with torch.no_grad():
        for weight in broken.recommender.policy.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(ArtifactError, match="gives 5 of 5 users a score that is no finite number, first row 0"):
        broken.score_frame(frame_of(item_ids), 3)
    model = RecommenderModel()
    model.scorer = broken
    with pytest.raises(ArtifactError, match="no finite number"):
        model.predict(None, frame_of(item_ids).to_pandas())  # type: ignore[arg-type]  # the context is not read
    monkeypatch.setattr(Scorer, "open", classmethod(lambda cls, *_, **__: broken))
    people = PreparedUsers(sources.prepared, "d" * 64)
    with pytest.raises(ArtifactError, match="no finite number"):
        write_candidates(bundle, people, RecommendConfig(k=2), tmp_path, PlainProgress(every_s=float("inf")))
    assert not list(tmp_path.rglob("part-*"))

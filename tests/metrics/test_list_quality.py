"""Novelty, diversity, Vendi and calibration in an evaluation: per row, with intervals, left out with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.metrics.beyond_accuracy import self_information, unit_vectors, vendi_score
from recsys.metrics.list_quality import ListQuality
from tests.toy.dataset import ring_prepared

CONFIG = EvaluateConfig(ks=(1, 4), filter_seen="unfiltered", baselines=(), resamples=100)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


def lists(prepared: Dataset) -> RankedItems:
    rows = len(prepared.targets(TEST))
    items = (np.arange(rows)[:, None] + np.array([0, 3, 1, 5])) % prepared.spec.num_items
    items[1, 2:] = -1
    scores = np.where(items >= 0, -np.arange(4.0), -np.inf).astype(np.float32)
    return RankedItems(items.astype(np.int32), scores)


def test_rows_are_what_the_functions_say(prepared: Dataset, tmp_path: Path) -> None:
    """Row 0 of the ring: 0, 3 are of category 1; 1 of 2; 5 of 3. Its history 0 … 7 has 3, 3 and 2 of the three."""
    vectors = np.random.default_rng(0).normal(size=(prepared.spec.num_items, 4)).astype(np.float32)
    ranked = lists(prepared)
    summary = evaluate(prepared, {"ours": {False: ranked}}, CONFIG, tmp_path, 0, vectors=vectors)
    table = pl.read_parquet(tmp_path / "per_user.parquet")
    information = self_information(prepared.items["train_count"].to_numpy())
    assert table["novelty@4"][0] == pytest.approx(information[[0, 3, 1, 5]].mean(), rel=1e-6)
    assert table["novelty@4"][1] == pytest.approx(information[[1, 4]].mean(), rel=1e-6)
    p, q = np.array([3, 3, 2]) / 8, np.array([0.5, 0.25, 0.25])
    assert table["calibration@4"][0] == pytest.approx(float((p * np.log(p / (0.99 * q + 0.01 * p))).sum()), rel=1e-5)
    np.testing.assert_allclose(table["vendi@4"].to_numpy(), vendi_score(ranked.items, unit_vectors(vectors)), rtol=1e-6)
    cell = summary["systems"]["ours"]["unfiltered"]["diversity@4"]
    assert cell["low"] < cell["mean"] < cell["high"]
    assert cell["mean"] == pytest.approx(table["diversity@4"].mean(), rel=1e-6)
    assert summary["notes"] == []


def test_what_the_data_cannot_tell_is_left_out_and_said(prepared: Dataset, tmp_path: Path) -> None:
    summary = evaluate(prepared, {"ours": {False: lists(prepared)}}, CONFIG, tmp_path, 0)
    assert {"novelty@4", "calibration@4"} <= set(summary["systems"]["ours"]["unfiltered"])
    assert "vendi@4" not in summary["systems"]["ours"]["unfiltered"]
    assert summary["notes"] == [
        "diversity@4 is left out: no item vectors were given",
        "vendi@4 is left out: no item vectors were given",
    ]


def test_none_are_asked_for(prepared: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"list_metrics": ()})
    summary = evaluate(prepared, {"ours": {False: lists(prepared)}}, config, tmp_path, 0)
    assert not any("novelty" in name for name in summary["systems"]["ours"]["unfiltered"])
    assert summary["notes"] == []


def test_blocks_do_not_matter(prepared: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(prepared.spec.num_items, dtype=np.float32)
    quality, targets = ListQuality.of(prepared, CONFIG.list_metrics, 4, vectors), prepared.targets(TEST)
    whole = quality.values(lists(prepared), targets)
    monkeypatch.setattr("recsys.metrics.list_quality._ROWS", 7)
    for name, values in quality.values(lists(prepared), targets).items():
        np.testing.assert_array_equal(values, whole[name])


def test_refusals(prepared: Dataset) -> None:
    with pytest.raises(DataError, match="3 item vectors for 12 items"):
        ListQuality.of(prepared, CONFIG.list_metrics, 4, np.ones((3, 2)))
    with pytest.raises(ValidationError, match="list_metrics names one twice"):
        EvaluateConfig.model_validate({"list_metrics": ["vendi", "vendi"]})

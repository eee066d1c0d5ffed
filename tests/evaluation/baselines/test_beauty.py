"""The counting baselines are as strong on Amazon Beauty as a calibration study found; a weak baseline flatters a model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.dataset import Dataset, Targets
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import BaselinesConfig
from recsys.evaluation.baselines.registry import build_baselines
from recsys.metrics.ranking import row_metrics
from tests.toy.builders import history_arrays, in_memory

FOLDER = Path(os.environ.get("RECSYS_DATA", "")) / "amazon14_beauty"

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif("RECSYS_DATA" not in os.environ, reason="RECSYS_DATA does not point to the data sets"),
]


@pytest.fixture(scope="module")
def beauty() -> tuple[Dataset, Targets]:
    """Histories and test targets by position alone: last event test, last but one valid."""
    events = pl.read_parquet(FOLDER / "interactions.parquet").sort("user_id", "position")
    item = (events["item_id"] - 1).to_numpy().astype(np.int32)
    counts = events.group_by("user_id", maintain_order=True).len()["len"].to_numpy()
    history = history_arrays(item, counts, held_out=2)
    offsets, end = history.offsets, history.offsets[1:]
    users = np.arange(len(counts), dtype=np.int32)
    targets = Targets(users, offsets[:-1], end - 1, item[end - 1], np.arange(len(counts) + 1, dtype=np.int64))
    return in_memory(history, int(item.max()) + 1), targets


@pytest.mark.parametrize(
    ("name", "hit_rate", "ndcg"),
    [
        ("popularity", 0.0114, 0.0054),
        ("markov", 0.081, 0.0515),
        ("item_knn", 0.065, 0.0397),
        ("ease", 0.079, 0.046),
    ],
)
def test_reaches_the_published_strength(
    beauty: tuple[Dataset, Targets], name: str, hit_rate: float, ndcg: float
) -> None:
    """HR@10 and NDCG@10 on all test users, seen items filtered, fitted on train events only; half a unit of slack
    in the last digit given."""
    prepared, targets = beauty
    (ranker,) = build_baselines([name], BaselinesConfig())
    ranker.fit(prepared, 0, "train")
    ranked = ranker.rank(Histories.from_targets(prepared.history, targets), 10, exclude_seen=True)
    values = row_metrics(ranked, targets, [10])
    found = {metric: float(value.mean()) for metric, value in values.items()}
    assert found["hr@10"] >= hit_rate - 5e-5, found
    assert found["ndcg@10"] >= ndcg - 5e-5, found

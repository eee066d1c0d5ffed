"""Figures over seeds: hand-worked means and margins, pairing, and seeds that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.reproduction.figures import Evaluations, seed_margin
from recsys.contracts.columns import TEST, Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from tests.toy.dataset import ring_prepared

CONFIG = EvaluateConfig(ks=(1, 2), filter_seen="filtered", resamples=100)


def ranked(targets: np.ndarray, first: int, second: int, num_items: int) -> RankedItems:
    """The first ``first`` rows have their target at rank 1, the next ``second`` at rank 2, the others not at all."""
    other = (targets + 1) % num_items
    third = (targets + 2) % num_items
    rows = np.arange(len(targets))
    at_one, at_two = rows < first, (rows >= first) & (rows < first + second)
    items = np.where(at_one[:, None], np.stack([targets, other], 1), np.stack([other, third], 1))
    items = np.where(at_two[:, None], np.stack([other, targets], 1), items)
    return RankedItems(items.astype(np.int32), np.tile(np.array([[1.0, 0.0]], np.float32), (len(targets), 1)))


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    """60 rows, two seeds. System a hits 30 then 36 of them at rank 1; system b 24 and 24, and 6 at rank 2."""
    folder = tmp_path_factory.mktemp("seeds")
    prepared = ring_prepared(folder / "ring")
    items = prepared.targets(TEST).items
    for seed, first in ((1, 30), (2, 36)):
        rankings = {
            "a": {True: ranked(items, first, 0, prepared.spec.num_items)},
            "b": {True: ranked(items, 24, 6, prepared.spec.num_items)},
        }
        evaluate(prepared, rankings, CONFIG, folder / str(seed), seed)
    return Evaluations((folder / "1", folder / "2"), (1, 2))


def test_means_and_margins_by_hand(evaluations: Evaluations) -> None:
    """a: hr@1 .5 and .6, mean .55; the margin is t(.975, 1) = 12.7062 times .0707 / sqrt(2) = .6353.

    b: hr@1 .4 twice, no spread; ndcg@2 (24 + 6 / log2(3)) / 60 = .4631.
    """
    found = evaluations.figure("a", "filtered", "hr@1")
    assert found.mean == pytest.approx(0.55)
    assert found.per_seed == pytest.approx((0.5, 0.6))
    assert found.seed_margin == pytest.approx(0.6353, abs=1e-4)
    assert found.low < 0.55 < found.high
    other = evaluations.figure("b", "filtered", "ndcg@2")
    assert other.mean == pytest.approx((24 + 6 / np.log2(3)) / 60, abs=1e-6)
    assert other.seed_margin == pytest.approx(0.0)
    assert evaluations.systems == ["a", "b"]
    assert evaluations.seen_kinds() == ["filtered"]


def test_gaps_are_paired(evaluations: Evaluations) -> None:
    """a minus b: 6, then 12 of 60 rows differ by 1, mean .15; the interval is narrower than that of a alone."""
    gap = evaluations.gap("a", "b", "filtered", "hr@1")
    assert gap.mean == pytest.approx(0.15)
    assert gap.per_seed == pytest.approx((0.1, 0.2))
    assert 0 <= gap.low < 0.15 < gap.high
    alone = evaluations.figure("a", "filtered", "hr@1")
    assert gap.high - gap.low < alone.high - alone.low
    same = evaluations.gap("a", "a", "filtered", "hr@1")
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


def test_one_seed_has_no_margin() -> None:
    assert seed_margin([0.2]) is None
    assert seed_margin([0.25, 0.25, 0.25]) == 0.0


def test_refuses_what_is_not_there_or_does_not_belong_together(evaluations: Evaluations, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no hr@50 of 'a' with seen items filtered; it has a, b"):
        evaluations.figure("a", "filtered", "hr@50")
    with pytest.raises(ArtifactError, match="has no hr@1 of 'a' with seen items kept"):
        evaluations.figure("a", "kept", "hr@1")
    table = pl.read_parquet(evaluations.folders[0] / "per_user.parquet")
    (tmp_path / "other").mkdir()
    table.with_columns(pl.col(Columns.USER_ID).reverse()).write_parquet(tmp_path / "other" / "per_user.parquet")
    mixed = Evaluations((evaluations.folders[0], tmp_path / "other"), (1, 2))
    with pytest.raises(ArtifactError, match="evaluated other rows for 'a' than"):
        mixed.figure("a", "filtered", "hr@1")

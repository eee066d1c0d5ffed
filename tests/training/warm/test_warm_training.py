"""Training that goes on from an earlier policy: better from the first step, resumable, within its budget and its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.errors import DataError
from recsys.data.samples import PrefixWindows, RecentRows, TargetRows
from recsys.model.config import ModelConfig
from recsys.runtime import PlainProgress, set_threads
from recsys.training.config import TrainConfig
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.warm.start import WarmStart
from tests.toy.dataset import ring_ids, ring_prepared
from tests.training.test_fit import DECODE, MODEL, TRAIN

DAY = 86_400_000_000


def test_an_epoch_from_a_trained_policy_beats_an_epoch_from_nothing(tmp_path: Path) -> None:
    """The ring is learned in ten epochs; one more from there knows it, one from nothing does not."""
    set_threads(1)
    prepared = ring_prepared(tmp_path / "data")
    inputs = TrainingInputs(prepared, ring_ids(), MODEL, TRAIN.model_copy(update={"max_epochs": 10}), DECODE, seed=5)
    train_policy(inputs, tmp_path / "first", PlainProgress())
    budget = replace(inputs, train=TRAIN.warm(1, None, 0.5, 0.02))
    start = WarmStart(tmp_path / "first" / "model", tmp_path / "data", "first")
    warm = train_policy(replace(budget, start=start), tmp_path / "warm", PlainProgress())
    cold = train_policy(budget, tmp_path / "cold", PlainProgress())
    assert warm["warm_start"]["tables"]["item"] == {"mapped": 13, "new": 0}
    assert "warm_start" not in cold
    assert warm["steps"] == cold["steps"]
    assert warm["valid"]["ndcg_at_10"] > 0.9 > 0.6 > cold["valid"]["ndcg_at_10"]
    curves = [pl.read_parquet(tmp_path / name / "curves.parquet") for name in ("warm", "cold")]
    assert not curves[0].equals(curves[1])


def test_the_budget_lowers_the_peaks_and_nothing_else() -> None:
    """Half of 2e-3 is 1e-3, half of .02 is .01; a clock of the recipe stays where the night has none."""
    config = TrainConfig(learning_rate=2e-3, table_learning_rate=0.02, max_minutes=9.0, max_epochs=20)
    warm = config.warm(3, None, 0.5, 0.01)
    assert (warm.max_epochs, warm.learning_rate, warm.table_learning_rate, warm.warmup_share) == (3, 1e-3, 0.01, 0.01)
    assert warm.max_minutes == 9.0
    assert config.warm(3, 2.5, 1.0, 0.0).max_minutes == 2.5
    same = {"max_epochs", "learning_rate", "table_learning_rate", "warmup_share"}
    assert warm.model_dump(exclude=same) == config.model_dump(exclude=same)


def test_recent_rows_are_all_kept_and_a_share_of_the_others_is_drawn() -> None:
    """Of 1,000 rows a day apart, the last 7 and about a fifth of the other 993."""
    times = np.arange(1000, dtype=np.int64) * DAY
    kept = RecentRows(days=7, sample=0.2).rows(times, seed=3)
    assert kept[-7:].tolist() == list(range(993, 1000))
    assert 150 < len(kept) - 7 < 250
    assert np.array_equal(kept, RecentRows(days=7, sample=0.2).rows(times, seed=3))
    assert not np.array_equal(kept, RecentRows(days=7, sample=0.2).rows(times, seed=4))
    assert len(RecentRows(days=1, sample=1.0).rows(times, seed=3)) == 1000


def test_rows_without_times_have_no_recent_ones() -> None:
    with pytest.raises(DataError, match="needs events with times"):
        RecentRows(days=7, sample=0.2).rows(np.full(3, -1), seed=1)


@pytest.mark.parametrize("form", [PrefixWindows, TargetRows])
def test_the_rows_that_stay_are_those_of_the_whole(tmp_path: Path, form: type[PrefixWindows | TargetRows]) -> None:
    samples = form.from_dataset(ring_prepared(tmp_path / "data"), ModelConfig(max_history=4).max_history)
    rows = np.arange(1, len(samples), 3)
    few = samples.only(rows)
    assert len(few) == len(rows)
    assert np.array_equal(few.last_instant, samples.last_instant[rows])
    assert few.num_targets == samples.targets_per_row[rows].sum()
    whole, part = samples.collate(rows[:5]), few.collate(np.arange(5))
    assert whole.target_BPM.equal(part.target_BPM)

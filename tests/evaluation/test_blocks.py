"""One block of users at a time gives the numbers of all at once: evaluation, rankings on disk, the bootstrap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation import rankings as rankings_on_disk
from recsys.evaluation.baseline_rankings import rank_with_baselines
from recsys.evaluation.baselines.config import BaselinesConfig
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate, user_blocks
from recsys.evaluation.rankings import (
    ranking_folder,
    read_ranking,
    read_rankings,
    rows_of,
    write_ranking,
    write_rankings,
)
from recsys.metrics.bootstrap import UserSums, bootstrap_sums, draw_blocks, resample_means, user_draws
from recsys.metrics.row_store import RowStore
from recsys.runtime import SilentProgress
from tests.toy.dataset import ring_prepared

NAMES = ("popularity", "markov", "repeat_last")
CONFIG = EvaluateConfig(ks=(1, 5, 10), baselines=NAMES, reference="markov", resamples=200)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def rankings(prepared: Dataset) -> dict[str, dict[bool, RankedItems]]:
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    found: dict[str, dict[bool, RankedItems]] = {}
    for ranker in build_baselines(list(NAMES), BaselinesConfig()):
        ranker.fit(prepared, 0, "train")
        found[ranker.name] = {exclude: ranker.rank(histories, 10, exclude) for exclude in (True, False)}
    return found


@pytest.mark.parametrize("rows", [1, 7, 59, 60, 1000])
def test_blocks_give_the_numbers_of_all_rows_at_once(
    prepared: Dataset, rankings: dict[str, dict[bool, RankedItems]], tmp_path: Path, rows: int
) -> None:
    """60 users: metrics per user equal to the bit, means and intervals up to the order of the sums."""
    one = evaluate(prepared, rankings, CONFIG, tmp_path / "one", seed=3)
    many = evaluate(prepared, rankings, CONFIG, tmp_path / "many", seed=3, rows_per_block=rows)
    assert pl.read_parquet(tmp_path / "one" / "per_user.parquet").equals(
        pl.read_parquet(tmp_path / "many" / "per_user.parquet")
    )
    for name in ("metrics.parquet", "comparisons.parquet"):
        first, second = (pl.read_parquet(tmp_path / folder / name) for folder in ("one", "many"))
        texts = [column for column, kind in first.schema.items() if kind != pl.Float64]
        assert first.select(texts).equals(second.select(texts))
        numbers = [column for column in first.columns if column not in texts]
        np.testing.assert_allclose(
            first.select(numbers).to_numpy(), second.select(numbers).to_numpy(), rtol=1e-6, atol=1e-7
        )
    assert (
        one["systems"]["markov"]["filtered"]["hr@1"] == many["systems"]["markov"]["filtered"]["hr@1"]
    )  # whole numbers
    assert (one["rows"], one["slices"]) == (many["rows"], many["slices"])


def test_blocks_hold_whole_users() -> None:
    """Users of 2, 1, 3 and 1 rows in blocks of at least 2 rows; rows out of order stay together."""
    assert user_blocks(np.array([0, 0, 1, 2, 2, 2, 3]), 2) == [slice(0, 2), slice(2, 6), slice(6, 7)]
    assert user_blocks(np.array([5, 5, 5]), 1) == [slice(0, 3)]
    assert user_blocks(np.array([0, 1, 0]), 1) == [slice(0, 3)]
    assert user_blocks(np.arange(5), 5) == [slice(0, 5)]


def test_sums_by_blocks_take_the_same_draws() -> None:
    """Users of one to three rows; whole numbers, so that the order of the sums cannot show."""
    generator = np.random.default_rng(1)
    users = np.repeat(np.arange(40), generator.integers(1, 4, size=40))
    values = generator.integers(0, 5, size=(len(users), 3)).astype(float)
    masks = generator.random((len(users), 2)) < 0.7
    whole = resample_means(values, masks, users, resamples=150, seed=2)
    sums = UserSums()
    for rows in user_blocks(users, 7):
        sums.add(values[rows], masks[rows], users[rows])
    parts = sums.resample(150, 2)
    np.testing.assert_array_equal(whole.mean, parts.mean)
    np.testing.assert_array_equal(whole.samples, parts.samples)


def test_draws_in_blocks_are_those_of_all_at_once() -> None:
    """9 users, 20 draws and everybody once, in blocks of 3 draws."""
    parts = list(draw_blocks(9, 20, seed=5, entries=27))
    assert [len(part) for part in parts] == [1, 3, 3, 3, 3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(parts), user_draws(9, 20, seed=5))
    assert len(list(draw_blocks(9, 2, seed=5, entries=27))) == 1


def test_a_user_in_two_blocks_is_refused() -> None:
    sums, ones = UserSums(), np.ones((2, 1))
    sums.add(ones, ones.astype(bool), np.array([3, 4]))
    with pytest.raises(ValueError, match="user 4 comes after user 4; give whole users in ascending order"):
        sums.add(ones, ones.astype(bool), np.array([4, 5]))
    with pytest.raises(DataError, match="no rows to evaluate"):
        UserSums().resample(10, 0)


@pytest.mark.parametrize("kept", [0, 30, 10_000])
def test_rows_come_back_from_memory_and_from_the_file(tmp_path: Path, kept: int) -> None:
    store = RowStore(tmp_path, kept_bytes=kept)
    blocks = [
        np.arange(6, dtype=np.float32).reshape(3, 2),
        np.zeros((0, 2), np.float32),
        np.full((1, 2), 7, np.float32),
    ]
    for block in blocks:
        store.add(block)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(store)), np.concatenate(blocks))
    assert len(store) == 4
    assert not list(tmp_path.iterdir())  # the file has no name: a kill leaves nothing
    expected = bootstrap_sums(np.concatenate(blocks), resamples=9, seed=0)
    np.testing.assert_array_equal(bootstrap_sums(store, resamples=9, seed=0), expected)


def test_rankings_are_written_in_blocks_and_read_without_staying(tmp_path: Path) -> None:
    items = np.arange(20, dtype=np.int32).reshape(10, 2)
    whole = RankedItems(items, -items.astype(np.float32))
    write_ranking(tmp_path / "one", whole)
    paths = [tmp_path / "a", tmp_path / "b"]
    parts = [RankedItems(whole.items[rows], whole.scores[rows]) for rows in (slice(0, 7), slice(7, 10))]
    write_rankings(paths, ([part, part] for part in parts), 10)
    for path in paths:
        for name in ("items.npy", "scores.npy"):
            assert (path / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    part = rows_of(read_ranking(paths[0]), slice(7, 9))
    np.testing.assert_array_equal(part.items, items[7:9])
    np.testing.assert_array_equal(rows_of(whole, slice(0, 3)).scores, whole.scores[:3])


def test_a_ranking_of_too_few_rows_is_not_published(tmp_path: Path) -> None:
    part = RankedItems(np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32))
    with pytest.raises(AssertionError, match="misses 1 rows"):
        write_rankings([tmp_path / "a"], [part], 3)

    def breaks():  # type: ignore[no-untyped-def]
        yield part
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rankings([tmp_path / "b"], breaks(), 2)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_baselines_rank_in_blocks(prepared: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank_with_baselines(prepared, CONFIG, tmp_path / "one", 0, SilentProgress())
    monkeypatch.setattr(rankings_on_disk, "ROWS_PER_BLOCK", 7)
    rank_with_baselines(prepared, CONFIG, tmp_path / "many", 0, SilentProgress())
    for name in NAMES:
        for exclude in (True, False):
            first, second = (ranking_folder(tmp_path / folder, name, exclude) for folder in ("one", "many"))
            assert (first / "items.npy").read_bytes() == (second / "items.npy").read_bytes()
            assert (first / "scores.npy").read_bytes() == (second / "scores.npy").read_bytes()


def test_a_ranking_of_other_rows_is_refused(
    prepared: Dataset, rankings: dict[str, dict[bool, RankedItems]], tmp_path: Path
) -> None:
    """Too long as well as too short: a block of its rows alone would not show it."""
    ranked = rankings["popularity"][True]
    longer = RankedItems(
        np.concatenate([ranked.items, ranked.items[:1]]), np.concatenate([ranked.scores, ranked.scores[:1]])
    )
    wrong = {**rankings, "popularity": {True: longer, False: longer}}
    with pytest.raises(DataError, match="ranking of 'popularity' has 61 rows, the targets 60"):
        evaluate(prepared, wrong, CONFIG, tmp_path, seed=0)


def test_a_repeated_item_is_named_by_the_row_of_the_whole_ranking(
    prepared: Dataset, rankings: dict[str, dict[bool, RankedItems]], tmp_path: Path
) -> None:
    write_ranking(ranking_folder(tmp_path, "popularity", True), rankings["popularity"][True])
    items = rankings["popularity"][True].items.copy()
    items[33, 1] = items[33, 0]
    wrong = {"popularity": {True: RankedItems(items, rankings["popularity"][True].scores)}}
    config = CONFIG.model_copy(update={"reference": None, "filter_seen": "filtered"})
    with pytest.raises(DataError, match="ranking row 33 holds item_index"):
        evaluate(prepared, wrong, config, tmp_path / "e", seed=0, rows_per_block=7)
    assert evaluate(
        prepared, read_rankings(tmp_path, ["popularity"], [True]), config, tmp_path / "e", 0, rows_per_block=7
    )

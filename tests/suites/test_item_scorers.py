"""One suite for every item scorer: its three ways to the same number, and what it does with odd histories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.scorers.config import SCORER_NAMES, EASEScorerConfig, ScorersConfig
from recsys.scorers.item_scorer import ItemScorer, WeighedHistories
from recsys.scorers.scorer_set import ScorerSet
from tests.toy.dataset import ring_prepared
from tests.toy.histories import histories_of

LISTS = [[], [3], [-1, 5, 5], list(range(12)), [1, 2, 3], [0]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def scorer_set(prepared: Dataset) -> ScorerSet:
    generator = np.random.default_rng(1)
    vectors = {
        name: generator.normal(size=(12, width)).astype(np.float32) for name, width in (("fused", 4), ("text", 6))
    }
    vectors["text"][7] = 0.0  # an item without text
    config = ScorersConfig(num_neighbours=5, ease=EASEScorerConfig(regularisation=2.0))
    return ScorerSet.fit(prepared, config, vectors, catalogue="ring")


def scorer_of(scorer_set: ScorerSet, name: str) -> ItemScorer:
    return scorer_set.scorers[scorer_set.names.index(name)]


@pytest.mark.parametrize("name", SCORER_NAMES)
class TestEveryScorer:
    def test_adds_its_scaled_scores_times_the_weight(self, name: str, scorer_set: ScorerSet) -> None:
        scorer, rows = scorer_of(scorer_set, name), WeighedHistories(histories_of(LISTS), 12)
        before = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
        out = before.copy()
        scorer.add_scaled(rows, -2.5, out)
        raw = scorer.scores(rows)
        assert (raw.shape, raw.dtype) == ((6, 12), np.float32)
        assert raw[4].any(), "a history says nothing of any item"
        np.testing.assert_allclose(out, before - 2.5 * scorer.scale.apply(raw), atol=2e-5)

    def test_scores_candidates_as_it_scores_the_catalogue(self, name: str, scorer_set: ScorerSet) -> None:
        scorer, rows = scorer_of(scorer_set, name), WeighedHistories(histories_of(LISTS), 12)
        items = np.random.default_rng(0).permuted(np.tile(np.arange(12), (6, 1)), axis=1)[:, :7]
        every = scorer.scale.apply(scorer.scores(rows))
        found = scorer.scaled_at(rows, items)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.take_along_axis(every, items, 1), atol=1e-5)

    def test_many_rows_equal_one_row(self, name: str, scorer_set: ScorerSet) -> None:
        scorer = scorer_of(scorer_set, name)
        together = scorer.scores(WeighedHistories(histories_of(LISTS), 12))
        for row, items in enumerate(LISTS):
            alone = scorer.scores(WeighedHistories(histories_of([items]), 12))
            np.testing.assert_allclose(alone[0], together[row], atol=1e-6)

    def test_survives_the_disk(self, name: str, scorer_set: ScorerSet, tmp_path: Path) -> None:
        scorer_set.save(tmp_path)
        again = scorer_of(ScorerSet.load(tmp_path, catalogue="ring"), name)
        rows = WeighedHistories(histories_of(LISTS), 12)
        assert again.scale == scorer_of(scorer_set, name).scale
        np.testing.assert_array_equal(again.scores(rows), scorer_of(scorer_set, name).scores(rows))

    def test_refuses_an_item_beyond_the_catalogue(self, name: str, scorer_set: ScorerSet) -> None:
        if name == "popularity":
            pytest.skip("reads no history")
        with pytest.raises(DataError, match="item_index 12"):
            scorer_of(scorer_set, name).scores(WeighedHistories(histories_of([[12]]), 12))

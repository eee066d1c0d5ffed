"""One suite for every baseline, then what is particular to each: a number by hand, an invariant, a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset, HistoryArrays
from recsys.contracts.errors import DataError
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import Ranker
from recsys.evaluation.baselines.config import (
    BASELINE_NAMES,
    BaselinesConfig,
    EASEConfig,
    ItemKNNConfig,
    SASRecConfig,
)
from recsys.evaluation.baselines.registry import build_baselines
from recsys.metrics.ranking import row_metrics
from tests.toy.dataset import ring_prepared
from tests.toy.histories import histories_of, prepared_of

SMALL = BaselinesConfig(
    sasrec=SASRecConfig(
        width=16, num_heads=2, num_blocks=1, max_len=8, batch_size=16, max_epochs=8, dropout=0.1, learning_rate=0.02
    ),
    item_knn=ItemKNNConfig(shrinkage=0.0),
    ease=EASEConfig(regularisation=2.0),
)
LEARNERS = [name for name in BASELINE_NAMES if name not in ("popularity", "repeat_last")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def fitted_rankers(prepared: Dataset) -> dict[str, Ranker]:
    rankers = {ranker.name: ranker for ranker in build_baselines(BASELINE_NAMES, SMALL)}
    for ranker in rankers.values():
        ranker.fit(prepared, 0, "train")
    return rankers


@pytest.mark.parametrize("name", BASELINE_NAMES)
class TestEveryBaseline:
    def test_keeps_the_contract_of_rankings(self, name: str, fitted_rankers: dict[str, Ranker]) -> None:
        """Also for an empty history, an unknown item, and more places than there are items."""
        histories = histories_of([[], [3], [-1, 5, 5], list(range(12)), [1, 2, 3]])
        ranked = fitted_rankers[name].rank(histories, 15, exclude_seen=False)
        assert ranked.items.shape == ranked.scores.shape == (5, 15)
        assert (ranked.items.dtype, ranked.scores.dtype) == (np.int32, np.float32)
        for row in ranked.items:
            assert sorted(row[row >= 0]) == list(range(12))
        assert (ranked.scores[:, 1:] <= ranked.scores[:, :-1]).all()
        np.testing.assert_array_equal(np.isneginf(ranked.scores), ranked.items == -1)

    def test_seen_items_are_left_out_and_the_rest_keeps_its_order(
        self, name: str, fitted_rankers: dict[str, Ranker]
    ) -> None:
        lists = [[3], [5, 5, 7], list(range(12)), []]
        every = fitted_rankers[name].rank(histories_of(lists), 12, exclude_seen=False)
        unseen = fitted_rankers[name].rank(histories_of(lists), 12, exclude_seen=True)
        for row, seen in enumerate(lists):
            expected = [int(item) for item in every.items[row] if item not in seen]
            assert [int(item) for item in unseen.items[row] if item >= 0] == expected

    def test_many_rows_equal_one_row(self, name: str, fitted_rankers: dict[str, Ranker]) -> None:
        lists = [[0, 1], [4], [9, 10, 11, 0, 1, 2, 3], []]
        together = fitted_rankers[name].rank(histories_of(lists), 5, exclude_seen=True)
        for row, items in enumerate(lists):
            alone = fitted_rankers[name].rank(histories_of([items]), 5, exclude_seen=True)
            np.testing.assert_array_equal(alone.items[0], together.items[row])

    def test_same_seed_same_ranking(self, name: str, prepared: Dataset, fitted_rankers: dict[str, Ranker]) -> None:
        again = build_baselines([name], SMALL)[0]
        again.fit(prepared, 0, "train")
        histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
        first, second = (ranker.rank(histories, 6, exclude_seen=False) for ranker in (fitted_rankers[name], again))
        np.testing.assert_array_equal(first.items, second.items)
        np.testing.assert_array_equal(first.scores, second.scores)

    def test_until_valid_reads_more_events(self, name: str, tmp_path: Path) -> None:
        """Everybody's validation event is item 5, which nobody has in training: it can only be known with "valid"."""
        data = ring_prepared(tmp_path, users=30, items=12, events=6)
        item = np.array(data.history.item)
        item[item == 5] = 4
        item[data.history.train_end] = 5
        changed = Dataset(data.path, data.spec, HistoryArrays(**{**vars(data.history), "item": item}))
        histories = histories_of([[4, 4, 4]])
        for until, is_known in (("train", False), ("valid", True)):
            (ranker,) = build_baselines([name], SMALL)
            ranker.fit(changed, 0, until)  # type: ignore[arg-type]
            ranked = ranker.rank(histories, 12, exclude_seen=True)
            place = int(np.flatnonzero(ranked.items[0] == 5)[0])
            assert (place < 6) == is_known, f"until={until}: item 5 is at place {place}"

    def test_refuses_to_rank_before_fit(self, name: str) -> None:
        (ranker,) = build_baselines([name], SMALL)
        with pytest.raises(ValueError, match=f"baseline '{name}': rank was called before fit"):
            ranker.rank(histories_of([[1]]), 3, exclude_seen=False)

    def test_refuses_a_split_without_events(self, name: str) -> None:
        (ranker,) = build_baselines([name], SMALL)
        with pytest.raises(DataError, match="train split"):
            ranker.fit(prepared_of([[1, 2], [3, 4]], 6), 0, "train")


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_find_the_next_item_of_the_ring(
    name: str, prepared: Dataset, fitted_rankers: dict[str, Ranker]
) -> None:
    """After i comes i + 1, always: ordered models put it first; item-based ones know its neighbourhood (chance: .25)."""
    targets = prepared.targets(TEST)
    ranked = fitted_rankers[name].rank(Histories.from_targets(prepared.history, targets), 3, exclude_seen=True)
    values = row_metrics(ranked, targets, [1, 3])
    assert values["hr@3"].mean() > 0.9
    if name in ("markov", "sasrec"):
        assert values["hr@1"].mean() == 1.0


def test_refuses_items_beyond_the_catalogue(fitted_rankers: dict[str, Ranker]) -> None:
    with pytest.raises(DataError, match="item_index 12, the counts are of 12 items"):
        fitted_rankers["markov"].rank(histories_of([[12]]), 3, exclude_seen=False)

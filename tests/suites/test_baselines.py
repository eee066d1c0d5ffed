"""One suite for every baseline, then what is particular to each: a number by hand, an invariant, a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset, HistoryArrays
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import CountedEvents, Ranker, history_weights
from recsys.evaluation.baselines.config import (
    BASELINE_NAMES,
    BaselinesConfig,
    EASEConfig,
    ItemKNNConfig,
    MarkovConfig,
    PopularityConfig,
    SASRecConfig,
)
from recsys.evaluation.baselines.ease import ease_weights
from recsys.evaluation.baselines.item_knn import cosine_similarity
from recsys.evaluation.baselines.markov import count_transitions
from recsys.evaluation.baselines.popularity import popularity_shares
from recsys.evaluation.baselines.registry import build_baselines
from recsys.metrics.ranking import row_metrics
from tests.toy.builders import history_lists, in_memory
from tests.toy.dataset import ring_prepared

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


def histories_of(lists: list[list[int]]) -> Histories:
    ends = np.cumsum([len(items) for items in lists]).astype(np.int64)
    item = np.array([item for items in lists for item in items], np.int32)
    blank = np.zeros(len(item), np.uint8)
    starts = ends - np.array([len(items) for items in lists])
    return Histories(np.full(len(lists), -1, np.int32), starts, ends, item, blank, blank, blank)


def prepared_of(lists: list[list[int]], num_items: int) -> Dataset:
    """All but the last two events are train; nothing lies on disk."""
    return in_memory(history_lists(lists, held_out=2), num_items)


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


def test_markov_counts_by_hand() -> None:
    """User A: 0 1 2, user B: 1 0. With gap decay 1/2: 0->1 once, 1->2 once, 0->2 at gap 2 = 1/2, 1->0 once.

    No pair crosses from A's last event to B's first, and 1 -> 1 across users is not counted.
    """
    events = CountedEvents.from_dataset(prepared_of([[0, 1, 2, 9, 9], [1, 0, 9, 9]], 10), "train")
    counts = count_transitions(events, 10, gap_decay=0.5, max_gap=2).toarray()
    assert counts[:3, :3].tolist() == [[0.0, 1.0, 0.5], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert counts.sum() == 3.5


def test_markov_scores_by_hand() -> None:
    """History 0 1, history decay 1/2: item 2 gets 1 * (1->2 = 1) + 1/2 * (0->2 = 1/2) = 1.25; item 0 gets 1 * 1;
    item 1 gets 1/2 * 1. The back-off of 1e-9 does not show."""
    config = BaselinesConfig(markov=MarkovConfig(max_gap=2, row_power=0.0, backoff=1e-9))
    (ranker,) = build_baselines(["markov"], config)
    ranker.fit(prepared_of([[0, 1, 2, 9, 9], [1, 0, 9, 9]], 10), 0, "train")
    ranked = ranker.rank(histories_of([[0, 1]]), 3, exclude_seen=False)
    assert ranked.items.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(ranked.scores, [[1.25, 1.0, 0.5]], atol=1e-6)


def test_history_weights_by_hand() -> None:
    """Latest event 1, the one before 1/2, then 1/4; a repeat adds up: item 4 gets 1 + 1/4."""
    weights = history_weights(histories_of([[4, 2, 4], [-1]]), 6, 0.5).toarray()
    assert weights.tolist() == [[0, 0, 0.5, 0, 1.25, 0], [0] * 6]


def test_cosine_by_hand() -> None:
    """Items 0 and 1 share two of their 2 and 3 users: 2 / sqrt(6); with shrinkage 1: 2 / (sqrt(6) + 1)."""
    data = prepared_of([[0, 1, 9, 9], [0, 1, 1, 9, 9], [1, 2, 9, 9]], 10)
    matrix = CountedEvents.from_dataset(data, "train").user_item_matrix(3, 10)
    assert cosine_similarity(matrix, 0.0).toarray()[0, 1] == pytest.approx(2 / 6**0.5)
    shrunk = cosine_similarity(matrix, 1.0).toarray()
    assert shrunk[1, 0] == pytest.approx(2 / (6**0.5 + 1))
    assert shrunk.diagonal().sum() == 0.0


def test_ease_by_hand_and_against_the_plain_inverse() -> None:
    """Two items, one user with both, lambda 1: X'X + I = [[2, 1], [1, 2]], inverse [[2, -1], [-1, 2]] / 3,
    so B_01 = -(-1/3) / (2/3) = 1/2."""
    data = prepared_of([[0, 1, 2, 2]], 3)
    pair = CountedEvents.from_dataset(data, "train").user_item_matrix(1, 3)
    np.testing.assert_allclose(ease_weights(pair, 1.0)[:2, :2], [[0, 0.5], [0.5, 0]], atol=1e-6)

    generator = np.random.default_rng(0)
    many = prepared_of([generator.integers(1500, size=40).tolist() for _ in range(60)], 1500)
    matrix = CountedEvents.from_dataset(many, "train").user_item_matrix(60, 1500)
    inverse = np.linalg.inv((matrix.T @ matrix).toarray().astype(np.float64) + 5.0 * np.eye(1500))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(
        ease_weights(matrix, 5.0), expected, atol=1e-5
    )  # crosses a border of the mirrored blocks


def test_popularity_counts_the_last_events_only() -> None:
    """Train events: 0 1 2 and 2 2; the last one of each user is 2 and 2."""
    events = CountedEvents.from_dataset(prepared_of([[0, 1, 2, 9, 9], [2, 2, 9, 9]], 10), "train")
    config = PopularityConfig(half_life_days=None, last_events=1)
    assert popularity_shares(events, 10, config)[2] == 1.0
    every = popularity_shares(events, 10, PopularityConfig(half_life_days=None))
    np.testing.assert_allclose(every[:3], [0.2, 0.2, 0.6])


def test_repeat_last_goes_backwards() -> None:
    """History 4 2 4 7: latest first, each item once, then the most popular other one (0)."""
    (ranker,) = build_baselines(["repeat_last"], SMALL)
    ranker.fit(prepared_of([[0, 0, 1, 9, 9]], 10), 0, "train")
    assert ranker.rank(histories_of([[2, 4, 2, 4, 7]]), 4, exclude_seen=False).items.tolist() == [[7, 4, 2, 0]]


def test_ease_refuses_a_catalogue_that_is_too_large() -> None:
    (ranker,) = build_baselines(["ease"], BaselinesConfig(ease=EASEConfig(max_items=5)))
    with pytest.raises(ConfigError, match=r"the catalogue has 10 items, ease.max_items allows 5"):
        ranker.fit(prepared_of([[0, 1, 9, 9]], 10), 0, "train")


def test_refuses_items_beyond_the_catalogue(fitted_rankers: dict[str, Ranker]) -> None:
    with pytest.raises(DataError, match="item_index 12, the baseline was fitted on 12 items"):
        fitted_rankers["markov"].rank(histories_of([[12]]), 3, exclude_seen=False)


def test_registry_refuses_unknown_and_repeated_names() -> None:
    with pytest.raises(ConfigError, match="unknown baseline 'sasrek'; known baselines: popularity"):
        build_baselines(["sasrek"], SMALL)
    with pytest.raises(ConfigError, match="name one twice"):
        build_baselines(["ease", "ease"], SMALL)

"""The counting baselines by hand: counts, weights, similarities, and the orders that come of them."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.contracts.errors import ConfigError
from recsys.evaluation.baselines.config import EASEConfig, MarkovConfig
from recsys.evaluation.baselines.registry import BaselinesConfig, build_baselines
from recsys.scorers.config import PopularityConfig
from recsys.scorers.ease import ease_weights
from recsys.scorers.events import CountedEvents, history_weights
from recsys.scorers.neighbours import cosine_similarity
from recsys.scorers.popularity import popularity_shares
from recsys.scorers.transitions import count_transitions
from tests.toy.histories import histories_of, prepared_of


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


def test_popularity_decays_beside_events_without_a_time() -> None:
    """Items 0 and 1 at day 0 and 30, half life 30 days: 1/2 and 1. Item 2 has no time: as old as the oldest, 1/2 too."""
    day = 86_400_000_000
    users, items, ages = np.zeros(3, np.int32), np.array([2, 0, 1], np.int32), np.array([2, 1, 0])
    events = CountedEvents(users, items, np.array([-1, 0, 30 * day]), ages)
    np.testing.assert_allclose(popularity_shares(events, 3, PopularityConfig(half_life_days=30)), [0.25, 0.5, 0.25])
    timeless = CountedEvents(users, items, np.full(3, -1), ages)
    np.testing.assert_allclose(popularity_shares(timeless, 3, PopularityConfig(half_life_days=30)), [1 / 3] * 3)


def test_repeat_last_goes_backwards() -> None:
    """History 4 2 4 7: latest first, each item once, then the most popular other one (0)."""
    (ranker,) = build_baselines(["repeat_last"], BaselinesConfig())
    ranker.fit(prepared_of([[0, 0, 1, 9, 9]], 10), 0, "train")
    assert ranker.rank(histories_of([[2, 4, 2, 4, 7]]), 4, exclude_seen=False).items.tolist() == [[7, 4, 2, 0]]


def test_ease_refuses_a_catalogue_that_is_too_large() -> None:
    (ranker,) = build_baselines(["ease"], BaselinesConfig(ease=EASEConfig(max_items=5)))
    with pytest.raises(ConfigError, match=r"the catalogue has 10 items, ease.max_items allows 5"):
        ranker.fit(prepared_of([[0, 1, 9, 9]], 10), 0, "train")

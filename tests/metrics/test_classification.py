"""AUC by hand, with ties and weights, against counting pairs; bootstrap over users; calibration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.metrics.bootstrap import user_draws
from recsys.metrics.classification import auc, auc_samples, metric_estimates, reliability, user_aucs


def pairs_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Count every pair of a positive and a negative."""
    difference = scores[positive][:, None] - scores[~positive][None]
    return float((np.sign(difference) + 1).mean() / 2) if difference.size else float("nan")


def test_auc_by_hand() -> None:
    """Positives 0.8, 0.4; negatives 0.4, 0.1: pairs won 1, 1, and tied 0.5, won 1: 3.5 / 4 = 0.875."""
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])
    assert auc(scores, positive) == 0.875
    assert auc(np.zeros(4), positive) == 0.5
    assert auc(scores, ~positive) == 0.125
    assert np.isnan(auc(scores, np.ones(4, bool)))
    assert np.isnan(auc(np.empty(0), np.empty(0, bool)))


@given(seed=st.integers(0, 50), levels=st.integers(1, 6))
def test_auc_counts_pairs_whatever_the_ties(seed: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    scores, positive = generator.integers(levels, size=30) / 7, generator.random(30) < 0.4
    np.testing.assert_allclose(auc(scores, positive), pairs_auc(scores, positive))


def test_a_resample_is_the_auc_of_repeated_rows() -> None:
    generator = np.random.default_rng(1)
    owner = np.repeat(np.arange(6), 4)
    scores, positive = generator.integers(5, size=24) / 5, generator.random(24) < 0.5
    draws = user_draws(6, 9, seed=2)
    assert (draws.sum(1) == 6).all()
    assert (draws[0] == 1).all()
    for draw, found in zip(draws, auc_samples(scores, positive, owner, draws), strict=True):
        rows = np.concatenate([np.tile(np.flatnonzero(owner == user), times) for user, times in enumerate(draw)])
        np.testing.assert_allclose(found, pairs_auc(scores[rows.astype(int)], positive[rows.astype(int)]))


def test_auc_inside_users_by_hand() -> None:
    """User 0: positive 0.3 over negative 0.2: 1. User 1: 0.1 against 0.9 and 0.1: (0 + 0.5) / 2. User 2: one kind only."""
    owner = np.array([1, 0, 1, 0, 1, 2])
    scores = np.array([0.1, 0.3, 0.9, 0.2, 0.1, 0.5])
    positive = np.array([True, True, False, False, False, True])
    aucs, sessions = user_aucs(scores, positive, owner, 3)
    np.testing.assert_allclose(aucs, [1.0, 0.25, np.nan])
    assert sessions.tolist() == [2, 3, 1]
    found = metric_estimates(scores, positive.astype(float), owner, resamples=20, seed=0)
    assert found["user_auc"].value == pytest.approx((2 * 1.0 + 3 * 0.25) / 5)


def test_a_user_mean_is_right_between_users_and_blind_inside_them() -> None:
    owner = np.repeat(np.arange(40), 5)
    generator = np.random.default_rng(3)
    taste = generator.random(40)
    labels = (generator.random(200) < taste[owner]).astype(float)
    found = metric_estimates(taste[owner], labels, owner, resamples=50, seed=0)
    assert found["auc"].value > 0.7
    assert found["user_auc"].value == 0.5
    low, high = found["auc"].interval()
    assert low < found["auc"].value < high
    nothing = found["auc"].minus(found["auc"])
    assert nothing.interval() == (0.0, 0.0)


def test_reliability_by_hand() -> None:
    """Bins (0.1, 0.3) and (0.6, 0.8): predicted 0.2 and 0.7, observed 0 and 1: (2 * 0.2 + 2 * 0.3) / 4 = 0.25."""
    table, error = reliability(np.array([0.8, 0.1, 0.6, 0.3]), np.array([1.0, 0.0, 1.0, 0.0]), 2)
    assert table["sessions"].to_list() == [2, 2]
    np.testing.assert_allclose(table["predicted"], [0.2, 0.7])
    assert error == pytest.approx(0.25)
    # soft labels: what a session of label 0.7 is predicted at is 0.7
    assert reliability(np.array([0.7, 0.2]), np.array([0.7, 0.2]), 5)[1] == 0.0

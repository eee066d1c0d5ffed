"""Bootstrap: against scipy, against a count by hand, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recsys.contracts.errors import DataError
from recsys.metrics.bootstrap import (
    Estimate,
    MetricEstimate,
    ResampledMeans,
    bootstrap_sums,
    estimate_means,
    estimate_over_seeds,
    means_of_draws,
    resample_means,
    user_draws,
)

EVERYBODY = np.ones((500, 1), bool)


def test_resamples_that_drew_nobody_do_not_count_for_p_values() -> None:
    """One user of a slice among 20: a third of the draws miss them. All others are below 0: p = 2 / (counted + 1)."""
    values = np.full((20, 1), -1.0)
    alone = np.arange(20)[:, None] == 3
    means = resample_means(values, alone, np.arange(20), resamples=400, seed=0)
    counted = int((~np.isnan(means.samples)).sum())
    assert 200 < counted < 300
    assert means.p_value()[0, 0] == pytest.approx(2 / (counted + 1))


def test_an_interval_over_seeds_by_hand() -> None:
    """1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt 3; t(2) at 97.5 % is 4.3027, at 95 % 2.9200."""
    assert estimate_over_seeds([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-6)
    assert estimate_over_seeds([1.0, 2.0, 3.0], 0.9).low == pytest.approx(2 - 2.919986 / 3**0.5, rel=1e-6)
    assert estimate_over_seeds([2.0, 2.0]).low == 2.0
    with pytest.raises(DataError, match="needs two finite figures"):
        estimate_over_seeds([1.0])
    with pytest.raises(DataError, match="needs two finite figures"):
        estimate_over_seeds([1.0, float("nan")])


def test_agrees_with_scipy() -> None:
    """Both are Monte-Carlo: bounds of 4000 resamples agree within a tenth of the standard error."""
    values = np.random.default_rng(0).binomial(1, 0.2, size=500).astype(float)
    low, high = resample_means(values[:, None], EVERYBODY, np.arange(500), resamples=4000, seed=1).interval(0.95)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    tolerance = 0.1 * values.std() / np.sqrt(500) + 1 / 500
    assert low[0, 0] == pytest.approx(theirs.low, abs=tolerance)
    assert high[0, 0] == pytest.approx(theirs.high, abs=tolerance)


def test_two_users_by_hand() -> None:
    """Users with values 0 and 1: a draw of two has mean 0, 1/2 or 1 with shares 1/4, 1/2, 1/4."""
    values = np.array([[0.0], [1.0]])
    samples = resample_means(values, np.ones((2, 1), bool), np.arange(2), resamples=8000, seed=0).samples[:, 0, 0]
    shares = [float((samples == mean).mean()) for mean in (0.0, 0.5, 1.0)]
    assert sum(shares) == 1.0
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_rows_of_one_user_are_drawn_together() -> None:
    """User 7 has two rows of 1, user 9 two rows of 0: means are 0, 1/2, 1, never 1/4 or 3/4."""
    values = np.array([[1.0], [0.0], [1.0], [0.0]])
    resampled = resample_means(values, np.ones((4, 1), bool), np.array([7, 9, 7, 9]), resamples=400, seed=0)
    assert set(resampled.samples.ravel()) == {0.0, 0.5, 1.0}
    assert resampled.mean[0, 0] == 0.5


def test_slices_measure_their_own_rows_only() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    masks = np.array([[True, False, False], [True, True, False], [False, True, False]])
    resampled = resample_means(values, masks, np.arange(3), resamples=100, seed=0)
    np.testing.assert_allclose(resampled.mean[:2], [[2.0, 3.0], [4.0, 5.0]])
    assert np.isnan(resampled.mean[2]).all()
    low, high = resampled.interval(0.9)
    assert np.isnan(low[2]).all()
    assert (low[:2] <= resampled.mean[:2]).all()
    assert (resampled.mean[:2] <= high[:2]).all()


def test_many_columns_equal_one_column_and_the_seed_decides() -> None:
    values = np.random.default_rng(3).normal(size=(500, 3))
    together = resample_means(values, EVERYBODY, np.arange(500), resamples=150, seed=4).samples
    alone = resample_means(values[:, [1]], EVERYBODY, np.arange(500), resamples=150, seed=4).samples
    np.testing.assert_allclose(together[:, :, [1]], alone, atol=1e-6)
    other = resample_means(values, EVERYBODY, np.arange(500), resamples=150, seed=5).samples
    assert not np.allclose(together, other)


def test_draws_have_as_many_users_as_there_are() -> None:
    sums = bootstrap_sums(np.ones((321, 1), np.float32), resamples=50, seed=0)
    assert (sums == 321).all()


def test_p_value_of_paired_differences() -> None:
    """A clear difference reaches the floor 2 / (R + 1); no difference at all gives 1; noise is in between."""
    generator = np.random.default_rng(8)
    clear = 0.3 + 0.1 * generator.normal(size=500)
    noise = generator.normal(size=500)
    differences = np.stack([clear, np.zeros(500), noise - noise.mean() + 0.02], axis=1)
    p = resample_means(differences, EVERYBODY, np.arange(500), resamples=999, seed=0).p_value()[0]
    assert p[0] == pytest.approx(2 / 1000)
    assert p[1] == 1.0
    assert p[2] == pytest.approx(stats.ttest_1samp(differences[:, 2], 0.0).pvalue, abs=0.08)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """200 samples of 200 users from a mean of 0.3: about 95 % of the intervals hold it; 88 % would be 4 s.e. below."""
    generator = np.random.default_rng(10)
    values = generator.binomial(1, 0.3, size=(200, 200)).astype(float)  # each column is one experiment
    low, high = resample_means(values, np.ones((200, 1), bool), np.arange(200), resamples=400, seed=0).interval(0.95)
    covered = float(((low[0] <= 0.3) & (high[0] >= 0.3)).mean())
    assert 0.88 <= covered <= 0.99


def test_refuses_no_rows_and_unequal_rows() -> None:
    with pytest.raises(DataError, match="no rows to evaluate"):
        resample_means(np.empty((0, 1)), np.empty((0, 1), bool), np.empty(0, int), resamples=100, seed=0)
    with pytest.raises(DataError, match="2 rows of values, 3 of slices"):
        resample_means(np.ones((2, 1)), np.ones((3, 1), bool), np.arange(2), resamples=100, seed=0)


def test_shares_of_a_reference_by_hand() -> None:
    """Means 2, 3, 0: against the first, differences 0, 1, -2 and shares 0, 1/2, -1. Against the last, no share is defined.

    Draws with means 1, 3, 0 and 4, 2, 0: shares of the second slice 2 and -1/2, so their middle 80 % are -.25 to 1.75.
    """
    means = ResampledMeans(np.array([[2.0], [3.0], [0.0]]), np.array([[[1.0], [3.0], [0.0]], [[4.0], [2.0], [0.0]]]))
    differences, shares = means.against(0)
    assert differences.mean.ravel().tolist() == [0.0, 1.0, -2.0]
    assert differences.samples[:, 1, 0].tolist() == [2.0, -2.0]
    assert shares.mean.ravel().tolist() == [0.0, 0.5, -1.0]
    first, second, third = shares.estimates(0.8)
    assert (second.mean, second.low, second.high) == pytest.approx((0.5, -0.25, 1.75))
    assert (first.low, third.high) == (0.0, -1.0)
    (undefined, *_), (gap, *_) = (part.estimates(0.8) for part in means.against(2)[::-1])
    assert gap.mean == 2.0
    assert np.isnan([undefined.mean, undefined.low, undefined.high]).all()


def test_counts_and_sums_of_the_same_draws() -> None:
    """AUC takes the draws themselves, means their sums: with one seed they are the same people."""
    values = np.array([1.0, 10.0, 100.0])
    draws = user_draws(3, 20, seed=6)
    sums = bootstrap_sums(values[:, None].astype(np.float32), resamples=20, seed=6)[:, 0]
    assert (draws[1:] @ values).tolist() == sums.tolist()
    assert means_of_draws(draws, values, np.ones(3))[0] == 37.0


def test_one_column_by_hand_and_nothing_refused() -> None:
    """Two users, 0 and 1: a quarter of the draws is all 0, a quarter all 1; so the mean is 1/2, its interval 0 to 1."""
    (alone,) = estimate_means(np.array([0.0, 1.0]), resamples=400)
    assert (alone.mean, alone.low, alone.high, alone.sign) == (0.5, 0.0, 1.0, 0)
    twice = estimate_means(np.array([[0.0, 2.0], [1.0, 4.0]]), resamples=400)
    assert twice[0] == alone
    assert (twice[1].mean, twice[1].low, twice[1].high, twice[1].sign) == (3.0, 2.0, 4.0, 1)
    (same_user,) = estimate_means(np.array([0.0, 1.0]), np.array([7, 7]), resamples=50)
    assert (same_user.low, same_user.high) == (0.5, 0.5)
    with pytest.raises(DataError, match="no rows to evaluate"):
        estimate_means(np.empty(0))


def test_a_sign_needs_the_whole_interval() -> None:
    """An interval that touches 0 says nothing."""
    bounds = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1), (-0.1, 0.0)]
    assert [Estimate(0.0, low, high).sign for low, high in bounds] == [1, -1, 0, 0, 0]


def test_a_metric_minus_another_by_hand() -> None:
    """0.9 - 0.7; draws 0.8 - 0.7 and 1.0 - 0.6; the third draw is not defined and does not count.

    The middle 95 % of 0.1 and 0.4 lie between 0.1 + 0.025 * 0.3 and 0.4 - 0.025 * 0.3.
    """
    mine = MetricEstimate(0.9, np.array([0.8, 1.0, np.nan]))
    gap = mine.minus(MetricEstimate(0.7, np.array([0.7, 0.6, 0.5])))
    assert gap.value == pytest.approx(0.2)
    assert gap.samples[:2].tolist() == pytest.approx([0.1, 0.4])
    assert gap.interval() == pytest.approx((0.1075, 0.3925))
    assert np.isnan(MetricEstimate(0.9, np.full(3, np.nan)).interval()).all()


def test_a_share_of_a_mean_that_a_draw_had_at_0_has_no_interval() -> None:
    """The reference's mean is 2, so the share is 1/2; but one of its draws is 0."""
    means = ResampledMeans(np.array([[2.0], [3.0]]), np.array([[[0.0], [3.0]], [[4.0], [6.0]]]))
    _, share = means.against(0)[1].estimates(0.95)
    assert share.mean == 0.5
    assert np.isnan([share.low, share.high]).all()


def test_a_slice_without_rows_has_no_p_value() -> None:
    values, masks = np.ones((3, 1)), np.array([[True, False]] * 3)
    p = resample_means(values, masks, np.arange(3), resamples=99, seed=0).p_value().ravel()
    assert p[0] == pytest.approx(2 / 100)
    assert np.isnan(p[1])


def test_a_draw_of_nobody_has_no_mean() -> None:
    """Only the first user has a value, one of 4: draws that hold it once, twice and not at all."""
    draws, counts = np.array([[1, 1], [2, 0], [0, 2]], np.int32), np.array([1.0, 0.0])
    means = means_of_draws(draws, np.array([4.0, 0.0]), counts)
    assert means[:2].tolist() == [4.0, 4.0]
    assert np.isnan(means[2])


def test_intervals_are_of_95_percent_unless_said() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert estimate_means(values, resamples=200) == estimate_means(values, resamples=200, confidence=0.95)
    assert estimate_means(values, resamples=200) != estimate_means(values, resamples=200, confidence=0.9)

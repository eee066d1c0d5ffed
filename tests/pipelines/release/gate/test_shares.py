"""Shares: a hand-worked error, agreement with the bootstrap, users as units, corner cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.release.gate.shares import holm, share_of
from recsys.metrics.bootstrap import resample_means


def test_hand_worked_share_and_error() -> None:
    """Reference 1, 1, 2, challenger 1, 0, 2: r = -1 / 4; e = D - r R = .25, -.75, .5; sum of squares .875.

    error = sqrt(3 / 2 * .875) / 4.
    """
    found = share_of(np.array([1.0, 0.0, 2.0]), np.array([1.0, 1.0, 2.0]), np.arange(3))
    assert found.value == pytest.approx(-0.25)
    assert found.error == pytest.approx(math.sqrt(1.5 * 0.875) / 4)
    # t with 2 degrees at .9 is 1.885618
    assert found.low(0.1) == pytest.approx(found.value - 1.885618 * found.error, rel=1e-5)
    assert found.high(0.1) == pytest.approx(found.value + 1.885618 * found.error, rel=1e-5)


def test_bounds_agree_with_the_bootstrap_of_the_ratio() -> None:
    generator = np.random.default_rng(3)
    hits = generator.random(4000) < 0.15
    reference = np.where(hits, generator.choice([1.0, 0.63, 0.5, 0.43], 4000), 0.0)
    challenger = np.where(generator.random(4000) < 0.3, generator.permutation(reference), reference)
    users = np.arange(4000)
    found = share_of(challenger, reference, users)
    means = resample_means(
        np.stack([challenger, reference], axis=1), np.ones((4000, 1), bool), users, resamples=2000, seed=1
    )
    ratios = means.samples[:, 0, 0] / means.samples[:, 0, 1] - 1
    assert found.error == pytest.approx(float(ratios.std()), rel=0.06)
    assert found.low(0.07) == pytest.approx(float(np.quantile(ratios, 0.07)), abs=0.1 * found.error)


def test_rows_of_one_user_count_as_one() -> None:
    """Every row four times tells no more than once."""
    generator = np.random.default_rng(0)
    reference, challenger = generator.random(50), generator.random(50)
    once = share_of(challenger, reference, np.arange(50))
    repeated = share_of(np.tile(challenger, 4), np.tile(reference, 4), np.tile(np.arange(50), 4))
    assert repeated.error == pytest.approx(once.error)
    assert repeated.value == pytest.approx(once.value)


def test_where_nothing_can_be_said() -> None:
    nothing = share_of(np.ones(5), np.zeros(5), np.arange(5))
    assert math.isnan(nothing.value)
    one_user = share_of(np.array([0.5, 0.5]), np.ones(2), np.zeros(2, int))
    assert one_user.low(0.1) == -math.inf
    assert one_user.loss_p(0.0) == 1.0
    same = share_of(np.ones(5), np.ones(5), np.arange(5))
    assert same.low(0.01) == same.high(0.01) == 0.0
    assert same.loss_p(0.0) == 1.0
    assert share_of(np.full(5, 0.9), np.ones(5), np.arange(5)).loss_p(0.02) == 0.0


def test_a_mask_leaves_rows_out() -> None:
    found = share_of(np.array([0.0, 1.0, 9.0]), np.array([1.0, 1.0, 1.0]), np.arange(3), np.array([True, True, False]))
    assert (found.value, found.rows) == (-0.5, 2)


def test_rows_that_are_needed_grow_with_the_square() -> None:
    """Twice the margin takes a quarter of the rows."""
    generator = np.random.default_rng(1)
    found = share_of(generator.random(400), generator.random(400), np.arange(400))
    assert found.rows_needed(0.01, 0.07) == pytest.approx(4 * found.rows_needed(0.02, 0.07), rel=0.01)


def test_holm_stops_at_the_first_that_is_kept() -> None:
    """Of three at .05: .04 is below .05, but .03 fails at .05 / 2 before it."""
    assert holm([0.04, 0.03, 0.001], 0.05) == [False, False, True]
    assert holm([], 0.05) == []

"""Shares: a hand-worked error, agreement with the bootstrap, users as units, corner cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.release.gate.shares import holm, loss_on_slice, share_of
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
    same = share_of(np.ones(5), np.ones(5), np.arange(5))
    assert same.low(0.01) == same.high(0.01) == 0.0


def hits(*changes: tuple[int, float]) -> np.ndarray:
    """400 users, every other one hit, but for the changed ones."""
    values = np.tile([1.0, 0.0], 200)
    for user, value in changes:
        values[user] = value
    return values


def chance_of(at_least: int, steps: float, q: float) -> float:
    """That a negative binomial number is so large: 1 - sum over k of (steps + k - 1 over k) q^k (1 - q)^steps."""
    return 1 - sum(
        math.prod((steps + k - 1 - i) / (k - i) for i in range(k)) * q**k * (1 - q) ** steps for k in range(at_least)
    )


def test_a_loss_on_a_slice_by_hand() -> None:
    """Users 0 to 79 are the slice, with 40 hits; 5 of them are gone, none has come. Of the others, with 160 hits, 2 are gone
    and 2 have come: a hit is a step, 2 / 160 per hit are chance, so m = .5 on the slice. With A = 12 steps of likeness,
    q = m / (A + 2 m) = .5 / 13. A margin of 5 % is b = 2 hits: q = 2.5 / 15."""
    users = np.arange(400)
    after = hits(*((user, 0.0) for user in (0, 2, 4, 6, 8, 100, 102)), (101, 1.0), (103, 1.0))
    assert loss_on_slice(after, hits(), users, users < 80, 0.0) == pytest.approx(chance_of(5, 12, 0.5 / 13))
    assert loss_on_slice(after, hits(), users, users < 80, 0.05) == pytest.approx(chance_of(5, 12, 2.5 / 15))
    rows = np.tile(after, 3), np.tile(hits(), 3), np.tile(users, 3), np.tile(users < 80, 3)
    assert loss_on_slice(*rows, 0.0) == pytest.approx(chance_of(5, 12, 0.5 / 13)), "rows of one user count as one"


def test_steps_are_as_large_as_what_changes_by_chance() -> None:
    """All values are halved, so that a step is half a hit: the same counts, the same p-value. Of steps of 1 and .5
    elsewhere, the size is 1.25 / 1.5 and the sum 1.5: m = 1.5 / 160 * 40 / (5 / 6) = .45 and x = 5 / (5 / 6) = 6."""
    users = np.arange(400)
    after = hits(*((user, 0.0) for user in (0, 2, 4, 6, 8, 100, 102)), (101, 1.0), (103, 1.0))
    assert loss_on_slice(after / 2, hits() / 2, users, users < 80, 0.0) == pytest.approx(chance_of(5, 12, 0.5 / 13))
    mixed = np.where(users == 101, 0.5, after)
    assert loss_on_slice(mixed, hits(), users, users < 80, 0.0) == pytest.approx(chance_of(6, 12, 0.45 / 12.9))


def test_where_models_differ_more_on_a_slice_its_own_gains_say_so() -> None:
    """11 hits are gone and 3 have come: 3 steps more than the 12 that speak for the others' rate. Of 7 that are gone the own
    gains allow 4 net: 1.645 sqrt(2 * 3 + 1) = 4.35."""
    users = np.arange(400)
    came = [(user, 1.0) for user in (1, 3, 5, 101, 103)]
    after = hits(*((user, 0.0) for user in (*range(0, 22, 2), 100, 102)), *came)
    assert loss_on_slice(after, hits(), users, users < 80, 0.0) == pytest.approx(chance_of(11, 15, 0.5 / 13))
    after = hits(*((user, 0.0) for user in (*range(0, 14, 2), 100, 102)), *came)
    assert loss_on_slice(after, hits(), users, users < 80, 0.0) == 1.0


def test_a_gain_for_the_others_is_no_chance() -> None:
    """Elsewhere 2 hits are gone, and 2 or 40 have come: what chance takes is 2 either way."""
    users = np.arange(400)
    gone = [(user, 0.0) for user in (0, 2, 4, 6, 8, 100, 102)]
    few, many = (hits(*gone, *((user, 1.0) for user in range(101, last, 2))) for last in (104, 181))
    expected = pytest.approx(chance_of(5, 12, 0.5 / 13))
    assert loss_on_slice(few, hits(), users, users < 80, 0.0) == expected
    assert loss_on_slice(many, hits(), users, users < 80, 0.0) == expected
    rising, falling = (
        hits(*gone[:5], *((user, float(user % 2)) for user in range(*step))) for step in ((101, 181, 2), (100, 180, 2))
    )
    for after in (rising, falling):  # nothing fell there, or nothing rose: no chance at all
        assert loss_on_slice(after, hits(), users, users < 80, 0.0) == 0.0
        assert loss_on_slice(after, hits(), users, users < 80, 0.05) == pytest.approx(chance_of(5, 12, 2 / 14))


def test_three_users_who_fall_may_be_chance_and_a_gain_is_no_loss() -> None:
    """Nothing else has changed, so that chance takes nothing: 4 who fell are proof, 3 are not."""
    users = np.arange(400)
    gone = hits(*((user, 0.0) for user in (0, 2, 4)))
    assert loss_on_slice(gone, hits(), users, users < 80, 0.0) == 1.0
    assert loss_on_slice(np.where(users == 6, 0.0, gone), hits(), users, users < 80, 0.0) == 0.0
    assert loss_on_slice(hits(), gone, users, users < 80, 0.0) == 1.0
    assert loss_on_slice(hits(), hits(), users, users < 80, 0.0) == 1.0
    assert loss_on_slice(hits(), np.zeros(400), users, users < 80, 0.0) == 1.0


def test_a_loss_within_the_margin_or_a_step_or_two_is_borne() -> None:
    """5 of 40 hits are 12.5 %. Four users who lose .4 of a hit each lose 1.6 steps, less than 1.645; .42 of one each
    are more than chance."""
    users = np.arange(400)
    elsewhere = [(100, 0.0), (102, 0.0), (101, 1.0), (103, 1.0)]
    five = hits(*elsewhere, *((user, 0.0) for user in (0, 2, 4, 6, 8)))
    assert loss_on_slice(five, hits(), users, users < 80, 0.125) == 1.0
    assert loss_on_slice(five, hits(), users, users < 80, 0.124) < 1.0
    less, more = (hits(*elsewhere, *((user, left) for user in (0, 2, 4, 6))) for left in (0.6, 0.58))
    assert loss_on_slice(less, hits(), users, users < 80, 0.0) == 1.0
    assert chance_of(2, 12, 0.5 / 13) < loss_on_slice(more, hits(), users, users < 80, 0.0) < chance_of(1, 12, 0.5 / 13)


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_loss_on_a_slice_is_never_less_proven(seed: int) -> None:
    """Row after row of the slice falls, by some or by all: the p-value never rises, and ends as proof."""
    generator = np.random.default_rng(seed)
    users, gains = np.arange(3000), 1 / np.log2(np.arange(2, 12))
    before, other = (np.where(generator.random(3000) < 0.2, generator.choice(gains, 3000), 0.0) for _ in range(2))
    after = np.where(generator.random(3000) < 0.15, other, before)
    mask, found = users < generator.integers(200, 1500), []
    for user in generator.permutation(np.flatnonzero(mask)):
        after[user] *= generator.choice([0.0, 0.8])
        found.append(loss_on_slice(after, before, users, mask, 0.02))
    assert (np.diff(found) <= 1e-12).all()
    assert found[0] > 0.05
    assert found[-1] < 1e-6


@pytest.mark.parametrize("more", [1.0, 4.0])
def test_equal_models_are_seldom_said_to_lose_on_a_slice(more: float) -> None:
    """At a level of 5 %, among 2,000 pairs of equal models, also where they differ ``more`` on the slice."""
    users, said = np.arange(2000), 0
    for number in range(2000):
        generator = np.random.default_rng([7, number])
        before = (generator.random(2000) < 0.3).astype(float)
        other = (generator.random(2000) < 0.3).astype(float)
        differs = generator.random(2000) < np.where(users < 200, 0.05 * more, 0.05)
        said += loss_on_slice(np.where(differs, other, before), before, users, users < 200, 0.0) < 0.05
    assert said / 2000 < 0.09


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

"""Calibration: scale and shift by hand, and what it must not do."""

import numpy as np
import pytest

from recsys.reward.calibration import platt_scaling


def test_scale_and_shift_by_hand() -> None:
    """Labels are sigmoid(3 x - 1) exactly, so the least cross-entropy is at scale 3, shift -1."""
    logits = np.linspace(-1, 1, 21)
    scale, shift = platt_scaling(logits, 1 / (1 + np.exp(1 - 3 * logits)))
    assert (scale, shift) == pytest.approx((3.0, -1.0), abs=0.01)


def test_equal_logits_match_the_mean() -> None:
    """All logits 0, a quarter of the labels 1: sigmoid(shift) = 1/4, shift = -ln 3."""
    assert platt_scaling(np.zeros(8), np.array([1, 1, 0, 0, 0, 0, 0, 0.0])) == pytest.approx(
        (1.0, -np.log(3)), abs=1e-3
    )


def test_the_order_is_never_turned_round() -> None:
    scale, shift = platt_scaling(np.array([1.0, 2.0, -1.0, -2.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert scale == 1.0
    assert shift == pytest.approx(0.0, abs=1e-6)


def test_labels_of_one_kind_and_separable_ones_stay_finite() -> None:
    for labels in (np.zeros(50), np.ones(50), (np.arange(50) > 25).astype(float)):
        found = platt_scaling(np.linspace(-1, 1, 50), labels)
        assert np.isfinite(found).all()
    assert platt_scaling(np.empty(0), np.empty(0)) == (1.0, 0.0)


@pytest.mark.parametrize("mean", [-6.0, -3.0, 0.0, 3.0, 10.0])
@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.0), (0.2, -6.0), (1.0, 3.0), (2.0, 0.0)])
def test_logits_far_from_their_labels_are_brought_to_them(mean: float, scale: float, shift: float) -> None:
    """Labels are sigmoid(scale x + shift) exactly: whole steps of Newton's method ran from one end to the other and gave
    up where they were, up to 9 nats from the best."""
    logits = np.random.default_rng(1).normal(mean, 1.0, size=400)
    wanted = scale * logits + shift
    found_scale, found_shift = platt_scaling(logits, 1 / (1 + np.exp(-wanted)))
    found = found_scale * logits + found_shift
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), 1 / (1 + np.exp(-wanted)), atol=5e-3)

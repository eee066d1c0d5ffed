"""Listwise softmax: a loss worked by hand, its slope, and weights with a closed form."""

from __future__ import annotations

import numpy as np

from recsys.ranker.logit import Choices, fit_softmax


def test_loss_and_slope_by_hand() -> None:
    """One row, features 0 and log 3, weight 1: probabilities 1/4 and 3/4; the first is chosen.

    Loss -log(1/4) = log 4 = 1.3863; slope = sum (p - y) x = (3/4) log 3 = 0.8240.
    """
    choices = Choices(np.array([[0.0], [np.log(3)]], np.float32), np.array([0]), np.array([1, 0], np.float32))
    value, slope = choices.loss(np.array([1.0]))
    assert round(value, 4) == 1.3863
    assert round(float(slope[0]), 4) == 0.8240


def test_two_targets_share_a_row() -> None:
    """Three candidates of score 0, two of them targets with a half each: the loss is log 3 = 1.0986 whichever they are."""
    choices = Choices(np.zeros((3, 1), np.float32), np.array([0]), np.array([0.5, 0.5, 0], np.float32))
    assert round(choices.loss(np.array([2.0]))[0], 4) == 1.0986


def test_slope_agrees_with_differences() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(12, 3)).astype(np.float32)
    chosen = np.zeros(12, np.float32)
    chosen[[1, 6, 11]] = 1.0
    choices = Choices(features, np.array([0, 5, 9]), chosen)
    weights, step = np.array([0.3, -0.2, 0.5]), 1e-3
    for place in range(3):
        nudge = step * np.eye(3)[place]
        slope = (choices.loss(weights + nudge)[0] - choices.loss(weights - nudge)[0]) / (2 * step)
        assert abs(slope - choices.loss(weights)[1][place]) < 1e-3


def test_a_ridge_shrinks_and_a_bound_holds() -> None:
    features = np.tile(np.array([[1.0], [0.0]], np.float32), (4, 1))
    choices = Choices(features, np.arange(0, 8, 2), np.array([1, 0, 1, 0, 1, 0, 0, 1], np.float32))
    free, ridged = fit_softmax(choices)[0], fit_softmax(choices, 1.0)[0]
    assert 0 < ridged < free
    turned = Choices(-features, choices.starts, choices.chosen)
    assert fit_softmax(turned, lowest=np.zeros(1))[0] == 0.0
    assert np.isclose(fit_softmax(turned)[0], -free, atol=1e-4)


def test_the_first_guess_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(300, 4)).astype(np.float32)
    chosen = np.zeros(300, np.float32)
    chosen[np.arange(60) * 5 + generator.integers(5, size=60)] = 1.0
    choices = Choices(features, np.arange(0, 300, 5), chosen)
    assert np.allclose(fit_softmax(choices, 0.1), fit_softmax(choices, 0.1, np.full(4, 3.0)), atol=1e-3)

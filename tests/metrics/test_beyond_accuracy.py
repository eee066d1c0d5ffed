"""Novelty, diversity, Vendi score, calibration: hand-worked values, an independent form, and what short lists give."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from recsys.metrics.beyond_accuracy import (
    calibration,
    diversity,
    novelty,
    self_information,
    unit_vectors,
    vendi_score,
)

LISTS = np.array([[0, 1, 2, 3], [4, 5, -1, -1], [2, -1, -1, -1], [-1, -1, -1, -1]], np.int32)


@pytest.fixture
def units() -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(5).normal(size=(6, 3))
    vectors[5] = 0.0  # an item that nothing is known of
    return unit_vectors(vectors)


def test_self_information_is_bits_of_the_smoothed_share() -> None:
    """Counts 7, 0, 1 become 8, 1, 2 of 11."""
    np.testing.assert_allclose(
        self_information(np.array([7, 0, 1])), [math.log2(11 / 8), math.log2(11), math.log2(5.5)]
    )


def test_novelty_is_the_mean_over_the_items_that_are_there() -> None:
    information = np.array([1.0, 2.0, 3.0, 6.0, 10.0, 20.0])
    assert novelty(LISTS, information).tolist() == [3.0, 15.0, 3.0, 0.0]


def test_diversity_equals_the_mean_over_all_pairs(units: npt.NDArray[np.float32]) -> None:
    found = diversity(LISTS, units)
    pairs = [1.0 - float(units[a].astype(float) @ units[b]) for a, b in combinations(range(4), 2)]
    assert found[0] == pytest.approx(sum(pairs) / 6)
    assert found[1] == pytest.approx(1.0)  # nothing is known of item 5, so it is like no other
    assert found[2:].tolist() == [0.0, 0.0]


def test_vendi_equals_its_definition_by_the_matrix_logarithm(units: npt.NDArray[np.float32]) -> None:
    """exp(-tr(K/n log K/n)), the eigenvalues by another routine (of a general matrix) than the one used."""
    found = vendi_score(LISTS, units)
    kernel = units[:4].astype(float) @ units[:4].T.astype(float) / 4
    values = np.linalg.eigvals(kernel).real
    values = values[values > 1e-12]
    assert found[0] == pytest.approx(math.exp(-float((values * np.log(values)).sum())), rel=1e-5)
    np.testing.assert_allclose(found[1:], [2.0, 1.0, 0.0], atol=1e-6)


def test_vendi_lies_between_one_and_the_number_of_items(units: npt.NDArray[np.float32]) -> None:
    lists = np.random.default_rng(1).permuted(np.tile(np.arange(6, dtype=np.int32), (50, 1)), axis=1)[:, :4]
    found = vendi_score(lists, units)
    assert ((found > 1.0) & (found < 4.0 + 1e-6)).all()
    alike = np.tile(units[:1], (6, 1))
    np.testing.assert_allclose(vendi_score(LISTS[:2], alike), 1.0, atol=1e-6)
    np.testing.assert_allclose(diversity(LISTS[:2], alike), 0.0, atol=1e-6)


def test_calibration_by_hand() -> None:
    """History 3 : 1 over two categories, list all of the first: p = (.75, .25), q~ = (.9975, .0025)."""
    found = calibration(np.array([[4.0, 0.0]]), np.array([[3.0, 1.0]]))
    assert found[0] == pytest.approx(0.75 * math.log(0.75 / 0.9975) + 0.25 * math.log(0.25 / 0.0025))


def test_calibration_is_zero_for_the_same_mix_and_never_negative() -> None:
    rng = np.random.default_rng(2)
    liked, shown = rng.integers(0, 5, (200, 4)).astype(float), rng.integers(0, 5, (200, 4)).astype(float)
    assert (calibration(shown, liked) > -1e-12).all()
    np.testing.assert_allclose(calibration(3 * liked, liked), 0.0, atol=1e-12)
    empty = np.zeros((1, 4))
    assert calibration(shown[:1], empty)[0] == 0.0
    assert calibration(empty, liked[:1])[0] == pytest.approx(math.log(100))  # -ln of the smoothing: the largest


def test_order_does_not_matter(units: npt.NDArray[np.float32]) -> None:
    backwards = LISTS[:, ::-1].copy()
    for measure in (diversity, vendi_score):
        np.testing.assert_allclose(measure(backwards, units), measure(LISTS, units), atol=1e-9)

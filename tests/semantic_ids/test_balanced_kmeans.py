"""Alg. 1 of OneRec by hand, and the equal sizes it promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.semantic_ids.balanced_kmeans import BalancedResidualKMeans, balanced_codes, sequential_pass
from recsys.semantic_ids.quantizer import squared_distances


def points_of(*values):
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def test_sequential_pass_by_hand():
    """Five points 0 1 2 6 7, codes at 1 and 2, code 1 first: it takes 5 // 2 + 1 = 3 points, the nearest to 2: 2, 1, 0.

    (Distances to 2: 2, 1, 0, 4, 5.) Code 0, at 1, is left with 6 and 7.
    """
    codes = sequential_pass(points_of(0, 1, 2, 6, 7), points_of(1, 2), torch.tensor([1, 0]))
    assert codes.tolist() == [1, 1, 1, 0, 0]


def test_order_of_the_codes_matters_in_a_sequential_pass():
    """Code 0 first takes its 2 nearest of 0 1 2 3 around 1.5: the inner ones; code 1 first takes 3 and 2 around 3."""
    points, centroids = points_of(0, 1, 2, 3), points_of(1.5, 3)
    assert sequential_pass(points, centroids, torch.tensor([0, 1])).tolist() == [1, 0, 0, 1]
    assert sequential_pass(points, centroids, torch.tensor([1, 0])).tolist() == [0, 0, 1, 1]


def test_capacity_aware_codes_by_hand():
    """Points 0 1 2 9, codes at 0 and 1, two places each. Pairs by distance: (0, 0) and (1, 1) at 0, then (1,
    0) is void, (2, 1) at 1 fills code 1, so 9 goes to code 0 at distance 81 although code 1 is nearer (64)."""
    assert balanced_codes(points_of(0, 1, 2, 9), points_of(0, 1)).tolist() == [0, 1, 1, 0]


def greedy_over_sorted_pairs(points, centroids, capacities):
    distances = np.square(points[:, None] - centroids[None]).sum(axis=2)
    codes, room = np.full(len(points), -1), capacities.copy()
    for pair in np.argsort(distances, axis=None, kind="stable"):
        point, code = divmod(int(pair), len(centroids))
        if codes[point] < 0 and room[code]:
            codes[point], room[code] = code, room[code] - 1
    return codes


@pytest.mark.parametrize("seed", range(5))
def test_capacity_aware_codes_equal_the_sorted_pairs(seed):
    """Deferred acceptance must give what sorting all point-code pairs gives."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((60, 3)).astype(np.float32)
    centroids = rng.standard_normal((6, 3)).astype(np.float32)
    codes = balanced_codes(torch.from_numpy(points), torch.from_numpy(centroids)).numpy()
    assert np.array_equal(codes, greedy_over_sorted_pairs(points, centroids, np.full(6, 10)))


@settings(max_examples=40, deadline=None)
@given(num_points=st.integers(1, 50), num_codes=st.integers(1, 12), seed=st.integers(0, 99))
def test_sizes_differ_by_at_most_one(num_points, num_codes, seed):
    """For any N and K, also N < K and points that coincide."""
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.integers(-2, 3, (num_points, 2)).astype(np.float32))
    centroids = torch.from_numpy(rng.standard_normal((num_codes, 2)).astype(np.float32))
    order = torch.from_numpy(rng.permutation(num_codes))
    for codes in (balanced_codes(points, centroids), sequential_pass(points, centroids, order)):
        sizes = np.bincount(codes.numpy(), minlength=num_codes)
        assert sizes.sum() == num_points
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("balancing", ["sequential", "capacity_aware"])
def test_balanced_assignment_fills_every_level_equally(balancing):
    x = np.random.default_rng(0).standard_normal((203, 6)).astype(np.float32) ** 3
    quantizer = BalancedResidualKMeans(3, 10, assign="balanced", balancing=balancing)
    quantizer.fit(x, seed=0)
    codes = quantizer.encode_catalogue(x)
    for level in range(3):
        sizes = np.bincount(codes[:, level], minlength=10)
        assert sorted(set(sizes.tolist())) == [20, 21]


def test_nearest_assignment_is_more_even_than_plain_kmeans_on_skewed_data():
    """The reason for the method: 90 % of the points in one heap, and balanced centroids split the heap."""
    from recsys.semantic_ids.residual_kmeans import ResidualKMeans

    rng = np.random.default_rng(1)
    x = np.concatenate([0.05 * rng.standard_normal((900, 4)), 4 * rng.standard_normal((100, 4))]).astype(np.float32)
    largest = {}
    for kind in (ResidualKMeans, BalancedResidualKMeans):
        quantizer = kind(1, 16)
        quantizer.fit(x, seed=0)
        largest[kind] = np.bincount(quantizer.encode(x)[:, 0]).max()
    assert largest[BalancedResidualKMeans] < 0.5 * largest[ResidualKMeans]


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_points_that_lie_alike_take_the_codes_in_turn(noise):
    """300 points that all rank 100 codes alike or nearly so: more rounds than few, and still the sorted pairs' answer.

    Whole numbers below 2**24 keep every distance exact, so that both ways see the same ties.
    """
    rng = np.random.default_rng(3)
    points = np.tile(rng.integers(-9, 9, 4), (300, 1)) + (rng.random((300, 4)) < noise)
    centroids = rng.integers(-99, 99, (100, 4))
    codes = balanced_codes(torch.from_numpy(points.astype(np.float32)), torch.from_numpy(centroids.astype(np.float32)))
    expected = greedy_over_sorted_pairs(points.astype(np.int64), centroids, np.full(100, 3))
    assert np.array_equal(codes.numpy(), expected)


def test_identical_points_take_no_more_distances_than_there_are(monkeypatch):
    """A thousand equal points and 500 codes: 500 rounds of all distances would be 125 million, 32 rounds are 16 million."""
    from recsys.semantic_ids import balanced_kmeans

    counted = [0]

    def counting(points, centroids):
        counted[0] += len(points) * len(centroids)
        return squared_distances(points, centroids)

    monkeypatch.setattr(balanced_kmeans, "squared_distances", counting)
    codes = balanced_codes(torch.ones(1000, 4), torch.randn(500, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.bincount(codes).tolist() == [2] * 500
    assert counted[0] < 17_000_000

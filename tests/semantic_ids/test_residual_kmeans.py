"""Lloyd's algorithm and the shared arithmetic, by hand."""

import numpy as np
import pytest
import torch

from recsys.contracts.errors import DataError
from recsys.semantic_ids.quantizer import check_embeddings, nearest_codes, relative_residual_errors, squared_distances
from recsys.semantic_ids.residual_kmeans import cluster_means, first_centroids, lloyd


def points_of(*values):
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def test_lloyd_by_hand():
    """0 2 10 12 from centroids 0 and 2: first pass {0}, {2, 10, 12} -> 0 and 8; second {0, 2}, {10, 12} -> 1 and 11."""
    points = points_of(0, 2, 10, 12)
    assert lloyd(points, points_of(0, 2), max_iterations=1, tolerance=0.0).flatten().tolist() == [0.0, 8.0]
    assert lloyd(points, points_of(0, 2), max_iterations=9, tolerance=0.0).flatten().tolist() == [1.0, 11.0]


def test_an_empty_code_takes_the_farthest_point():
    """All of 0 1 9 are nearest to code 0 (at 0); code 1 (at 50) is empty and takes 9. Mean of code 0: (0 + 1 + 9) / 3."""
    points, centroids = points_of(0, 1, 9), points_of(0, 50)
    codes, distances = nearest_codes(points, centroids)
    moved = cluster_means(points, codes, distances, centroids)
    assert moved.flatten().tolist() == pytest.approx([10 / 3, 9.0])


def test_kmeans_plus_plus_draws_distinct_points_while_there_are_any():
    """Ten copies of each of 4 points: a copy of a drawn point has distance 0, hence probability 0."""
    points = points_of(1, 20, 300, 4000).repeat(10, 1)
    for seed in range(20):
        drawn = first_centroids(points, 4, "kmeans++", torch.Generator().manual_seed(seed))
        assert sorted(drawn.flatten().tolist()) == [1.0, 20.0, 300.0, 4000.0]


def test_distances_in_chunks_equal_distances_at_once():
    x = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))
    centroids = x[:7].clone()
    codes, distances = nearest_codes(x, centroids)
    whole = squared_distances(x, centroids)
    assert torch.equal(codes, whole.argmin(dim=1))
    torch.testing.assert_close(distances, whole.min(dim=1).values, atol=1e-5, rtol=1e-5)


def test_relative_errors_by_hand():
    """Points 0 and 4: mean 2, variance sum 4 + 4 = 8. Level 1 at 1 and 3 leaves -1 and 1: 2/8. Level 2 at -0.5
    and 0.5 leaves -0.5 and 0.5: 0.5/8."""
    x = np.array([[0.0], [4.0]], np.float32)
    books = (np.array([[1.0], [3.0]], np.float32), np.array([[-0.5], [0.5]], np.float32))
    codes = np.array([[0, 0], [1, 1]], np.int32)
    assert relative_residual_errors(x, codes, books) == pytest.approx([0.25, 0.0625])


def test_embeddings_that_are_not_finite_are_refused_with_their_place():
    x = np.ones((4, 2), np.float32)
    x[2, 1] = np.nan
    with pytest.raises(DataError, match="tokenize: the embedding of item_index 2 holds NaN or infinity"):
        check_embeddings(x, "tokenize")
    with pytest.raises(DataError, match=r"shape \(4,\), expected \[items, width\]"):
        check_embeddings(np.ones(4, np.float32), "tokenize")

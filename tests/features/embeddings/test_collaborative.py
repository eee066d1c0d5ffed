"""Co-occurrence, PPMI and the promise that the future has no influence."""

import numpy as np
import pytest
from scipy import sparse

from features.embeddings.collaborative import (
    CollaborativeConfig,
    associations,
    collaborative_embedding,
    cooccurrence,
    smoothed_shares,
)
from features.embeddings.factorise import truncated_svd
from recsys.contracts.errors import DataError


def vectors(*arguments, **named):
    return collaborative_embedding(*arguments, **named)[0]


def ppmi(counts, shift, context_smoothing):
    return associations(counts, smoothed_shares(counts, context_smoothing), shift)


def test_cooccurrence_by_hand(make_history):
    """User 0: 0 1 2, user 1: 2 1. One step apart: (0,1), (1,2), (2,1); two steps: (0,2) at weight 0.5."""
    counts = cooccurrence(make_history([[0, 1, 2], [2, 1]]), 3, window=2, gap_decay=0.5).toarray()
    assert counts.tolist() == [[0, 1, 0.5], [1, 0, 2], [0.5, 2, 0]]


def test_users_do_not_touch_and_an_item_is_no_neighbour_of_itself(make_history):
    counts = cooccurrence(make_history([[0, 0], [1], [2]]), 3, window=5, gap_decay=1.0)
    assert counts.nnz == 0


def test_window_bounds_the_distance(make_history):
    counts = cooccurrence(make_history([[0, 1, 2, 3]]), 4, window=2, gap_decay=1.0).toarray()
    assert counts[0, 2] == 1
    assert counts[0, 3] == 0


def test_ppmi_by_hand():
    """Counts 0-1: 4, 1-2: 1; total 10, row sums 4 5 1, exponent 1: PMI(0,1) = ln((4/10) / (4/10 * 5/10)) = ln 2.

    PMI(1,2) = ln((1/10) / (5/10 * 1/10)) = ln 2 as well. With exponent 0.5 the contexts weigh 2, sqrt 5, 1:
    PMI(0,1) = ln((4/10) / (4/10 * sqrt 5 / (3 + sqrt 5))) = ln((3 + sqrt 5) / sqrt 5).
    """
    counts = sparse.csr_matrix(np.array([[0, 4, 0], [4, 0, 1], [0, 1, 0]], float))
    plain = ppmi(counts, shift=1.0, context_smoothing=1.0).toarray()
    assert plain[0, 1] == pytest.approx(np.log(2))
    assert plain[1, 2] == pytest.approx(np.log(2))
    smooth = ppmi(counts, shift=1.0, context_smoothing=0.5).toarray()
    assert smooth[0, 1] == pytest.approx(np.log((3 + np.sqrt(5)) / np.sqrt(5)))
    shifted = ppmi(counts, shift=1.5, context_smoothing=1.0).toarray()
    assert shifted[0, 1] == pytest.approx(np.log(2) - np.log(1.5))
    assert ppmi(counts, shift=3.0, context_smoothing=1.0).nnz == 0


def test_valid_and_test_events_have_no_influence(make_history):
    """Any later events give the same bytes; one other train event does not."""
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 30, 12).tolist() for _ in range(40)]
    config = CollaborativeConfig(dim=8)
    alone = vectors(make_history(train), 30, config, seed=1)
    for seed in range(3):
        later = [np.random.default_rng(seed).integers(0, 30, 1 + seed).tolist() for _ in range(40)]
        assert vectors(make_history(train, later), 30, config, seed=1).tobytes() == alone.tobytes()
    train[0][5] = (train[0][5] + 1) % 30
    assert vectors(make_history(train), 30, config, seed=1).tobytes() != alone.tobytes()


def test_items_taken_together_lie_close(make_history):
    """Two circles of friends: users walk items 0..4 or 5..9, never both. Cosine inside must exceed cosine across."""
    rng = np.random.default_rng(0)
    train = [(rng.permutation(5) + 5 * (user % 2)).tolist() for user in range(60)]
    x = vectors(make_history(train), 10, CollaborativeConfig(dim=4), seed=0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    same = np.kron(np.eye(2), np.ones((5, 5))).astype(bool)
    assert cosine[same].min() > cosine[~same].max() + 0.3


def test_an_item_without_train_events_has_a_zero_row(make_history):
    x = vectors(make_history([[0, 1, 2], [2, 0, 1]], [[3], [3]]), 4, CollaborativeConfig(dim=2), seed=0)
    assert not x[3].any()
    assert x[:3].any(axis=1).all()
    empty = vectors(make_history([[0], [1]]), 4, CollaborativeConfig(dim=2), seed=0)
    assert empty.shape == (4, 2)
    assert not empty.any()


def test_sparse_and_dense_factorisation_agree():
    """ARPACK and LAPACK on the same matrix, signs included; the reconstruction keeps the largest singular values."""
    matrix = sparse.random(90, 80, density=0.2, random_state=np.random.default_rng(0), format="csr")
    u, sigma = truncated_svd(matrix, 5, seed=0)
    dense_u, dense_sigma, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    np.testing.assert_allclose(sigma, dense_sigma[:5], rtol=1e-8)
    np.testing.assert_allclose(np.abs(u), np.abs(dense_u[:, :5]), atol=1e-6)
    assert (u[np.abs(u).argmax(axis=0), np.arange(5)] > 0).all()
    other_start, _ = truncated_svd(matrix, 5, seed=9)
    np.testing.assert_allclose(u, other_start, atol=1e-6)


def test_a_width_beyond_the_catalogue_is_refused(make_history):
    with pytest.raises(DataError, match=r"collaborative.dim=64 exceeds the 3 items of the catalogue; set"):
        vectors(make_history([[0, 1, 2]]), 3, CollaborativeConfig(), seed=0)

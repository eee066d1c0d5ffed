"""Representatives of a long history: by hand, what always holds, what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.errors import DataError
from recsys.model.variants.lifelong import lifelong_representatives, num_splits


def test_two_interests_by_hand() -> None:
    """Two interests round 0 and 10, M = 3.

    Near 0 lie events 0, 2, 4 at -1, 0, 1 (mean 0: event 2); near 10 events 1, 3, 5 at 10, 11, 12 (mean 11: event 3).
    Watched shares of the second, 0.2, 0.4, 0.9, average to 0.5.
    """
    found = lifelong_representatives(np.array([[-1.0], [10.0], [0.0], [11.0], [1.0], [12.0]]), 3)
    assert found.event_C.tolist() == [2, 3]
    assert found.cluster_N.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.counts_C.tolist() == [3, 3]
    assert found.take(np.array([7, 8, 9, 10, 11, 12])).tolist() == [9, 10]
    np.testing.assert_allclose(found.average(np.array([0.3, 0.2, 0.3, 0.4, 0.3, 0.9])), [0.3, 0.5])


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 400), kinds=st.integers(1, 400), max_items=st.integers(1, 40), seed=st.integers(0, 1000))
def test_every_event_is_represented_by_a_member_of_its_own_small_cluster(
    count: int, kinds: int, max_items: int, seed: int
) -> None:
    """Clusters partition the history, hold at most M events unless they are copies of one item, and name a member."""
    items = np.random.default_rng(seed).integers(0, kinds, count)
    vectors = np.random.default_rng(1).normal(size=(kinds, 5))[items]
    found = lifelong_representatives(vectors, max_items, seed)
    assert found.counts_C.sum() == count == len(found.cluster_N)
    assert (np.diff(found.event_C) > 0).all()
    np.testing.assert_array_equal(found.cluster_N[found.event_C], np.arange(len(found)))
    for cluster, size in enumerate(found.counts_C):
        assert size <= max_items or len(np.unique(items[found.cluster_N == cluster])) == 1
    again = lifelong_representatives(vectors, max_items, seed)
    np.testing.assert_array_equal(found.cluster_N, again.cluster_N)


def test_one_event_per_cluster_keeps_the_history() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    assert lifelong_representatives(vectors, 1).event_C.tolist() == list(range(50))


def test_far_from_the_origin_clusters_are_the_same() -> None:
    """float32 squares of numbers near 1000 lose what tells these points apart, unless a node is centred first."""
    near = np.repeat(np.arange(8.0)[:, None], 4, 0) / 8
    here, there = lifelong_representatives(near, 4), lifelong_representatives(near + 1000, 4)
    np.testing.assert_array_equal(here.cluster_N, there.cluster_N)
    assert len(here) == 8


def test_splits_are_cube_roots() -> None:
    assert [num_splits(n) for n in (1, 26, 27, 28, 64, 124, 125, 10**9, 10**9 - 1)] == [
        1, 2, 3, 3, 4, 4, 5, 1000, 999,
    ]  # fmt: skip


def test_refusals() -> None:
    with pytest.raises(ValueError, match="max_cluster_items is 0"):
        lifelong_representatives(np.zeros((3, 2)), 0)
    with pytest.raises(DataError, match="leave out events whose items have no vector"):
        lifelong_representatives(np.array([[np.nan]]), 2)
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        lifelong_representatives(np.zeros(3), 2)

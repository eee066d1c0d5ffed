"""Event features by hand, and ranking of dense scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.contracts.event_features import (
    NUM_GAP_BUCKETS,
    NUM_WATCH_BUCKETS,
    behaviour_codes,
    gap_buckets,
    watch_buckets,
)
from recsys.contracts.ranking import top_k


def test_gaps_by_hand() -> None:
    """One minute is 60 s, floor(log2 60) = 5, bucket 7; a day is 86,400 s, floor(log2) = 16, bucket 18."""
    assert gap_buckets(np.array([60_000_000, 86_400_000_000])).tolist() == [7, 18]


@given(st.integers(-10, 2**62), st.floats(0, 1e6))
def test_codes_stay_in_their_tables(gap_us: int, ratio: float) -> None:
    assert 0 <= gap_buckets(np.array([gap_us]))[0] < NUM_GAP_BUCKETS
    assert 1 <= watch_buckets(np.array([ratio]))[0] < NUM_WATCH_BUCKETS


def test_too_many_signals_are_refused() -> None:
    assert behaviour_codes(np.ones((1, 7), bool)).tolist() == [128]
    with pytest.raises(ValueError, match="8 signals"):
        behaviour_codes(np.ones((1, 8), bool))


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, -np.inf]), min_size=5, max_size=5), min_size=1, max_size=4),
    st.integers(1, 7),
)
def test_top_k_equals_sorting(rows: list[list[float]], k: int) -> None:
    ranked = top_k(np.array(rows, np.float32), k)
    for row, items in zip(rows, ranked.items, strict=True):
        expected = [i for i in sorted(range(5), key=lambda i: (-row[i], i)) if row[i] > -np.inf][:k]
        found = items[items >= 0].tolist()
        assert [row[i] for i in found] == [row[i] for i in expected]
        assert len(set(found)) == len(found)

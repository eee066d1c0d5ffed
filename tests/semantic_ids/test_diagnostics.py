"""The numbers of the tokenizer report, by hand."""

import numpy as np
import pytest

from recsys.semantic_ids.diagnostics import collision_statistics, level_statistics


def test_level_statistics_by_hand():
    """Counts 4, 2, 2, 0: p = 1/2, 1/4, 1/4; entropy = 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2; perplexity 2**1.5."""
    found = level_statistics(np.array([0, 0, 0, 0, 1, 1, 2, 2]), size=4)
    assert found["utilisation"] == 0.75
    assert found["entropy"] == pytest.approx(1.5 * np.log(2))
    assert found["entropy_max"] == pytest.approx(2 * np.log(2))
    assert found["perplexity"] == pytest.approx(2**1.5)
    assert found["cluster_sizes"] == {
        "smallest": 0,
        "median": 2.0,
        "largest": 4,
        "histogram": {"0": 1, "2-3": 2, "4-7": 1},
    }


def test_even_codes_reach_the_largest_entropy():
    found = level_statistics(np.arange(64) % 16, size=16)
    assert found["entropy"] == pytest.approx(found["entropy_max"])
    assert found["perplexity"] == pytest.approx(16.0)


def test_a_collapsed_level_has_entropy_zero():
    assert level_statistics(np.zeros(5, np.int32), size=8)["entropy"] == 0.0


def test_collisions_are_weighted_by_traffic():
    """Items 0 1 2 share an ID, 3 and 4 are alone. Traffic 10 0 10 60 20: colliding share of items 3/5, of traffic 20/100."""
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 0]], np.int32)
    found = collision_statistics(codes, (2, 2), np.array([10, 0, 10, 60, 20]))
    assert found == {
        "unique_share": pytest.approx(0.4),
        "distinct_share": pytest.approx(0.6),
        "colliding_item_share": pytest.approx(0.6),
        "colliding_traffic_share": pytest.approx(0.2),
        "largest_bucket": 3,
    }


def test_a_catalogue_without_traffic_has_no_traffic_share():
    codes = np.array([[0], [0]], np.int32)
    assert collision_statistics(codes, (2,), np.zeros(2, np.int64))["colliding_traffic_share"] == 0.0

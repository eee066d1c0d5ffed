"""Attributes to vectors, by hand."""

import numpy as np
import pytest

from features.embeddings.attributes import AttributesConfig, attribute_embedding, attribute_matrix, attribute_vocabulary


def vectors(*arguments, **named):
    return attribute_embedding(*arguments, **named)[0]


def test_matrix_by_hand(make_items):
    """Six items. "a" is held by items 0 1 2: weight ln(1 + 6/3); author 2 by 2 3: ln(1 + 6/2); "b" by item 4 only: left out.

    Item 2 has both, so its row is (ln 4, ln 3) / sqrt(ln 3 ** 2 + ln 4 ** 2) in the order author, category.
    """
    items = make_items(categories=[["a"], ["a", "a"], ["a"], [], ["b"], None], authors=[0, 0, 2, 2, 0, 0])
    matrix = attribute_matrix(items, *attribute_vocabulary(items, min_items=2)).toarray()
    norm = np.hypot(np.log(3), np.log(4))
    expected = [[0, 1], [0, 1], [np.log(4) / norm, np.log(3) / norm], [1, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(matrix, expected)


def test_svd_keeps_the_distances_when_it_keeps_every_dimension(make_items):
    items = make_items(categories=[["a"], ["a"], ["a", "b"], ["b"], ["b", "c"], ["c", "a"]])
    x = vectors(items, AttributesConfig(dim=64), seed=0)
    matrix = attribute_matrix(items, *attribute_vocabulary(items, 2)).toarray()
    assert x.shape == (6, 3)
    np.testing.assert_allclose(x @ x.T, matrix @ matrix.T, atol=1e-6)


@pytest.mark.parametrize("projection", ["svd", "random"])
def test_projection_is_deterministic_and_leaves_unknown_items_at_zero(make_items, projection):
    items = make_items(categories=[["a"], ["a", "b"], ["b"], [], None, ["a"]])
    config = AttributesConfig(dim=1, projection=projection)
    first, second = (vectors(items, config, seed=3) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.shape == (6, 1)
    assert not first[3:5].any()
    assert first[[0, 1, 2, 5]].all()
    if projection == "random":
        assert vectors(items, config, seed=4).tobytes() != first.tobytes()


def test_order_of_categories_does_not_matter(make_items):
    left = make_items(categories=[["a", "b"], ["b", "a"], ["b"], ["c"], ["c", "a"], None])
    right = make_items(categories=[["b", "a"], ["a", "b"], ["b"], ["c"], ["a", "c"], []])
    config = AttributesConfig(dim=2)
    assert vectors(left, config, 0).tobytes() == vectors(right, config, 0).tobytes()


def test_without_attributes_the_width_is_zero(make_items):
    assert vectors(make_items(), AttributesConfig(), seed=0).shape == (6, 0)

"""Each source has the say that its weight gives it."""

import numpy as np
import pytest

from features.embeddings.fusion import FusionSpace, mean_of_present, principal_components, unit_rows


def fuse(sources, weights, dim):
    return FusionSpace.fit(sources, weights, dim).fuse(sources)


def test_unit_rows_by_hand():
    """Rows (1, 0) and (5, 3) have mean (3, 1.5): centred (-2, -1.5) of length 2.5 -> (-0.8, -0.6), and the opposite."""
    source = np.array([[1, 0], [5, 3], [0, 0]], np.float32)
    found = unit_rows(source, mean_of_present(source))
    np.testing.assert_allclose(found, [[-0.8, -0.6], [0.8, 0.6], [0, 0]], atol=1e-6)


def test_scale_of_a_source_does_not_matter_but_its_weight_does():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20, 3)).astype(np.float32)
    plain = fuse({"a": a, "b": b}, {"a": 1.0, "b": 0.5}, None)
    scaled = fuse({"a": 1000 * a, "b": b}, {"a": 1.0, "b": 0.5}, None)
    np.testing.assert_allclose(plain, scaled, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(plain[:, :3], axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(plain[:, 3:], axis=1), 0.5, atol=1e-5)


def test_weight_zero_leaves_a_source_out():
    a, b = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    assert np.array_equal(fuse({"a": a, "b": b}, {"a": 1.0, "b": 0.0}, None), fuse({"a": a}, {"a": 1.0}, None))


def test_principal_components_keep_distances_in_the_plane_where_all_variance_is():
    """Points of a plane in five dimensions: two components keep every pairwise distance, the first has more
    variance."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((30, 2)) * [3, 1] @ rng.standard_normal((2, 5))
    centre, directions = principal_components(flat.astype(np.float32), 2)
    reduced = (flat - centre) @ directions
    before = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    after = np.linalg.norm(reduced[:, None] - reduced[None], axis=2)
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert reduced[:, 0].var() > reduced[:, 1].var()
    np.testing.assert_allclose(reduced.mean(axis=0), 0.0, atol=1e-5)


@pytest.mark.parametrize("dim", [None, 6, 99])
def test_a_width_that_is_not_smaller_keeps_the_blocks(dim):
    a, b = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)
    assert fuse({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, dim).shape == (8, 6)

"""One suite for every quantizer: what the rest of the system may rely on, whichever is configured."""

from typing import get_args

import numpy as np
import pytest

from recsys.contracts.errors import DataError
from recsys.semantic_ids.config import TokenizeConfig
from recsys.semantic_ids.quantizer import relative_residual_errors
from recsys.semantic_ids.tokenize import build_quantizer

KINDS = {
    "plain": {"method": "residual_kmeans"},
    "plain-random": {"method": "residual_kmeans", "init": "random"},
    "balanced": {},
    "balanced-random": {"init": "random"},
    "balanced-capacity": {"balancing": "capacity_aware"},
    "balanced-assign": {"assign": "balanced", "balancing": "capacity_aware"},
}


@pytest.mark.parametrize("option", ["method", "assign", "balancing", "init"])
def test_every_choice_of_the_configuration_is_in_the_suite(option):
    choices = get_args(TokenizeConfig.model_fields[option].annotation)
    assert {getattr(TokenizeConfig(**kind), option) for kind in KINDS.values()} == set(choices)


@pytest.fixture(params=sorted(KINDS))
def settings(request):
    return KINDS[request.param]


def quantizer_of(settings, **sizes):
    return build_quantizer(TokenizeConfig(**{"num_levels": 3, "codebook_size": 8, **settings, **sizes}))


def noise(num_points=300, width=5, seed=3):
    return np.random.default_rng(seed).standard_normal((num_points, width)).astype(np.float32)


def toy_catalogue():
    """Four far-apart shelves with the same four offsets: shelf = first code, offset = second code."""
    shelves = np.array([[0, 0], [100, 0], [0, 100], [100, 100]], np.float32)
    offsets = np.array([[3, 0], [-3, 0], [0, 3], [0, -3]], np.float32)
    return (shelves[:, None] + offsets[None]).reshape(16, 2)


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"plain-random", "balanced-random"}))
def test_toy_catalogue_gets_the_codes_one_can_see(name):
    """Level 1 must be the shelf (mean of its offsets = 0), level 2 the offset: 4 x 4 distinct IDs, nothing left over."""
    quantizer = quantizer_of(KINDS[name], num_levels=2, codebook_size=4)
    x = toy_catalogue()
    quantizer.fit(x, seed=0)
    codes = quantizer.encode_catalogue(x).reshape(4, 4, 2)
    assert (codes[:, :, 0] == codes[:, :1, 0]).all()
    assert (codes[:, :, 1] == codes[:1, :, 1]).all()
    assert len(np.unique(codes.reshape(16, 2), axis=0)) == 16
    assert sorted(quantizer.codebooks[0].round(3).tolist()) == [[0, 0], [0, 100], [100, 0], [100, 100]]
    assert relative_residual_errors(x, codes.reshape(16, 2), quantizer.codebooks)[1] < 1e-9


def test_error_falls_with_every_level(settings):
    quantizer = quantizer_of(settings)
    x = noise()
    quantizer.fit(x, seed=1)
    errors = relative_residual_errors(x, quantizer.encode_catalogue(x), quantizer.codebooks)
    assert 1.0 > errors[0] > errors[1] > errors[2] > 0.0


def test_same_seed_gives_the_same_bytes(settings):
    first, second, other = quantizer_of(settings), quantizer_of(settings), quantizer_of(settings)
    x = noise()
    for quantizer, seed in ((first, 5), (second, 5), (other, 6)):
        quantizer.fit(x, seed)
    for left, right in zip(first.codebooks, second.codebooks, strict=True):
        assert left.tobytes() == right.tobytes()
    assert first.encode_catalogue(x).tobytes() == second.encode_catalogue(x).tobytes()
    assert first.codebooks[0].tobytes() != other.codebooks[0].tobytes()


def test_encode_is_the_argmin_of_each_residual(settings):
    """Against float64 distances written out; a code may differ only where two centroids are equally near."""
    quantizer = quantizer_of(settings)
    x = noise()
    quantizer.fit(x, seed=2)
    codes = quantizer.encode(x)
    assert codes.dtype == np.int32
    residual = x.astype(np.float64)
    for level, book in enumerate(quantizer.codebooks):
        distances = np.square(residual[:, None] - book[None].astype(np.float64)).sum(axis=2)
        chosen = distances[np.arange(len(x)), codes[:, level]]
        np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
        residual -= book[codes[:, level]]


def test_an_item_that_comes_later_is_encoded_by_itself(settings):
    quantizer = quantizer_of(settings)
    x = noise()
    quantizer.fit(x[:200], seed=2)
    together = quantizer.encode(x[200:])
    alone = np.concatenate([quantizer.encode(x[row : row + 1]) for row in range(200, 300)])
    assert np.array_equal(together, alone)


def test_sample_bounds_what_the_fit_looks_at(settings):
    """With sample_size = 40 of 300 points the codebooks differ, the shapes and the range of codes do not."""
    whole, sampled = quantizer_of(settings), quantizer_of(settings, sample_size=40)
    x = noise()
    whole.fit(x, seed=4)
    sampled.fit(x, seed=4)
    assert [book.shape for book in sampled.codebooks] == [(8, 5)] * 3
    assert sampled.codebooks[0].tobytes() != whole.codebooks[0].tobytes()
    codes = sampled.encode_catalogue(x)
    assert codes.shape == (300, 3)
    assert codes.min() >= 0
    assert codes.max() < 8


def test_equal_points_do_not_break_the_fit(settings):
    """Forty copies of one point: no distance to split, so every centroid is that point and nothing is left over."""
    quantizer = quantizer_of(settings)
    x = np.full((40, 5), 2.0, np.float32)
    quantizer.fit(x, seed=0)
    assert np.allclose(quantizer.codebooks[0], 2.0)
    assert relative_residual_errors(x, quantizer.encode_catalogue(x), quantizer.codebooks) == [0.0, 0.0, 0.0]


def test_fewer_points_than_codes_are_refused(settings):
    with pytest.raises(DataError, match=r"7 points cannot fill a codebook of 8 codes; lower tokenize.codebook_size"):
        quantizer_of(settings).fit(noise(7), seed=0)

"""The order of a ranking from dense scores."""

import numpy as np
import pytest

from recsys.contracts.ranking import top_k


@pytest.mark.parametrize("k", [1, 3, 7, 40, 60])
def test_the_best_come_first_and_ties_go_to_the_lower_index(k: int) -> None:
    """Scores of few values among the k best, so that nearly all tie; the others are below them all."""
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 3, (30, 40)).astype(np.float32)
    best = np.argsort(rng.random((30, 40)), axis=1)[:, :k]
    np.put_along_axis(scores, best, np.take_along_axis(scores, best, 1) + 10, 1)
    ranked = top_k(scores, k)
    expected = np.lexsort((np.broadcast_to(np.arange(40), scores.shape), -scores), axis=1)[:, :k]
    assert ranked.items[:, :40].tolist() == expected.tolist()
    assert ranked.scores[:, :40].tolist() == np.take_along_axis(scores, expected, 1).tolist()
    assert (ranked.items[:, 40:] == -1).all()

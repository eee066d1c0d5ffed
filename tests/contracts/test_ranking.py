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


def full_sort(scores: np.ndarray, k: int) -> list[list[int]]:
    """The rule, item by item: numbers before NaN, higher before lower, then the lower index; forbidden items never."""
    answer = []
    for row in scores.tolist():
        allowed = [item for item in range(len(row)) if row[item] != -np.inf]
        order = sorted(allowed, key=lambda i: (np.isnan(row[i]), 0.0 if np.isnan(row[i]) else -row[i], i))
        answer.append((order + [-1] * k)[:k])
    return answer


@pytest.mark.parametrize("values", [1, 2, 3, 10, 10_000])
@pytest.mark.parametrize("spoilt", [False, True])
def test_every_length_is_the_head_of_a_full_sort(values: int, spoilt: bool) -> None:
    """Ties anywhere, at the border of the list too; with NaN and with forbidden items in any number, or without."""
    rng = np.random.default_rng(values)
    scores = rng.integers(-values, values, (25, 37)).astype(np.float32)
    if spoilt:
        for special in (np.nan, -np.inf, np.inf):
            scores[rng.random(scores.shape) < rng.random((25, 1)) / 2] = special
        scores[0], scores[1], scores[2, 1:] = np.nan, -np.inf, -np.inf
    before = scores.copy()
    longest = top_k(scores, 45)
    for k in range(1, 46):
        ranked = top_k(scores, k)
        assert ranked.items.tolist() == full_sort(scores, k)
        np.testing.assert_array_equal(ranked.items, longest.items[:, :k])
        np.testing.assert_array_equal(ranked.scores, longest.scores[:, :k])
    np.testing.assert_array_equal(scores, before)


def test_ties_at_the_last_place_by_hand() -> None:
    """Items 1 to 5 tie behind item 6: with two places item 1 gets the second, with three items 1 and 2 follow."""
    scores = np.array([[0, 5, 5, 5, 5, 5, 9]], np.float32)
    assert [top_k(scores, k).items.tolist() for k in (1, 2, 3)] == [[[6]], [[6, 1]], [[6, 1, 2]]]


def test_an_unknown_score_is_last_and_a_forbidden_item_is_nowhere() -> None:
    """Item 0 has no number, item 2 is forbidden: 3, 1, 0, nothing."""
    ranked = top_k(np.array([[np.nan, -1e30, -np.inf, 2.0]], np.float32), 4)
    assert ranked.items.tolist() == [[3, 1, 0, -1]]
    assert ranked.scores[0, [0, 1, 3]].tolist() == [2.0, np.float32(-1e30), -np.inf]
    assert np.isnan(ranked.scores[0, 2])


def test_no_rows_and_no_places() -> None:
    assert top_k(np.empty((0, 5), np.float32), 3).items.shape == (0, 3)
    assert top_k(np.zeros((2, 5), np.float32), 0).items.shape == (2, 0)

"""Weights of summed scorers: found on rows that may be fitted on, the same whatever the size of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from recsys.contracts.columns import TEST, VALID
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.ranking import top_k
from recsys.ranker.fusion import Fusion, ScoreBlocks, _shortlist, choose_fusion, choose_guidance, fit_rows
from tests.toy.candidates import single_targets

ROWS, ITEMS = 300, 400


def world(seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Scores of three scorers [3, N, I]: two that each know half of what makes a target, and noise."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(3, ROWS, ITEMS)).astype(np.float32)
    truth = scores[0] + 2.0 * scores[1] + generator.gumbel(size=(ROWS, ITEMS))
    return scores, truth.argmax(axis=1)


def blocks_of(scores: npt.NDArray[np.float32], size: int) -> ScoreBlocks:
    def blocks(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(rows), size):
            yield scores[:, rows[start : start + size]]

    return blocks


NAMES = ("dense", "hint", "noise")


def test_the_weights_that_made_the_targets_are_found() -> None:
    """Targets are drawn by softmax of dense + 2 hint: the ratio is 2, noise has none."""
    scores, target = world()
    fusion = choose_fusion(NAMES, blocks_of(scores, 64), single_targets(target), np.arange(ROWS))
    assert fusion.weights[0] == 1.0
    assert 1.4 < fusion.weights[1] < 2.8
    assert fusion.weights[2] < 0.3
    tried = fusion.tried["weights"]  # type: ignore[index]
    assert max(tried.values()) > tried["dense alone"] + 0.1


def test_the_size_of_blocks_changes_nothing() -> None:
    scores, target = world()
    one, two = (
        choose_fusion(NAMES, blocks_of(scores, size), single_targets(target), np.arange(ROWS)) for size in (7, 300)
    )
    assert one == two


def test_rows_that_are_not_asked_for_change_nothing() -> None:
    scores, target = world()
    rows = np.arange(0, ROWS, 2)
    one = choose_fusion(NAMES, blocks_of(scores, 64), single_targets(target), rows)
    changed, other = scores.copy(), target.copy()
    changed[:, 1::2], other[1::2] = 9.0, 0
    assert one == choose_fusion(NAMES, blocks_of(changed, 64), single_targets(other), rows)


def test_forbidden_items_count_for_nothing() -> None:
    """Items that no row may get are given the best scores of all; the weights are those without them."""
    scores, target = world()
    more = np.concatenate([scores, np.full((3, ROWS, 50), 50.0, np.float32)], axis=2)
    more[0, :, ITEMS:] = -np.inf
    found = choose_fusion(NAMES, blocks_of(more, 64), single_targets(target), np.arange(ROWS))
    assert 1.4 < found.weights[1] < 2.8


def test_one_scorer_has_weight_one() -> None:
    scores, target = world()
    fusion = choose_fusion(("dense",), blocks_of(scores[:1], 64), single_targets(target), np.arange(ROWS))
    assert fusion.weights == (1.0,)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s[:2], r"expected \[3 scorers"),
        (lambda s: s[:, :200], "hold 200 rows, 300 were asked for"),
        (lambda s: np.where(np.arange(3)[:, None, None] == 1, np.nan, s), "'hint' gives a score that is not finite"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    scores, target = world()
    with pytest.raises(DataError, match=message):
        choose_fusion(NAMES, lambda rows: [spoil(scores)[:, : len(rows)]], single_targets(target), np.arange(ROWS))


def test_fit_rows_are_validation_rows_of_users_that_are_not_held_out() -> None:
    targets = single_targets(np.zeros(1000))
    split = np.full(1000, VALID)
    rows = fit_rows(targets, split, 0.3, 1000, seed=2)
    assert 620 < len(rows) < 780
    assert len(fit_rows(targets, split, 0.3, 200, seed=2)) < 200
    assert set(fit_rows(targets, split, 0.3, 200, seed=2)) <= set(rows)
    split[3] = TEST
    with pytest.raises(DataError, match="row 3 is of split 'test'"):
        fit_rows(targets, split, 0.3, 1000, seed=2)
    with pytest.raises(DataError, match=r"rank.held_out_share \(now 0.999\)"):
        fit_rows(single_targets([0, 1]), np.full(2, VALID), 0.999, 1000, seed=2)


def test_guidance_is_the_one_of_the_best_list_and_the_weakest_of_equals() -> None:
    """Row 0 finds its target at 2 and 4, at the first place; at 1 at the second: NDCG@10 .6309."""
    fusion = Fusion(("dense",), (1.0,))
    scores = np.zeros((1, 20), np.float32)

    def search(strength: float):  # type: ignore[no-untyped-def]
        row = scores.copy()
        row[0, [3, 5]] = (1.0, 0.5) if strength >= 2 else (0.5, 1.0)
        return top_k(row, 10)

    found = choose_guidance(fusion, (1.0, 2.0, 4.0), search, single_targets([3]))
    assert found.guidance == 2.0
    assert {name: round(value, 4) for name, value in found.tried["guidance"].items()} == {  # type: ignore[index]
        "1": 0.6309,
        "2": 1.0,
        "4": 1.0,
    }


def test_sums_by_hand() -> None:
    """1 * 2 + 0.5 * 4 + 0 * 100 = 4."""
    fusion = Fusion(("dense", "a", "b"), (1.0, 0.5, 0.0))
    assert fusion.sum(np.array([[2.0], [4.0], [100.0]], np.float32)).tolist() == [4.0]


def test_what_is_saved_is_what_is_loaded_and_damage_is_refused(tmp_path: Path) -> None:
    fusion = Fusion(("dense", "a"), (1.0, 0.3), 2.0, {"guidance": {"2": 0.1}})
    fusion.save(tmp_path)
    assert Fusion.load(tmp_path) == fusion
    text = (tmp_path / "fusion.json").read_text()
    for old, new in (("0.3", "-0.3"), ("0.3", '"x"'), ("0.3\n", "0.3, 4\n"), ('"names"', '"title"')):
        assert old in text
        (tmp_path / "fusion.json").write_text(text.replace(old, new))
        with pytest.raises(ArtifactError, match="run `rank` again"):
            Fusion.load(tmp_path)


def test_what_a_row_may_not_get_is_in_no_shortlist() -> None:
    """Three items are allowed of twenty; the best by the second scorer, and the target, are not among them."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(2, 5, 20)).astype(np.float32)
    scores[0, :, 3:] = -np.inf
    scores[1, :, 7] = 50.0
    items, values = _shortlist(("dense", "hint"), scores, single_targets([7, 0, 1, 2, 9]))
    assert items.tolist() == [[0, 1, 2]] * 5
    assert np.array_equal(values, scores[:, :, :3].transpose(1, 2, 0))

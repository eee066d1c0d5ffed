"""LightGBM on top of the linear order: what a line cannot learn, chosen and guarded, the same every time, safe on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from recsys.contracts.errors import ArtifactError
from recsys.ranker import linear
from recsys.ranker.config import LightGBMConfig, RankConfig
from recsys.ranker.fitted import FittedRanker, fit_ranker
from recsys.ranker.linear import LinearRanker, fit_linear
from recsys.ranker.table import CandidateTable, ranked_candidates
from recsys.ranker.trees import TreeRanker, fit_trees
from tests.toy.candidates import candidate_table

TREES = LightGBMConfig(rounds=20, num_leaves=6, learning_rate=0.2, min_leaf_rows=20, patience=5)
AUTO = RankConfig(resamples=200, lightgbm=TREES)


def folded(rows: int, seed: int = 0) -> CandidateTable:
    """A target has a second feature far from 0 on either side: no line ranks it, one tree does."""
    generator = np.random.default_rng(seed)
    target = generator.integers(15, size=rows)
    features = generator.normal(size=(rows, 15, 3)).astype(np.float32)
    features[np.arange(rows), target, 0] += 0.5
    features[np.arange(rows), target, 1] = 3.0 * generator.choice([-1.0, 1.0], size=rows)
    features[generator.random((rows, 15)) < 0.1, 2] = np.nan
    items = np.tile(np.arange(15, dtype=np.int32), (rows, 1))
    return candidate_table(items, features, target, ("dense_score", "folded", "sometimes"))


@pytest.fixture(scope="module")
def fitted() -> tuple[CandidateTable, FittedRanker]:
    table = folded(400)
    return table, fit_ranker(table, AUTO, seed=5)


def test_what_a_line_cannot_learn_is_chosen_and_served(fitted: tuple[CandidateTable, FittedRanker]) -> None:
    _, ranker = fitted
    assert ranker.served == "lightgbm"
    assert ranker.explain()[0][0] == "folded"
    values = {entry.name: entry.ndcg for entry in ranker.decision.tried}
    assert values["lightgbm"] > values["linear"] + 0.2
    assert (ranker.decision.comparisons[-1].name, ranker.decision.comparisons[-1].against) == ("lightgbm", "linear")


def test_the_same_seed_gives_the_same_trees(fitted: tuple[CandidateTable, FittedRanker]) -> None:
    table, ranker = fitted
    again = fit_ranker(table, AUTO, seed=5)
    assert again.digest == ranker.digest
    assert again.decision == ranker.decision


def test_terms_sum_to_the_score_up_to_one_number(fitted: tuple[CandidateTable, FittedRanker]) -> None:
    table, ranker = fitted
    rest = ranker.score(table.features[:20]) - ranker.terms(table.features[:20]).sum(axis=-1)
    assert rest.std() < 1e-4


def test_a_single_row_scores_as_among_others(fitted: tuple[CandidateTable, FittedRanker]) -> None:
    table, ranker = fitted
    together = ranker.score(table.features[:7])
    assert np.allclose(together[3], ranker.score(table.features[3:4])[0], atol=1e-6)
    assert ranker.score(table.features[:0]).shape == (0, 15)


def test_what_is_saved_is_what_is_loaded(fitted: tuple[CandidateTable, FittedRanker], tmp_path: Path) -> None:
    table, ranker = fitted
    ranker.save(tmp_path)
    again = FittedRanker.load(tmp_path)
    assert again.digest == ranker.digest
    assert np.array_equal(again.score(table.features), ranker.score(table.features))
    assert again.explain() == ranker.explain()


@pytest.mark.parametrize("name", ["ranker.json", "trees.txt", "linear.safetensors"])
def test_a_damaged_file_is_refused(fitted: tuple[CandidateTable, FittedRanker], tmp_path: Path, name: str) -> None:
    fitted[1].save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"(run `rank` again|run the stage again)"):
        FittedRanker.load(tmp_path)


@pytest.mark.parametrize("text", ["", "tree\n", "no trees at all", "tree\nversion=v4\nnum_class=1\n\xff"])
def test_a_text_that_holds_no_trees_is_refused(
    fitted: tuple[CandidateTable, FittedRanker], tmp_path: Path, text: str
) -> None:
    fitted[1].save(tmp_path)
    (tmp_path / "trees.txt").write_text(text, encoding="latin-1")
    settings = {"rounds": 1, "num_threads": 1, "base": {"l2": 0.0}}
    with pytest.raises(ArtifactError, match="run `rank` again"):
        TreeRanker.load(tmp_path, fitted[1].feature_names, settings)


def test_lightgbm_alone_is_guarded_as_well() -> None:
    """Nothing but noise beside the dense score: the dense order stays."""
    generator = np.random.default_rng(3)
    target = generator.integers(15, size=300)
    features = generator.normal(size=(300, 15, 3)).astype(np.float32)
    features[np.arange(300), target, 0] += 1.0
    table = candidate_table(
        np.tile(np.arange(15, dtype=np.int32), (300, 1)), features, target, ("dense_score", "noise", "more")
    )
    ranker = fit_ranker(table, AUTO.model_copy(update={"method": "lightgbm"}), seed=1)
    assert (ranker.served, ranker.decision.learned) == ("dense", "lightgbm")


@dataclass(frozen=True, eq=False)
class OneTree(TreeRanker):
    """Adds the second feature to the linear order, which is the first."""

    def _predict(self, features: npt.NDArray[np.float32], *, pred_contrib: bool = False) -> npt.NDArray[np.float32]:
        return np.asarray(features[..., 1], np.float32)


def one_tree(depth: int) -> OneTree:
    names, one, zero = ("dense_score", "tree"), np.ones(2, np.float32), np.zeros(2, np.float32)
    base = LinearRanker(names, np.array([1.0, 0.0], np.float32), zero, one, zero, 0.0)
    return OneTree(names, base, "", 1, depth)


def test_what_stands_behind_the_depth_stays_behind_it() -> None:
    """Linear 5, 4, 3, 2; the trees sink the second of the first two to -16. The others follow, although their items have
    lower numbers: equal scores would put item 1 before item 8."""
    features = np.array([[[5.0, 0.0], [4.0, -20.0], [3.0, 0.0], [2.0, 0.0]]], np.float32)
    scores = one_tree(2).score(features)
    assert ranked_candidates(np.array([[9, 8, 1, 0]], np.int32), scores, 4).items.tolist() == [[9, 8, 1, 0]]
    generator = np.random.default_rng(0)
    many = generator.normal(size=(500, 12, 2)).astype(np.float32) * np.float32(7.0)
    linear, scores = many[..., 0], one_tree(5).score(many)
    order = np.argsort(-linear, axis=1)
    first, behind = (np.take_along_axis(scores, places, axis=1) for places in (order[:, :5], order[:, 5:]))
    assert (behind.max(axis=1) < first.min(axis=1)).all()
    assert (np.diff(behind, axis=1) <= 0).all()


def test_equals_at_the_depth_are_the_same_ones_in_a_batch_of_any_width() -> None:
    """Many candidates of equal linear score; rows of a wider batch are filled up with absent ones."""
    generator = np.random.default_rng(1)
    features = np.stack([generator.integers(8, size=(50, 230)), generator.normal(size=(50, 230))], -1).astype(
        np.float32
    )
    alone = one_tree(100).score(features)
    for more in (7, 50):
        wide = np.concatenate([features, np.full((50, more, 2), np.nan, np.float32)], axis=1)
        assert np.array_equal(one_tree(100).score(wide)[:, :230], alone)


@pytest.mark.parametrize("candidates", [2, 3])
def test_few_rows_and_leaves_of_one_candidate_have_trees(candidates: int) -> None:
    """LightGBM guesses the rows of a leaf from their curvature; where that is 0 it took a leaf that holds none."""
    names = ("dense_score", "noise", "more")
    config = LightGBMConfig(rounds=30, min_leaf_rows=1)
    for seed in range(8):
        generator = np.random.default_rng(seed)
        features = generator.normal(size=(60, candidates, 3)).astype(np.float32)
        items = np.tile(np.arange(candidates, dtype=np.int32), (60, 1))
        table = candidate_table(items, features, generator.integers(candidates, size=60), names)
        trees = fit_trees(table, fit_linear(table, np.zeros(3, np.float32), (1e-3,), 0), config, seed, rounds=30)
        assert trees is not None
        assert np.isfinite(trees.score(table.features)).all()


def test_ridge_and_trees_are_found_on_users_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other users than those that the guard holds out, of whom no row is left in the fit: there is something to measure by,
    and the trees of noise end long before the last."""
    measured: list[int] = []
    quality = linear.quality

    def counted(table: CandidateTable, scores: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.float64]]:
        measured.append(len(table))
        return quality(table, scores)

    monkeypatch.setattr(linear, "quality", counted)
    generator = np.random.default_rng(3)
    target = generator.integers(15, size=300)
    features = generator.normal(size=(300, 15, 3)).astype(np.float32)
    features[np.arange(300), target, 0] += 1.0
    items = np.tile(np.arange(15, dtype=np.int32), (300, 1))
    table = candidate_table(items, features, target, ("dense_score", "noise", "more"))
    config = AUTO.model_copy(update={"lightgbm": TREES.model_copy(update={"rounds": 200, "min_leaf_rows": 5})})
    ranker = fit_ranker(table, config.model_copy(update={"method": "lightgbm"}), seed=1)
    fitted_rows = ranker.decision.rows.fit
    assert measured[: len(AUTO.l2_grid)] == [measured[0]] * len(AUTO.l2_grid)
    assert 0.15 * fitted_rows < measured[0] < 0.35 * fitted_rows
    assert isinstance(ranker.learned, TreeRanker)
    assert ranker.learned.rounds < 100

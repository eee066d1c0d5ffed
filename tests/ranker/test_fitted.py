"""The second stage as a whole: what it learns, whom it is fitted on, when it is served, what stands on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.columns import TEST, TRAIN
from recsys.contracts.errors import ArtifactError, DataError
from recsys.ranker.config import RankConfig
from recsys.ranker.fitted import FittedRanker, fit_ranker
from recsys.ranker.table import CandidateTable, quality
from tests.toy.candidates import candidate_table, single_targets

LINEAR = RankConfig(method="linear", resamples=200)


def noisy(rows: int, signal: float, seed: int = 0) -> CandidateTable:
    """20 candidates per row; the target has a slightly higher dense score, and ``signal`` more of a second feature."""
    generator = np.random.default_rng(seed)
    items = np.tile(np.arange(20, dtype=np.int32), (rows, 1))
    target = generator.integers(20, size=rows)
    features = generator.normal(size=(rows, 20, 3)).astype(np.float32)
    features[np.arange(rows), target, 0] += 1.0
    features[np.arange(rows), target, 1] += signal
    return candidate_table(items, features, target, ("dense_score", "hint", "noise"))


def test_a_useful_feature_is_found_and_served() -> None:
    ranker = fit_ranker(noisy(600, signal=1.5), LINEAR, seed=3)
    assert ranker.served == "linear"
    assert [name for name, _ in ranker.explain()] == ["hint", "dense_score", "noise"]
    assert ranker.decision.comparisons[0].low > 0
    assert "the linear ranker is served" in ranker.decision.sentence


def test_the_same_table_and_seed_give_the_same_digest_and_another_seed_another_split() -> None:
    table = noisy(300, signal=1.0)
    one, two, other = (fit_ranker(table, LINEAR, seed) for seed in (3, 3, 4))
    assert one.digest == two.digest
    assert one.decision == two.decision
    assert one.decision.rows != other.decision.rows


@pytest.mark.parametrize(("code", "name"), [(TEST, "test"), (TRAIN, "train"), (7, "7")])
def test_rows_of_another_split_are_refused(code: int, name: str) -> None:
    table = noisy(30, signal=1.0)
    split = table.split.copy()
    split[4] = code
    other = CandidateTable(table.items, table.features, table.feature_names, table.targets, split)
    with pytest.raises(DataError, match=f"row 4 is of split '{name}'"):
        fit_ranker(other, LINEAR, seed=0)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="needs validation rows and got none"):
        fit_ranker(noisy(30, signal=1.0).take(np.arange(0)), LINEAR, seed=0)


def test_rows_without_a_target_among_the_candidates_are_misses_and_are_counted() -> None:
    table = noisy(400, signal=1.0)
    missing = np.arange(0, 400, 4)
    targets = table.targets.items.copy()
    targets[missing] = 99
    with_misses = CandidateTable(table.items, table.features, table.feature_names, single_targets(targets), table.split)
    ranker = fit_ranker(with_misses, LINEAR.model_copy(update={"refit": False}), seed=1)
    alone = fit_ranker(table.take(np.setdiff1d(np.arange(400), missing)), LINEAR.model_copy(update={"refit": False}), 1)
    rows = ranker.decision.rows
    assert rows.fit_without_target + rows.held_out_without_target == 100
    # the mean and spread of features are those of all candidates, so the weights differ by little and not at all in kind
    assert np.allclose(ranker.learned.weight, alone.learned.weight, atol=0.05)  # type: ignore[union-attr]
    assert ranker.decision.tried[0].hr < 0.8


def test_where_no_row_has_its_target_the_dense_order_is_served() -> None:
    table = noisy(200, signal=1.0)
    lost = CandidateTable(
        table.items, table.features, table.feature_names, single_targets(np.full(200, 99)), table.split
    )
    ranker = fit_ranker(lost, LINEAR, seed=0)
    assert ranker.served == "dense"
    assert ranker.learned is None
    assert np.array_equal(ranker.score(table.features), table.features[..., 0])


def test_random_features_are_served_in_one_run_of_twenty_at_most() -> None:
    served = [fit_ranker(noisy(260, signal=0.0, seed=seed), LINEAR, seed).served for seed in range(60)]
    assert served.count("dense") >= 57


def test_few_held_out_users_learn_nothing() -> None:
    ranker = fit_ranker(noisy(60, signal=3.0), LINEAR, seed=0)
    assert ranker.served == "dense"
    assert "users are held out, and a comparison needs 50" in ranker.decision.sentence


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    table = noisy(300, signal=1.5)
    ranker = fit_ranker(table, LINEAR, seed=2)
    ranker.save(tmp_path)
    again = FittedRanker.load(tmp_path)
    assert again.digest == ranker.digest
    assert again.decision == ranker.decision
    assert np.array_equal(again.score(table.features), ranker.score(table.features))
    assert json.loads((tmp_path / "ranker.json").read_text())["served"] == "linear"


def test_terms_sum_to_the_score_up_to_what_is_the_same_for_all() -> None:
    table = noisy(300, signal=1.5)
    ranker = fit_ranker(table, LINEAR, seed=2)
    terms = ranker.terms(table.features)
    assert terms is not None
    assert np.allclose(terms.sum(axis=-1), ranker.score(table.features), atol=1e-5)


@pytest.mark.parametrize("name", ["ranker.json", "linear.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    fit_ranker(noisy(300, signal=1.5), LINEAR, seed=2).save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content.replace(b'"served": "linear"', b'"served": "linear\xc2\xa0"')[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"(run `rank` again|run the stage again)"):
        FittedRanker.load(tmp_path)


def test_another_number_of_features_is_refused() -> None:
    ranker = fit_ranker(noisy(300, signal=1.5), LINEAR, seed=2)
    with pytest.raises(DataError, match=r"fitted on 3 features \(dense_score, hint, noise\), got 2"):
        ranker.score(np.zeros((1, 4, 2), np.float32))


def test_the_order_of_candidates_and_what_stands_at_padding_change_nothing() -> None:
    table = noisy(300, signal=1.0)
    shuffled = np.random.default_rng(5).permuted(np.tile(np.arange(20), (300, 1)), axis=1)
    items = np.take_along_axis(table.items, shuffled, axis=1)
    features = np.take_along_axis(table.features, shuffled[..., None], axis=1)
    padded = CandidateTable(
        np.concatenate([items, np.full((300, 3), -1, np.int32)], axis=1),
        np.concatenate([features, np.full((300, 3, 3), 1e6, np.float32)], axis=1),
        table.feature_names,
        table.targets,
        table.split,
    )
    one, two = fit_ranker(table, LINEAR, seed=1), fit_ranker(padded, LINEAR, seed=1)
    assert np.allclose(one.learned.weight, two.learned.weight, atol=1e-4)  # type: ignore[union-attr]
    assert one.decision.tried[0] == two.decision.tried[0]


def test_method_none_fits_nothing() -> None:
    ranker = fit_ranker(noisy(300, signal=1.5), RankConfig(method="none"), seed=2)
    assert ranker.served == "dense"
    assert ranker.learned is None
    assert ranker.explain() == []


def test_every_row_is_ranked_by_a_fit_that_has_not_seen_its_user() -> None:
    """Sixty features of noise: a fit remembers its own rows well, and ranks others no better than by chance."""
    generator = np.random.default_rng(4)
    items = np.tile(np.arange(20, dtype=np.int32), (240, 1))
    features = generator.normal(size=(240, 20, 60)).astype(np.float32)
    target = generator.integers(20, size=240)
    names = ("dense_score", *(f"noise_{place}" for place in range(59)))
    table = candidate_table(items, features, target, names)
    ranker = fit_ranker(table, LINEAR.model_copy(update={"l2_grid": (1e-5,)}), seed=1)
    unseen = {entry.name: entry.ndcg for entry in ranker.decision.tried}
    assert ranker.learned is not None
    remembered = float(quality(table, ranker.learned.score(features))["ndcg@10"].mean())
    assert remembered > unseen["dense"] + 0.08
    assert abs(unseen["linear"] - unseen["dense"]) < 0.06

"""Features by hand on a catalogue of six items, and their invariants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from recsys.contracts.errors import ArtifactError, DataError
from recsys.data.histories import Histories
from recsys.ranker.features import Candidates, ItemFacts, candidate_features, feature_names, imputed_values
from tests.toy.builders import dataset_spec, history_arrays, item_table, write_dataset
from tests.toy.histories import histories_of

DAY = 86_400_000_000
FACTS = ItemFacts(
    popularity=np.log1p(np.arange(6)).astype(np.float32),
    first_day=np.array([0, 1, 2, 3, np.nan, 5], np.float32),
    last_day=np.array([1, 2, 3, 4, np.nan, 9], np.float32),
    author=np.array([1, 1, 2, 2, 0, 3], np.int32),
    category=np.array([1, 2, 1, 2, 1, 0], np.int32),
)
NAMES = feature_names(["dense"], ["beam"])


def candidates_of(items: list[list[int]], dense: list[list[float]], path: list[list[float]]) -> Candidates:
    found = np.array(items, np.int32)
    return Candidates(
        found,
        np.array(path, np.float32),
        {"dense": np.array(dense, np.float32)},
        {"beam": ~np.isnan(np.array(path, np.float32))},
    )


def columns(features: npt.NDArray[np.float32]) -> dict[str, list[float]]:
    """Features of the first row by name."""
    return {name: [round(float(v), 4) for v in features[0, :, place]] for place, name in enumerate(NAMES)}


def test_every_feature_by_hand() -> None:
    """User 7's history is items 0, 2, 3 (categories 1, 1, 2; authors 1, 2, 2), its last event on day 10.

    Candidates 1 (category 2, author 1), 4 (category 1, no author, no train event) and 3, seen once.
    """
    histories = histories_of([[0, 2, 3]])
    histories = Histories(
        histories.user_index, histories.start, histories.end, histories.item, histories.behaviour,
        np.array([0, 5, 6], np.uint8), np.array([0, 8, 4], np.uint8),
    )  # fmt: skip
    given = candidates_of([[1, 4, 3]], [[-1.0, -3.0, -1.0]], [[-2.5, np.nan, -2.0]])
    found = columns(candidate_features(given, histories, FACTS, np.array([10 * DAY])))
    nan = float("nan")
    expected = {
        "path_score": [-0.5, nan, 0.0],
        "path_rank": [1.0, nan, 0.0],
        "dense_score": [-1.0, -3.0, -1.0],
        "dense_rank": [0.0, 1.585, 0.0],
        "found_by_beam": [1.0, 0.0, 1.0],
        "popularity": [0.6931, 1.6094, 1.3863],
        "item_age": [2.3026, nan, 2.0794],
        "item_idle": [2.1972, nan, 1.9459],
        "times_seen": [0.0, 0.0, 0.6931],
        "category_last": [1.0, 0.0, 1.0],
        "category_share": [0.3333, 0.6667, 0.3333],
        "category_watch": [4.0, 8.0, 4.0],
        "author_last": [0.0, 0.0, 1.0],
        "author_share": [0.3333, 0.0, 0.6667],
        "author_watch": [nan, nan, 6.0],
        "history_length": [1.3863, 1.3863, 1.3863],
        "history_gap": [6.0, 6.0, 6.0],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert np.array_equal(found[name], values, equal_nan=True), (name, found[name])


def test_nothing_is_known_of_an_empty_history_and_of_times_that_are_not_given() -> None:
    given = candidates_of([[1, -1]], [[0.5, 0.0]], [[np.nan, np.nan]])
    found = columns(candidate_features(given, histories_of([[]]), FACTS))
    assert all(np.isnan(found[name][0]) for name in ("item_age", "history_gap", "path_rank"))
    assert (found["category_share"][0], found["author_last"][0], found["history_length"][0]) == (0.0, 0.0, 0.0)
    assert all(np.isnan(values[1]) for values in found.values())  # no candidate there


def test_a_row_among_others_and_shuffled_candidates_have_the_same_features() -> None:
    generator = np.random.default_rng(0)
    lists = [[0, 2, 3], [1], [], [5, 4, 3, 2, 1, 0]]
    items = np.argsort(generator.random((4, 6)), axis=1).astype(np.int32)[:, :4]
    dense, path = generator.normal(size=(2, 4, 4)).astype(np.float32)
    together = candidate_features(
        Candidates(items, path, {"dense": dense}, {"beam": path > 0}), histories_of(lists), FACTS
    )
    for row, history in enumerate(lists):
        order = generator.permutation(4)
        part = Candidates(
            items[[row]][:, order],
            path[[row]][:, order],
            {"dense": dense[[row]][:, order]},
            {"beam": (path > 0)[[row]][:, order]},
        )
        alone = candidate_features(part, histories_of([history]), FACTS)
        assert np.allclose(alone[0], together[row, order], equal_nan=True)


def test_candidates_of_other_rows_or_items_are_refused() -> None:
    with pytest.raises(DataError, match="the histories have 2 rows"):
        candidate_features(candidates_of([[1]], [[0.0]], [[0.0]]), histories_of([[1], [2]]), FACTS)
    with pytest.raises(DataError, match=r"items up to 6, .* the catalogue 6 items"):
        candidate_features(candidates_of([[6]], [[0.0]], [[0.0]]), histories_of([[1]]), FACTS)


def test_facts_are_counted_on_train_events_alone(tmp_path: Path) -> None:
    """Two users; the last two events of each are validation and test. Item 2 has no train event, item 0 has two."""
    times = np.array([1, 2, 3, 4, 5, 7, 8, 9]) * DAY
    history = history_arrays([0, 1, 2, 2, 0, 1, 2, 2], [4, 4], held_out=2, timestamp=times)
    facts = ItemFacts.from_dataset(write_dataset(tmp_path / "data", dataset_spec(2, 3), history, item_table(3)))
    assert np.allclose(np.expm1(facts.popularity), [2, 2, 0])
    assert np.array_equal(facts.first_day, [1, 2, np.nan], equal_nan=True)
    assert np.array_equal(facts.last_day, [5, 7, np.nan], equal_nan=True)
    facts.save(tmp_path)
    again = ItemFacts.load(tmp_path, 3)
    assert np.array_equal(again.last_day, facts.last_day, equal_nan=True)
    with pytest.raises(ArtifactError, match="expected 4 items each"):
        ItemFacts.load(tmp_path, 4)
    path = tmp_path / "items.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="run `rank` again"):
        ItemFacts.load(tmp_path, 3)


def test_a_missing_path_counts_as_a_bad_one_for_the_linear_ranker() -> None:
    assert imputed_values(("path_score", "path_rank", "dense_score")).tolist() == [-20.0, 10.0, 0.0]

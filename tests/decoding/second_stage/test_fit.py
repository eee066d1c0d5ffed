"""What the fit looks at: the same inputs give the same files, test rows change nothing, train rows do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import sha256_of_file
from recsys.decoding.second_stage.fit import fit_second_stage
from recsys.runtime import SilentProgress
from tests.decoding.second_stage.conftest import DECODE, NUM_ITEMS, RANK, Ring


def files_of(folder: Path, ring: Ring, prepared: Dataset) -> dict[str, str]:
    """Hash of every file of a stage that is fitted on ``prepared``."""
    vectors = {"fused": np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32)}
    stage, _ = fit_second_stage(prepared, ring.policy, ring.ids, DECODE, RANK, vectors, 3, SilentProgress())
    stage.save(folder)
    return {path.name: sha256_of_file(path) for path in folder.rglob("*") if path.is_file()}


def with_events(prepared: Dataset, first: np.ndarray, end: np.ndarray) -> Dataset:
    """The same data with other items in rows ``first`` to ``end`` of every user's history."""
    item = np.array(prepared.history.item)
    for start, stop in zip(first, end, strict=True):
        item[start:stop] = (item[start:stop] + 7) % NUM_ITEMS
    return replace(prepared, history=replace(prepared.history, item=item))


def test_the_files_follow_from_train_and_validation_rows_alone(fitted: Ring, tmp_path: Path) -> None:
    history = fitted.prepared.history
    expected = files_of(tmp_path / "first", fitted, fitted.prepared)
    assert files_of(tmp_path / "again", fitted, fitted.prepared) == expected
    other_tests = with_events(fitted.prepared, np.asarray(history.valid_end), np.asarray(history.offsets[1:]))
    assert files_of(tmp_path / "tests", fitted, other_tests) == expected
    other_train = with_events(fitted.prepared, np.asarray(history.offsets[:-1]), np.asarray(history.train_end))
    changed = files_of(tmp_path / "train", fitted, other_train)
    assert changed["scorers.safetensors"] != expected["scorers.safetensors"]


def test_scorers_are_counted_on_train_events_and_not_on_validation_events(fitted: Ring, tmp_path: Path) -> None:
    history = fitted.prepared.history
    expected = files_of(tmp_path / "first", fitted, fitted.prepared)
    other = with_events(fitted.prepared, np.asarray(history.train_end), np.asarray(history.valid_end))
    found = files_of(tmp_path / "valid", fitted, other)
    assert found["scorers.safetensors"] == expected["scorers.safetensors"]
    assert found["items.safetensors"] == expected["items.safetensors"]


def test_the_summary_counts_what_it_says(fitted: Ring) -> None:
    summary = fitted.summary
    assert summary["rows"] == 200
    assert summary["guidance"] == 1.5
    assert list(summary["weights"]) == ["dense", "transitions", "item_knn", "similar", "popularity"]  # type: ignore[call-overload]
    by_source = summary["rows_with_target_by_source"]
    assert isinstance(by_source, dict)
    assert by_source["transitions"] == 1.0  # the ring's next item always follows the last one
    assert set(by_source) == {"beam", "dense", "fused", "transitions"}
    assert max(by_source.values()) <= float(str(summary["rows_with_target"]))

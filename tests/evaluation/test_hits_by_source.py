"""Which source found the hits, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys.contracts.dataset import Targets
from recsys.contracts.ranking import RankedItems, SourcedItems
from recsys.evaluation.rankings import read_sources, write_ranking
from recsys.evaluation.second_stage import hits_by_source

ITEMS = np.array([[4, 7, 2], [5, 1, -1]], np.int32)
SCORES = np.array([[3.0, 2.0, 1.0], [2.0, 1.0, -np.inf]], np.float32)
TARGETS = Targets(
    np.array([0, 1], np.int32),
    np.zeros(2, np.int64),
    np.zeros(2, np.int64),
    np.array([7, 2, 1], np.int32),
    np.array([0, 2, 3]),
)


def test_hits_by_hand(tmp_path: Path) -> None:
    """Hits: row 0 items 7 (both sources) and 2 (dense alone), row 1 item 1 (beam alone). At 2 places item 2 is none."""
    sources = np.array([[1, 3, 2], [2, 1, 0]], np.uint8)
    write_ranking(tmp_path / "served", SourcedItems(ITEMS, SCORES, sources))
    kept = read_sources(tmp_path / "served")
    assert kept is not None
    assert kept.tolist() == sources.tolist()
    found = hits_by_source(tmp_path / "served", TARGETS, ("beam", "dense"), 3)
    assert found == {
        "k": 3,
        "rows": 2,
        "hits": 3,
        "sources": {"beam": {"found": 2, "alone": 1}, "dense": {"found": 2, "alone": 1}},
    }
    assert hits_by_source(tmp_path / "served", TARGETS, ("beam", "dense"), 2)["hits"] == 2


def test_a_ranking_without_sources_counts_nothing(tmp_path: Path) -> None:
    write_ranking(tmp_path / "plain", RankedItems(ITEMS, SCORES))
    assert read_sources(tmp_path / "plain") is None
    assert hits_by_source(tmp_path / "plain", TARGETS, ("beam",), 3)["hits"] == 0

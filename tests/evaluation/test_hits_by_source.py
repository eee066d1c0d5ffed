"""Which source found the hits, counted by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Targets
from recsys.contracts.ranking import RankedItems, SourcedItems
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.rankings import GUIDED, ranking_folder, read_sources, write_ranking
from recsys.evaluation.second_stage import SYSTEMS, hits_by_source, rank_with_second_stage
from recsys.runtime import SilentProgress
from tests.toy.dataset import ring_prepared

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


class Asked:
    """Answers every order with the same list of the length asked for, and notes what it was asked."""

    second_stage = SimpleNamespace(sources=("beam", "dense"))

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bool, int]] = []

    def orders(self, histories, k, asked, *, exclude_seen=None, progress=None):
        self.asked.append((list(asked), exclude_seen, k))
        items = np.tile(np.arange(k, dtype=np.int32), (len(histories), 1))
        scores, sources = -items.astype(np.float32), np.ones(items.shape, np.uint8)
        return [SourcedItems(items, scores, sources) for _ in asked]


def test_sources_are_counted_at_ten_places_and_a_killed_stage_asks_for_what_is_missing(tmp_path: Path) -> None:
    """The next items lie anywhere on the ring of 12: more of them are among the first 11 than among the first ten."""
    prepared, recommender = ring_prepared(tmp_path / "data", users=24, items=12), Asked()
    config = EvaluateConfig(ks=(1, 10, 11), filter_seen="filtered")
    rankings = rank_with_second_stage(prepared, recommender, config, tmp_path, SilentProgress())  # type: ignore[arg-type]
    assert recommender.asked == [(["served", "guided", "dense", "beam"], True, 11)]
    assert list(rankings) == list(SYSTEMS)
    targets = prepared.targets(TEST)
    found = json.loads((tmp_path / "sources.json").read_text())["filtered"]
    assert (found["k"], found["hits"]) == (10, int((targets.items < 10).sum()))
    assert found["sources"]["beam"] == {"found": found["hits"], "alone": found["hits"]}

    shutil.rmtree(ranking_folder(tmp_path / ".rankings", GUIDED, True))
    again = Asked()
    rank_with_second_stage(prepared, again, config, tmp_path, SilentProgress())  # type: ignore[arg-type]
    assert again.asked == [(["guided"], True, 11)]
    few = config.model_copy(update={"ks": (1, 3)})
    rank_with_second_stage(prepared, Asked(), few, tmp_path / "few", SilentProgress())  # type: ignore[arg-type]
    assert json.loads((tmp_path / "few" / "sources.json").read_text())["filtered"]["k"] == 3

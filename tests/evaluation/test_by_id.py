"""Figures by semantic ID: a hand-worked list, an invariant, and what the file of IDs is refused for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.contracts.columns import TEST, Columns
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import BaselinesConfig
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.by_id import fingerprint, rank_ids, read_ids, target_ids
from recsys.evaluation.config import ByIdConfig, EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.table import format_table
from recsys.metrics.ranking import row_metrics
from tests.toy.dataset import ring_prepared

IDS = np.array([10, 11, 10, 12], np.int64)
"""Items 0 and 2 share an ID, as two listings of one article do."""


def asked(*items: int) -> Targets:
    rows = len(items)
    return Targets(
        np.arange(rows, dtype=np.int32),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.array(items, np.int32),
        np.arange(rows + 1),
    )


def answered(lists: list[list[int]]) -> RankedItems:
    items = np.array(lists, np.int32)
    scores = np.where(items >= 0, -np.arange(items.shape[1], dtype=np.float32), -np.inf).astype(np.float32)
    return RankedItems(items, scores)


def test_a_shared_id_is_a_hit_and_takes_one_place() -> None:
    """Three rows ask for item 0 (ID 10), item 3 (ID 12) and item 1 (ID 11).

    Row 0 is answered 1, 2, 3: by item a miss; by ID 11, 10, 12, a hit at rank 2: 1/log2(3) = .6309.
    Row 1 is answered 2, 0, 3: by item a hit at rank 3, 1/log2(4) = .5; by ID 10, 12: rank 2, .6309.
    Row 2 is answered 3, 1, 0: rank 2 both ways.
    """
    targets, ranked = asked(0, 3, 1), answered([[1, 2, 3], [2, 0, 3], [3, 1, 0]])
    by_item = row_metrics(ranked, targets, [3])
    by_id = row_metrics(rank_ids(ranked, IDS), target_ids(targets, IDS), [3])
    np.testing.assert_allclose(by_item["ndcg@3"], [0, 0.5, 0.6309], atol=5e-5)
    np.testing.assert_allclose(by_id["ndcg@3"], [0.6309, 0.6309, 0.6309], atol=5e-5)
    assert by_item["hr@3"].tolist() == [0, 1, 1]
    assert by_id["hr@3"].tolist() == [1, 1, 1]
    shortened = rank_ids(ranked, IDS)
    assert shortened.items.tolist() == [[11, 10, 12], [10, 12, -1], [12, 11, 10]]
    assert shortened.scores.tolist() == [[0, -1, -2], [0, -2, -np.inf], [0, -1, -2]]


@given(st.integers(0, 10_000))
def test_against_going_through_the_list(seed: int) -> None:
    """What a loop over each list keeps; and with an ID per item nothing changes but the numbers."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 6, 9)
    lists = np.stack([random.permutation(9)[:5] for _ in range(4)]).astype(np.int32)
    lists[0, 3:] = -1
    ranked = answered(lists.tolist())
    kept = [list(dict.fromkeys(int(ids[item]) for item in row if item >= 0)) for row in lists]
    assert rank_ids(ranked, ids).items.tolist() == [row + [-1] * (5 - len(row)) for row in kept]
    own = random.permutation(9) + 100
    unique = rank_ids(ranked, own)
    np.testing.assert_array_equal(unique.items, np.where(lists >= 0, own[lists], -1))
    np.testing.assert_array_equal(unique.scores, ranked.scores)


def write(folder: Path, **columns: object) -> ByIdConfig:
    pl.DataFrame(columns).write_parquet(folder / "items.parquet")
    return ByIdConfig(file=Path("items.parquet"), columns=tuple(name for name in columns if name != "item_id"))


def test_ids_are_read_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    """From one column or several; items that are not in the catalogue are left out."""
    one = write(tmp_path, item_id=[5, 7, 8, 9], sid=["a1", "b1", "a1", "c1"])
    found = read_ids(one, tmp_path, pl.Series(["8", "7", "5"]))
    assert found[0] == found[2] != found[1]
    several = write(tmp_path, item_id=[5, 7, 8, 9], a=[1, 1, 1, 2], b=[1, 2, 1, 1])
    found = read_ids(several, tmp_path, pl.Series([8, 7, 5, 9]))
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3


def test_refusals(tmp_path: Path) -> None:
    catalogue = pl.Series([5, 7])
    with pytest.raises(DataError, match=r"evaluate\.by_id\.file '.*nothing\.parquet' is no file"):
        read_ids(ByIdConfig(file=Path("nothing.parquet")), tmp_path, catalogue)
    config = write(tmp_path, item_id=[5, 7], sid=["a", None])
    with pytest.raises(DataError, match="has no ID for 1 of 2 items of the catalogue, the first is 7"):
        read_ids(config, tmp_path, catalogue)
    with pytest.raises(DataError, match="has no column code, but item_id, sid"):
        read_ids(config.model_copy(update={"columns": ("code",)}), tmp_path, catalogue)
    with pytest.raises(DataError, match="has item 5 more than once"):
        read_ids(write(tmp_path, item_id=[5, 5, 7], sid=["a", "b", "c"]), tmp_path, catalogue)
    (tmp_path / "items.parquet").write_text("no table")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_ids(config, tmp_path, catalogue)


def test_the_content_of_the_file_counts_and_its_place_does_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        config = write(tmp_path / name, item_id=[5], sid=["a"])
    assert fingerprint(config, tmp_path / "a") == fingerprint(config, tmp_path / "b")
    write(tmp_path / "b", item_id=[5], sid=["b"])
    assert fingerprint(config, tmp_path / "a") != fingerprint(config, tmp_path / "b")
    assert fingerprint(None, None) == {}


def test_evaluation_gives_both(tmp_path: Path) -> None:
    """All items of one ID: by ID every list of any item is a hit at rank 1, by item it is not."""
    prepared: Dataset = ring_prepared(tmp_path / "ring")
    (popularity,) = build_baselines(["popularity"], BaselinesConfig())
    popularity.fit(prepared, 0, "train")
    rows = Histories.from_targets(prepared.history, prepared.targets(TEST))
    rankings = {"popularity": {True: popularity.rank(rows, 10, True)}}
    config = EvaluateConfig(ks=(1, 10), filter_seen="filtered", resamples=100, by_id=ByIdConfig(file=Path("f.parquet")))
    ids = np.zeros(prepared.spec.num_items, np.int64)
    summary = evaluate(prepared, rankings, config, tmp_path / "out", 0, ids=ids)
    found = summary["systems"]["popularity"]["filtered"]
    assert found["ndcg_by_id@1"]["mean"] == 1.0
    assert found["ndcg@1"]["mean"] < 1.0
    lines = format_table(summary).splitlines()
    assert "hr_by_id@10" in lines[6]
    assert "1.0000" in lines[7]
    per_user = pl.read_parquet(tmp_path / "out" / "per_user.parquet")
    assert per_user["hr_by_id@1"].to_list() == [1.0] * len(per_user)
    plain = evaluate(prepared, rankings, config.model_copy(update={"by_id": None}), tmp_path / "plain", 0)
    assert plain["systems"]["popularity"]["filtered"]["hr@1"] == found["hr@1"]
    assert Columns.USER_ID in per_user.columns
    with pytest.raises(ConfigError, match=r"evaluate\.by_id is file=.*item IDs are given; give both"):
        evaluate(prepared, rankings, config, tmp_path / "none", 0)

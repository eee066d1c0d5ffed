"""Packs as they are shipped: readable, free of contradictions, and about the files that their recipes read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import load_run_config
from pipelines.reproduction.arithmetic import impossible_cells
from pipelines.reproduction.pack import Pack, PublishedRow, pack_names, read_pack
from recsys.contracts.errors import ConfigError

DATA = Path(os.environ.get("RECSYS_DATA", ""))


def test_bounds_of_one_ranking_by_hand() -> None:
    """40 of 1,000 rows hit within 5, 60 within 10.

    The 20 new hits stand at ranks 6 to 10, so they add .020 / log2(11) = .00578 to .020 / log2(7) = .00712.
    """
    table = {"hr@5": 0.040, "ndcg@5": 0.028, "hr@10": 0.060}
    for ndcg, possible in ((0.0335, False), (0.0338, True), (0.0351, True), (0.0354, False)):
        assert (impossible_cells({**table, "ndcg@10": ndcg}) == []) is possible, ndcg
    assert impossible_cells({"hr@10": 0.06, "ndcg@10": 0.0605})  # above the hit rate
    assert impossible_cells({"hr@10": 0.06, "ndcg@10": 0.0170})  # below .06 / log2(11) = .01734
    assert impossible_cells({"hr@5": 0.06, "ndcg@5": 0.04, "hr@10": 0.05, "ndcg@10": 0.04})  # fewer hits within more
    assert impossible_cells({"hr@10": 0.06, "mrr@10": 0.9}) == []


def test_hit_rates_in_between_make_the_bounds_tighter() -> None:
    """HSTU on Industrial: 11.0 of 1,000 hits come from 3 to 5 places and 12.6 from 5 to 10, which is at least
    .0110 / log2(6) + .0126 / log2(11) = .0079; NDCG gains .0073. Without NDCG@3 the rest can be right: that is the misprint.
    """
    hstu = {"hr@3": 0.0927, "ndcg@3": 0.0885, "hr@5": 0.1037, "hr@10": 0.1163, "ndcg@10": 0.0958}
    assert impossible_cells(hstu) == ["ndcg@10 - ndcg@3 is .0073, but hr@10 - hr@3 = .0236 allows .0079 to .0092"]
    del hstu["hr@5"]  # .0236 / log2(11) = .0068
    assert impossible_cells(hstu) == []
    assert impossible_cells({**hstu, "hr@5": 0.1037, "ndcg@5": 0.0918, "ndcg@3": 0.0870}) == []


def test_nothing_falls() -> None:
    assert impossible_cells({"hr@5": 0.06, "hr@10": 0.05}) == ["hr@10 is .0500, less than hr@5 = .0600"]
    assert impossible_cells({"ndcg@5": 0.06, "ndcg@10": 0.05, "hr@10": 0.1}) == [
        "ndcg@10 is .0500, less than ndcg@5 = .0600"
    ]
    assert impossible_cells({"hr@5": 0.06, "ndcg@5": 0.04, "hr@10": 0.05, "ndcg@10": 0.04}) == [
        "hr@10 is .0500, less than hr@5 = .0600"
    ]
    assert impossible_cells({"hr@5": 0.06, "hr@10": 0.0599}) == []


def test_figures_are_known_to_half_a_unit() -> None:
    """.0605 of four digits is above .06; of .06 with two, up to .065 may be meant."""
    table = {"hr@10": 0.06, "ndcg@10": 0.0605}
    assert impossible_cells(table)
    assert impossible_cells(table, {"hr@10": 0.005}) == []
    assert impossible_cells({"hr@10": 0.06, "ndcg@10": 0.06011}) != []
    assert impossible_cells({"hr@10": 0.06, "ndcg@10": 0.06009}) == []


def test_known_misprints_are_found() -> None:
    """Office_Products of MiniOneRec's table 1: NDCG of TIGER and of S-DPO cannot be right as printed."""
    tiger = {"hr@3": 0.0986, "ndcg@3": 0.0852, "hr@5": 0.1163, "ndcg@5": 0.0960, "hr@10": 0.1408, "ndcg@10": 0.1002}
    s_dpo = {"hr@3": 0.1169, "ndcg@3": 0.1033, "hr@5": 0.1356, "ndcg@5": 0.1110, "hr@10": 0.1587, "ndcg@10": 0.1255}
    sound = {"hr@3": 0.1217, "ndcg@3": 0.1088, "hr@5": 0.1420, "ndcg@5": 0.1172, "hr@10": 0.1634, "ndcg@10": 0.1242}
    assert len(impossible_cells(tiger)) == 2
    assert impossible_cells(s_dpo) == ["ndcg@10 - ndcg@5 is .0145, but hr@10 - hr@5 = .0231 allows .0067 to .0082"]
    assert impossible_cells(sound) == []


def test_a_row_that_contradicts_itself_must_say_so() -> None:
    row: dict[str, Any] = {"method": "X", "source": "a paper", "values": {"hr@10": 0.05, "ndcg@10": 0.06}}
    with pytest.raises(ValueError, match=r"row 'X' contradicts itself: ndcg@10 is \.0600, but hr@10 = \.0500 allows"):
        PublishedRow.model_validate(row)
    assert PublishedRow.model_validate({**row, "doubtful": ["ndcg@10"]}).values["ndcg@10"] == 0.06


@pytest.mark.parametrize("name", pack_names())
def test_shipped_packs(name: str) -> None:
    """The recipe exists and evaluates every figure that the pack shows; each file has a whole hash."""
    pack = read_pack(name)
    config = load_run_config(pack.recipe_path, pack.overrides)
    cuts = {int(metric.partition("@")[2]) for metric in pack.metrics}
    assert cuts <= set(config.evaluate.ks)
    assert any("_by_id@" in metric for metric in pack.metrics) == (config.evaluate.by_id is not None)
    assert all(len(digest) == 64 for digest in pack.data.sha256.values())
    assert len(pack.seeds) >= 3
    assert all(row.source for row in pack.published)
    assert any("TIGER" in row.method for row in pack.published) or name == "hstu_movielens1m"


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir() or not os.environ.get("RECSYS_DATA"), reason="RECSYS_DATA is not set")
@pytest.mark.parametrize("name", pack_names())
def test_packs_are_of_the_data_at_hand(name: str) -> None:
    pack = read_pack(name)
    config = load_run_config(pack.recipe_path, [*pack.overrides, f"source.path={DATA / pack.data.folder}"])
    found = config.source.fingerprint()
    assert {file: found[file] for file in pack.data.sha256} == pack.data.sha256
    assert set(found) == set(pack.data.sha256)


def test_refusals() -> None:
    with pytest.raises(
        ConfigError, match="there is no reproduction pack 'tiger'; there are hstu_movielens1m, minionerec"
    ):
        read_pack("tiger")
    values = read_pack("tiger_beauty").model_dump(mode="json")
    bound = {"system": "generative (beam)", "metric": "mrr@10", "seen": "filtered", "low": 0.1, "high": 0.2}
    with pytest.raises(ValueError, match=r"generative \(beam\) mrr@10 \(filtered\) is no figure of the table"):
        Pack.model_validate({**values, "expected": [bound]})
    with pytest.raises(ValueError, match=r"low 0.3 is above high 0.2"):
        Pack.model_validate({**values, "expected": [{**bound, "metric": "hr@10", "low": 0.3}]})

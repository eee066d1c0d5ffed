"""The evaluation stage's core: files, intervals, comparisons, the text table, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import BaselinesConfig
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.table import format_table, ranked_systems, verdict
from recsys.metrics.ranking import row_metrics
from tests.toy.dataset import ring_prepared

CONFIG = EvaluateConfig(ks=(1, 5, 10), baselines=("popularity", "markov"), reference="markov", resamples=200)
Rankings = dict[str, dict[bool, RankedItems]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def rankings(prepared: Dataset) -> Rankings:
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    result: Rankings = {}
    for ranker in build_baselines(["popularity", "markov"], BaselinesConfig()):
        ranker.fit(prepared, 0, "train")
        result[ranker.name] = {exclude: ranker.rank(histories, 10, exclude) for exclude in (True, False)}
    return result


def test_writes_what_the_metrics_say(prepared: Dataset, rankings: Rankings, tmp_path: Path) -> None:
    summary = evaluate(prepared, rankings, CONFIG, tmp_path, seed=0)
    targets = prepared.targets(TEST)
    direct = row_metrics(rankings["popularity"][True], targets, CONFIG.ks)
    per_user = pl.read_parquet(tmp_path / "per_user.parquet")
    part = per_user.filter((pl.col("system") == "popularity") & pl.col("exclude_seen"))
    assert part["user_id"].to_list() == [f"u{u}" for u in targets.user_index]
    np.testing.assert_allclose(part["ndcg@5"].to_numpy(), direct["ndcg@5"], rtol=1e-6)
    assert len(per_user) == 2 * 2 * len(targets)

    cell = summary["systems"]["popularity"]["filtered"]["ndcg@5"]
    assert cell["mean"] == pytest.approx(direct["ndcg@5"].mean())
    assert cell["low"] < cell["mean"] < cell["high"]
    assert summary["systems"]["markov"]["filtered"]["hr@1"]["mean"] == 1.0
    assert summary["systems"]["markov"]["filtered"]["coverage@10"] == {"mean": 1.0, "low": None, "high": None}

    metrics = pl.read_parquet(tmp_path / "metrics.parquet")
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == metrics.to_dicts()
    empty = metrics.filter(pl.col("slice") == "no_history")
    assert set(empty["rows"]) == {0}
    assert empty["mean"].null_count() == len(empty)


def test_comparison_is_paired(prepared: Dataset, rankings: Rankings, tmp_path: Path) -> None:
    """Reference minus system, row by row; a system equal to the reference differs by exactly 0 with p = 1."""
    twin = {**rankings, "twin": rankings["markov"]}
    summary = evaluate(prepared, twin, CONFIG, tmp_path, seed=0)
    table = pl.read_parquet(tmp_path / "comparisons.parquet")
    assert set(table["system"]) == {"popularity", "twin"}
    assert set(table["reference"]) == {"markov"}
    same = summary["comparisons"]["twin"]["filtered"]["ndcg@10"]
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    other = summary["comparisons"]["popularity"]["unfiltered"]["hr@1"]
    systems = summary["systems"]
    expected = systems["markov"]["unfiltered"]["hr@1"]["mean"] - systems["popularity"]["unfiltered"]["hr@1"]["mean"]
    assert other["difference"] == pytest.approx(expected)
    assert other["low"] > 0
    assert other["p_value"] == pytest.approx(2 / 201)


def test_intervals_of_differences_are_paired(prepared: Dataset, tmp_path: Path) -> None:
    """Reciprocal ranks of the reference: 1 for every other user, 1/2 for the rest; of the other system: 1/2 and 0. So it is
    behind by 1/2 for everybody, in every resample. Draws that are not paired would give the spread of the users, and give
    it to a system that equals the reference as well.
    """
    targets = prepared.targets(TEST)
    wanted = targets.items[targets.item_offsets[:-1]]
    even = np.arange(len(targets)) % 2 == 0

    def hits_at(places: list[int]) -> RankedItems:
        """The wanted item at one place for even rows and at another for odd ones; place 11 is not shown."""
        order = [[item for item in range(12) if item != asked] for asked in wanted.tolist()]
        for row, asked in enumerate(wanted.tolist()):
            order[row].insert(places[0 if even[row] else 1] - 1, asked)
        scores = np.tile(-np.arange(10, dtype=np.float32), (len(targets), 1))
        return RankedItems(np.array(order, np.int32)[:, :10], scores)

    systems = {"reference": hits_at([1, 2]), "equal": hits_at([1, 2]), "behind": hits_at([2, 11])}
    config = CONFIG.model_copy(update={"filter_seen": "filtered", "reference": "reference"})
    summary = evaluate(prepared, {name: {True: found} for name, found in systems.items()}, config, tmp_path, seed=0)
    alone = summary["systems"]["reference"]["filtered"]["mrr@10"]
    assert alone["mean"] == 0.75
    assert alone["high"] - alone["low"] > 0.1  # 60 coins of 1 and 1/2: 2 * 1.96 * .25 / sqrt(60) = .13
    compared = {name: summary["comparisons"][name]["filtered"]["mrr@10"] for name in ("equal", "behind")}
    assert compared["equal"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    assert compared["behind"] == {"difference": 0.5, "low": 0.5, "high": 0.5, "p_value": pytest.approx(2 / 201)}


def test_same_seed_same_bytes(prepared: Dataset, rankings: Rankings, tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluate(prepared, rankings, CONFIG, tmp_path / name, seed=7)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["comparisons.parquet", "metrics.json", "metrics.parquet", "per_user.parquet"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_one_filter_and_no_reference(prepared: Dataset, rankings: Rankings, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"filter_seen": "unfiltered", "reference": None})
    summary = evaluate(prepared, {"popularity": {False: rankings["popularity"][False]}}, config, tmp_path, seed=0)
    assert list(summary["systems"]["popularity"]) == ["unfiltered"]
    assert summary["comparisons"] == {}
    text = format_table(summary)
    assert "seen items kept" in text
    assert "filtered" not in text


def test_table_shows_both_filters_and_the_verdict(prepared: Dataset, rankings: Rankings, tmp_path: Path) -> None:
    summary = evaluate(prepared, rankings, CONFIG, tmp_path, seed=0)
    assert ranked_systems(summary) == ["markov", "popularity"]
    lines = format_table(summary).splitlines()
    assert lines[0] == "test split, 60 rows of 60 users, full catalogue, 95 % bootstrap intervals"
    assert lines[2].split() == ["system", "hr@10", "ndcg@10", "hr@10", "ndcg@10"]
    assert lines[3].startswith("markov *")
    assert "1.0000 [1.0000, 1.0000]" in lines[3]
    assert lines[4].startswith("popularity")
    assert lines[4].endswith("-")
    assert verdict({"low": -0.2, "high": -0.1}) == "better"
    assert verdict({"low": -0.2, "high": 0.1}) == "equal"


def test_headline_without_ten() -> None:
    assert EvaluateConfig(ks=(1, 5)).headline == ("hr@5", "ndcg@5")
    assert EvaluateConfig().headline == ("hr@10", "ndcg@10")


def test_refusals(prepared: Dataset, rankings: Rankings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference 'sasrec' is none of the systems evaluated: popularity, markov"):
        evaluate(prepared, rankings, CONFIG.model_copy(update={"reference": "sasrec"}), tmp_path, seed=0)
    with pytest.raises(DataError, match="system 'markov' has no unfiltered ranking"):
        evaluate(prepared, {"markov": {True: rankings["markov"][True]}}, CONFIG, tmp_path, seed=0)
    with pytest.raises(ValidationError, match="ks must be positive and ascending"):
        EvaluateConfig(ks=(10, 5))
    with pytest.raises(ValidationError):
        EvaluateConfig.model_validate({"baselines": ["sasrek"]})
    with pytest.raises(ValidationError, match="baselines names one twice: markov, ease, markov"):
        EvaluateConfig.model_validate({"baselines": ["markov", "ease", "markov"]})


def test_refuses_an_empty_split(prepared: Dataset, rankings: Rankings, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    empty = ring_prepared(folder)
    pl.read_parquet(folder / "targets.parquet").filter(pl.col("split") != TEST).write_parquet(
        folder / "targets.parquet"
    )
    with pytest.raises(DataError, match="the test split has no rows to evaluate"):
        evaluate(Dataset.open(empty.path), rankings, CONFIG, tmp_path / "out", seed=0)

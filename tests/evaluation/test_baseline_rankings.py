"""The baselines of a table: tuned, ranked, summed; who leaves, with which note; and what a killed stage keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.evaluation import baseline_rankings
from recsys.evaluation.baseline_rankings import rank_with_baselines, table_notes
from recsys.evaluation.baselines.config import BASELINE_NAMES, BaselinesConfig, EASEConfig, ItemKNNConfig, left_out
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.rankings import read_rankings
from recsys.evaluation.table import format_table
from recsys.evaluation.tuning.config import TuningConfig
from recsys.evaluation.tuning.search import fit_with
from recsys.metrics.ranking import row_metrics
from recsys.runtime import SilentProgress
from tests.toy.dataset import ring_prepared

POOR = BaselinesConfig(
    item_knn=ItemKNNConfig(history_decay=1.0), ease=EASEConfig(regularisation=500, history_decay=1.0)
)
CONFIG = EvaluateConfig(ks=(1, 5, 10), baselines=("popularity", "item_knn", "ease"), baseline_settings=POOR)
FUSION = "fusion (item_knn + ease)"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


def ranked(prepared: Dataset, config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    rank_with_baselines(prepared, config, folder, 0, SilentProgress())
    kept: dict[str, Any] = json.loads((folder / "systems.json").read_text())
    return kept


def ndcg(prepared: Dataset, folder: Path, system: str) -> float:
    found = read_rankings(folder, [system], [True])[system][True]
    return float(row_metrics(found, prepared.targets(TEST), [10])["ndcg@10"].mean())


def test_a_baseline_gets_the_settings_that_suit_the_data(prepared: Dataset, tmp_path: Path) -> None:
    """Configured so that they do badly: what is ranked is better, and every trial is written down."""
    kept = ranked(prepared, CONFIG, tmp_path / "tuned")
    plain = CONFIG.model_copy(update={"tuning": TuningConfig(enabled=False)})
    assert ranked(prepared, plain, tmp_path / "plain")["tuning"] == []
    for name in ("item_knn", "ease"):
        assert ndcg(prepared, tmp_path / "tuned", name) > ndcg(prepared, tmp_path / "plain", name) + 0.05
    tried = json.loads((tmp_path / "tuned" / "tuning.json").read_text())
    assert set(tried) == {"popularity", "item_knn", "ease", FUSION}
    assert tried["item_knn"]["fits"] == len(tried["item_knn"]["trials"]) == 5 * 3 * 5
    assert tried["ease"]["value"] > tried["ease"]["configured_value"]
    assert [line.split(":")[0] for line in kept["tuning"]] == kept["systems"]
    assert kept["tuning"][1].startswith(
        f"item_knn: history_decay {tried['item_knn']['chosen']['history_decay']:g}, num_"
    )
    assert kept["systems"] == ["popularity", "item_knn", "ease", FUSION]


def test_the_fusion_is_of_the_best_two_by_validation(prepared: Dataset, tmp_path: Path) -> None:
    """And it is the sum of what both score, ranked over the whole catalogue."""
    ranked(prepared, CONFIG, tmp_path)
    tried = json.loads((tmp_path / "tuning.json").read_text())
    values = {name: tried[name]["value"] for name in CONFIG.baselines}
    assert sorted(values, key=lambda name: -values[name])[:2] == ["item_knn", "ease"]
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    scores = []
    for name, form in zip(("item_knn", "ease"), tried[FUSION]["chosen"]["forms"], strict=True):
        config = type(getattr(POOR, name)).model_validate(tried[name]["settings"])
        raw = fit_with(name, config, prepared, POOR, 0, "train").scores(histories)
        floor = {"log_of_counts": 1e-6, "log_of_weights": 1e-3}
        scores.append(10 * raw if form == "tenfold" else np.log(np.maximum(raw, 0) + np.float32(floor[form])))
    total = scores[0] + np.float32(tried[FUSION]["chosen"]["weight"]) * scores[1]
    expected = np.argsort(-total, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(read_rankings(tmp_path, [FUSION], [False])[FUSION][False].items, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"tuning": TuningConfig(fusion=False)},
        {"tuning": TuningConfig(enabled=False)},
        {"baselines": ("ease",)},
    ],
)
def test_no_fusion(prepared: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    config = CONFIG.model_copy(update=change)
    assert ranked(prepared, config, tmp_path)["systems"] == list(config.baselines)


def test_a_catalogue_too_large_for_a_baseline_costs_a_note_and_nothing_else(
    prepared: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """EASE is named, is the reference, and its limit is 5 items of 12: the table comes without it, and says so."""
    settings = BaselinesConfig(ease=EASEConfig(max_items=5))
    update = {"baseline_settings": settings, "baselines": ("popularity", "ease", "markov"), "reference": "ease"}
    config = CONFIG.model_copy(update=update)
    kept = ranked(prepared, config, tmp_path)
    assert kept["systems"] == ["popularity", "markov", "fusion (markov + popularity)"]
    note = "ease is left out: the catalogue has 12 items, its limit is 5 (evaluate.baseline_settings.ease.max_items"
    assert kept["left_out"]["ease"].startswith(note)
    assert note in caplog.text

    reference, notes = table_notes(kept, "ease", 90.0)
    assert reference == "generative (served)"
    assert "compared with generative (served), because ease is left out" in notes
    assert notes[-1] == "policy: one setting, 1.5 minutes of training"
    rankings = read_rankings(tmp_path, kept["systems"], kept["filters"])
    compared = config.model_copy(update={"reference": "markov", "list_metrics": ()})
    table = format_table(evaluate(prepared, rankings, compared, tmp_path / "out", 0, notes=notes))
    assert note in table
    assert table.endswith("policy: one setting, 1.5 minutes of training")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["notes"] == notes


def test_the_limit_is_the_last_size_that_is_allowed() -> None:
    config = BaselinesConfig()
    assert left_out(BASELINE_NAMES, config, 20_000) == {}
    assert list(left_out(BASELINE_NAMES, config, 20_001)) == ["ease"]
    assert list(left_out(BASELINE_NAMES, config, 200_001)) == ["ease", "sasrec"]
    assert left_out(["markov"], config, 10**9) == {}


def test_a_baseline_that_the_data_do_not_allow_leaves_too(tmp_path: Path) -> None:
    """No user has two train events: SASRec has nothing to learn, popularity has."""
    data = ring_prepared(tmp_path / "data", users=20, items=12, events=5)
    alone = type(data.history)(**{**vars(data.history), "train_end": np.asarray(data.history.offsets[:-1]) + 1})
    data = Dataset(data.path, data.spec, alone)
    kept = ranked(data, CONFIG.model_copy(update={"baselines": ("sasrec", "popularity")}), tmp_path / "out")
    assert kept["systems"] == ["popularity"]
    assert "sasrec is left out: sasrec: no user has two events before the end of the train split" in kept["notes"][0]


def test_without_validation_rows_settings_stay_and_the_note_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    full = ring_prepared(folder)
    table = pl.read_parquet(folder / "targets.parquet")
    table.filter(pl.col("split") == TEST).write_parquet(folder / "targets.parquet")
    kept = ranked(Dataset.open(full.path), CONFIG, tmp_path / "out")
    assert kept["systems"] == list(CONFIG.baselines)
    assert kept["notes"] == [
        "the validation split has no rows, so baselines have their configured settings and none are summed"
    ]


def test_rows_that_choose_and_are_evaluated_are_told(prepared: Dataset, tmp_path: Path) -> None:
    kept = ranked(prepared, CONFIG.model_copy(update={"split": "valid", "baselines": ("popularity",)}), tmp_path)
    assert kept["notes"] == ["the settings of baselines were chosen on rows of the split that is evaluated"]


def test_settings_are_chosen_without_validation_events_when_these_are_counted_later(
    prepared: Dataset, tmp_path: Path
) -> None:
    """`count_until: valid`: the same trials as with "train", fitted anew on more events for the table."""
    later = CONFIG.model_copy(update={"count_until": "valid"})
    tried = []
    for config, name in ((CONFIG, "train"), (later, "valid")):
        ranked(prepared, config, tmp_path / name)
        found = json.loads((tmp_path / name / "tuning.json").read_text())
        tried.append({system: {**record, "minutes": 0} for system, record in found.items()})
    assert tried[0] == tried[1]
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    for name in ("ease", "item_knn"):
        config = type(getattr(POOR, name)).model_validate(tried[1][name]["settings"])
        expected = fit_with(name, config, prepared, POOR, 0, "valid").rank(histories, 10, exclude_seen=True)
        np.testing.assert_array_equal(
            read_rankings(tmp_path / "valid", [name], [True])[name][True].scores, expected.scores
        )
    one, two = (read_rankings(tmp_path / folder, [FUSION], [True])[FUSION][True] for folder in ("train", "valid"))
    assert not np.array_equal(one.scores, two.scores)


def test_a_killed_stage_keeps_what_it_has(prepared: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the fusion: nothing is searched again, and the result is that of an undisturbed run."""
    whole = ranked(prepared, CONFIG, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "fusion_item_knn_ease")
    shutil.rmtree(tmp_path / "stopped" / "ease" / "unfiltered")
    for name in ("systems.json", "tuning.json", ".tuning-fusion.json"):
        (tmp_path / "stopped" / name).unlink()

    def no_search(*arguments: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(baseline_rankings, "tune", no_search)
    again = ranked(prepared, CONFIG, tmp_path / "stopped")
    assert again["systems"] == whole["systems"]
    assert again["tuning"][:3] == whole["tuning"][:3]
    for name in whole["systems"]:
        for exclude in (True, False):
            one, two = (
                read_rankings(tmp_path / part, [name], [exclude])[name][exclude] for part in ("whole", "stopped")
            )
            np.testing.assert_array_equal(one.items, two.items)
            np.testing.assert_array_equal(one.scores, two.scores)


def test_validate_says_beforehand_who_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli.app import main

    rows = [f"{user},{item},{1_600_000_000 + user * 100 + item}" for user in range(8) for item in range(6)]
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    values = {
        "source": {"kind": "table", "path": str(tmp_path), "interactions": "events.csv", "timestamp_unit": "s"},
        "features": {"split": {"kind": "leave_last_out"}},
        "output_dir": str(tmp_path / "out"),
        "evaluate": {"baseline_settings": {"ease": {"max_items": 5}}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    for more, expected in (([], True), (["evaluate.baseline_settings.ease.max_items=6"], False)):
        with pytest.raises(SystemExit) as ended:
            main(["validate", "--config", str(tmp_path / "recipe.yaml"), *more])
        assert ended.value.code in (0, None)
        printed = capsys.readouterr().out
        assert ("note: ease is left out: the catalogue has 6 items, its limit is 5" in printed) == expected
        assert "no problems found" in printed

"""`recsys tokens`, typed."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.cli.app import main
from recsys.contracts.manifest import ArtifactStore
from recsys.semantic_ids.config import TokenizeConfig
from recsys.semantic_ids.generations.growth import grow_semantic_ids
from recsys.semantic_ids.tokenize import tokenize

CONFIG = TokenizeConfig(codebook_size=8, num_levels=2)


def typed(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["tokens", *words])
    return int(ended.value.code)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output folder of a run of two nights: 40 items, then 36 of them and 6 new ones."""
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((50, 4)).astype(np.float32), pl.Series([f"i{number}" for number in range(50)])
    traffic = rng.integers(1, 9, 50)
    store = ArtifactStore(tmp_path / "run" / "artifacts")
    about = {"kind": "semantic_ids", "code_version": "1", "seed": 1, "parents": {}, "config": {}}
    with store.work_folder("semantic_ids", "a" * 64) as work:
        summary = tokenize(x[:40], ids[:40], traffic[:40], CONFIG, work, 1, "a space")
        first = store.publish(work, digest="a" * 64, summary=summary, **about)
    with store.work_folder("semantic_ids", "b" * 64) as work:
        summary = grow_semantic_ids(first.path, x[4:46], ids[4:46], traffic[4:46], "a space", CONFIG, work)
        second = store.publish(work, digest="b" * 64, summary=summary, **about)
    os.utime(first.path / "manifest.json", (1, 1))
    assert second.path.exists()
    return tmp_path / "run"


def test_report_of_a_run_is_that_of_its_newest_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("report", str(run)) == 0
    text = capsys.readouterr().out
    assert "42 items: 36 founders, 6 came later; 4 left and keep their ID; 8 x 8 codes" in text
    assert "a new generation is due: fill is 0.719, tokenize.refit.max_fill allows 0.5: IDs run out" in text
    assert typed("report", "--json", str(run)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["fill"] == 46 / 64
    assert [entry["items"] for entry in found["versions"]] == [40, 42]


def test_limits_come_from_a_recipe(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = run.parent / "r.yaml"
    recipe.write_text(
        f"output_dir: {run.parent / 'out'}\nsource: {{kind: simulated}}\n"
        "tokenize: {refit: {max_fill: null, max_first_code_fill: null, max_drift: 99, max_later_traffic_share: null}}\n"
    )
    assert typed("report", str(run), "--config", str(recipe)) == 0
    assert "no limit of tokenize.refit is reached" in capsys.readouterr().out


def test_diff_of_two_folders(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run / "artifacts" / "semantic_ids" / ("a" * 16)
    assert typed("diff", str(first), str(run)) == 0
    text = capsys.readouterr().out
    assert "the same generation" in text
    assert "36 items in both: 36 keep their ID, 0 moved; 6 new, 4 gone" in text
    assert typed("diff", str(run), str(first), "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"] == {"in_both": 36, "kept": 36, "moved": 0, "new": 4, "gone": 6}


@pytest.mark.parametrize("name", ["ids.parquet", "new folder/ids.csv"])
def test_export(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / name
    assert typed("export", str(run), "--out", str(out)) == 0
    assert capsys.readouterr().out == f"42 items\n{out}\n"
    read = pl.read_parquet if out.suffix == ".parquet" else pl.read_csv
    assert read(out)["item_id"].to_list() == [f"i{number}" for number in range(4, 46)]
    assert typed("export", str(run), "--out", str(out), "--reserved") == 0
    rows = read(out)
    assert rows.filter(~pl.col("in_catalogue"))["item_id"].to_list() == ["i0", "i1", "i2", "i3"]
    assert rows.filter(pl.col("item_id") == "i9")["sid"][0].startswith("<a_")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["report", "nowhere"], 4, "'nowhere' holds no semantic IDs"),
        (["diff", "nowhere", "nowhere"], 4, "or the output folder of a run whose `tokenize` has finished"),
        (["export", "RUN", "--out", "ids.txt"], 2, "ends in neither .parquet nor .csv"),
        (["report", "models:/shop/1"], 2, "'models:/shop/1' is in a registry; give --tracking-uri"),
        (["report", "models:/shop/1", "--tracking-uri", "sqlite:///RUN/none.db"], 2, "name the mlflow.db of a run"),
        (["export", "RUN"], 2, "--out"),
    ],
)
def test_refusals(
    run: Path,
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert typed(*(word.replace("RUN", str(run)) for word in words)) == code
    assert message in capsys.readouterr().err

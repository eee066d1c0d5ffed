"""The verb `audit`: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines.audit import table_of
from pipelines.cli.app import main
from recsys.contracts.columns import TEST

DAY = 86_400
START = 1_650_000_000


def recsys(shop: Path, verb: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--config", str(shop / "shop.yaml"), *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Twelve users with ten different items each, one a day, split in time."""
    rows = [(user, (3 * user + 7 * step) % 80, START + step * DAY + user) for user in range(12) for step in range(10)]
    (tmp_path / "in").mkdir()
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        tmp_path / "in" / "interactions.parquet"
    )
    recipe = {
        "output_dir": str(tmp_path / "out"),
        "source": {"kind": "table", "path": str(tmp_path / "in"), "timestamp_unit": "s"},
        "features": {"split": {"valid_share": 0.2, "test_share": 0.2}},
        "embed": {"text": {"model": None}, "collaborative": {"dim": 4}, "fusion": {"dim": 4}},
    }
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_before_prepare_it_is_4_and_says_what_to_run(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recsys(shop, "audit") == 4
    assert "run `recsys prepare`" in capsys.readouterr().err


def test_sound_data_end_with_0_even_when_strict(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recsys(shop, "prepare") == 0
    assert recsys(shop, "embed") == 0
    assert recsys(shop, "audit", "--strict") == 0
    assert "no leak found (12 checks on 12 test, 12 valid rows)" in capsys.readouterr().out
    (prepared,) = (shop / "out" / "artifacts" / "prepared").glob("[!.]*")
    assert json.loads((prepared / "leakage.json").read_text())["findings"] == []


def test_a_severe_leak_is_3_when_strict(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The histories of all test rows are made to hold their targets."""
    assert recsys(shop, "prepare") == 0
    (prepared,) = (shop / "out" / "artifacts" / "prepared").glob("[!.]*")
    path = prepared / "targets.parquet"
    longer = pl.when(pl.col("split") == TEST).then(pl.col("history_end") + 1).otherwise("history_end")
    pl.read_parquet(path).with_columns(longer.alias("history_end")).write_parquet(path)
    reseal(prepared)
    assert recsys(shop, "audit") == 0
    assert "12 of 12 rows (100.0%); HR@10 at most 1.0000, leak alone 1.0000" in capsys.readouterr().out
    assert recsys(shop, "audit", "--strict") == 3
    assert "audit: 1 severe leaks (future_events)" in capsys.readouterr().err
    written = json.loads((shop / "out" / "leakage.json").read_text())
    assert [(found["code"], found["rows"]) for found in written["findings"]] == [("future_events", 12)]


def reseal(folder: Path) -> None:
    """Write sizes and hashes of the files as they are now into the manifest."""
    from recsys.contracts.manifest import sha256_of_file

    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        path = folder / entry["path"]
        entry["bytes"], entry["sha256"] = path.stat().st_size, sha256_of_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_embeddings_of_another_run_are_looked_at(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other run's data are not in this output folder."""
    other = f"output_dir={shop / 'other'}"
    assert recsys(shop, "prepare", other, "features.split.test_share=0.1") == 0
    assert recsys(shop, "embed", other, "features.split.test_share=0.1") == 0
    (folder,) = (shop / "other" / "artifacts" / "embeddings").glob("[!.]*")
    assert recsys(shop, "prepare") == 0
    assert recsys(shop, "audit", "--artefact", str(folder)) == 0
    assert "What an artefact was fitted on cannot be told [test]" in capsys.readouterr().out


def test_a_finding_as_text() -> None:
    finding = {"severity": "note", "title": "T", "split": "test", "rows": 1, "of": 4, "unit": "rows", "share": 0.25}
    finding |= {"words": "w", "advice": "a", "hr_bound": 0.25, "hr_at_10": None, "hr_without": None}
    assert table_of({"findings": [finding]}).splitlines() == [
        "note     T [test]: 1 of 4 rows (25.0%); HR@10 at most 0.2500",
        "         w",
        "         -> a",
    ]

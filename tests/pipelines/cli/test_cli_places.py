"""A whole run in a folder of a hard name, then in a copy of it, then where the copy was moved to."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from serving.registry.file_store import sqlite_uri
from tests.pipelines.cli.test_cli import DEMO, TINY, call

NAME = "50%20off #1?x=1 [a]*{b} é 🎬 'q' a=b;c&d+e@f:g ~"


@pytest.mark.slow
def test_a_run_its_copy_and_the_moved_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    original, copy = tmp_path / NAME, tmp_path / "the copy"
    recipe = ["--config", str(DEMO), *TINY, "--progress", "off"]
    assert call("run", *recipe, f"output_dir={original}") == 0
    assert [path.name for path in tmp_path.iterdir()] == [NAME]

    before = {path: path.stat().st_mtime_ns for path in original.rglob("*") if path.is_file()}
    shutil.copytree(original, copy)
    capsys.readouterr()
    assert call("run", *recipe, f"output_dir={copy}") == 0
    assert "Nothing to do: every stage is up to date." in capsys.readouterr().out
    assert call("run", *recipe, f"output_dir={copy}", "recommend.k=4") == 0
    assert before == {path: path.stat().st_mtime_ns for path in original.rglob("*") if path.is_file()}

    moved = copy.rename(tmp_path / "moved%2Faway")
    users = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [1, 2], "item_ids": [[1, 2, 3], [4, 5, 6]]}).write_parquet(users)
    arguments = ["--users", str(users), "--model", "models:/demo@champion", "--progress", "off", "--k", "3"]
    for place, uri in (("a", sqlite_uri(moved / "mlflow.db")), ("b", f"sqlite:///{moved}/mlflow.db")):
        assert call("recommend", *arguments, "--out", str(tmp_path / place), "--tracking-uri", uri) == 0
        assert len(pl.read_parquet(tmp_path / place / "part-*.parquet")) == 6
    assert not copy.exists()
    assert (
        call("recommend", *arguments, "--out", str(tmp_path / "c"), "--tracking-uri", f"sqlite:///{copy}/mlflow.db")
        == 2
    )
    assert f"there is no '{copy}/mlflow.db'" in capsys.readouterr().err
    assert not copy.exists()


def test_a_command_in_the_wrong_folder_names_the_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("source: {kind: table, path: data, timestamp_unit: s}\n")
    assert call("run", "--config", "r.yaml", "--dry-run") == 3
    assert f"'{tmp_path}/data', and there is no such folder" in capsys.readouterr().err
    assert call("run", "--config", "other.yaml", "--dry-run") == 2
    assert f"as seen from '{tmp_path}'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_an_output_folder_below_a_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert call("prepare", "--config", str(DEMO), f"output_dir={tmp_path}/file/run") == 4
    assert f"'{tmp_path}/file' is a file, not a folder" in capsys.readouterr().err

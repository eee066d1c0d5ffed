"""Summaries that commands leave, done, failed or stopped: what is in them, what is not, and how they are written."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.cli.app import main
from pipelines.engine.lock import run_lock
from pipelines.run_summary import files
from pipelines.run_summary.files import read_summaries, summarised, write_summary
from recsys.contracts.errors import ArtifactError, DataError
from tests.toy.run_records import record_of_a_run
from tests.toy.tiny_run import write_small_log

SECRET = "pass@w0rd"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six users with four events each, as a file; the tracking server has a password and is never asked."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return write_small_log(tmp_path, tracking={"uri": f"http://ann:{SECRET}@127.0.0.1:9", "timeout_s": 0.1})


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


def latest(recipe: Path) -> dict[str, Any]:
    found = json.loads((recipe.parent / "out" / "summaries" / "latest.json").read_text())
    assert isinstance(found, dict)
    return found


def metric_of(recipe: Path, name: str) -> float:
    text = (recipe.parent / "out" / "metrics.prom").read_text()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
    assert len(samples) == 1
    return samples[0].value


def test_a_command_that_is_done(recipe: Path) -> None:
    assert call("prepare", "--config", str(recipe), "seed=3") == 0
    found = latest(recipe)
    assert (found["command"], found["state"], found["exit_code"], found["message"]) == ("prepare", "done", 0, None)
    assert found["arguments"] == ["--config", str(recipe), "seed=3"]
    assert [(stage["stage"], stage["ran"]) for stage in found["stages"]] == [("prepare", True)]
    assert Path(found["stages"][0]["path"]).is_dir()
    assert found["rows"]["events"] == 24
    assert 0 < found["stages"][0]["seconds"] <= found["seconds"]
    assert found["stopped_in"] is None
    assert all(Path(path).exists() for path in found["paths"].values())
    assert "data_report" in found["paths"]
    assert (recipe.parent / "out" / "summaries" / f"{found['id']}.json").exists()
    assert metric_of(recipe, "recsys_run_exit_code") == 0


def test_a_second_run_says_that_nothing_ran(recipe: Path) -> None:
    call("prepare", "--config", str(recipe))
    call("prepare", "--config", str(recipe))
    assert [(stage["ran"], stage["seconds"]) for stage in latest(recipe)["stages"]] == [(False, 0.0)]


def test_bad_data_are_summarised_with_code_and_message(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("prepare", "--config", str(recipe))
    (recipe.parent / "events.csv").write_text("user_id,item_id,timestamp\n1,2,never\n")
    assert call("prepare", "--config", str(recipe)) == 3
    found = latest(recipe)
    assert (found["state"], found["exit_code"], found["stopped_in"]) == ("failed", 3, "prepare")
    assert found["message"]
    assert found["message"] in capsys.readouterr().err
    assert metric_of(recipe, "recsys_run_exit_code") == 3
    assert metric_of(recipe, "recsys_run_last_success_timestamp_seconds") < metric_of(
        recipe, "recsys_run_last_end_timestamp_seconds"
    )


def test_a_stopped_command(recipe: Path) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with mock.patch("pipelines.workflow.Workflow.run_verb", stop):
            assert call("prepare", "--config", str(recipe)) == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    found = latest(recipe)
    assert (found["state"], found["exit_code"]) == ("stopped", 143)
    assert "SIGTERM" in found["message"]


def test_a_fault_of_ours_is_summarised_too(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("pipelines.workflow.Workflow.run_verb", side_effect=ZeroDivisionError("oh")):
        assert call("prepare", "--config", str(recipe)) == 1
    assert (latest(recipe)["state"], latest(recipe)["exit_code"], latest(recipe)["message"]) == ("failed", 1, "oh")
    assert "fault of recsys" in capsys.readouterr().err


def test_whoever_finds_the_folder_locked_leaves_the_summary_of_the_other(recipe: Path) -> None:
    call("prepare", "--config", str(recipe))
    before = latest(recipe)
    with run_lock(recipe.parent / "out"):
        assert call("prepare", "--config", str(recipe)) == 75
    assert latest(recipe) == before
    assert len(read_summaries(recipe.parent / "out")) == 1


def test_no_secret_is_written(recipe: Path) -> None:
    """The password comes with the recipe, as an override, and in the message of an error."""
    uri = f"tracking.uri=http://ann:{SECRET}@127.0.0.1:9"
    said = DataError(f"cannot open http://ann:{SECRET}@127.0.0.1:9")
    with mock.patch("pipelines.workflow.Workflow.run_verb", side_effect=said):
        assert call("prepare", "--config", str(recipe), uri) == 3
    texts = [path.read_text() for path in (recipe.parent / "out").rglob("*") if path.is_file()]
    assert any("cannot open" in text for text in texts)
    assert not [text for text in texts if SECRET in text or "ann:" in text]


def some_record(number: int) -> dict[str, Any]:
    ended = f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}+00:00"
    return record_of_a_run(schema_version=1, id=f"{number:04d}", ended_at=ended)


def test_the_oldest_summaries_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "KEPT", 3)
    for number in range(5):
        write_summary(tmp_path, some_record(number))
    assert sorted(path.name for path in (tmp_path / "summaries").iterdir()) == [
        "0002.json",
        "0003.json",
        "0004.json",
        "latest.json",
    ]


def test_the_clock_was_set_back_and_the_last_run_is_the_one_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that fails after the clock went back would be hidden behind yesterday's success, or thrown away at once."""
    monkeypatch.setattr(files, "KEPT", 2)
    for number in (7, 8):
        write_summary(tmp_path, some_record(number))
    write_summary(tmp_path, some_record(1) | {"exit_code": 3, "state": "failed"})
    metrics = (tmp_path / "metrics.prom").read_text()
    assert 'recsys_run_exit_code{model="shop",output_dir="/runs",command="run"} 3.0' in metrics
    assert sorted(path.stem for path in (tmp_path / "summaries").iterdir()) == ["0001", "0008", "latest"]


@pytest.mark.parametrize("changed", [{"ended_at": "yesterday"}, {"ended_at": None}, {"id": 7}])
def test_a_summary_that_somebody_wrote_into_is_passed_over(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_summary(tmp_path, some_record(1))
    (tmp_path / "summaries" / "0002.json").write_text(json.dumps(some_record(2) | changed))
    write_summary(tmp_path, some_record(3))
    assert [record["id"] for _, record in read_summaries(tmp_path)] == ["0001", "0003"]


def test_a_damaged_summary_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_summary(tmp_path, some_record(1))
    (tmp_path / "summaries" / "0000.json").write_text('{"schema_version": 1, "id"')
    (tmp_path / "summaries" / "mine.json").write_text("[1]")
    with caplog.at_level(logging.WARNING):
        assert [record["id"] for _, record in read_summaries(tmp_path)] == ["0001"]
    assert "0000.json" in caplog.text


def test_a_full_disk_does_not_hide_the_error_that_ended_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a run end with 0 whose summary is missing."""
    workflow: Any = SimpleNamespace(config=SimpleNamespace(output_dir=tmp_path))
    full = mock.patch.object(files, "record_of", side_effect=ArtifactError("no space left"))
    with full, pytest.raises(DataError, match="bad rows"), summarised(workflow, files.Call("run")):
        raise DataError("bad rows")
    assert "no space left" in caplog.text
    with full, pytest.raises(ArtifactError, match="no space"), summarised(workflow, files.Call("run")):
        pass


def test_warnings_are_kept(recipe: Path) -> None:
    def warn(*arguments: Any, **options: Any) -> None:
        logging.getLogger("recsys.pipelines").warning("only %d rows", 7)
        raise DataError("too few")

    with mock.patch("pipelines.workflow.Workflow.run_verb", warn):
        call("prepare", "--config", str(recipe))
    assert latest(recipe)["warnings"] == ["only 7 rows"]
    call("prepare", "--config", str(recipe))
    assert "only 7 rows" not in latest(recipe)["warnings"]

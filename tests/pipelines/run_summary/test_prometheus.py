"""The metrics of an output folder, read back by Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.run_summary.prometheus import escaped, metrics_text
from tests.toy.run_records import record_of_a_run

Labels = tuple[tuple[str, str], ...]


def record(minute: int, **changed: Any) -> dict[str, Any]:
    """A run that ended so many minutes after 1970 began, without any result."""
    ended = f"1970-01-01T00:{minute:02d}:00+00:00"
    return record_of_a_run(ended_at=ended, seconds=2.5, cpu_seconds=2.0) | changed


def parsed(text: str) -> dict[tuple[str, Labels], float]:
    """Value of every sample by name and labels, those that all samples share left out."""
    found: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            own = tuple(sorted(pair for pair in sample.labels.items() if pair[0] not in ("model", "output_dir")))
            assert (sample.name, own) not in found
            found[sample.name, own] = sample.value
    return found


def test_a_night_as_metrics() -> None:
    """A run that ended 2 minutes after 1970 began: 120 s; NDCG .25 within [.2, .3]; 7 lists; version 12 is champion."""
    figure = {"metric": "ndcg@10", "split": "test", "value": 0.25, "low": 0.2, "high": 0.3}
    night = record(
        2,
        state="registered",
        stages=[
            {"stage": "train", "ran": True, "seconds": 1.5},
            {"stage": "prepare", "ran": False, "seconds": 0.0},
        ],
        rows={"events": 100, "users": 10},
        figures=[figure],
        verdict={"promoted": True},
        champion="12",
        candidates={"rows": 70, "users": 7, "path": "x"},
        warnings=["a", "b"],
    )
    found = parsed(metrics_text([night]))
    command = ("command", "run")
    metric = (("metric", "ndcg@10"), ("split", "test"))
    expected: dict[tuple[str, Labels], float] = {
        ("recsys_run_last_end_timestamp_seconds", (command,)): 120.0,
        ("recsys_run_last_success_timestamp_seconds", (command,)): 120.0,
        ("recsys_run_exit_code", (command,)): 0.0,
        ("recsys_run_duration_seconds", (command,)): 2.5,
        ("recsys_run_cpu_seconds", (command,)): 2.0,
        ("recsys_run_warnings", (command,)): 2.0,
        ("recsys_stage_duration_seconds", (("stage", "train"),)): 1.5,
        ("recsys_stage_last_run_timestamp_seconds", (("stage", "train"),)): 120.0,
        ("recsys_data_rows", (("table", "events"),)): 100.0,
        ("recsys_data_rows", (("table", "users"),)): 10.0,
        ("recsys_candidates_rows", ()): 70.0,
        ("recsys_candidates_users", ()): 7.0,
        ("recsys_evaluation_value", metric): 0.25,
        ("recsys_evaluation_low", metric): 0.2,
        ("recsys_evaluation_high", metric): 0.3,
        ("recsys_gate_promoted", ()): 1.0,
        ("recsys_champion_version", ()): 12.0,
    }
    states = {
        name: value
        for (metric_name, labels), value in found.items()
        if metric_name == "recsys_run_state"
        for name in [dict(labels)["state"]]
    }
    assert states == {"done": 0.0, "registered": 1.0, "refused": 0.0, "failed": 0.0, "stopped": 0.0}
    assert {key: value for key, value in found.items() if key[0] != "recsys_run_state"} == expected


def test_a_failed_night_keeps_what_was_true_before() -> None:
    """Night 1 succeeds with version 3; night 2 fails before anything is made."""
    first = record(1, champion="3", stages=[{"stage": "train", "ran": True, "seconds": 9.0}])
    second = record(2, state="failed", exit_code=3)
    found = parsed(metrics_text([first, second]))
    command = (("command", "run"),)
    assert found["recsys_run_last_success_timestamp_seconds", command] == 60.0
    assert found["recsys_run_last_end_timestamp_seconds", command] == 120.0
    assert found["recsys_run_exit_code", command] == 3.0
    assert found["recsys_champion_version", ()] == 3.0
    assert found["recsys_stage_duration_seconds", (("stage", "train"),)] == 9.0


def test_commands_have_series_of_their_own() -> None:
    found = parsed(metrics_text([record(1, command="prepare"), record(2, exit_code=5, state="refused")]))
    assert found["recsys_run_exit_code", (("command", "prepare"),)] == 0.0
    assert found["recsys_run_exit_code", (("command", "run"),)] == 5.0
    assert ("recsys_run_last_success_timestamp_seconds", (("command", "run"),)) not in found


@pytest.mark.parametrize("folder", ['/r/a"b', "/r/back\\slash", "/r/line\nbreak", "/r/\\n", "/r/ünï{code},=}"])
def test_odd_folders_come_back_as_they_are(folder: str) -> None:
    for family in text_string_to_metric_families(metrics_text([record(1, output_dir=folder)])):
        assert {sample.labels["output_dir"] for sample in family.samples} == {folder}


def test_what_was_not_measured_has_no_sample() -> None:
    """An interval of a single row is unknown; so is a champion where none ever was."""
    figure = {"metric": "ndcg@10", "split": "test", "value": 0.25, "low": None, "high": None}
    names = {name for name, _ in parsed(metrics_text([record(1, figures=[figure])]))}
    assert "recsys_evaluation_value" in names
    assert not names & {"recsys_evaluation_low", "recsys_champion_version", "recsys_gate_promoted"}
    assert metrics_text([]) == ""


def test_help_texts_keep_their_quotes() -> None:
    assert escaped('say "a"') == 'say "a"'

"""What is logged, under which names, and what happens when nobody listens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.release.tracking import Tracker, TrackingConfig, metrics_of, params_of
from recsys.contracts.manifest import Artifact, ArtifactStore
from serving.registry.mlflow_client import TrackingUnreachable, connect, tracking_uri


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    store = ArtifactStore(tmp_path / "artifacts")
    with store.work_folder("prepared", "a" * 64) as work:
        (work / "report.json").write_text("{}")
        return store.publish(
            work,
            kind="prepared",
            digest="a" * 64,
            code_version="1",
            seed=7,
            parents={},
            config={"features": {"k_core": {"user": 5}}},
            summary={"test": {"ndcg@10": 0.25}, "text": "no number", "nan": float("nan")},
        )


@pytest.fixture(autouse=True)
def no_uri_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def tracker(root: Path, uri: str | None) -> Tracker:
    return Tracker(root, TrackingConfig(uri=uri, timeout_s=1), "toy", {"git_sha": "abc"}, "name: toy\n")


def test_names_that_mlflow_accepts() -> None:
    summary = {"systems": {"generative (beam)": {"filtered": {"hr@10": {"mean": 0.5}}}}, "flag": True, "none": None}
    assert metrics_of(summary) == {"systems/generative_beam/filtered/hr_at_10/mean": 0.5, "flag": 1.0}
    assert params_of({"a": {}, "b": {"c": None}}) == {"a": "{}", "b.c": "None"}


def test_configuration_wins_over_environment_over_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-env")
    assert tracking_uri("http://from-config", tmp_path) == "http://from-config"
    assert tracking_uri(None, tmp_path) == "http://from-env"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_dead_server_is_noticed_quickly_and_the_record_waits(
    tmp_path: Path, artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    dead = tracker(tmp_path, f"http://127.0.0.1:{free_port()}")
    dead.note("prepare", artifact, 1.5)
    started = time.monotonic()
    assert not dead.flush()
    assert not dead.flush()
    assert time.monotonic() - started < 30  # MLflow alone would go on trying for minutes
    assert caplog.text.count("cannot be reached") == 1
    assert len(list((tmp_path / "tracking" / "pending").glob("*.json"))) == 1
    with pytest.raises(
        TrackingUnreachable, match=r"artefacts of the run are kept.*run `recsys run` with the same config again"
    ) as refused:
        connect(dead.uri, 1)
    assert refused.value.exit_code == 4


def test_a_server_that_answers_nonsense_is_unreachable_too(tmp_path: Path, artifact: Artifact) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        wrong = tracker(tmp_path, f"http://127.0.0.1:{port}")
        wrong.note("prepare", artifact, 1.5)
        assert not wrong.flush()
        assert len(list((tmp_path / "tracking" / "pending").glob("*.json"))) == 1
    finally:
        server.terminate()
        server.wait()


def test_pending_records_are_logged_later_and_once(tmp_path: Path, artifact: Artifact) -> None:
    """0.25 under test/ndcg_at_10, 1.5 seconds, one parent run and one nested run."""
    dead = tracker(tmp_path, f"http://127.0.0.1:{free_port()}")
    dead.note("prepare", artifact, 1.5)
    assert not dead.flush()

    alive = tracker(tmp_path, None)
    assert alive.flush()
    alive.close()
    assert not list((tmp_path / "tracking" / "pending").glob("*.json"))
    alive.note("prepare", artifact, 1.5)
    assert alive.flush()

    client = connect(alive.uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    child = next(run for run in runs if "stage" in run.data.tags)
    parent = next(run for run in runs if "stage" not in run.data.tags)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["data_digest"] == child.data.tags["stage_digest"] == "a" * 64
    assert (child.data.tags["git_sha"], child.data.tags["seed"]) == ("abc", "7")
    assert child.data.metrics == {"test/ndcg_at_10": 0.25, "seconds": 1.5}
    assert child.data.params == {"features.k_core.user": "5"}
    assert [entry.dataset.digest for entry in child.inputs.dataset_inputs] == ["a" * 16]
    assert sorted(file.path for file in client.list_artifacts(child.info.run_id)) == ["manifest.json", "report.json"]
    assert "MLFLOW_TRACKING_URI" not in os.environ  # the next run in this process must decide for itself
    assert alive.run_of("prepare", artifact.digest) == child.info.run_id

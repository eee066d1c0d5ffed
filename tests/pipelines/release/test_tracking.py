"""What is logged, under which names, and what happens when nobody listens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.engine.stop_signals import Stopped
from pipelines.release.run_contents import metrics_of, params_of
from pipelines.release.tracking import Tracker, TrackingConfig, tracked
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


def test_a_record_that_can_never_be_logged_is_set_aside_and_named(
    tmp_path: Path, artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    """Its artefact is gone, or a full disk left no bytes: 7be21f4 ended every verb with exit code 4, for ever."""
    late = tracker(tmp_path, f"http://127.0.0.1:{free_port()}")
    late.note("prepare", artifact, 1.5)
    pending = tmp_path / "tracking" / "pending"
    (record,) = pending.glob("*.json")
    gone = json.loads(record.read_text()) | {"stage": "train", "artifact": "artifacts/training/gone"}
    (pending / "train-gone.json").write_text(json.dumps(gone))
    (pending / "empty.json").write_text("")
    (pending / "list.json").write_text("[]")

    alive = tracker(tmp_path, None)
    assert alive.flush()
    alive.close()
    aside = sorted(path.name for path in (tmp_path / "tracking" / "set_aside").iterdir())
    assert aside == ["empty.json", "list.json", "train-gone.json"]
    assert all(f"the record '{name}' can never be logged" in caplog.text for name in aside)
    assert not list(pending.glob("*.json"))
    assert alive.run_of("prepare", artifact.digest) is not None


def statuses(alive: Tracker) -> dict[str, str]:
    """Status of each run, by stage; "parent" for parents."""
    client = connect(alive.uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    return {
        run.data.tags.get("stage", "parent"): run.info.status for run in client.search_runs([experiment.experiment_id])
    }


@pytest.mark.parametrize(
    ("ending", "status"), [(Stopped(signal.SIGTERM), "KILLED"), (RuntimeError("no"), "FAILED"), (None, "FINISHED")]
)
def test_the_parent_run_says_how_it_ended(
    tmp_path: Path, artifact: Artifact, ending: BaseException | None, status: str
) -> None:
    alive = tracker(tmp_path, None)
    try:
        with tracked(alive):
            alive.note("prepare", artifact, 1.5)
            alive.flush()
            if ending is not None:
                raise ending
    except (Stopped, RuntimeError):
        pass
    assert statuses(alive) == {"parent": status, "prepare": "FINISHED"}
    assert not (tmp_path / "tracking" / "open_runs.json").exists()


def test_runs_of_a_killed_process_do_not_stay_running(tmp_path: Path, artifact: Artifact) -> None:
    killed = tracker(tmp_path, None)
    killed.note("prepare", artifact, 1.5)
    assert killed.flush()  # and no close: as after SIGKILL
    assert statuses(killed)["parent"] == "RUNNING"
    after = tracker(tmp_path, None)
    with tracked(after):
        (tmp_path / "tracking" / "logged" / "own" / f"prepare-{'a' * 16}.json").unlink()
        after.note("prepare", artifact, 1.5)
    assert set(statuses(after).values()) == {"KILLED", "FINISHED"} or statuses(after)["parent"] in (
        "KILLED",
        "FINISHED",
    )
    client = connect(after.uri)
    found = client.search_runs([client.get_experiment_by_name("toy").experiment_id])  # type: ignore[union-attr]
    assert sorted(run.info.status for run in found) == ["FINISHED", "KILLED"]


def test_a_database_that_cannot_be_used_is_exit_code_4_with_advice(tmp_path: Path, artifact: Artifact) -> None:
    made = tracker(tmp_path, None)
    connect(made.uri)
    database = tmp_path / "mlflow.db"
    whole = tmp_path / "whole.db"
    shutil.copy(database, whole)
    with database.open("r+b") as handle:
        handle.truncate(5000)
    with pytest.raises(TrackingUnreachable, match=r"cannot be used: .*Restore '.*mlflow.db' from a copy") as damaged:
        connect(made.uri)
    assert damaged.value.exit_code == 4
    database.write_text("")
    with pytest.raises(TrackingUnreachable, match="cannot be used: no such table"):
        connect(made.uri)
    shutil.copy(whole, database)
    holder = sqlite3.connect(database)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(TrackingUnreachable, match=r"locked.*Another program writes into it"):
            connect(made.uri)
    finally:
        holder.close()
    with pytest.raises(TrackingUnreachable, match=r"needs the Python package 'psycopg2?', which is not installed"):
        connect("postgresql://ann:secret@127.0.0.1/x").search_experiments()


def test_what_a_killed_process_left_of_a_new_database_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left, ours = (tmp_path / f".mlflow.db.part-{number}" for number in (process.pid, os.getppid()))
    for path in (left, ours):
        path.write_text("half")
    connect(tracking_uri(None, tmp_path))
    assert not left.exists()
    assert ours.exists()

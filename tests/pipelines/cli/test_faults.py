"""Faults of disks, databases and servers, met by the command that a scheduler would run: exit code, one message, a way on.

What else `docs/guides/faults.md` lists is tested where it belongs; the page names each test.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli.app import main
from pipelines.release.gate.audit import AuditLog
from serving.registry.file_store import sqlite_uri
from serving.registry.mlflow_client import connect

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "pipelines" / "recipes" / "demo.yaml"
SMALL = ["source.users=100", "source.items=150", "source.events=6000", "embed.text.model=null", "threads=1"]


@pytest.fixture(autouse=True)
def no_uri_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(verb: str, folder: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([verb, "--config", str(DEMO), f"output_dir={folder}", *SMALL, *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    connect(sqlite_uri(path))
    return path


@pytest.mark.parametrize("call_number", [1, 5])
def test_a_full_disk_is_4_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call_number: int
) -> None:
    """Full when the data are to be made safe: nothing is published, and with space the same command does its work."""
    real, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call_number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert call("prepare", tmp_path) == 4
    text = said(capsys)
    assert "no space left while writing below" in text
    assert "free space and run again: finished stages are kept" in text
    assert not list((tmp_path / "artifacts").glob("*/[!.]*"))
    assert call("prepare", tmp_path) == 0


def test_a_limit_on_the_size_of_files_is_4(tmp_path: Path) -> None:
    """As by `ulimit -f`: the kernel refuses the 100,001st byte of a file, whoever writes it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "pipelines.cli.app", "prepare", "--config", str(DEMO), f"output_dir={tmp_path}"]
    done = subprocess.run(
        [*command, *SMALL], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT, preexec_fn=limit
    )
    assert done.returncode == 4, done.stderr
    assert "a file may not become so large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "artifacts").glob("*/[!.]*"))


def test_going_back_makes_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty one says that no version has an alias, and `clean` would go by that."""
    assert call("rollback", tmp_path) == 2
    assert "name the mlflow.db of a run, or run first" in said(capsys)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("truncated", r"Restore '"),
        ("empty", "no such table"),
        ("words", "file is not a database"),
        ("locked", "Another program writes into it"),
        ("gone", "name the mlflow.db of a run"),
    ],
)
def test_a_database_that_cannot_be_used(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str], harm: str, message: str
) -> None:
    """`rollback` cannot go on and says why; `status` tells the rest, and ends with 0."""
    path = tmp_path / "mlflow.db"
    shutil.copy(database, path)
    holder = sqlite3.connect(path)
    if harm == "truncated":
        with path.open("r+b") as handle:
            handle.truncate(5000)
    elif harm in ("empty", "words"):
        path.write_text("" if harm == "empty" else "no database at all, whatever its name says " * 9)
    elif harm == "locked":
        holder.execute("BEGIN EXCLUSIVE")
    else:
        path.unlink()
    try:
        arguments = ["--keep", "1"] if harm == "gone" else []
        assert call("clean" if harm == "gone" else "rollback", tmp_path, *arguments) == 4
        assert message in said(capsys)
        assert call("status", tmp_path) == 0
        told = "no version is registered yet" if harm == "gone" else "warning"  # there was no run, says the record
        assert told in capsys.readouterr().out
    finally:
        holder.close()


def test_a_database_without_its_driver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("rollback", tmp_path, "tracking.uri=postgresql://ann:secret77@127.0.0.1/x") == 4
    text = said(capsys)
    assert "which is not installed; install it, or set tracking.uri to another place" in text
    assert "secret77" not in text


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Takes every connection and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()
    for one in held:
        one.close()


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, silent_server: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second and a second try, where MLflow alone would wait for two minutes and try seven times."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    started = time.monotonic()
    assert call("rollback", tmp_path, f"tracking.uri=http://127.0.0.1:{silent_server}", "tracking.timeout_s=0.25") == 4
    assert time.monotonic() - started < 60
    assert "refused or did not answer" in said(capsys)


def test_deleted_parents_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody deleted the data after the vectors were made of them."""
    assert call("prepare", tmp_path) == 0
    assert call("embed", tmp_path) == 0
    shutil.rmtree(tmp_path / "artifacts" / "prepared")
    capsys.readouterr()
    assert call("tokenize", tmp_path) == 4
    assert "run `recsys prepare` with the same config first" in said(capsys)


def test_a_record_that_was_changed_is_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = AuditLog(tmp_path)
    for number in ("1", "2"):
        log.append("promoted", "demo", "better", challenger=number)
    log.path.write_text(log.path.read_text().replace('"challenger":"1"', '"challenger":"3"'))
    assert call("status", tmp_path) == 4
    assert "the log was changed by hand" in said(capsys)


@pytest.mark.parametrize("day", [[], ["--as-of", "2026-01-05"]])
def test_a_cut_off_that_is_not_evaluated_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], day: list[str]
) -> None:
    """The gate said so when everything was trained and evaluated. Whoever only evaluates may have any."""
    assert call("run", tmp_path, "promote.metric=ndcg@7", *day) == 2
    assert "promote.metric is 'ndcg@7', and evaluate.ks has 1, 5, 10, 20, 50: the gate compares" in said(capsys)
    assert not (tmp_path / "artifacts").exists()
    if not day:
        assert call("prepare", tmp_path, "promote.metric=ndcg@7") == 0

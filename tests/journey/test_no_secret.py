"""A whole run with a password in the tracking URI: no file, log, database or screen holds it afterwards.

The password has an ``@`` and a ``%`` in it. The server is MLflow's own on the loopback; every request carries the password
to it, and its database and log are searched as well.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.toy import tiny_run

pytestmark = pytest.mark.slow

PASSWORD = "pa@ss%Zw0rd/7"
WRITTEN = "pa@ss%25Zw0rd%2F7"
"""As it stands in the URI; the first ``@`` is left as people write it."""
FORMS = {
    PASSWORD,
    WRITTEN,
    quote(PASSWORD),
    quote(PASSWORD, safe=""),
    "ss%Zw0rd",
    "Zw0rd",
    base64.b64encode(f"ann:{PASSWORD}".encode()).decode(),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """MLflow's server, with its files and its log below the folder that is searched."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    place = tmp_path / "server"
    place.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{place}/mlflow.db", "--artifacts-destination", str(place / "files")]
    with (place / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, *stores],
            stdout=log,
            stderr=log,
            cwd=place,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        try:
            _wait(port, process, place / "log.txt")
            yield port
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def holding(folder: Path) -> list[str]:
    """Files with the password in their name or content."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if any(form.encode() in content or form in str(path.relative_to(folder)) for form in FORMS):
            found.append(str(path.relative_to(folder)))
    return found


def test_after_a_whole_run_nothing_holds_the_password(server: int, tmp_path: Path) -> None:
    uri = f"tracking.uri=http://ann:{WRITTEN}@127.0.0.1:{server}"
    recipe = tiny_run.write_recipe(tmp_path)
    small = ("train.max_epochs=1", "evaluate.baselines=[popularity]", "tracking.timeout_s=30")
    done = tiny_run.run(recipe, tmp_path / "run", uri, *small, "--log-level", "debug")
    screen = done.stdout + done.stderr
    assert done.returncode == 0, screen[-3000:]
    assert "registered  tiny version 1 (champion)" in done.stdout
    for verb in (["status"], ["lineage", "@champion"], ["clean", "--keep", "1"], ["rollback"], ["run", "--dry-run"]):
        command = [sys.executable, "-m", "pipelines.cli.app", *verb, "--config", str(recipe)]
        more = subprocess.run(
            [*command, f"output_dir={tmp_path / 'run'}", uri, *small],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert more.returncode == (4 if verb == ["rollback"] else 0), more.stderr[-3000:]
        screen += more.stdout + more.stderr
    assert not [form for form in FORMS if form in screen]
    assert (tmp_path / "server" / "mlflow.db").stat().st_size > 100_000, "the run was logged there"
    assert list((tmp_path / "server" / "files").rglob("MLmodel")), "the model too"
    assert (tmp_path / "run" / "config.yaml").exists()
    assert not holding(tmp_path)

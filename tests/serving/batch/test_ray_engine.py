"""The job on a cluster of this machine: the same rows as one process, also when a worker is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from recsys.contracts.errors import ConfigError
from recsys.runtime import SilentProgress
from serving.batch import ray_engine
from serving.batch.candidates import write_candidates
from serving.batch.ledger import verify_candidates
from serving.config import RecommendConfig
from serving.export.export import BundleSources
from serving.inputs.user_histories import PreparedUsers

QUIET = SilentProgress()
HAS_RAY = importlib.util.find_spec("ray") is not None


def rows_of(folder: Path) -> pl.DataFrame:
    every = pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet")))
    return every.drop("run_id", "scored_at")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs recsys-gen[ray]")
def test_a_cluster_gives_the_same_rows_also_when_a_worker_is_killed(
    bundle: Path, sources: BundleSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five shards, two workers; the worker that has begun the first of them is killed as soon as it says so."""
    users = PreparedUsers(sources.prepared, "d" * 64)
    config = RecommendConfig(k=4, users_per_shard=1)
    write_candidates(bundle, users, config, tmp_path / "alone", QUIET)
    pid_file = tmp_path / "pid"
    monkeypatch.setattr(ray_engine, "ShardWorker", _slow_worker(pid_file))
    killed: list[int] = []

    def kill() -> None:
        while not pid_file.exists():
            time.sleep(0.05)
        killed.append(int(pid_file.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    on_ray = config.model_copy(update={"engine": "ray", "ray_workers": 2})
    counts = write_candidates(bundle, users, on_ray, tmp_path / "ray", QUIET)
    thread.join(timeout=5)
    assert killed, "no worker was killed, so nothing is shown"
    assert counts["rows"] == 20
    assert rows_of(tmp_path / "ray").equals(rows_of(tmp_path / "alone"))
    assert verify_candidates(tmp_path / "ray")["users"] == 5


def _slow_worker(pid_file: Path) -> type:
    """A worker that, once, says who it is and waits to be killed."""

    class SlowWorker(ray_engine.ShardWorker):
        def write(self, number: int, name: str) -> object:  # type: ignore[override]
            try:
                with pid_file.with_suffix(".part").open("x") as handle:
                    handle.write(str(os.getpid()))
            except FileExistsError:
                return super().write(number, name)
            pid_file.with_suffix(".part").rename(pid_file)
            pid_file.with_suffix(".part").touch()
            time.sleep(60)
            return super().write(number, name)

    return SlowWorker


def test_without_ray_the_way_out_is_said(
    bundle: Path, sources: BundleSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    users = PreparedUsers(sources.prepared, "d" * 64)
    with pytest.raises(ConfigError, match=r"pip install 'recsys-gen\[ray\]'"):
        write_candidates(bundle, users, RecommendConfig(k=2, engine="ray"), tmp_path, QUIET)

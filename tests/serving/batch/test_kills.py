"""A job in a process of its own, killed at random moments, ends with the bytes of one that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from recsys.runtime import SilentProgress
from serving.batch.candidates import write_candidates
from serving.batch.ledger import verify_candidates
from serving.config import RecommendConfig
from serving.inputs.user_histories import PreparedUsers
from tests.toy.batch_world import DATA_DIGEST, World, WorldSize, build_world

KILLS = 3
CONFIG = RecommendConfig(k=70, users_per_shard=4, max_per_category=6)


def run(world: World, out: Path) -> None:
    torch.set_num_threads(1)
    users = PreparedUsers(world.prepared, DATA_DIGEST)
    write_candidates(world.bundle, users, CONFIG, out, SilentProgress())


@pytest.mark.slow
def test_a_job_that_is_killed_at_random_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Quotas leave everybody short, so that parts, shortfalls and numbers are all among the files that must agree."""
    model = {"width": 16, "num_heads": 2, "ffn_width": 16, "expert_width": 16}
    (tmp_path / "world").mkdir()
    world = build_world(tmp_path / "world", WorldSize(600, 80, 4, 12, (5, 5, 6), model, beam_width=10))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    context, rng, interrupted = multiprocessing.get_context("spawn"), random.Random(5), 0
    for _ in range(KILLS):
        before = len(list(killed.glob("part-*")))
        child = context.Process(target=run, args=(world, killed))
        child.start()
        while child.is_alive() and len(list(killed.glob("part-*"))) <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
            interrupted += 1
        child.join()
    assert interrupted, "the job was done before it could be killed, so nothing is shown"
    whole.mkdir()
    shutil.copy(killed / "job.json", whole / "job.json")  # the same run_id and scored_at
    run(world, killed)
    run(world, whole)
    names = {path.name for path in whole.iterdir()}
    assert names == {path.name for path in killed.iterdir()}
    assert any(name.startswith("shortfalls-") for name in names)
    for name in names - {"report.json"}:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert verify_candidates(killed)["users"] == 600

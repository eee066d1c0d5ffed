"""The batch job under kills, in other shards, with a flipped bit and as a delta job: the same rows, and what does it cost?

Run: ``python -m tests.benchmarks.batch_faults [--users 1000000] [--kills 20]`` (about ten minutes of one core at 40,960
users, most of it restarts). Writes ``results/batch_faults.md``.

1. A job in a process of its own is killed (SIGKILL) at random moments and started again, until it is done.
2. The same job undisturbed, under the same ``job.json``: every file but ``report.json`` must have the same bytes.
3. The same users in shards of another size: every column but ``run_id`` and ``scored_at`` must be equal.
4. One bit of a finished shard is flipped: the check must name it and the job must write that shard, and only that, again.
5. Of 1 % of the users one event more is known: a delta job is compared with a full one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.runtime import SilentProgress
from serving.batch.candidates import write_candidates
from serving.batch.ledger import verify_candidates
from serving.config import RecommendConfig
from serving.inputs.user_histories import FrameUsers
from tests.benchmarks.paired import write_table
from tests.toy.batch_world import FIRST_ITEM_ID, World, WorldSize, build_world, write_histories

MODEL = {"width": 32, "num_heads": 2, "ffn_width": 64, "expert_width": 64, "max_history": 10}
K, USERS_PER_SHARD = 20, 4096
NOTES = [
    "the killed job and the undisturbed one have the same job.json, so that run_id and scored_at are the same; report.json, "
    "which tells how a call went, is not compared",
    "rows are compared in every column but run_id and scored_at",
    "a policy of width 32 with beams of 20, 20 items per user; seconds are of the wall, on whatever the machine has left",
]


def run_job(bundle: Path, users: Path, out: Path, users_per_shard: int, since: Path | None = None) -> None:
    """One call of the job, on one thread."""
    torch.set_num_threads(1)
    config = RecommendConfig(k=K, users_per_shard=users_per_shard)
    write_candidates(bundle, FrameUsers(users), config, out, SilentProgress(), since=since)


def kill_until_done(bundle: Path, users: Path, out: Path, size: int, kills: int, spread_s: float, seed: int) -> int:
    """Kill the job at random moments, ``kills`` times, and let it end; returns how many calls had begun to write."""
    rng, context, began = random.Random(seed), multiprocessing.get_context("spawn"), 0
    for _ in range(kills):
        child = context.Process(target=run_job, args=(bundle, users, out, size))
        child.start()
        deadline = time.monotonic() + 120
        while not _writes(out, child) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, spread_s))
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
            began += 1
        child.join()
        (out / "shards.jsonl").touch()
        os.utime(out / "shards.jsonl", (0, 0))  # the next call is seen when it writes the list anew
    last = context.Process(target=run_job, args=(bundle, users, out, size))
    last.start()
    last.join()
    assert last.exitcode == 0, "the last call failed"
    return began


def _writes(out: Path, child: Any) -> bool:
    ledger = out / "shards.jsonl"
    return not child.is_alive() or (ledger.exists() and ledger.stat().st_mtime > 0)


def rows_of(folder: Path) -> pl.DataFrame:
    """All candidates but the fields of the run."""
    parts = [pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))]
    return pl.concat(parts).drop(Columns.RUN_ID, Columns.SCORED_AT)


def report_of(folder: Path) -> dict[str, Any]:
    """Of the last call."""
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def differing_files(left: Path, right: Path) -> list[str]:
    """Names of files that are not there twice with the same bytes; ``report.json`` aside."""
    names = {path.name for folder in (left, right) for path in folder.iterdir()} - {"report.json"}
    same = [n for n in names if (left / n).exists() and (right / n).exists()]
    return sorted(names - {n for n in same if (left / n).read_bytes() == (right / n).read_bytes()})


def one_event_more(users: Path, out: Path) -> int:
    """Write the histories again with one event more for every hundredth user; returns how many."""
    frame = pl.read_parquet(users)
    changed = pl.int_range(pl.len()) % 100 == 50
    longer = pl.concat_list(Columns.ITEM_IDS, pl.lit([FIRST_ITEM_ID + 7], pl.List(pl.Int64)))
    frame.with_columns(pl.when(changed).then(longer).otherwise(Columns.ITEM_IDS)).write_parquet(out)
    return int(frame.select(changed.sum()).item())


def measure(world: World, root: Path, kills: int) -> list[tuple[str, str]]:
    """All five parts; returns what was found, in words."""
    users = write_histories(root / "users.parquet", world)
    size = min(USERS_PER_SHARD, -(-world.size.users // 10))
    found = []
    run_job(world.bundle, users, root / "first", size)
    full_s = report_of(root / "first")["seconds"]
    found.append(("full job", f"{full_s:.0f} s, {report_of(root / 'first')['users_per_second']:.0f} users/s"))

    began = kill_until_done(world.bundle, users, root / "killed", size, kills, 2 * full_s / max(kills, 1), seed=1)
    (root / "whole").mkdir()
    shutil.copy(root / "killed" / "job.json", root / "whole" / "job.json")
    run_job(world.bundle, users, root / "whole", size)
    different = differing_files(root / "whole", root / "killed")
    found.append((f"killed {began} times of {kills} calls", f"{len(different)} of all files differ in any byte"))

    other = max(1, int(size * 0.37))
    run_job(world.bundle, users, root / "small", other)
    equal = rows_of(root / "small").equals(rows_of(root / "whole"))
    count = len(rows_of(root / "whole"))
    found.append((f"shards of {other} instead of {size}", f"{count} rows, all equal: {equal}"))
    size_ratio = report_of(root / "small")["seconds"] / report_of(root / "whole")["seconds"]
    found.append(("time of the smaller shards", f"{size_ratio:.2f} of the larger ones"))

    part = sorted((root / "whole").glob("part-*"))[7]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 4
    part.write_bytes(content)
    try:
        verify_candidates(root / "whole")
        said = "not found"
    except ArtifactError:
        said = "found"
    run_job(world.bundle, users, root / "whole", size)
    again = len(report_of(root / "whole")["shards"])
    different = differing_files(root / "whole", root / "killed")
    found.append(("a flipped bit", f"{said}; {again} shard written again, {len(different)} files differ after that"))

    changed = one_event_more(users, root / "later.parquet")
    run_job(world.bundle, root / "later.parquet", root / "full", size)
    run_job(world.bundle, root / "later.parquet", root / "delta", size, root / "first")
    delta, full = report_of(root / "delta"), report_of(root / "full")
    equal = rows_of(root / "delta").equals(rows_of(root / "full"))
    share = delta["seconds"] / full["seconds"]
    found.append(
        (
            f"delta, {changed} users changed",
            f"{delta['users_answered']} answered, {100 * share:.1f} % of the full job's time, rows equal: {equal}",
        )
    )
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    asked = parser.parse_args()
    size = WorldSize(asked.users, 20_000, 20, 20, (32, 32, 32), MODEL, beam_width=K)
    with tempfile.TemporaryDirectory(prefix="batch-faults-") as folder:
        found = measure(build_world(Path(folder), size), Path(folder), asked.kills)
    print(
        write_table(
            "batch_faults",
            "The batch job under kills, in other shards, and as a delta job",
            _finding(found),
            ["what", "found"],
            [list(row) for row in found],
            NOTES,
        )
    )


def _finding(found: list[tuple[str, str]]) -> str:
    """The page's sentence."""
    (killed, differ), (delta, answered) = found[1], found[-1]
    return f"The job {killed}: {differ}; {delta}: {answered}."


if __name__ == "__main__":
    main()

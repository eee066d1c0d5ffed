"""The batch job under kills, in other shards, with a flipped bit and as a delta job: the same rows, and what does it cost?

Run: ``python -m tests.benchmarks.batch_faults [--users 1000000] [--kills 20] [--width 16] [--beams 10]`` (about a quarter of
an hour of one core). Writes ``results/batch_faults.md``; with ``--only-delta``, in a third of the time, the last part
alone, which is printed and makes no page.

1. A job in a process of its own is killed (SIGKILL) at random moments and started again, until it is done.
2. The same job undisturbed, under the same ``job.json``: every file but ``report.json`` must have the same bytes.
3. The same users in shards of another size: every column but ``run_id`` and ``scored_at`` must be equal.
4. One bit of a finished shard is flipped: the check must name it and the job must write that shard, and only that, again.
5. Of 1 % of the users one event more is known: a delta job is compared with a full one.

Every job has a process of its own, whose memory is watched; rows are compared in blocks of users.
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
from collections.abc import Callable
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
from tests.benchmarks.batch_job import Memory, elsewhere
from tests.benchmarks.paired import write_table
from tests.toy.batch_world import FIRST_ITEM_ID, FIRST_USER_ID, World, WorldSize, build_world, write_histories

USERS_PER_SHARD, USERS_PER_BLOCK = RecommendConfig().users_per_shard, 100_000
NOTES = [
    "the killed job and the undisturbed one have the same job.json, so that run_id and scored_at are the same; report.json, "
    "which tells how a call went, is not compared",
    "rows are compared in every column but run_id and scored_at",
    "memory: anonymous, above what the process held before the job; growth: median of the last quarter of the job minus "
    "that of the first",
    "seconds are of the wall, one thread; what a delta job costs per user hardly depends on the model, what a full one "
    "costs does, so that the share is smaller for larger models",
]


def run_job(bundle: Path, users: Path, out: Path, k: int, users_per_shard: int, since: Path | None = None) -> None:
    """One call of the job, on one thread."""
    torch.set_num_threads(1)
    config = RecommendConfig(k=k, users_per_shard=users_per_shard)
    write_candidates(bundle, FrameUsers(users), config, out, SilentProgress(), since=since)


def watched_job(*arguments: Any) -> tuple[float, float]:
    """:func:`run_job`, with its peak and its growth of anonymous memory in MB."""
    with Memory() as memory:
        run_job(*arguments)
    return memory.anonymous_peak, memory.growth()[0]


def kill_until_done(job: tuple[Any, ...], kills: int, spread_s: float, seed: int) -> int:
    """Kill the job at random moments, ``kills`` times, and let it end; returns how many calls had begun to write."""
    rng, context, began, out = random.Random(seed), multiprocessing.get_context("spawn"), 0, job[2]
    for _ in range(kills):
        child = context.Process(target=run_job, args=job)
        child.start()
        deadline = time.monotonic() + 120
        while not _writes(out, child) and time.monotonic() < deadline:
            time.sleep(0.02)
        child.join(rng.uniform(0.0, spread_s))
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
            began += 1
        child.join()
        (out / "shards.jsonl").touch()
        os.utime(out / "shards.jsonl", (0, 0))  # the next call is seen when it writes the list anew
    last = context.Process(target=run_job, args=job)
    last.start()
    last.join()
    assert last.exitcode == 0, "the last call failed"
    return began


def _writes(out: Path, child: Any) -> bool:
    ledger = out / "shards.jsonl"
    return not child.is_alive() or (ledger.exists() and ledger.stat().st_mtime > 0)


def same_rows(left: Path, right: Path, users: int) -> tuple[int, bool]:
    """Compare all candidates but the fields of the run, a block of users at a time; returns the rows of ``left`` too."""
    count, equal = 0, True
    for first in range(FIRST_USER_ID, FIRST_USER_ID + users, USERS_PER_BLOCK):
        block = pl.col(Columns.USER_ID).is_between(first, first + USERS_PER_BLOCK, closed="left")
        one, other = (
            pl.scan_parquet(sorted(folder.glob("part-*.parquet")))
            .filter(block)
            .drop(Columns.RUN_ID, Columns.SCORED_AT)
            .collect()
            for folder in (left, right)
        )
        count, equal = count + len(one), equal and one.equals(other)
    return count, equal and count == rows_in(right)


def rows_in(folder: Path) -> int:
    """Of all its shards."""
    return int(pl.scan_parquet(sorted(folder.glob("part-*.parquet"))).select(pl.len()).collect().item())


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
    """All five parts, without kills the full job and the last one alone; returns what was found, in words."""
    users = elsewhere(write_histories, root / "users.parquet", world)
    size = min(USERS_PER_SHARD, -(-world.size.users // 10))
    k = world.size.beam_width

    def job(name: str, histories: Path = users, per_shard: int = size, *since: Path) -> tuple[Any, ...]:
        return (world.bundle, histories, root / name, k, per_shard, *since)

    peak, growth = elsewhere(watched_job, *job("first"))
    full_s = report_of(root / "first")["seconds"]
    rate = report_of(root / "first")["users_per_second"]
    found = [("full job", f"{full_s:.0f} s, {rate:.0f} users/s, {peak:.0f} MB at most, growth {growth:+.0f} MB")]
    if kills == 0:
        return [*found, delta(world, root, job)]

    began = kill_until_done(job("killed"), kills, 1.8 * full_s / max(kills, 1), seed=1)
    (root / "whole").mkdir()
    shutil.copy(root / "killed" / "job.json", root / "whole" / "job.json")
    elsewhere(run_job, *job("whole"))
    different = differing_files(root / "whole", root / "killed")
    found.append((f"killed {began} times of {kills} calls", f"{len(different)} of all files differ in any byte"))

    other = max(1, int(size * 0.37))
    elsewhere(run_job, *job("small", users, other))
    count, equal = same_rows(root / "small", root / "whole", world.size.users)
    found.append((f"shards of {other} instead of {size}", f"{count:,} rows, all equal: {equal}"))
    size_ratio = report_of(root / "small")["seconds"] / report_of(root / "whole")["seconds"]
    found.append(("time of the smaller shards", f"{size_ratio:.2f} of the larger ones"))
    shutil.rmtree(root / "small")

    said = "found" if flip_a_bit(root / "whole") else "not found"
    elsewhere(run_job, *job("whole"))
    again = len(report_of(root / "whole")["shards"])
    different = differing_files(root / "whole", root / "killed")
    found.append(("a flipped bit", f"{said}; {again} shard written again, {len(different)} files differ after that"))
    return [*found, delta(world, root, job)]


def flip_a_bit(folder: Path) -> bool:
    """Flip one bit of the eighth shard; returns whether the check names it."""
    part = sorted(folder.glob("part-*"))[7]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 4
    part.write_bytes(content)
    try:
        verify_candidates(folder)
    except ArtifactError as error:
        return part.name in str(error)
    return False


def delta(world: World, root: Path, job: Callable[..., tuple[Any, ...]]) -> tuple[str, str]:
    """A delta job after ``first`` against a full one, over histories of which one in a hundred has grown."""
    later, size = root / "later.parquet", job("first")[4]
    changed = elsewhere(one_event_more, root / "users.parquet", later)
    elsewhere(run_job, *job("full", later))
    peak, _ = elsewhere(watched_job, *job("delta", later, size, root / "first"))
    short, full = report_of(root / "delta"), report_of(root / "full")
    _, equal = same_rows(root / "delta", root / "full", world.size.users)
    share = 100 * short["seconds"] / full["seconds"]
    return (
        f"delta, {changed:,} users changed",
        f"{short['users_answered']:,} answered, {share:.1f} % of the full job's time, rows equal: {equal}; {peak:.0f} MB at "
        f"most, {1e6 * short['seconds'] / world.size.users:.0f} microseconds per user of the job",
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--only-delta", action="store_true", help="the delta job against the full one, and nothing else"
    )
    parser.add_argument("--width", type=int, default=16, help="of the policy")
    parser.add_argument("--beams", type=int, default=10, help="and items per user")
    asked = parser.parse_args()
    model = {"width": asked.width, "ffn_width": 2 * asked.width, "expert_width": 2 * asked.width}
    model |= {"num_heads": 2, "max_history": 10}
    size = WorldSize(asked.users, 20_000, 20, 20, (32, 32, 32), model, beam_width=asked.beams)
    notes = [
        *NOTES,
        f"{asked.users:,} users with 1 to 20 events, {size.items:,} items with 3 x 32 codes; a policy of width "
        f"{asked.width}, which reads the last 10 events, with beams of {asked.beams} and as many items per user",
    ]
    with tempfile.TemporaryDirectory(prefix="batch-faults-") as folder:
        kills = 0 if asked.only_delta else asked.kills
        found = measure(elsewhere(build_world, Path(folder), size), Path(folder), kills)
    rows = [list(row) for row in found]
    if not kills:
        print("\n".join(f"{what}: {answer}" for what, answer in rows))
        return
    title = "The batch job under kills, in other shards, and as a delta job"
    print(write_table("batch_faults", title, _finding(found), ["what", "found"], rows, notes))


def _finding(found: list[tuple[str, str]]) -> str:
    """The page's sentence."""
    (killed, differ), (delta, answered) = found[1], found[-1]
    return f"The job {killed}: {differ}; {delta}: {answered.split(';')[0]}."


if __name__ == "__main__":
    main()

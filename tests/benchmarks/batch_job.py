"""The batch job against the raw decoder: users per second, memory over the run, legality of every row.

Run: ``python -m tests.benchmarks.batch_job [--users 1000000]`` (about 6 minutes of one quiet core;
``--users 100000`` about 2).

The real job runs over simulated users. After every few shards the same process decodes one shard's users with nothing but
:func:`~recsys.decoding.beam_search.beam_search` on batches that were padded beforehand; the clock of the job stands still
meanwhile. So job and raw decoder are timed in turns under the same conditions, and each turn gives one ratio. Raw means:
no histories to read, no list of seen items, no second stage, no table, no file. Every job has a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from recsys.data.batch import HistoryBatch, collate_histories
from recsys.decoding.beam_search import beam_search
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.search_index import SearchIndex
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.batch.shards import shard_names
from serving.config import RecommendConfig
from serving.inputs.rules.item_rules import read_rules
from serving.inputs.user_histories import FrameUsers, PreparedUsers, UserHistories
from tests.benchmarks import findings
from tests.benchmarks.paired import write_table
from tests.toy.batch_check import illegal_rows
from tests.toy.batch_world import DATA_DIGEST, World, WorldSize, build_world, write_histories, write_rules

Item = TypeVar("Item")
Result = TypeVar("Result")
SMALL_MODEL = {"width": 32, "num_heads": 2, "ffn_width": 64, "expert_width": 64, "max_history": 10}
TURN = 4
"""Shards of the job between two turns of the raw decoder."""


@dataclass
class Turns:
    """Seconds per user of job and raw decoder, one value per turn: on the wall and of the processor (all threads)."""

    job_wall: list[float] = field(default_factory=list)
    job_cpu: list[float] = field(default_factory=list)
    raw_wall: list[float] = field(default_factory=list)
    raw_cpu: list[float] = field(default_factory=list)

    def ratio(self, clock: str) -> str:
        """Users per second of the job over those of the raw decoder: median, lowest and highest turn."""
        pairs = zip(getattr(self, f"raw_{clock}"), getattr(self, f"job_{clock}"), strict=True)
        ratios = sorted(raw / job for raw, job in pairs)
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"

    def users_per_second(self, who: str, clock: str) -> float:
        """Median over the turns."""
        return 1 / statistics.median(getattr(self, f"{who}_{clock}"))


class RawDecoder:
    """The search alone, for the users of any shard.

    Args:
        with_rules: Hand the search the job's rules, compiled beforehand; else it runs without any.
    """

    def __init__(self, world: World, config: RecommendConfig, users: UserHistories, with_rules: bool = False) -> None:
        self.scorer, self.users, self.config = Scorer.open(world.bundle), users, config
        recommender = self.scorer.recommender
        self.width = max(recommender.config.beam_width, config.k)
        self.per_batch = max(1, recommender.config.rows_per_batch // self.width)
        self.search_index = SearchIndex.from_index(recommender.index)
        self.rules: CompiledRules | None = None
        if with_rules:
            rules = read_rules(config, self.scorer.catalogue, users.user_ids)
            self.rules = recommender.compile(rules, len(users))

    def prepare(self, first: int, last: int) -> Callable[[], None]:
        """Pad the batches of users ``first`` to ``last`` in the order of their lengths; the result decodes them."""
        histories = self.users.shard(first, last, self.scorer.catalogue).histories
        order = np.argsort(histories.lengths, kind="stable")
        policy = self.scorer.recommender.policy
        blocks: list[tuple[HistoryBatch, BatchRules | None]] = []
        for start in range(0, len(order), self.per_batch):
            block = order[start : start + self.per_batch]
            own = histories.take(block)
            batch = collate_histories(own, policy.spec.model.max_history)
            own_rules = self.rules.take(first + block) if self.rules else None
            rules = own_rules.for_batch(own, list_length=self.config.k) if own_rules else None
            blocks.append((batch, rules))

        def decode() -> None:
            for batch, rules in blocks:
                beam_search(policy, batch, self.search_index, self.width, rules=rules)

        return decode


class TakeTurns:
    """The job's progress display, which stops the job's clock now and then to time the raw decoder."""

    def __init__(self, raw: RawDecoder, out: Path, config: RecommendConfig, num_users: int) -> None:
        self.raw, self.out, self.config, self.num_users = raw, out, config, num_users
        self.turns = Turns()

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield shards; only full ones are timed, and the first of all warms up."""
        size = self.config.users_per_shard
        names = shard_names(self.num_users, size)
        wall, cpu, timed = time.perf_counter(), time.process_time(), 0
        for number, item in enumerate(items):
            yield item
            is_full = (number + 1) * size <= self.num_users
            timed += is_full
            if not is_full or (number and timed < TURN):
                continue
            while not (self.out / names[number]).exists():  # what the job still writes is on its bill
                time.sleep(0.001)
            job_wall, job_cpu = time.perf_counter() - wall, time.process_time() - cpu
            decode = self.raw.prepare(number * size, (number + 1) * size)
            wall, cpu = time.perf_counter(), time.process_time()
            decode()
            if number:
                self.turns.raw_wall.append((time.perf_counter() - wall) / size)
                self.turns.raw_cpu.append((time.process_time() - cpu) / size)
                self.turns.job_wall.append(job_wall / timed / size)
                self.turns.job_cpu.append(job_cpu / timed / size)
            wall, cpu, timed = time.perf_counter(), time.process_time(), 0


class Memory:
    """Samples what the process holds, twice a second: anonymous memory, and pages of mapped files."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.start = _resident_megabytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.samples.append(_resident_megabytes())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.samples.append(_resident_megabytes())

    @property
    def peak(self) -> float:
        """MB above what was held at the start."""
        return max(map(sum, self.samples)) - sum(self.start)

    @property
    def anonymous_peak(self) -> float:
        """MB of anonymous memory above what was held at the start."""
        return max(anonymous for anonymous, _ in self.samples) - self.start[0]

    def growth(self) -> tuple[float, float]:
        """MB between the medians of the first and the last quarter: anonymous, and mapped files."""
        quarter = max(1, len(self.samples) // 4)
        first, last = np.median(self.samples[:quarter], axis=0), np.median(self.samples[-quarter:], axis=0)
        return float(last[0] - first[0]), float(last[1] - first[1])


def _resident_megabytes() -> tuple[float, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


@dataclass(frozen=True)
class Outcome:
    """What one run of the job showed."""

    counts: dict[str, Any]
    turns: Turns
    memory: Memory
    offences: dict[str, int]


def run_job(world: World, config: RecommendConfig, out: Path, users: UserHistories, raw_with_rules: bool) -> Outcome:
    """Run the job once with turns of the raw decoder, then check every row."""
    raw = RawDecoder(world, config, users, raw_with_rules)
    progress = TakeTurns(raw, out, config, len(users))
    with Memory() as memory:
        counts = write_candidates(world.bundle, users, config, out, progress)
    return Outcome(counts, progress.turns, memory, illegal_rows(world, config, out))


def elsewhere(work: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a process of its own, so that what it holds is in nobody else's measurement."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure(
    name: str, world: World, config: RecommendConfig, out: Path, file: Path | None = None, raw_with_rules: bool = False
) -> list[str]:
    """Run one job and return its line of the table.

    Args:
        file: Histories as one Parquet file; ``None`` takes the prepared data.
    """
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    users = FrameUsers(file) if file is not None else PreparedUsers(world.prepared, DATA_DIGEST)
    outcome = run_job(world, config, out, users, raw_with_rules)
    row = table_row(name, outcome)
    print("  ".join(row), outcome.offences, outcome.counts, flush=True)
    return row


def table_row(name: str, outcome: Outcome) -> list[str]:
    """One line of the result."""
    anonymous, mapped = outcome.memory.growth()
    turns, counts = outcome.turns, outcome.counts
    return [
        name,
        f"{counts['users']:,}",
        f"{counts['rows']:,}",
        f"{turns.users_per_second('job', 'cpu'):,.0f}",
        f"{turns.users_per_second('raw', 'cpu'):,.0f}",
        turns.ratio("cpu"),
        turns.ratio("wall"),
        f"{outcome.memory.peak:.0f}",
        f"{anonymous:+.0f} / {mapped:+.0f}",
        f"{sum(outcome.offences.values())}",
        f"{counts['users_short']:,}",
    ]


HEADER = [
    "job",
    "users",
    "rows",
    "job users/s",
    "raw users/s",
    "ratio (processor)",
    "ratio (wall)",
    "peak MB",
    "growth MB",
    "illegal",
    "short users",
]
NOTES = [
    "users/s: per second of processor time, median over the turns; ratio: median, lowest and highest turn "
    f"(a turn is {TURN} shards of the job and one of the raw decoder)",
    "raw: beam_search on batches padded beforehand, without rules, second stage or output; in 'against its own rules' with "
    "the job's rules compiled beforehand",
    "peak MB: above what the process held before the job, with the model loaded; growth: median of the last quarter of the "
    "run minus that of the first, anonymous memory / pages of mapped files (the histories)",
    "illegal: rows that break a rule, found by joins over the written files; short: users with fewer than k rows, each in "
    "a shortfalls file with the reason",
]


def main() -> None:
    """Run all jobs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--rule-users", type=int, default=131_072, help="users of the jobs with every rule on")
    parser.add_argument("--demo-users", type=int, default=20_480)
    arguments = parser.parse_args()
    for option, size in (("users", 8192), ("rule_users", 8192), ("demo_users", 1024)):
        if getattr(arguments, option) < (1 + TURN) * size:
            parser.error(
                f"--{option.replace('_', '-')} must be at least {(1 + TURN) * size}: one turn after the warm-up"
            )
    many = WorldSize(arguments.users, arguments.items, 50, 10, (128, 128), SMALL_MODEL, 10)
    fewer = dataclasses.replace(many, users=arguments.rule_users)
    demo = WorldSize(arguments.demo_users, arguments.items, 50, 50, (128, 128, 128), {"preset": "tiny"}, 50)
    plain = RecommendConfig(k=10)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world = elsewhere(build_world, root / "many", many)
        rows.append(elsewhere(measure, "small model", world, plain, root / "out_many"))
        world = elsewhere(build_world, root / "fewer", fewer)
        file = elsewhere(write_histories, root / "histories.parquet", world)
        rows.append(elsewhere(measure, "small model, histories in one file", world, plain, root / "out_file", file))
        rules = RecommendConfig(k=10, **write_rules(root, world))
        rows.append(elsewhere(measure, "small model, every rule", world, rules, root / "out_rules"))
        name = "the same, against its own rules"
        rows.append(elsewhere(measure, name, world, rules, root / "out_own", None, True))
        world = elsewhere(build_world, root / "demo", demo)
        config = RecommendConfig(k=20, users_per_shard=1024)
        rows.append(elsewhere(measure, "demo-size model, beam 50", world, config, root / "out_demo"))
    notes = [
        *NOTES,
        f"small model: {SMALL_MODEL}, else preset tiny; {arguments.items:,} items, 2 x 128 codes, beam 10, k 10, histories "
        "of 1 to 10 events, shards of 8192 users",
        f"demo-size model: preset tiny, {arguments.items:,} items, 3 x 128 codes, beam 50, k 20, histories of 1 to 50 "
        "events, shards of 1024 users",
        "every rule: availability, four tenants with allow and deny lists, 3 items per category and 1 of one, seen items "
        "out; the other jobs leave seen items out and have no other rule",
    ]
    print(write_table("batch_job", "The batch job", findings.of_batch_job(rows), HEADER, rows, notes))


if __name__ == "__main__":
    main()

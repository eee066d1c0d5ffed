"""Evaluation of a million users: the most memory that the process ever held, and its time.

Run: ``python -m tests.benchmarks.evaluation_memory [--users 100000 1000000]``; about 3 minutes of one core for a million.

Users of the toy ring, with made-up rankings of 50 items by two systems, one of which finds the next item more often. A
child process evaluates them as the stage `evaluate` does: 20 metrics in 7 slices with bootstrap intervals, the paired
comparison of the two, and the table of metrics per user. Making the data is not in the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.rankings import ROWS_PER_BLOCK, ranking_folder, write_rankings
from tests.benchmarks.paired import write_table
from tests.toy.dataset import ring_prepared

ITEMS: Final = 4999  # a prime: steps of any length walk over all items without repeating one
PLACES: Final = 50
FOUND: Final = {"model": 0.5, "baseline": 0.45}
CHILD: Final = """
import json, sys, time
from pathlib import Path
from recsys.contracts.dataset import Dataset
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.rankings import read_rankings
def peak():  # in kB; getrusage would give the parent's where that was larger
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
folder = Path(sys.argv[1])
prepared = Dataset.open(folder / "prepared")
rankings = read_rankings(folder / "rankings", ["model", "baseline"], [True])
config = EvaluateConfig(filter_seen="filtered", reference="model", resamples=int(sys.argv[2]))
start, cpu = time.perf_counter(), time.process_time()
summary = evaluate(prepared, rankings, config, folder / "evaluation", seed=0)
cell = summary["comparisons"]["baseline"]["filtered"]["ndcg@10"]
metrics = sum(name.split("@")[0] in ("hr", "recall", "ndcg", "mrr") for name in summary["systems"]["model"]["filtered"])
print(json.dumps({
    "metrics": metrics, "low": cell["low"], "high": cell["high"],
    "start": before, "peak": peak(),
    "wall": time.perf_counter() - start, "cpu": time.process_time() - cpu,
}))
"""


def rankings(prepared: Dataset, found: float, seed: int) -> Iterator[RankedItems]:
    """Walks over the items from a random one; the wanted item is put among the first 50 with probability ``found``."""
    generator = np.random.default_rng(seed)
    targets = prepared.targets(TEST)
    for begin in range(0, len(targets), ROWS_PER_BLOCK):
        wanted = targets.items[begin : begin + ROWS_PER_BLOCK].astype(np.int64)
        step = generator.integers(1, ITEMS, size=len(wanted))
        place = np.where(generator.random(len(wanted)) < found, generator.integers(0, PLACES, size=len(wanted)), -1)
        first = np.where(place >= 0, wanted - place * step, wanted + step)  # else the item itself comes last of all
        items = (first[:, None] + np.arange(PLACES) * step[:, None]) % ITEMS
        scores = np.broadcast_to(-np.arange(PLACES, dtype=np.float32), items.shape)
        yield RankedItems(items.astype(np.int32), scores)


def measure(users: int, resamples: int, folder: Path) -> dict[str, float]:
    """Make the data, evaluate in a child process, and return what the child says about itself."""
    prepared = ring_prepared(folder / "prepared", users=users, items=ITEMS, events=5)
    for seed, (system, share) in enumerate(FOUND.items()):
        path = ranking_folder(folder / "rankings", system, True)
        write_rankings([path], rankings(prepared, share, seed), len(prepared.targets(TEST)))
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), str(resamples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure every size and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    rows = []
    for users in arguments.users:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(users, arguments.resamples, Path(folder))
        rows.append(
            [
                f"{users:,}",
                f"{found['metrics']:.0f}",
                f"{found['peak'] / 1e6:.2f} GB",
                f"{found['start'] / 1e6:.2f} GB",
                f"{found['wall']:.0f} s",
                f"{found['cpu']:.0f} s",
                f"[{found['low']:.4f}, {found['high']:.4f}]",
            ]
        )
        print(rows[-1], flush=True)
    head = ["users", "metrics", "peak of the process", "after its imports", "wall", "processor", "gap in NDCG@10"]
    finding = (
        f"{rows[-1][0]} users, {rows[-1][1]} metrics in 7 slices and a paired comparison take {rows[-1][2]} at most."
    )
    notes = [
        "Peak: the largest resident set of the evaluating process as the operating system counts it, mapped files included.",
        f"Two systems of {PLACES} items a user, seen items filtered; {arguments.resamples} resamples; 7 slices.",
        "Gap: 95 % interval of model minus baseline, the same draws of users for both.",
    ]
    write_table("evaluation_memory", "Memory of evaluation", finding, head, rows, notes)


if __name__ == "__main__":
    main()

"""What the gate stops and what it lets through, by its own functions on rows of a real evaluation.

Reads the metric of two systems on every row: of an evaluation (``per_user.parquet`` of ``recsys evaluate``), or of two
baselines with their configured settings, which are ranked here from prepared data in a minute. How models and losses are
made of them: :mod:`tests.toy.gate_nights`. Every number is a share of resamplings of the users.

Run: ``python -m tests.benchmarks.gate --rows movielens=runs/movielens/artifacts/evaluation/<digest>/per_user.parquet=sasrec
--prepared beauty=runs/beauty/artifacts/prepared/<digest>=markov,item_knn``; about 5 minutes on one thread for each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.release.gate.config import PromoteConfig
from tests.benchmarks import findings
from tests.benchmarks.paired import write_table
from tests.toy.gate_nights import RESTLESS, SEGMENT_SHARES, Loss, Pool, attainable, many_nights, one_night

SERVED = "generative (served)"
ATTAINABLE_ROWS = 10_000
"""From so many rows on it is said what the best test would see."""


def share_of_runs(count: int, seed: int, happens: Callable[[np.random.Generator], bool]) -> float:
    """How often something happens among ``count`` resamplings."""
    return sum(happens(np.random.default_rng([seed, number])) for number in range(count)) / count


def figures(pool: Pool, rows: int, spread: float, config: PromoteConfig, count: int, nights: int) -> dict[str, float]:
    """All shares for one number of rows and one spread; ``nights`` resamplings of the sixty nights, 0 leaves them out."""

    def refused(kind: str, lose: Loss) -> float:
        return share_of_runs(
            count, 1, lambda generator: not one_night(pool, rows, spread, generator, config, kind, lose).promoted
        )

    found = {
        "equal refused": refused("equal", "hits"),
        "equal, a restless slice, refused": refused("restless", "hits"),
        "3 % loss (hits) promoted": 1 - refused("loss 3%", "hits"),
        "3 % loss (ranks) promoted": 1 - refused("loss 3%", "ranks"),
        "5 % gain promoted": 1 - refused("gain 5%", "hits"),
        "slice loss (hits) refused": refused("slice 20%", "hits"),
        "slice loss (ranks) refused": refused("slice 20%", "ranks"),
        "slice loss (hits) behind a 5 % gain refused": refused("gain and slice", "hits"),
    }
    if rows >= ATTAINABLE_ROWS:
        found["slice (hits), best difference"], found["slice (hits), likelihood ratio"] = attainable(
            pool, rows, spread, config, count
        )
    if nights:
        ends = [many_nights(pool, rows, spread, np.random.default_rng([2, number]), config) for number in range(nights)]
        left = np.array([quality for quality, _ in ends])
        found["60 nights within budget"] = float((left >= 1 - config.budget - 1e-9).mean())
        found["60 nights, quality left"] = float(left.mean())
        found["60 nights, promoted"] = float(np.mean([promoted for _, promoted in ends]))
    return found


def read_pool(path: Path, first: str, second: str, metric: str) -> Pool:
    """Two systems of an evaluation, seen items filtered."""
    import polars as pl

    table = pl.read_parquet(path, glob=False).filter(pl.col("exclude_seen"))
    values = [table.filter(pl.col("system") == name)[metric].to_numpy().astype(np.float64) for name in (first, second)]
    return Pool(values[0], values[1])


def rank_pool(path: Path, first: str, second: str, metric: str) -> Pool:
    """Two baselines with their configured settings on the test rows of prepared data, seen items filtered."""
    from recsys.contracts.columns import TEST
    from recsys.contracts.dataset import Dataset
    from recsys.evaluation.baseline_rankings import SYSTEMS_FILE, rank_with_baselines
    from recsys.evaluation.config import EvaluateConfig
    from recsys.evaluation.rankings import read_rankings
    from recsys.metrics.ranking import row_metrics
    from recsys.runtime import SilentProgress

    k, prepared = int(metric.rpartition("@")[2]), Dataset.open(path)
    asked = {"ks": (k,), "filter_seen": "filtered", "baselines": (first, second), "tuning": {"enabled": False}}
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        folder, targets = Path(name), prepared.targets(TEST)
        rank_with_baselines(prepared, EvaluateConfig.model_validate(asked), folder, 17, SilentProgress())
        systems = json.loads((folder / SYSTEMS_FILE).read_text())["systems"]
        values = {
            system: row_metrics(ranked[True], targets, [k])[metric].astype(np.float64)
            for system, ranked in read_rankings(folder, systems, [True]).items()
        }
    return Pool(values[first], values[second])


def pools(rows: list[str], prepared: list[str], metric: str) -> dict[str, Pool]:
    """What ``--rows`` and ``--prepared`` name."""
    found = {}
    for name, path, other in (given.split("=") for given in rows):
        found[f"{name}: served, {other}"] = read_pool(Path(path), SERVED, other, metric)
    for name, path, two in (given.split("=") for given in prepared):
        first, second = two.split(",")
        found[f"{name}: {first}, {second}"] = rank_pool(Path(path), first, second, metric)
    return found


HEADER = [
    "rows of",
    "rows",
    "spread",
    "hits on the slice",
    "equal refused",
    "equal, a restless slice, refused",
    "3 % loss (hits) promoted",
    "3 % loss (ranks) promoted",
    "5 % gain promoted",
    "slice loss (hits) refused",
    "slice (hits), best difference",
    "slice (hits), likelihood ratio",
    "slice loss (ranks) refused",
    "slice loss (hits) behind a 5 % gain refused",
    "60 nights within budget",
    "60 nights, quality left",
    "60 nights, promoted",
]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[], help="name=per_user.parquet=other system")
    parser.add_argument("--prepared", nargs="*", default=[], help="name=folder of prepared data=baseline,baseline")
    parser.add_argument("--metric", default="ndcg@10")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 3000, 10_000, 30_000])
    parser.add_argument("--spreads", nargs="+", type=float, default=[0.75, 1.0, 1.25])
    parser.add_argument("--resamplings", type=int, default=1000)
    parser.add_argument("--nights", type=int, default=200, help="resamplings of the sixty nights")
    options = parser.parse_args()
    config, table = PromoteConfig(), []
    for name, pool in pools(options.rows, options.prepared, options.metric).items():
        for rows, spread in [(size, 1.0) for size in options.sizes] + [
            (10_000, spread) for spread in options.spreads if spread != 1.0
        ]:
            nights = options.nights if rows == 10_000 else 0
            found = figures(pool, rows, spread, config, options.resamplings, nights)
            hits = rows * SEGMENT_SHARES[-1] * float((pool.first > 0).mean() + (pool.second > 0).mean()) / 2
            cells = [f"{found[key]:.3f}" if key in found else "" for key in HEADER[4:]]
            table.append([name, f"{rows:,}", f"{spread:g}", f"{hits:.0f}", *cells])
            print(table[-1], flush=True)
    notes = [
        "rows: the metric of two systems on the test rows of a data set; the served list and SASRec of an evaluation, or "
        "two baselines with their configured settings",
        f"{options.resamplings} resamplings, {options.nights} of the sixty nights; metric {options.metric}; the gate's "
        f"defaults: {config.model_dump_json()}",
        "spread: standard deviation of the difference of two models on a row, as a share of the mean; measured values stand "
        "in the guide of the gate",
        f"restless slice: any two models differ there, on a random 5 % of the users, on {RESTLESS:g} times the rows, "
        "or as many more as the two systems have",
        f"slice loss: 20 % on a random 5 % of the users, among {len(SEGMENT_SHARES)} slices; best difference: what a test "
        "of the slice's sum would refuse that knows how much equal models differ there and bears no loss; likelihood ratio: "
        "the most that any test can see, told the size of the loss and how often equal models differ; both at the gate's "
        "risk for one slice",
        "60 nights: every challenger is 1 % (hits) worse than the champion it meets; within budget: the last champion has "
        f"lost at most {config.budget:.0%} of the first one's quality",
        "the anchor is a third model, as good as the champion and as different from both",
    ]
    write_table("gate", "The gate", findings.of_gate(table), HEADER, table, notes)


if __name__ == "__main__":
    main()

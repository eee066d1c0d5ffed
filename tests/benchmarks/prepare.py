"""What the command `recsys prepare` costs: processor seconds, wall seconds and memory, from one to fifty million rows.

Run: ``python -m tests.benchmarks.prepare [--rows 1000000 5000000 50000000]`` (about 10 minutes on two cores; 4 GB of disk in
``--folder``, by default a temporary one). Logs are those of :mod:`tests.benchmarks.prepare_logs`; every run is a process of
its own, started as a user starts it, and the least of ``--repeats`` runs counts: neighbours on the machine only ever add.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import polars as pl
import yaml

from tests.benchmarks import findings
from tests.benchmarks.child import Cost
from tests.benchmarks.paired import write_table

RECIPE: Final[dict[str, Any]] = {
    "name": "benchmark",
    "source": {"kind": "table", "timestamp_unit": "s"},
    "features": {"k_core": {"user": 5, "item": 5}},
}
REFUSED_ROWS: Final = 2_000_000
REFUSED_EVERY: Final = 10
HEADER: Final = ["rows", "file", "processor s", "wall s", "peak MiB", "times linear"]


def write_recipe(folder: Path, log: Path, interactions: str | None = None, **features: Any) -> Path:
    """Write a recipe that reads ``log``, or the files of a pattern in it, and works in ``folder``."""
    pattern = {} if interactions is None else {"interactions": interactions}
    recipe = {
        **RECIPE,
        "output_dir": str(folder / "run"),
        "source": {**RECIPE["source"], "path": str(log), **pattern},
        "features": {**RECIPE["features"], **features},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def prepare_command(recipe: Path, *options: str) -> list[str]:
    """The command, as the console script runs it."""
    verb = ["-m", "pipelines.cli.app", "prepare", "--config", str(recipe), "--log-level", "warning"]
    return [sys.executable, *verb, *options]


def cost_of_prepare(folder: Path, recipe: Path, repeats: int, *options: str) -> Cost:
    """Run the command several times, each time without an earlier result."""
    costs = []
    for _ in range(repeats):
        shutil.rmtree(folder / "run", ignore_errors=True)
        costs.append(Cost.of(prepare_command(recipe, *options)))
    return min(costs[1:], key=lambda cost: cost.cpu, default=costs[0]).least(costs[0])


def make_log(path: Path, rows: int) -> Path:
    """Write the log in a process of its own, unless it is there."""
    if not path.exists():
        Cost.of([sys.executable, "-m", "tests.benchmarks.prepare_logs", str(path), str(rows)])
    return path


def note_of_refused(folder: Path) -> str:
    """Prepare a log of CSV, then the same with every tenth row without a user, and say what a refused row holds."""
    log = make_log(folder / "log.csv", REFUSED_ROWS)
    recipe = write_recipe(folder, log, quarantine={"max_share": 2 / REFUSED_EVERY})
    without = cost_of_prepare(folder, recipe, repeats=2)
    user = pl.when(pl.int_range(pl.len()) % REFUSED_EVERY > 0).then("user_id")
    pl.read_csv(log).with_columns(user_id=user).write_csv(log)
    refused = cost_of_prepare(folder, recipe, repeats=2)
    log.unlink()
    each = (refused.megabytes - without.megabytes) * 2**20 / (REFUSED_ROWS / REFUSED_EVERY)
    return (
        f"refused rows are held in memory until they are written: {REFUSED_ROWS:,} rows of CSV took {without.megabytes:.0f} "
        f"MiB, and {refused.megabytes:.0f} MiB with one of {REFUSED_EVERY} refused ({each:.0f} bytes more for each)"
    )


def main() -> None:
    """Run all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000, 50_000_000])
    parser.add_argument("--files", nargs="+", choices=("csv", "parquet"), default=["csv", "parquet"])
    parser.add_argument("--repeats", type=int, default=2, help="runs of each below 20M rows; above, one")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        for form in arguments.files:
            measured: dict[int, Cost] = {}
            for size in arguments.rows:
                log = make_log(folder / f"log.{form}", size)
                repeats = arguments.repeats if size < 20_000_000 else 1
                measured[size] = cost_of_prepare(folder, write_recipe(folder, log), repeats)
                log.unlink()
                rows.append(_row(size, form, measured))
                print("  ".join(rows[-1]), flush=True)
        refused = note_of_refused(folder)
    notes = [
        "processor s: user and system time of all threads of the process, from its start to its end, as `wait4` gives it; "
        "peak: its largest resident memory",
        "times linear: processor seconds over those of 5M rows (of the smallest size where there is no such line) times the "
        "ratio of rows; below 5M the start of the command weighs in",
        "text ids of 14 and 10 characters, a user per 25 rows and an item per 100; k-core 5 and 5; with all files that the "
        "stage publishes and their hashes, and the hash of the log",
        refused,
    ]
    print(write_table("prepare", "Preparing a log", findings.of_prepare(rows), HEADER, rows, notes))


def _row(size: int, form: str, measured: dict[int, Cost]) -> list[str]:
    cost, base = (
        measured[size],
        min((5_000_000, *measured), key=lambda other: (other not in measured, other != 5_000_000, other)),
    )
    linear = cost.cpu / (measured[base].cpu * size / base)
    return [f"{size:,}", form, f"{cost.cpu:.1f}", f"{cost.wall:.1f}", f"{cost.megabytes:,.0f}", f"{linear:.2f}"]


if __name__ == "__main__":
    main()

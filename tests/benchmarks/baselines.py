"""What the search for settings gives the baselines: test figures before and after, and what was chosen.

    python -m tests.benchmarks.baselines WORK movielens100k=PREPARED scientific=PREPARED beauty=PREPARED:markov,item_knn,ease

Each data set is a folder that `recsys prepare` published, with the baselines to rank where not all are asked for. Finished
rankings in WORK are kept, so a further call costs seconds. Prints the tables that ``results/baselines.md`` holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.evaluation.baseline_rankings import rank_with_baselines
from recsys.evaluation.baselines.config import BASELINE_NAMES
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.rankings import read_rankings
from recsys.evaluation.tuning.config import TuningConfig
from recsys.evaluation.tuning.search import describe
from recsys.metrics.ranking import row_metrics
from recsys.runtime import SilentProgress

SEED = 17


def figures(prepared: Dataset, folder: Path) -> dict[str, tuple[float, float]]:
    """HR@10 and NDCG@10 of every system of a folder."""
    systems = json.loads((folder / "systems.json").read_text())["systems"]
    targets, found = prepared.targets(TEST), {}
    for name, by_filter in read_rankings(folder, systems, [True]).items():
        values = row_metrics(by_filter[True], targets, [10])
        found[name] = float(values["hr@10"].mean()), float(values["ndcg@10"].mean())
    return found


def section(name: str, path: Path, baselines: tuple[str, ...], work: Path) -> list[str]:
    """Rank one data set twice and write its table."""
    prepared = Dataset.open(path)
    config = EvaluateConfig.model_validate({"ks": (10,), "filter_seen": "filtered", "baselines": baselines})
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for how, enabled in (("configured", False), ("chosen", True)):
        folder = work / name / how
        tuned = config.model_copy(update={"tuning": TuningConfig(enabled=enabled)})
        rank_with_baselines(prepared, tuned, folder, SEED, SilentProgress())
        found[how] = figures(prepared, folder)
    records: dict[str, dict[str, Any]] = json.loads((work / name / "chosen" / "tuning.json").read_text())
    spec, rows = prepared.spec, len(prepared.targets(TEST))
    lines = [f"\n## {name}: {rows:,} test rows, {spec.num_items:,} items\n"]
    lines += ["| baseline | configured | chosen | minutes |", "|---|---|---|---|"]
    for system, chosen in found["chosen"].items():
        before = found["configured"].get(system)
        lines.append(f"| {system} | {_pair(before)} | {_pair(chosen)} | {records[system]['minutes']:.1f} |")
    return [*lines, "", *(f"- {describe(records[system])}" for system in found["chosen"])]


def _pair(values: tuple[float, float] | None) -> str:
    return "–" if values is None else " / ".join(f"{value:.4f}".removeprefix("0") for value in values)


def main(arguments: list[str]) -> None:
    """Rank what is named, print the tables."""
    for argument in arguments[1:]:
        name, _, place = argument.partition("=")
        path, _, baselines = place.partition(":")
        allowed = tuple(baselines.split(",")) if baselines else BASELINE_NAMES
        print("\n".join(section(name, Path(path), allowed, Path(arguments[0]))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

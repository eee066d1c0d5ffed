"""ReRe on a small language model under the guard: what it was rewarded with before and after, and what the guard did.

Run, behind a run of the recipe, whose folder it reads: ``python -m tests.benchmarks.llm_rere --config
pipelines/recipes/llm_tiny.yaml --artifacts runs/llm_tiny/artifacts --work FOLDER``; ten minutes of one core.

The guard looks at validation rows after every round. Before and after are compared on test rows that neither it nor
training saw, user by user; lists are those of the beam alone, seen items left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.config import load_run_config
from recsys.alignment.align import align_policy
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rounds.report import REPORT_NAME
from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import open_artifact
from recsys.data.histories import Histories
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks.paired import write_table

KS: Final = (1, 10, 50)
SHOWN: Final = ("reward", "beam_hr@1", "beam_ndcg@10", "beam_recall@50", "coverage@10", "kl_to_start")
FIGURES: Final = ("hr@1", "ndcg@10", "recall@50")
Values = npt.NDArray[np.floating]


def interval(values: Values) -> str:
    """``+mean [low, high]`` by bootstrap over rows, 95 %."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def round_row(entry: dict[str, Any]) -> list[str]:
    """One round as a row of the table."""
    measured, verdict = entry["measured"], entry.get("verdict")
    said = "" if verdict is None else verdict["decision"]
    if verdict is not None and verdict["broken"]:
        said += ": " + "; ".join(verdict["broken"])
    cells = [f"{measured[name]:.{5 if name == 'reward' else 4}f}" if name in measured else "" for name in SHOWN]
    return ["start" if verdict is None else f"round {entry['round']}", *cells, said]


def main() -> None:
    """Align, measure, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True, help="output_dir/artifacts of the recipe")
    parser.add_argument("--work", type=Path, required=True, help="a folder of its own; what is in it goes")
    parser.add_argument(
        "overrides", nargs="*", help="on top of the settings of this benchmark, such as align.rere.rounds=2"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_run_config(given.config, ["align.method=rere", *SETTINGS, *given.overrides])
    trained = open_artifact(next((given.artifacts / "policy").iterdir()))
    parent = {name: digest[:16] for name, digest in trained.manifest.parents.items()}
    prepared = Dataset.open(given.artifacts / "prepared" / parent["prepare"])
    ids = SemanticIds.load(given.artifacts / "semantic_ids" / parent["tokenize"])
    policy = load_policy(trained.path / "model", ids.digest)
    size = sum(parameter.numel() for parameter in policy.parameters())
    targets = prepared.targets(TEST)
    histories = Histories.from_targets(prepared.history, targets)

    def answered() -> dict[str, Values]:
        decode = config.decode.model_copy(update={"beam_width": max(KS)})
        ranked = Recommender(policy, ids, decode).recommend(histories, max(KS), exclude_seen=True, rescore=False)
        return row_metrics(ranked, targets, KS)

    before = answered()
    shutil.rmtree(given.work, ignore_errors=True)
    began = time.process_time()
    inputs = AlignmentInputs(prepared, ids, policy, config.align, config.decode, config.seed)
    summary = align_policy(inputs, given.work, PlainProgress())
    minutes = (time.process_time() - began) / 60
    after = answered()
    report = json.loads((given.work / REPORT_NAME).read_text())
    start, kept = (report["rounds"][number]["measured"] for number in (0, report["kept_round"]))
    change = report["rounds"][report["kept_round"]].get("verdict", {}).get("changes", {}).get("reward")
    shown = "" if change is None else f" [{change['low']:+.5f}, {change['high']:+.5f}]"
    stopped = summary["stopped"] or "it stopped nothing"
    rere = config.align.rere
    difference = {name: interval(after[name] - before[name]) for name in FIGURES}
    print(
        write_table(
            "llm_rere",
            "ReRe on a small language model",
            f"ReRe moves the reward on the guard's rows from {start['reward']:.5f} to {kept['reward']:.5f}, by "
            f"{kept['reward'] - start['reward']:+.5f}{shown}, and NDCG@10 of the beam on test rows by "
            f"{difference['ndcg@10']}; the guard keeps round {report['kept_round']} of {len(report['rounds']) - 1}.",
            ["state", "reward", "HR@1", "NDCG@10", "recall@50", "coverage@10", "KL to the start", "the guard"],
            [
                *[round_row(entry) for entry in report["rounds"]],
                *[
                    [
                        f"test rows, {state}",
                        "",
                        f"{found['hr@1'].mean():.4f}",
                        f"{found['ndcg@10'].mean():.4f}",
                        f"{found['recall@50'].mean():.4f}",
                        "",
                        "",
                        "",
                    ]
                    for state, found in (("start", before), ("kept round", after))
                ],
            ],
            [
                f"{size / 1e6:.2f} M parameters, {policy.spec.model.backbone}; {rere.rounds} rounds of "
                f"{rere.steps_per_round} steps of {rere.requests_per_step} requests with {rere.rollouts.num_generations} "
                f"candidates, learning rate {rere.optimiser.learning_rate:g}, KL beta {rere.loss.beta:g}, next-token loss "
                f"with weight {rere.supervised.weight:g}; {minutes:.0f} processor minutes, the guard's measuring included.",
                f"Rounds are measured on {min(config.align.guard.users, len(targets)):,} validation rows at most, the last "
                f"two rows are of {len(targets):,} test rows. Paired differences on test rows, 95 %: "
                + ", ".join(f"{name} {value}" for name, value in difference.items())
                + ".",
                f"The guard: {stopped}. Its rules are the defaults, and a broken one makes it go back and take "
                f"smaller steps. Reward: mean over candidates of the rewards {', '.join(rere.rewards)}.",
            ],
        )
    )


SETTINGS: Final = (
    "align.rere.rounds=2",
    "align.rere.steps_per_round=60",
    "align.rere.requests_per_step=32",
    "align.rere.rollouts.num_generations=16",
    "align.rere.optimiser.learning_rate=5e-5",
    "align.rere.rollouts.exclude_seen=true",
    "align.rere.rollouts.add_ground_truth=true",
    "align.rere.supervised.weight=0.1",
    "align.guard.users=1500",
    "align.guard.exclude_seen=true",
    "align.guard.on_violation=back_off",
)
"""Of the method, on top of the recipe."""

if __name__ == "__main__":
    main()

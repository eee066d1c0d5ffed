"""Alignment's parts against commit 7be21f4: a ReRe step, a look of the guard, a round of IPA; and that a step is the same.

Run: ``python -m tests.benchmarks.alignment_speed --run runs/beauty --simulated runs/simulated_sessions --base ../base``,
after both recipes and ``git worktree add ../base 7be21f4``; about 3 minutes of processor time.

Both versions run in processes of their own, in turns, from the same trained weights
(:mod:`tests.benchmarks.alignment_speed_child`). What makes a ReRe step faster must not change it: the same steps are made
once more without it in one process, every group generated to its end and every candidate decoded alone, and the weights are
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recsys.alignment import rere as rere_module
from recsys.alignment.config import RereConfig
from recsys.alignment.rere import RankingRewardLearning
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import CandidateLogProbs, candidate_batch
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner, RoundCurve
from recsys.alignment.rounds.loop import RoundWork, SmallerSteps
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import open_artifact
from recsys.data.batch import HistoryBatch
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from tests.benchmarks import findings
from tests.benchmarks.paired import write_table


def one_by_one(policy: GenerativeRecommender, history: HistoryBatch, items_BGM: torch.Tensor) -> CandidateLogProbs:
    """Every candidate as a prediction point of its own."""
    batch = candidate_batch(history, items_BGM)
    hidden, _ = policy(batch)
    mask = (items_BGM >= 0)[..., None].expand(*items_BGM.shape, policy.num_levels)
    return CandidateLogProbs(policy.code_log_probs(hidden, batch.target_BPM).masked_fill(~mask, 0.0), mask)


@contextmanager
def as_before() -> Iterator[None]:
    """Generate and score every group."""
    kept = rere_module.candidate_log_probs, RankingRewardLearning.drops_early
    rere_module.candidate_log_probs = one_by_one
    RankingRewardLearning.drops_early = property(lambda self: False)  # type: ignore[assignment]
    try:
        yield
    finally:
        rere_module.candidate_log_probs, RankingRewardLearning.drops_early = kept  # type: ignore[method-assign]


class Run:
    """One alignment, step by step."""

    def __init__(self, folder: Path, config: RereConfig, max_steps: int) -> None:
        (policy_path,) = list((folder / "artifacts" / "policy").glob("*/"))[:1]
        parents = open_artifact(policy_path).manifest.parents
        ids = SemanticIds.load(folder / "artifacts" / "semantic_ids" / parents["tokenize"][:16])
        dataset = Dataset.open(folder / "artifacts" / "prepared" / parents["prepare"][:16])
        self.policy = load_policy(policy_path / "model", ids.digest)
        stream = RequestStream(dataset, self.policy.spec.model.max_history, config.requests_per_step, 0)
        learner = Learner(self.policy, config.optimiser, max_steps)
        sampler = RolloutSampler(ids, config.rollouts)
        self.method = RankingRewardLearning(config, learner, stream, sampler, RewardSet(config.rewards), 0)
        self.method.begin(None)
        scratch = Path(tempfile.mkdtemp())
        self.work = RoundWork(1, scratch, 0, SmallerSteps(), RoundCurve(), SilentProgress(), lambda steps: None)
        self.done = 0

    def step(self) -> None:
        """The next one."""
        self.method._step(self.work, self.method.stream.rows(self.done), seeded(0, 1, self.done))
        self.done += 1


def largest_difference(folder: Path, requests: int, steps: int) -> float:
    """Between the weights after so many steps with and without what makes them faster; the same groups are counted."""
    before, after = (Run(folder, RereConfig(requests_per_step=requests), 10 * steps) for _ in range(2))
    for _ in range(steps):
        with as_before():
            before.step()
        after.step()
    counts = [dict(run.work.curve.counts, groups_dropped_early=0) for run in (before, after)]
    assert counts[0] == counts[1]
    pairs = zip(before.policy.parameters(), after.policy.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def child(version: str, code: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds by part, measured by a process of that version."""
    script = Path(__file__).with_name("alignment_speed_child.py")
    command = [sys.executable, str(script), version, str(arguments.run), str(arguments.simulated)]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=code).stdout
    found: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run of beauty.yaml")
    parser.add_argument("--simulated", type=Path, required=True, help="folder of a run of simulated_sessions.yaml")
    parser.add_argument("--base", type=Path, required=True, help="a worktree of 7be21f4, its native kernels compiled")
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    arguments.run, arguments.simulated = arguments.run.resolve(), arguments.simulated.resolve()
    torch.set_num_threads(1)
    times: dict[str, dict[str, list[float]]] = {"OLD": {}, "NEW": {}}
    for _ in range(arguments.turns):
        for version, code in (("OLD", arguments.base), ("NEW", Path(__file__).resolve().parents[2])):
            for part, found in child(version, code, arguments).items():
                times[version].setdefault(part, []).extend(found)
    rows = [
        [
            part,
            f"{1e3 * statistics.median(old):.0f}",
            f"{1e3 * statistics.median(times['NEW'][part]):.0f}",
            f"{statistics.median(old) / statistics.median(times['NEW'][part]):.2f}",
            f"{min(old) / min(times['NEW'][part]):.2f}",
        ]
        for part, old in times["OLD"].items()
    ]
    distance = largest_difference(arguments.run, 128, 6)
    header = ["part", "7be21f4, ms", "now, ms", "times, medians", "times, minima"]
    notes = [
        f"{arguments.turns} processes of each version in turns; 12 steps of ReRe, 2 looks and 2 rounds in each; processor "
        "time, on a machine that was busy with other work, which medians feel more than minima",
        "ReRe on Beauty, G = 16, rewards rule and ranking; the guard's look at 300 rows of Beauty with the cut-offs that "
        "each version has by default (7be21f4 decoded 500 beams, 50 are read now); IPA on sessions of the simulator, 512 "
        "samples, 32 sampled candidates for half of them, rule reward",
        f"after 6 steps of 128 requests the weights differ by at most {distance:.0e} from those without early dropping and "
        "without the tree of prefixes, at a learning rate of 1e-4; the groups are the same",
        "the goal was 2.5 for a ReRe step and for a round of IPA. Of a ReRe step two fifths are the search, of which "
        "nothing can be left out before its target is lost; of a round of IPA half is sampling sessions, code by code, and "
        "half the gradient, and both are what they were",
    ]
    title = "Alignment's parts against an earlier version"
    print(write_table("alignment_speed", title, findings.of_alignment_speed(rows), header, rows, notes))


if __name__ == "__main__":
    main()

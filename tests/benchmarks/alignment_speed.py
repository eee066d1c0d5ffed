"""A ReRe step that drops hopeless requests while it generates, against one that generates all groups and filters them.

Run: ``python -m tests.benchmarks.alignment_speed --run runs/beauty`` (about 3 minutes after the recipe's run).

Both make the same steps from the same policy, in turns: the same requests, rewards and updates. Before: a beam for every
request, all candidates scored one by one. After: requests are dropped as soon as their beam has lost the target
(:mod:`recsys.alignment.rollouts.lost_targets`), and candidates that differ in the last code share a prediction point.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
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
from tests.benchmarks.cpu_time import alternate_cpu
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


def measured(folder: Path, requests: int, num_iterations: int, steps: int) -> list[str]:
    """One row: milliseconds of a step, the ratio, and how far the policies are from each other at the end."""
    config = RereConfig(requests_per_step=requests, num_iterations=num_iterations)
    before, after = (Run(folder, config, 10 * steps) for _ in range(2))

    def slow() -> None:
        with as_before():
            before.step()

    contestants: dict[str, Callable[[], object]] = {"before": slow, "after": after.step}
    timings = alternate_cpu(contestants, steps)
    counts = after.work.curve.counts
    assert {n: c for n, c in counts.items() if n != "groups_dropped_early"} == {
        n: c for n, c in before.work.curve.counts.items() if n != "groups_dropped_early"
    }
    pairs = zip(before.policy.parameters(), after.policy.parameters(), strict=True)
    distance = max(float((a - b).abs().max()) for a, b in pairs)
    seconds = {name: sorted(timing.seconds)[len(timing.seconds) // 2] for name, timing in timings.items()}
    return [
        str(requests),
        str(num_iterations),
        f"{counts['groups_dropped_early'] / counts['groups']:.0%}",
        f"{seconds['before'] / num_iterations * 1e3:.0f}",
        f"{seconds['after'] / num_iterations * 1e3:.0f}",
        f"{seconds['before'] / seconds['after']:.2f}",
        f"{timings['before'].best / timings['after'].best:.2f}",
        f"{distance:.0e}",
    ]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run of beauty.yaml")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for requests, iterations in ((32, 1), (128, 1), (128, 2)):
        rows.append(measured(arguments.run, requests, iterations, arguments.steps))
        print("  ".join(rows[-1]), flush=True)
    header = (
        "requests per step | updates per group | dropped early | before, ms per update | after, ms per update | "
        "times, medians | times, minima | largest difference of a weight"
    )
    notes = [
        f"{arguments.steps + 1} steps of each, in turns, from the same policy; G = 16, rewards rule and ranking",
        "counts of groups, signals and targets are equal in both; dropped requests have advantage 0 in the other",
        "seconds are the processor's, on a machine that was busy with other work",
        "the goal was 2.5: generating takes a quarter of its time, and scoring and updating the groups that are left, which "
        "is the same work in both, is now two thirds of a step",
    ]
    finding = findings.of_alignment_speed(rows)
    title = "What it saves to drop requests that lost their target"
    print(write_table("alignment_speed", title, finding, header.split(" | "), rows, notes))


if __name__ == "__main__":
    main()

"""One policy steered between objectives: what each mixture of weights truly brings on the simulator.

A policy with inputs for objective weights is trained and aligned by the recipe ``simulated_sessions.yaml``, every preference
request with weights of its own. Then the same users are served along lines between two objectives, and the simulator says
what they would do. Steering is worth shipping if along each line the one outcome falls and the other rises at every step.

Run: ``python -m tests.benchmarks.steering [--seeds 1 2 3] [--runs runs/steering]``; about 8 minutes per seed on one thread.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.config import RunConfig, load_run_config
from pipelines.engine.lock import run_lock
from pipelines.engine.runner import Runner
from pipelines.simulation.users import SimulatedUsers
from pipelines.stages import stages_of
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import ArtifactStore
from recsys.decoding.recommender import Recommender
from recsys.metrics.bootstrap import estimate_means
from recsys.model.checkpoint import load_policy
from recsys.reward.scoring import DIVERSITY, DiverseScorer
from recsys.runtime import SilentProgress, set_threads
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.second_stage import best_sessions, open_reward_model
from serving.inputs.objectives import objective_weights
from tests.benchmarks import findings
from tests.benchmarks.paired import write_table

RECIPE: Final = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "simulated_sessions.yaml"
STAGES: Final = ("prepare", "embed", "tokenize", "train", "reward", "align")
OVERRIDES: Final = (
    "threads=1",
    "model.num_objectives=6",
    "align.ipa.objective={}",
)
USERS: Final = 1500
DRAWS: Final = 8
STEPS: Final = 5
OUTCOME_OF: Final = {"swt": "watch", "ltr": "likes", DIVERSITY: DIVERSITY}
"""Tower -> the outcome it should raise."""
LINES: Final = (("swt", DIVERSITY), ("ltr", DIVERSITY), ("swt", "ltr"))
SERVED_BY: Final = ("policy", "policy and second stage")
"""The policy's best session, or of its whole beam the one that the reward model weighs highest under the same weights."""

Outcomes = dict[str, npt.NDArray[np.float64]]


def run_stages(config: RunConfig) -> dict[str, Path]:
    """Run what is missing up to `align`; return each stage's folder."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with run_lock(config.output_dir):
        store = ArtifactStore(config.output_dir / "artifacts")
        runner = Runner(config, config.seed, store, SilentProgress())
        runner.run_all(stage for stage in stages_of(config) if stage.name in STAGES)
    return {name: outcome.artifact.path for name, outcome in runner.outcomes.items()}


class Steered:
    """A steerable policy and the users it is evaluated by."""

    def __init__(self, runs: Path, seed: int) -> None:
        self.config = load_run_config(RECIPE, [*OVERRIDES, f"seed={seed}", f"output_dir={runs / f'seed_{seed}'}"])
        folder = run_stages(self.config)
        prepared = Dataset.open(folder["prepare"])
        ids = SemanticIds.load(folder["tokenize"])
        self.policy = load_policy(folder["align"] / "model", ids.digest)
        self.reward = open_reward_model(folder["reward"] / "reward", self.policy)
        self.recommender = Recommender(self.policy, ids, self.config.decode)
        everybody = SimulatedUsers.open(self.config.source, prepared, seed)
        self.users = everybody.take(np.unique(np.linspace(0, len(everybody) - 1, USERS).astype(np.int64)))

    def serve(self, objective: Mapping[str, float] | None) -> list[Outcomes]:
        """Serve everybody's best session under objective weights, or under none; true outcomes per user, by
        ``SERVED_BY``."""
        weights = None if objective is None else objective_weights(objective, self.policy.spec.objectives)
        histories = self.users.histories.with_objective(weights)
        beam = self.recommender.recommend_sessions(histories, self.config.decode.beam_width, exclude_seen=True)[0]
        chosen = best_sessions(self.reward, histories, beam, 1).items
        return [self._outcomes(sessions) for sessions in (beam[:, :1], chosen)]

    def _outcomes(self, sessions: npt.NDArray[np.integer]) -> Outcomes:
        truth = self.users.truth(sessions.astype(np.int64), draws=DRAWS)
        assert isinstance(self.reward, DiverseScorer)
        return {
            "watch": truth.watch_ms[:, 0].astype(np.float64) / 1e3,
            "likes": truth.likes[:, 0].astype(np.float64),
            DIVERSITY: self.reward.diversity(torch.from_numpy(sessions))[:, 0].double().numpy(),
            "utility": truth.utility[:, 0].astype(np.float64),
        }


def serve_all(policies: Sequence[Steered], objective: Mapping[str, float] | None) -> list[Outcomes]:
    """Outcomes for each of ``SERVED_BY``, users of all seeds side by side."""
    parts = [policy.serve(objective) for policy in policies]
    return [
        {name: np.concatenate([part[way][name] for part in parts]) for name in parts[0][way]}
        for way in range(len(SERVED_BY))
    ]


def along(policies: Sequence[Steered], towers: tuple[str, str]) -> list[list[Outcomes]]:
    """Serve at equal steps from the first tower alone to the second alone.

    Returns:
        Outcomes of every step, for each of ``SERVED_BY``.
    """
    steps = [
        serve_all(policies, {towers[0]: 1.0 - share, towers[1]: float(share)}) for share in np.linspace(0.0, 1.0, STEPS)
    ]
    return [list(line) for line in zip(*steps, strict=True)]


def verdict(served: Sequence[Outcomes], outcome: str, sign: int) -> str:
    """Change from end to end with its interval, how many steps go the wrong way, and how many of these beyond theirs."""
    (change,) = estimate_means(served[-1][outcome] - served[0][outcome])
    steps = [estimate_means(sign * (now[outcome] - before[outcome]))[0] for before, now in itertools.pairwise(served)]
    wrong, proven = sum(step.mean < 0 for step in steps), sum(step.sign < 0 for step in steps)
    told = f"{outcome}: {change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] end to end"
    return f"{told}, {wrong} of {len(steps)} steps the wrong way, {proven} of them beyond their interval"


def main() -> None:
    """Train, serve along every line, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/steering"))
    arguments = parser.parse_args()
    set_up_logging(LogLevel.INFO)
    set_threads(1)
    policies = [Steered(arguments.runs, seed) for seed in arguments.seeds]
    rows: list[list[str]] = []
    notes = [
        f"{len(policies)} seed(s), {len(policies) * USERS} users, one session of five items; truth of the simulator",
        "the input for the weights, its learning rate and the concentration were chosen on 300 users of seed 1",
    ]

    def add_row(line: str, way: str, weights: str, outcomes: Outcomes) -> None:
        figures = [f"{outcomes[name].mean():.3f}" for name in ("watch", "likes", DIVERSITY, "utility")]
        rows.append([line, way, weights, *figures])

    for way, outcomes in zip(SERVED_BY, serve_all(policies, None), strict=True):
        add_row("no weights", way, "", outcomes)
    for first, second in LINES:
        for way, served in zip(SERVED_BY, along(policies, (first, second)), strict=True):
            for share, outcomes in zip(np.linspace(0.0, 1.0, STEPS), served, strict=True):
                add_row(f"{first} to {second}", way, f"{1 - share:.2f} / {share:.2f}", outcomes)
            told = [verdict(served, OUTCOME_OF[first], -1), verdict(served, OUTCOME_OF[second], +1)]
            notes.append(f"{first} to {second}, {way}: " + "; ".join(told))
    header = ["line", "served by", "weights", "watch, s", "likes", DIVERSITY, "utility"]
    print(
        write_table(
            "steering", "Steering one policy by objective weights", findings.of_steering(rows), header, rows, notes
        )
    )


if __name__ == "__main__":
    main()

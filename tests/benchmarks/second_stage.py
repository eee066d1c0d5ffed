"""Selection by the reward model over generated sessions, against serving the best beam: true utility on the simulator.

OneRec's technical report (arXiv 2506.13695) finds that much of the online gain needs such a selection. Before and after
alignment, each user is served either the best beam or what the reward model likes best among candidates: the beams of
one search, which resemble each other, or beams in diversity groups that begin with different items.

Worlds, policies and reward models are those of :mod:`tests.benchmarks.alignment_simulator` (``--runs``), trained here where
they are not there.

Run: ``python -m tests.benchmarks.second_stage [--seeds 1 2 3]``; about 4 minutes per seed on one thread once they are.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.simulation.users import best_by
from recsys.alignment.align import align_policy
from recsys.alignment.inputs import AlignmentInputs
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.bootstrap import estimate_means
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress, set_threads
from tests.benchmarks import findings
from tests.benchmarks.alignment_simulator import Base
from tests.benchmarks.paired import write_table

DRAWS: Final = 8
CANDIDATES: Final[Mapping[str, DecodeConfig]] = {
    "32 beams": DecodeConfig(beam_width=32, rescore="none"),
    "32 beams, 8 groups": DecodeConfig(beam_width=32, diversity_groups=8, rescore="none"),
    "128 beams, 32 groups": DecodeConfig(beam_width=128, diversity_groups=32, rescore="none"),
}

SERVED = "reward's best of 32 beams, 8 groups"
"""The way of selecting that the page leads with."""


def aligned(base: Base, scratch: Path) -> GenerativeRecommender:
    """Align the base's policy by the recipe."""
    policy, config = base.policy(), base.config
    inputs = AlignmentInputs(
        dataset=base.prepared,
        semantic_ids=base.semantic_ids,
        policy=policy,
        config=config.align,
        decode=config.decode,
        seed=base.seed,
        reward_model=base.scorers["reward"],
        held_out_reward_model=base.scorers["held_out_reward"],
    )
    align_policy(inputs, scratch, SilentProgress())
    shutil.rmtree(scratch)
    return policy


def utilities(base: Base, policy: GenerativeRecommender) -> dict[str, npt.NDArray[np.float64]]:
    """True utility per user of every way to serve."""
    users, reward = base.users, base.scorers["reward"]
    found: dict[str, npt.NDArray[np.float64]] = {}
    for name, decode in CANDIDATES.items():
        recommender = Recommender(policy, base.semantic_ids, decode)
        sessions = users.policy_sessions(recommender, decode.beam_width)
        if not found:
            found["best beam"] = users.truth(sessions[:, :1], draws=DRAWS).utility[:, 0].astype(np.float64)
        value = reward.reward(users.histories, torch.from_numpy(sessions)).numpy()
        picked = best_by(value, sessions)
        found[f"reward's best of {name}"] = users.truth(picked, draws=DRAWS).utility[:, 0].astype(np.float64)
    return found


def change(now: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> str:
    """Relative change of the mean with a 95 % paired bootstrap interval over users."""
    (gain,) = estimate_means((now - before) / before.mean())
    return f"{gain.mean:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]"


def main() -> None:
    """Serve in every way, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment_simulator"))
    arguments = parser.parse_args()
    set_up_logging(LogLevel.WARNING)
    set_threads(1)
    parts: dict[str, dict[str, list[npt.NDArray[np.float64]]]] = {}
    for seed in arguments.seeds:
        base = Base(arguments.runs / f"base_{seed}", seed)
        for name, policy in (
            ("next-token policy", base.policy()),
            ("aligned by IPA", aligned(base, arguments.runs / f"aligned_{seed}")),
        ):
            for way, values in utilities(base, policy).items():
                parts.setdefault(name, {}).setdefault(way, []).append(values)
                print(seed, name, way, round(float(values.mean()), 3), flush=True)
    everything = {name: {way: np.concatenate(v) for way, v in ways.items()} for name, ways in parts.items()}
    plain = everything["next-token policy"]["best beam"]
    rows = [
        [name, way, f"{values.mean():.3f}", change(values, ways["best beam"]), change(values, plain)]
        for name, ways in everything.items()
        for way, values in ways.items()
    ]
    header = ["policy", "served", "true utility", "against its best beam", "against the next-token policy's best beam"]
    notes = [
        f"{len(arguments.seeds)} seed(s), {len(plain)} users, sessions of five, simulator's truth; the reward model is "
        "the one that alignment uses",
        "relative changes, 95 % paired bootstrap intervals over users",
    ]
    print(
        write_table(
            "second_stage",
            "Selection by the reward model over generated sessions",
            findings.of_second_stage(rows, SERVED),
            header,
            rows,
            notes,
        )
    )


if __name__ == "__main__":
    main()

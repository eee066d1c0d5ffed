"""The reward model inside the search, beside choosing from the beam: true utility on the simulator, and what each costs.

No policy is trained for it: the same next-token policy answers every user with its best session, with the session that the
reward model likes best among the beams, with the best session of a search that the reward guides
(``recommend.reward_guidance``), and with both. Worlds, policies and reward models are those of
:mod:`tests.benchmarks.alignment_simulator` (``--runs``, ``--set``), trained here where they are not there; the strength is
chosen on the users of the first seed, which is left out of the table.

Run: ``python -m tests.benchmarks.reward_guidance [--seeds 5]``; about a minute per seed on one thread once they are.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.simulation.users import Sessions, best_by
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.runtime import set_threads
from serving.answers.second_stage import item_rewards
from tests.benchmarks import findings
from tests.benchmarks.alignment_simulator import Base
from tests.benchmarks.paired import write_table
from tests.benchmarks.second_stage import DRAWS, change

STRENGTHS: Final = (0.25, 0.5, 1.0, 2.0)
BEAMS: Final = 32
GROUPS: Final = 8


@dataclass(frozen=True)
class Way:
    """A way to serve a session.

    Attributes:
        strength: Of the reward in the search.
        selects: The reward model chooses among all beams; of a search in diversity groups.
    """

    strength: float = 0.0
    selects: bool = False

    @property
    def name(self) -> str:
        """As the table has it."""
        parts = [f"guided by the reward, strength {self.strength:g}"] if self.strength else []
        parts += [f"reward's best of {BEAMS} beams, {GROUPS} groups"] if self.selects else []
        return ", then ".join(parts) or "best beam"

    def serve(self, base: Base) -> tuple[Sessions, float]:
        """One session per user, and the processor seconds that it took."""
        policy, users, reward = base.policy(), base.users, base.scorers["reward"]
        decode = DecodeConfig(beam_width=BEAMS, diversity_groups=GROUPS if self.selects else 1, rescore="none")
        recommender = Recommender(policy, base.semantic_ids, decode)
        rules = recommender.compile(None, len(users), exclude_seen=True)
        guided_by = item_rewards(reward, base.prepared.spec.num_items, self.strength) if self.strength else None
        start = time.process_time()
        beams, _ = recommender.generate(users.histories, BEAMS if self.selects else 1, rules, guided_by)
        if self.selects:
            beams = best_by(reward.reward(users.histories, torch.from_numpy(beams)).numpy(), beams)
        return beams, time.process_time() - start


def outcomes(base: Base, way: Way) -> dict[str, npt.NDArray[np.float64]]:
    """Per user: true utility, likes, the policy's cost in seconds (the same for everybody)."""
    sessions, seconds = way.serve(base)
    truth = base.users.truth(sessions, draws=DRAWS)
    return {
        "utility": truth.utility[:, 0].astype(np.float64),
        "likes": truth.likes[:, 0].astype(np.float64),
        "seconds": np.full(len(sessions), seconds / len(sessions)),
    }


def main() -> None:
    """Serve in every way, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment_simulator"))
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe, such as a smaller world"
    )
    arguments = parser.parse_args()
    set_up_logging(LogLevel.WARNING)
    set_threads(1)
    changed = tuple(arguments.set)
    chosen_on, *seeds = (Base(arguments.runs / f"base_{n}", n, changed) for n in range(1, arguments.seeds + 1))
    tried = {strength: outcomes(chosen_on, Way(strength))["utility"].mean() for strength in STRENGTHS}
    best = max(tried, key=lambda strength: tried[strength])
    print("chosen on seed 1:", {strength: round(float(mean), 3) for strength, mean in tried.items()}, flush=True)
    ways = [Way(), Way(selects=True), *(Way(strength) for strength in STRENGTHS), Way(best, selects=True)]
    found = {way: [outcomes(base, way) for base in seeds] for way in ways}
    together = {
        way: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for way, parts in found.items()
    }
    plain = together[Way()]
    rows = []
    for way, values in together.items():
        by_seed = [
            now["utility"].mean() / was["utility"].mean() - 1 for now, was in zip(found[way], found[Way()], strict=True)
        ]
        rows.append(
            [
                way.name + (" *" if way.strength == best and not way.selects else ""),
                f"{values['utility'].mean():.3f}",
                change(values["utility"], plain["utility"]),
                f"{min(by_seed):+.1%} … {max(by_seed):+.1%}",
                f"{values['likes'].mean():.3f}",
                f"{1e3 * values['seconds'].mean():.2f}",
                f"{values['seconds'].mean() / plain['seconds'].mean():.2f}",
            ]
        )
        print(rows[-1], flush=True)
    header = [
        "served",
        "true utility",
        "against the best beam",
        "lowest and highest seed",
        "likes",
        "processor ms per user",
        "times the best beam's",
    ]
    notes = [
        f"{len(seeds)} seeds, {len(plain['utility'])} users, {chosen_on.prepared.spec.num_items} items, sessions of five, "
        "simulator's truth; one next-token policy per seed, not aligned; the reward model is the one that alignment uses",
        "relative changes, 95 % paired bootstrap intervals over users; * the strength that was best on another seed",
        "what alignment brings to the same worlds stands on the page `alignment_simulator_small.md`",
        "strength: what one standard deviation of an item's reward counts beside the log-probability of its path",
    ]
    print(
        write_table(
            "reward_guidance",
            "The reward model inside the search",
            findings.of_reward_guidance(rows),
            header,
            rows,
            notes,
        )
    )


if __name__ == "__main__":
    main()

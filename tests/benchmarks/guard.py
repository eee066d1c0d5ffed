"""The guard by simulation: how often it stops a run that changed nothing, and which harms it finds.

Rows of 2,000 users are made up with known truth and given to the guard's own functions. A row's target has a latent place;
a round moves it a little, so that the same share of rows wins and loses a hit (``churn``), as rounds of real policies do. A
null run has three such rounds, each drawn on its own from the start. A harm is a null round in which one thing got worse.

Run: ``python -m tests.benchmarks.guard``; 7 minutes on one free core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.alignment.config import GuardConfig
from recsys.alignment.rounds.guard import check_round
from recsys.alignment.rounds.measurement import (
    COVERAGE,
    HELD_OUT_REWARD,
    HR1,
    KL_TO_START,
    REWARD,
    STEERED,
    Measurement,
)
from recsys.alignment.rounds.rules import FALLS, error_of_one

PAGE: Final = Path(__file__).resolve().parent / "results" / "guard.md"
ROWS: Final = 2000
ROUNDS: Final = 3
SEED: Final = 11
RECALL: Final = {1: 0.10, 5: 0.22, 10: 0.30, 50: 0.45}
"""Hit rates of the start by cut-off, as of a policy on a catalogue of some thousand items."""
REWARDS: Final = (REWARD, HELD_OUT_REWARD, REWARD + STEERED, HELD_OUT_REWARD + STEERED)
REWARD_KEPT: Final = 0.9
"""Correlation of a row's reward from round to round."""
GUARD: Final = GuardConfig(users=ROWS)

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Latent rows of the start.

    Attributes:
        place: ``[N]`` standard normal; a target is among the first K where it lies below that cut-off's quantile.
        level: Per reward, ``[N]`` standard normal.
        spread: ``[N]`` the row's part of the coverage.
        kept: Correlation of ``place`` from round to round.
    """

    place: Rows
    level: dict[str, Rows]
    spread: Rows
    kept: float

    @classmethod
    def draw(cls, generator: np.random.Generator, kept: float) -> World:
        """Draw a start; the rewards of a row have something in common."""
        common = generator.normal(size=ROWS)
        level = {name: math.sqrt(0.5) * (common + generator.normal(size=ROWS)) for name in REWARDS}
        return cls(generator.normal(size=ROWS), level, generator.gamma(2.0, 0.15, ROWS), kept)

    def measured(self, generator: np.random.Generator | None) -> Measurement:
        """Measure the start (``None``), or a round that changed nothing but which rows win and lose."""
        if generator is None:
            place, level, spread = self.place, self.level, self.spread
        else:
            place = _moved(self.place, self.kept, generator)
            level = {name: _moved(rows, REWARD_KEPT, generator) for name, rows in self.level.items()}
            spread = self.spread * generator.lognormal(-0.02, 0.2, ROWS)
        rows = {f"beam_recall@{k}": _hits(place, share) for k, share in RECALL.items() if k > 1}
        rows |= {HR1: _hits(place, RECALL[1]), COVERAGE: spread, **level}
        values = {f"{KL_TO_START}_item_{m}": 0.1 for m in range(1, 6)} | {KL_TO_START: 0.1, KL_TO_START + STEERED: 1.0}
        return Measurement(values, rows)


def _moved(rows: Rows, kept: float, generator: np.random.Generator) -> Rows:
    return kept * rows + math.sqrt(1 - kept**2) * generator.normal(size=len(rows))


def _hits(place: Rows, share: float) -> Rows:
    return (place < NormalDist().inv_cdf(share)).astype(np.float64)


def churn(kept: float) -> float:
    """Share of rows that win or lose their hit at 50 in a null round, from a large sample."""
    generator = np.random.default_rng(0)
    place = generator.normal(size=200_000)
    return float((_hits(place, RECALL[50]) != _hits(_moved(place, kept, generator), RECALL[50])).mean())


Harm = Callable[[Measurement, np.random.Generator], Measurement]


def less_recall(points: float) -> Harm:
    """Take hits between places 11 and 50 away, so that nothing but recall@50 falls, by this much in the mean."""

    def apply(now: Measurement, generator: np.random.Generator) -> Measurement:
        deep = now.rows["beam_recall@50"] - now.rows["beam_recall@10"]
        lost = deep * (generator.random(len(deep)) < points / (RECALL[50] - RECALL[10]))
        return replace(now, rows={**now.rows, "beam_recall@50": now.rows["beam_recall@50"] - lost})

    return apply


def lower(name: str, by: float) -> Harm:
    """Lower a reward by so many standard deviations of the start's rows."""
    return lambda now, generator: replace(now, rows={**now.rows, name: now.rows[name] - by})


def farther(name: str, mean: float) -> Harm:
    """Set a divergence to the mean of rows that are exponential around it."""
    return lambda now, generator: replace(now, values={**now.values, name: generator.exponential(mean, ROWS).mean()})


HARMS: Final[dict[str, tuple[Harm, float]]] = {
    "recall@50 lower by 3 points (.45 to .42)": (less_recall(0.03), 0.0),
    "recall@50 lower by 3 % of itself (.45 to .4365)": (less_recall(0.03 * RECALL[50]), 0.0),
    "held-out reward .1 deviations lower, after a rise of .5": (lower(HELD_OUT_REWARD, 0.1), 0.5),
    "one place of a session ruined, 2 nats from the start there": (farther(f"{KL_TO_START}_item_3", 2.0), 0.0),
    "under weights alone: held-out reward .1 deviations lower": (lower(HELD_OUT_REWARD + STEERED, 0.1), 0.0),
    "under weights alone: 5 nats from the start": (farther(KL_TO_START + STEERED, 5.0), 0.0),
}
"""Harm, and how far all rewards had risen in the round kept last, in deviations."""


def null_runs(runs: int, kept: float, config: GuardConfig) -> float:
    """Share of runs of three null rounds that are stopped."""
    stopped = 0
    for run in range(runs):
        generator = np.random.default_rng([SEED, run])
        world = World.draw(generator, kept)
        start = last = world.measured(None)
        for _ in range(ROUNDS):
            now = world.measured(generator)
            if check_round(start, now, np.arange(ROWS), config, SEED, last, ROUNDS).decision == "stop":
                stopped += 1
                break
            last = now
    return stopped / runs


def found(runs: int, kept: float, harm: Harm, rise: float, config: GuardConfig) -> float:
    """Share of harmed rounds that are stopped; the round before was kept and is like the start but for the rise."""
    stopped = 0
    for run in range(runs):
        generator = np.random.default_rng([SEED, 1, run])
        world = World.draw(generator, kept)
        start, last = world.measured(None), _risen(world.measured(generator), rise)
        now = harm(_risen(world.measured(generator), rise), generator)
        stopped += check_round(start, now, np.arange(ROWS), config, SEED, last, ROUNDS).decision == "stop"
    return stopped / runs


def _risen(measured: Measurement, by: float) -> Measurement:
    return replace(measured, rows={n: rows + by if n in REWARDS else rows for n, rows in measured.rows.items()})


def uncorrected(config: GuardConfig) -> GuardConfig:
    """The same rules as 95 % intervals without margin and correction would apply them."""
    comparisons = sum(len(rule.comparisons(config, _figures())) for rule in FALLS)
    margins = dict.fromkeys(("recall_margin", "hr1_margin", "coverage_margin", "reward_margin"), 0.0)
    return config.model_copy(update={"false_stops": 0.025 * ROUNDS * comparisons, **margins})


def _figures() -> dict[str, object]:
    return dict.fromkeys([*(f"beam_recall@{k}" for k in RECALL), HR1, COVERAGE, *REWARDS])


def page(runs: int, harmed: int) -> str:
    """Simulate, and write what came of it."""
    begin = time.process_time()
    levels = {"few rows change hands": 0.995, "many": 0.98}
    error = error_of_one(GUARD, _figures(), ROUNDS)
    rows: list[tuple[str, list[float], int]] = [
        ("null runs stopped", [null_runs(runs, levels["many"], GUARD)], runs),
        (
            "null runs stopped by 95 % intervals without margin and correction",
            [null_runs(runs, levels["many"], uncorrected(GUARD))],
            runs,
        ),
    ]
    for name, (harm, rise) in HARMS.items():
        rows.append((f"found: {name}", [found(harmed, kept, harm, rise, GUARD) for kept in levels.values()], harmed))
    minutes = (time.process_time() - begin) / 60
    least = min(min(values) for name, values, _ in rows if name.startswith("found") and "of itself" not in name)
    lead = (
        f"{rows[0][1][0]:.1%} of the runs that changed nothing are stopped, and at least {least:.0%} of each planted harm "
        "is found, but for the smallest."
    )
    return "\n".join(
        [
            "# False stops of the guard, and what it finds",
            "",
            f"**{lead}**",
            "",
            f"`python -m tests.benchmarks.guard --runs {runs} --harmed {harmed}`",
            "",
            f"{minutes:.1f} minutes of one core's processor time",
            "",
            "| | " + " | ".join(f"{name}: {churn(kept):.1%} of rows" for name, kept in levels.items()) + " |",
            "|---|---|---|",
            *(f"| {name} | " + " | ".join(_cells(values, of)) + " |" for name, values, of in rows),
            "",
            f"- {ROWS} rows of as many users, runs of {ROUNDS} rounds, default settings, a steered policy, so that every "
            f"rule has something to compare; the error of a single comparison is {error:.5f}",
            "- rows are made up: HR@1 .10, recall@50 .45, rewards of standard deviation 1 that correlate by "
            f"{REWARD_KEPT} with the start's; columns differ in how many rows win or lose their hit at 50 in a round",
            "- the aim is 5 % of false stops; where the interval holds it, the simulation cannot tell, and percentile "
            "bounds so far out are not exact",
            "- ranges are 95 % Wilson intervals of the simulation",
            "- 3 % of itself is 27 hits of 900: where a round moves as many rows as on the right, that is two to three "
            "standard errors, which a rule that is wrong once in twenty runs of many looks cannot see; more rows "
            "(`guard.users`) help",
            "- a place of a session that is less than `max_kl` nats from the start is not stopped, whatever it does",
            "",
        ]
    )


def _cells(values: list[float], of: int) -> list[str]:
    """One cell per column; what was simulated once stands on the right."""
    return [""] * (2 - len(values)) + [_share(value, of) for value in values]


def _share(value: float, of: int) -> str:
    z = 1.96
    middle = (value + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z * math.sqrt(value * (1 - value) / of + z**2 / (4 * of**2)) / (1 + z**2 / of)
    return f"{value:.1%} [{middle - half:.1%}, {middle + half:.1%}]"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="null runs")
    parser.add_argument("--harmed", type=int, default=60, help="rounds of every harm")
    options = parser.parse_args()
    PAGE.write_text(page(options.runs, options.harmed), encoding="utf-8")


if __name__ == "__main__":
    main()

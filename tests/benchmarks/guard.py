"""The guard by simulation: how often it stops a run that changed nothing, and which harms it finds.

Rows of 2,000 users are given to the guard's own functions: made up with known truth, and those of a trained policy and what
updates of ReRe really made of them (:mod:`tests.benchmarks.guard_rows`). A null run has three rounds that changed nothing
but which rows win and lose. A harm is a null round in which one thing got worse. Rewards, coverage and divergence are made
up throughout.

Run: ``python -m tests.benchmarks.guard``, and ``--real industrial=runs/guard/industrial.npz`` for what
:mod:`tests.benchmarks.guard_policies` measured; ten minutes on one free core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from recsys.alignment.config import GuardConfig
from recsys.alignment.rounds.comparison import errors
from recsys.alignment.rounds.guard import check_round
from recsys.alignment.rounds.measurement import (
    COVERAGE,
    HELD_OUT_REWARD,
    HR1,
    KL_TO_START,
    REWARD,
    STEERED,
    Measurement,
    recall_name,
)
from recsys.metrics import bootstrap
from tests.benchmarks.guard_rows import (
    DEPTH,
    DEPTHS,
    NATS,
    RECALL,
    ROWS,
    Harm,
    Listed,
    MadeUp,
    Real,
    Source,
    nats_for,
    sink,
    vanish,
)

PAGE: Final = Path(__file__).resolve().parent / "results" / "guard.md"
ROUNDS: Final = 3
SEED: Final = 11
BOOTSTRAPS: Final = 5
"""Seeds of the bootstrap, in turns: their draws are kept."""
REWARDS: Final = (REWARD, HELD_OUT_REWARD, REWARD + STEERED, HELD_OUT_REWARD + STEERED)
REWARD_KEPT: Final = 0.9
"""Correlation of a row's reward from round to round."""
GUARD: Final = GuardConfig(users=ROWS)
FEW: Final = MadeUp("made up, a round moves little", 0.995)
MUCH: Final = MadeUp("made up, a round moves much", 0.98)
ASKED: Final = 0.03
"""Harm that should be found: this share of recall@50."""

Rows = npt.NDArray[np.float64]
Kind = Literal["sink", "vanish"]
Other = Callable[[Measurement, np.random.Generator], Measurement]


@dataclass(frozen=True)
class Rewards:
    """Rewards and coverage of the start; the rewards of a row have something in common."""

    level: dict[str, Rows]
    spread: Rows

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Rewards:
        """Draw a start."""
        common = generator.normal(size=ROWS)
        level = {name: math.sqrt(0.5) * (common + generator.normal(size=ROWS)) for name in REWARDS}
        return cls(level, generator.gamma(2.0, 0.15, ROWS))

    def moved(self, generator: np.random.Generator, rise: float = 0.0) -> dict[str, Rows]:
        """After a round that raised all rewards by so many deviations."""
        noise = math.sqrt(1 - REWARD_KEPT**2)
        level = {n: REWARD_KEPT * rows + noise * generator.normal(size=ROWS) + rise for n, rows in self.level.items()}
        return {COVERAGE: self.spread * generator.lognormal(-0.02, 0.2, ROWS), **level}


def measured(listed: Listed, others: dict[str, Rows]) -> Measurement:
    """All figures of a round, near the start."""
    values = {f"{KL_TO_START}_item_{m}": 0.1 for m in range(1, 6)} | {KL_TO_START: 0.1, KL_TO_START + STEERED: 1.0}
    return Measurement(values, listed.figures() | others)


def lower(name: str, by: float) -> Other:
    """Lower a reward by so many standard deviations of the start's rows."""
    return lambda now, generator: replace(now, rows={**now.rows, name: now.rows[name] - by})


def farther(name: str, mean: float) -> Other:
    """Set a divergence to the mean of rows that are exponential around it."""
    return lambda now, generator: replace(now, values={**now.values, name: generator.exponential(mean, ROWS).mean()})


ALL_NULL: Final = "null runs stopped, all sources together"
OTHER_HARMS: Final[dict[str, tuple[Other, float]]] = {
    "held-out reward .1 deviations lower, after a rise of .5": (lower(HELD_OUT_REWARD, 0.1), 0.5),
    "one place of a session ruined, 2 nats from the start there": (farther(f"{KL_TO_START}_item_3", 2.0), 0.0),
    "under weights alone: held-out reward .1 deviations lower": (lower(HELD_OUT_REWARD + STEERED, 0.1), 0.0),
    "under weights alone: 5 nats from the start": (farther(KL_TO_START + STEERED, 5.0), 0.0),
}
"""Harm, and how far all rewards had risen in the round kept last, in deviations."""


KINDS: Final[tuple[Kind, ...]] = ("sink", "vanish")


def harm_of(kind: Kind, source: Source, share: float) -> Harm:
    """Lower recall@50 by this share of itself."""
    return sink(nats_for(source, share)) if kind == "sink" else vanish(share)


@contextmanager
def kept_draws() -> Iterator[None]:
    """Draw the bootstrap of a seed once: the same draws as without, and a third of the time."""
    plain, known = bootstrap._draws, dict[Any, tuple[npt.NDArray[np.uint8], Any]]()

    def draws(generator: np.random.Generator, num_users: int, count: int) -> npt.NDArray[Any]:
        key = (str(generator.bit_generator.state), num_users, count)
        if key not in known:
            found = plain(generator, num_users, count)
            known[key] = found.astype(np.uint8), generator.bit_generator.state
        found, generator.bit_generator.state = known[key]
        return found

    bootstrap._draws = draws  # type: ignore[assignment]
    try:
        yield
    finally:
        bootstrap._draws = plain


def null_runs(source: Source, runs: int, config: GuardConfig = GUARD) -> float:
    """Share of runs of three null rounds that are stopped."""
    stopped = 0
    for run in range(runs):
        generator = np.random.default_rng([SEED, run])
        listed, rewards = source.draw(generator, ROUNDS), Rewards.draw(generator)
        start = last = measured(listed[0], {COVERAGE: rewards.spread, **rewards.level})
        for one in listed[1:]:
            now = measured(one, rewards.moved(generator))
            result = check_round(start, now, np.arange(ROWS), config, SEED + run % BOOTSTRAPS, last, ROUNDS)
            if result.decision == "stop":
                stopped += 1
                break
            last = now
    return stopped / runs


def found(source: Source, runs: int, harm: Harm | None, other: Other | None = None, rise: float = 0.0) -> float:
    """Share of harmed rounds that are stopped; the round before was kept and is like the start but for the rise."""
    stopped = 0
    for run in range(runs):
        generator = np.random.default_rng([SEED, 1, run])
        (first, before, now), rewards = source.draw(generator, 2), Rewards.draw(generator)
        start = measured(first, {COVERAGE: rewards.spread, **rewards.level})
        last = measured(before, rewards.moved(generator, rise))
        harmed = measured(harm(now, generator) if harm else now, rewards.moved(generator, rise))
        harmed = other(harmed, generator) if other else harmed
        seed = SEED + run % BOOTSTRAPS
        stopped += check_round(start, harmed, np.arange(ROWS), GUARD, seed, last, ROUNDS).decision == "stop"
    return stopped / runs


def attainable(source: Source, harm: Harm, *, soft: bool, error: float) -> tuple[float, float]:
    """What one figure can do: chance to find the harm at that one-sided error, and rows that it would take for 90 %.

    By the normal approximation, from as many rows as there are.
    """
    start, now = source.many()
    name, generator = recall_name(DEPTH, soft=soft), np.random.default_rng(SEED)
    change = harm(now, generator).figures()[name] - start.figures()[name]
    nothing = now.figures()[name] - start.figures()[name]
    effect = (nothing.mean() - change.mean()) / change.std()
    z = NormalDist().inv_cdf(1 - error)
    power = NormalDist().cdf(effect * math.sqrt(ROWS) - z)
    return power, ((z + NormalDist().inv_cdf(0.9)) / effect) ** 2


def uncorrected(config: GuardConfig) -> GuardConfig:
    """The same rules with the errors of plain 95 % intervals, on the average, and without margins."""
    margins = dict.fromkeys(("recall_margin", "hr1_margin", "coverage_margin", "reward_margin"), 0.0)
    total = min(0.99, 0.025 * ROUNDS * len(errors(config, _figures(), ROUNDS)))
    return config.model_copy(update={"false_stops": total, **margins})


def _figures() -> list[str]:
    recalls = [recall_name(k, soft=soft) for k in DEPTHS for soft in (False, True)]
    return [*recalls, HR1, COVERAGE, *REWARDS]


def simulate(sources: Sequence[Source], runs: int, harmed: int) -> list[tuple[str, list[str]]]:
    """Every row of the page's first table, one cell per source."""
    made_up = [source for source in sources if isinstance(source, MadeUp)]
    stopped = [null_runs(source, runs) for source in sources]
    all_runs = runs * len(sources)
    rows = [
        ("null runs stopped", [_share(share, runs) for share in stopped]),
        (ALL_NULL, [_share(sum(stopped) / len(stopped), all_runs), *("" for _ in sources[1:])]),
        (
            "null runs stopped by 95 % intervals without margin and correction",
            [_share(null_runs(s, runs // 3, uncorrected(GUARD)), runs // 3) if s is MUCH else "" for s in sources],
        ),
    ]
    for kind in KINDS:
        cells = [_share(found(source, harmed, harm_of(kind, source, ASKED)), harmed) for source in sources]
        rows.append((f"found: recall@50 lower by 3 % of itself, targets {kind}", cells))
    for name, (other, rise) in OTHER_HARMS.items():
        cells = [
            _share(found(source, harmed // 3, None, other, rise), harmed // 3) if source in made_up else ""
            for source in sources
        ]
        rows.append((f"found: {name}", cells))
    return rows


def attainable_rows(sources: Sequence[Source]) -> list[tuple[str, list[str]]]:
    """What the two figures could do, alone and with their share of the error."""
    share = errors(GUARD, _figures(), ROUNDS)[recall_name(DEPTH, soft=True), "start"]
    asked = (
        ("recall@50 as it is, one test at 5 %", False, 0.05),
        ("soft recall@50, one test at 5 %", True, 0.05),
        (f"soft recall@50 at the guard's {100 * share:.2f} %", True, share),
    )
    rows = []
    for name, soft, error in asked:
        for kind in KINDS:
            both = [attainable(source, harm_of(kind, source, ASKED), soft=soft, error=error) for source in sources]
            rows.append((f"{name}; targets {kind}", [f"{power:.0%}; {rows_:,.0f} rows" for power, rows_ in both]))
    return rows


def facts(source: Source) -> str:
    """Recall of the start and how many rows a round moves across the edge."""
    start, now = source.many()
    before, after = (one.inside < DEPTH for one in (start, now))
    return f"recall@50 {before.mean():.2f}, {(before != after).mean():.1%} of rows win or lose"


def page(runs: int, harmed: int, real: Sequence[Real], command: str) -> str:
    """Simulate, and write what came of it."""
    begin = time.process_time()
    sources: list[Source] = [FEW, MUCH, *real]
    with kept_draws():
        rows = simulate(sources, runs, harmed)
    bounds = attainable_rows(sources)
    minutes = (time.process_time() - begin) / 60
    lead = (
        f"{dict(rows)[ALL_NULL][0]} of the runs that changed nothing are stopped. Recall@50 lower by 3 % of itself "
        f"is found in {' to '.join(_ends(_cells(rows, 'sink')))} of the rounds where all targets sink and in "
        f"{' to '.join(_ends(_cells(rows, 'vanish')))} where single ones vanish at random, with {ROWS:,} rows."
    )
    head = ["", *(f"{source.name}: {facts(source)}" for source in sources)]
    lines = ["# False stops of the guard, and what it finds", "", f"**{lead}**", "", f"`{command}`", ""]
    lines += [f"{minutes:.1f} minutes of one core's processor time", "", *_table(head, rows)]
    lines += ["## What 3 % asks for", "", *_table(head, bounds), *NOTES, ""]
    return "\n".join(lines)


NOTES: Final = (
    f"- {ROWS:,} rows of as many users, runs of {ROUNDS} rounds, default settings, a steered policy, so that every rule has "
    "something to compare; half of the error belongs to the soft recall at 50, the rest is shared by all other comparisons",
    f"- made up: HR@1 {RECALL[1]:.2f}, recall@50 {RECALL[50]:.2f}, log-probabilities of targets with a standard deviation "
    f"of {NATS} nats and changes with the tails of real rounds (kurtosis 5); rewards of standard deviation 1 that "
    f"correlate by {REWARD_KEPT} with the start's",
    "- real: validation rows of a policy trained by the recipe and of three stretches of ReRe from it; every row's figures "
    "are given to start and rounds in an order drawn for that row, so no round is better than the start and rows change as "
    "they did",
    "- targets sink: all targets lose the same number of nats; vanish: targets between places 11 and 50 lose 5 nats at "
    "random, and nothing else happens",
    "- second table: chance at 2,000 rows, and rows for 90 %, by the normal approximation. Hits alone, with all of the "
    "error for one look at one figure, reach 90 % only where a round moves little",
    "- ranges are 95 % Wilson intervals of the simulation",
    "- a place of a session that is less than `max_kl` nats from the start is not stopped, whatever it does",
)


def _table(head: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> list[str]:
    body = [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *body, ""]


def _cells(rows: Sequence[tuple[str, list[str]]], kind: Kind) -> list[str]:
    """What was found of the harm that is asked for."""
    return next(cells for name, cells in rows if name.endswith(f"3 % of itself, targets {kind}"))


def _ends(cells: Sequence[str]) -> list[str]:
    """The smallest and the largest percentage."""
    shares = sorted((cell.split(" ")[0] for cell in cells), key=lambda cell: float(cell.rstrip("%")))
    return [shares[0], shares[-1]]


def _share(value: float, of: int) -> str:
    z = 1.96
    middle = (value + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z * math.sqrt(value * (1 - value) / of + z**2 / (4 * of**2)) / (1 + z**2 / of)
    return f"{value:.1%} [{middle - half:.1%}, {middle + half:.1%}]"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="null runs")
    parser.add_argument("--harmed", type=int, default=200, help="rounds of every harm")
    parser.add_argument("--real", nargs="*", default=[], metavar="NAME=FILE", help="what guard_policies measured")
    options = parser.parse_args()
    named = [one.partition("=") for one in options.real]
    command = f"python -m tests.benchmarks.guard --runs {options.runs} --harmed {options.harmed}"
    command += "".join(f" --real {name}=runs/guard/{name}.npz" for name, _, _ in named[:1])
    command += "".join(f" {name}=runs/guard/{name}.npz" for name, _, _ in named[1:])
    real = [Real.load(f"{name}, real", Path(path)) for name, _, path in named]
    PAGE.write_text(page(options.runs, options.harmed, real, command), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What later papers add to alignment, on the simulator: how towers are combined, whose weights, which sessions.

Two tables on the same worlds, policies and reward models as :mod:`tests.benchmarks.alignment_simulator` (``--runs``,
``--set``), which are trained here where they are not there. The first trains nothing: of the next-token policy's beams the
reward model chooses one, its towers combined in every way; beside them stand the best beam and a search guided by the
reward. The second aligns the policy by variants of one small budget. Finished results are files, so it goes on where it was
stopped; ``--page`` writes the page of those variants that all seeds have finished.

Run: ``python -m tests.benchmarks.reward_combinations [--seeds 3]``; about 8 minutes of one processor per seed.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from pipelines.cli.options import LogLevel, set_up_logging
from pipelines.simulation.users import best_by
from recsys.contracts.manifest import read_json
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.runtime import set_threads
from tests.benchmarks import findings
from tests.benchmarks.alignment_simulator import Base, Job, run_job
from tests.benchmarks.alignment_simulator_page import START
from tests.benchmarks.alignment_simulator_variants import LATER
from tests.benchmarks.paired import RESULTS, machine
from tests.benchmarks.reward_guidance import BEAMS, GROUPS, Way
from tests.benchmarks.second_stage import DRAWS, change

BEST_BEAM: Final = "best beam"
GUIDED: Final = "guided by the reward, strength 2"
COMBINATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "zscore, the default": {},
    "rank": {"mode": "rank"},
    "raw": {"mode": "raw"},
    "raw, standard": {"mode": "raw", "transform": "standard"},
    "raw, rank": {"mode": "raw", "transform": "rank"},
    "raw, log_sigmoid": {"mode": "raw", "transform": "log_sigmoid"},
    "raw, log_sigmoid, reference .85": {"mode": "raw", "transform": "log_sigmoid", "reference_quantile": 0.85},
    "zscore, log_sigmoid": {"transform": "log_sigmoid"},
    "zscore, personal, shrinkage 20": {"personal": {}},
    "zscore, personal, shrinkage 5": {"personal": {"shrinkage": 5.0}},
}
DEFAULT: Final = "zscore, the default"
VARIANTS: Final = (START, *LATER)

Values = dict[str, npt.NDArray[np.float64]]


def chosen_from_beams(base: Base) -> Values:
    """True utility of each user's served session, for every combination, the best beam and the guided search."""
    made = base.folder / "chosen_from_beams.npz"
    if made.exists():
        with np.load(made) as values:
            return {name: values[name] for name in (BEST_BEAM, GUIDED, *COMBINATIONS)}
    users = base.users
    decode = DecodeConfig(beam_width=BEAMS, diversity_groups=GROUPS, rescore="none")
    recommender = Recommender(base.policy(), base.semantic_ids, decode)
    beams, _ = recommender.generate(
        users.histories, BEAMS, recommender.compile(None, len(users), exclude_seen=True), None
    )
    items = torch.from_numpy(beams)

    def utility(sessions: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        return users.truth(sessions.astype(np.int64), draws=DRAWS).utility[:, 0].astype(np.float64)

    found = {BEST_BEAM: utility(Way().serve(base)[0]), GUIDED: utility(Way(2.0).serve(base)[0])}
    for name, combination in COMBINATIONS.items():
        scorer = base.combined(combination)
        found[name] = utility(best_by(scorer.reward(users.histories, items).numpy(), beams))
    np.savez_compressed(made, **found)  # type: ignore[arg-type]
    return found


def over_seeds(changes: Sequence[float]) -> str:
    """Mean and 95 % t interval of one change per seed."""
    values = np.asarray(changes)
    if len(values) < 2:
        return f"{values.mean():+.1%}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1%} [{values.mean() - half:+.1%}, {values.mean() + half:+.1%}]"


def relative(now: Sequence[float], before: Sequence[float]) -> list[float]:
    """Change of every seed."""
    return [float(a / b - 1) for a, b in zip(now, before, strict=True)]


def combination_rows(parts: Sequence[Values]) -> list[list[str]]:
    """One row per way to choose: utility, against the best beam, against the default combination."""
    rows = []
    for name in parts[0]:
        cells = [name, f"{np.concatenate([part[name] for part in parts]).mean():.3f}"]
        for against in (BEST_BEAM, DEFAULT):
            now, before = (np.concatenate([part[key] for part in parts]) for key in (name, against))
            means = ([part[key].mean() for part in parts] for key in (name, against))
            cells += ["", ""] if name == against else [change(now, before), over_seeds(relative(*means))]
        rows.append(cells)
    return rows


def alignment_rows(runs: Path, seeds: Sequence[int]) -> list[list[str]]:
    """One row per variant: true utility, what items pay, divergence, cost."""
    results = {name: [Job(runs, seed, name).result for seed in seeds] for name in VARIANTS}
    results = {name: paths for name, paths in results.items() if all(path.exists() for path in paths)}
    facts = {name: [read_json(path) for path in paths] for name, paths in results.items()}
    utility = {
        name: [np.load(path.with_suffix(".npz"))["utility"] for path in paths] for name, paths in results.items()
    }
    start = utility[START]
    rows = [[START, f"{np.concatenate(start).mean():.3f}", *[""] * 5, _seconds(facts[START])]]
    for name in (name for name in LATER if name in results):
        measured = [(one["rounds"][0]["measured"], one["rounds"][one["kept_round"]]["measured"]) for one in facts[name]]
        prices = [
            over_seeds(relative([kept[key] for _, kept in measured], [before[key] for before, _ in measured]))
            for key in ("beam_hr@1", "beam_recall@50")
        ]
        rows.append(
            [
                name,
                f"{np.concatenate(utility[name]).mean():.3f}",
                change(np.concatenate(utility[name]), np.concatenate(start)),
                over_seeds(relative([one.mean() for one in utility[name]], [one.mean() for one in start])),
                *prices,
                f"{np.mean([kept['kl_to_start'] for _, kept in measured]):.3f}",
                _seconds(facts[name]),
            ]
        )
    return rows


def _seconds(facts: Sequence[Mapping[str, Any]]) -> str:
    return f"{np.mean([one['cpu_seconds'] for one in facts]):.0f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def page(chosen: list[list[str]], aligned: list[list[str]], notes: Sequence[str], command: str) -> str:
    """The result page."""
    lines = [
        "# How rewards are combined, and which sessions are read",
        "",
        f"**{findings.of_reward_combinations(chosen, aligned)}**",
        "",
        f"`{command}`",
        "",
        machine(),
        "",
        "## Nothing trained: one of the beams is chosen, or the search is guided",
        "",
        *_table(
            ["served", "true utility", "against the best beam", "over seeds", "against zscore", "over seeds"], chosen
        ),
        "",
        "## Aligned",
        "",
        *_table(
            ["variant", "true utility", "change", "over seeds", "HR@1", "recall@50", "KL", "processor seconds"], aligned
        ),
        "",
        *(f"- {note}" for note in notes),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Choose, align what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment_simulator"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of the recipe, for all seeds")
    parser.add_argument("--page", action="store_true", help="align nothing, write the page of what exists")
    arguments = parser.parse_args()
    set_up_logging(LogLevel.WARNING)
    set_threads(1)
    changed, seeds = tuple(arguments.set), range(1, arguments.seeds + 1)
    bases = [Base(arguments.runs / f"base_{seed}", seed, changed) for seed in seeds]
    parts = []
    for base in bases:
        parts.append(chosen_from_beams(base))
        print(
            base.seed,
            {name: round(float(v.mean()), 3) for name, v in parts[-1].items()},
            time.process_time(),
            flush=True,
        )
    for name in () if arguments.page else VARIANTS:
        for seed in seeds:
            job = Job(arguments.runs, seed, name, changed)
            if not job.result.exists():
                print(run_job(job), flush=True)
    rows = combination_rows(parts), alignment_rows(arguments.runs, seeds)
    users = sum(len(part[BEST_BEAM]) for part in parts)
    notes = [
        f"{len(parts)} seeds, {users} users, sessions of five, simulator's truth; chosen of {BEAMS} beams in {GROUPS} "
        "groups; one next-token policy and reward model per seed, constants fitted on the reward model's own train sessions",
        "changes are relative, with 95 % paired bootstrap intervals over users, and over seeds with t intervals",
        "aligned: 2 rounds of 2,000 samples, kept round; HR@1, recall@50 and KL on the guard's validation rows; processor "
        "seconds per seed with measuring, of which the row of the start is all measuring",
        "the ways to combine towers cost the same; what a guided search and choosing cost stands on `reward_guidance.md`, "
        "what one policy under several weights brings on `steering.md`",
        "users of the simulator all react to the worth of an item in one way, so a weight of one's own has nothing to find",
    ]
    command = f"python -m tests.benchmarks.reward_combinations --seeds {arguments.seeds}"
    if changed:
        command += f" --set {shlex.join(changed)}"
    text = page(*rows, notes, command)
    (RESULTS / "reward_combinations.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

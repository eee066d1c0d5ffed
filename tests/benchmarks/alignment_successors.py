"""Recall that is not sold: successors of ReRe from the same policies, on the same requests and test rows.

Every variant is ReRe (rule and ranking reward) with one option of ``align.rere.recall``, or two, with roll-outs that the
dense head guides, or with half the roll-outs, each of which is updated on twice; a control takes as many updates of the
next-token loss. All start from the trained policy of a data
set's recipe, see the same train targets in the same order, and are evaluated in beam order, with seen items, item level. A
finished (data set, seed, variant) is one JSON file and one file of values per test row, so the run can be stopped and
started again; the page is written from all that exist.

Run: ``python -m tests.benchmarks.alignment_successors --dataset beauty --runs runs --seeds 17``, where ``runs/beauty_17`` is
a finished run of the recipe with that seed (trained if it is not there); two to three minutes for a variant on one free
thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.cli.options import LogLevel, set_up_logging
from recsys.alignment.config import AlignConfig, GuardConfig
from recsys.contracts.columns import TEST
from recsys.contracts.manifest import write_json
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.bootstrap import estimate_over_seeds
from recsys.metrics.ranking import row_metrics
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import SilentProgress, set_threads
from tests.benchmarks import findings
from tests.benchmarks.alignment_rere import BEAM_WIDTH, Base, Job, align, open_base
from tests.benchmarks.alignment_rere_page import START, Finished, Results, compare, read_results, seed_by_seed, table
from tests.benchmarks.alignment_rere_variants import CHOSEN, DATASETS, VARIANTS, Settings, align_config
from tests.benchmarks.paired import RESULTS, machine

KS: Final = (1, 10, 50)
SHOWN: Final = ("hr@1", "hr@10", "hr@50", "ndcg@10")
CONTROL: Final = "next-token only"
RERE: Final = "ReRe"
GUIDED: Final = "guided roll-outs"
TWICE: Final = "every group twice"
_NARROW: Final = {"narrowing": {"negatives": 4}}
_CONSTRAINT: Final = {"constraint": {"allowed": 0.02, "rate": 2.0}}
_ANCHOR: Final = {"anchor": {"weight": 0.1, "eta": 1.0}}
SUCCESSORS: Final[Mapping[str, tuple[int, Mapping[str, Any]]]] = {
    RERE: (16, {}),
    TWICE: (16, {}),
    GUIDED: (16, {}),
    "siblings, half": (16, {"sibling_share": 0.5}),
    "search 32, update 1 + 4": (32, _NARROW),
    "search 32, update 1 + 4, repaired": (32, {**_NARROW, "repair": {"weight": 0.3, "reach": 2.0}}),
    "prefix anchor": (16, _ANCHOR),
    "recall constraint": (16, _CONSTRAINT),
    "LambdaLoss on the beam": (16, {"policy_gradient_weight": 0.0, "lambda_loss": {}}),
    "siblings, half, anchor": (16, {"sibling_share": 0.5, **_ANCHOR}),
}
"""Candidates per request, and ``align.rere.recall``; one takes every group for two updates, one guides its roll-outs."""
NAMES: Final = (CONTROL, *SUCCESSORS)
PAGE: Final = RESULTS / "alignment_successors.md"


def config_of(name: str, settings: Settings, guard: GuardConfig) -> AlignConfig:
    """The `align` section of a variant."""
    if name == CONTROL:
        return align_config(VARIANTS[CONTROL], settings, guard)
    group, recall = SUCCESSORS[name]
    iterations = 2 if name == TWICE else 1
    rere = {
        "rounds": settings.rounds,
        "steps_per_round": settings.steps_per_round // iterations,
        "num_iterations": iterations,
        "requests_per_step": settings.requests,
        "loss": {"beta": settings.beta},
        "recall": recall,
        "rollouts": {"num_generations": group, "guided": name == GUIDED},
        "reference_sync_every": None,
        "optimiser": {"learning_rate": settings.learning_rate},
    }
    values = {"method": "rere", "rere": rere, "guard": guard, "checkpoint_every_steps": 1000}
    return AlignConfig.model_validate(values)


def evaluate(base: Base, policy: GenerativeRecommender, rows: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Values per test row in beam order with seen items, and their means."""
    targets = base.rows_to_measure(TEST)
    targets = targets.take(np.arange(0, len(targets), max(1, len(targets) // rows)))
    recommender = Recommender(policy, base.semantic_ids, DecodeConfig(beam_width=BEAM_WIDTH))
    histories = Histories.from_targets(base.prepared.history, targets)
    beam, _ = recommender.both_orders(histories, KS[-1], exclude_seen=False, progress=SilentProgress())
    values = {n: v.astype(np.float32) for n, v in row_metrics(beam, targets, KS).items() if n in SHOWN}
    return {"users": targets.user_index, **values}, {name: float(value.mean()) for name, value in values.items()}


def run_job(job: Job, base: Base, settings: Settings, arguments: argparse.Namespace) -> None:
    """Align (not the start) and measure; nothing is done where the result exists."""
    if job.result.exists():
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    policy = base.policy()
    facts: dict[str, Any] = {"dataset": job.dataset, "seed": job.seed, "variant": job.name}
    started, begun = time.process_time(), time.monotonic()
    if job.name != START:
        guard = GuardConfig(users=arguments.guard_rows, ks=KS, recall_at=KS[-1])
        facts |= align(job, base, policy, config_of(job.name, settings, guard))
    facts |= {"align_seconds": time.process_time() - started, "align_wall_seconds": time.monotonic() - begun}
    values, facts["mean"] = evaluate(base, policy, arguments.rows)
    np.savez_compressed(job.rows, **values)
    write_json(job.result, facts)


def page(out: Path) -> str:
    """Write the page from everything that is finished; data sets of which nothing is there keep their part of the page."""
    lines, rows, over = list[str](), list[list[str]](), list[str]()
    earlier = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    for dataset in DATASETS:
        results = read_results(out / dataset, {START, *NAMES})
        if START not in results:
            lines += earlier.get(dataset, [])
            rows += [[dataset, *row] for row in rows_on_page(earlier.get(dataset, []))]
            continue
        found = rows_of(results)
        rows += [[dataset, *row] for row in found]
        means = [np.mean([one.facts["mean"][name] for one in results[START].values()]) for name in SHOWN]
        count = len(next(iter(results[START].values())).rows["users"])
        lines += [f"## {dataset}", "", f"{count:,} test rows, seeds {', '.join(map(str, sorted(results[START])))}.", ""]
        first = [START, *(f"{mean:.4f}" for mean in means), "", "", "", ""]
        lines += table(("variant", *SHOWN, "groups with a signal", "KL", "rounds kept", "CPU s"), [first, *found])
        if len(results[START]) > 1:
            others = {name: results[name] for name in NAMES if name in results}
            over.append(finding_over_seeds(dataset, others, results[START]))
            for metric in ("hr@1", "hr@50"):
                lines += [f"### {metric} seed by seed", "", *seed_by_seed(others, results[START], metric)]
    settings = CHOSEN["beauty"]
    rates = ", ".join(f"{chosen.learning_rate:g} ({name})" for name, chosen in CHOSEN.items())
    notes = [
        "changes in percent of the trained policy, in brackets 95 % paired bootstrap intervals over users, who are drawn "
        "with their rows under all seeds; every seed has a policy of its own, and where there is one alone the intervals "
        "say nothing about others",
        f"{settings.steps_per_round} updates of {settings.requests} requests in each of the rounds, AdamW with {rates}, KL "
        f"beta {settings.beta:g} to the start; rates are "
        "those that ReRe was given earlier, nothing was tuned for its successors",
        f"{TWICE}: as many updates on half the requests, two for each group against the clipped ratio (num_iterations: 2)",
        "CPU s: of the alignment, guard included, on a machine that was busy with other work; groups with a signal: share "
        "of the requests that taught something",
        "goal: HR@1 up by 10 % and HR@50 not below the start, by intervals over five seeds",
    ]
    head = [
        "# Recall that is not sold: ReRe's successors",
        "",
        f"**{' '.join([findings.of_successors(rows), *over])}**",
        "",
    ]
    command = "python -m tests.benchmarks.alignment_successors"
    head += [
        f"`{command} --dataset beauty --seeds 17 18 19`, `{command} --dataset toys`, "
        f"`{command} --dataset industrial --seeds 17 18 19 20 21 --rows 4533`",
        "",
    ]
    head += [machine(), ""]
    text = "\n".join([*head, *(f"- {note}" for note in notes), "", *lines])
    PAGE.write_text(text, encoding="utf-8")
    return text


def finding_over_seeds(dataset: str, results: Results, before: Mapping[int, Finished]) -> str:
    """Which variants raise HR@1 beyond the interval over the policies of a data set."""
    risen = []
    for name, by_seed in results.items():
        found = [
            compare({seed: one}, {seed: before[seed]}, ["hr@1"])[0] for seed, one in by_seed.items() if seed in before
        ]
        changes = [change.change / change.before for change in found]
        if len(changes) > 1 and estimate_over_seeds(changes).low > 0:
            risen.append(name)
    said = f"by {', '.join(risen)}" if risen else "by no variant"
    return f"Over the {len(before)} policies of {dataset} HR@1 rises beyond its interval over seeds {said}."


def sections(text: str) -> dict[str, list[str]]:
    """The lines of each data set on a page, its heading first.

    Example:
        >>> sections("# Title\\n## beauty\\n\\n4 rows\\n## toys")
        {'beauty': ['## beauty', '', '4 rows'], 'toys': ['## toys']}
    """
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            found[line.removeprefix("## ")] = []
        if found:
            found[[*found][-1]].append(line)
    return found


def rows_on_page(lines: Sequence[str]) -> list[list[str]]:
    """The rows of :func:`rows_of` in the first table of a section.

    Example:
        >>> rows_on_page(["| variant | a |", "|---|---|", "| next-token policy | 1 |", "| ReRe | 2 |", "", "| ReRe | 3 |"])
        [['ReRe', '2']]
    """
    found: list[list[str]] = []
    for line in lines:
        if found and not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in NAMES:
            found.append(cells)
    return found


def rows_of(results: Results) -> list[list[str]]:
    """One row per variant: changes of the metrics, share of groups with a signal, divergence, rounds kept, seconds."""
    found = []
    for name in NAMES:
        if name not in results:
            continue
        facts = [one.facts for one in results[name].values()]
        rounds = [one for fact in facts for one in fact["rounds"][1:]]
        signal = [
            1 - one["counts"]["groups_without_signal"] / one["counts"]["groups"]
            for one in rounds
            if "groups" in one["counts"]
        ]
        kl = [fact["rounds"][fact["kept_round"]]["measured"]["kl_to_start"] for fact in facts]
        changes = [str(change) for change in compare(results[name], results[START], SHOWN)]
        shown = f"{100 * np.mean(signal):.0f} %" if signal else ""
        kept = ", ".join(f"{fact['kept_round']} of {len(fact['rounds']) - 1}" for fact in facts)
        seconds = f"{np.mean([fact['align_seconds'] for fact in facts]):.0f}"
        found.append([name, *changes, shown, f"{np.mean(kl):.3f}", kept, seconds])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="beauty")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds DATASET_SEED, one folder per policy")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment_successors"), help="results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4000, help="test rows that are evaluated")
    parser.add_argument("--guard-rows", type=int, default=1000)
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from what exists")
    arguments = parser.parse_args(argv)
    set_up_logging(LogLevel.INFO)
    set_threads(1)
    chosen = CHOSEN[arguments.dataset]
    settings = Settings(learning_rate=chosen.learning_rate, rounds=arguments.rounds)
    for seed in () if arguments.page else arguments.seeds:
        base = open_base(arguments.runs, arguments.dataset, seed)
        for name in (START, *arguments.variants):
            run_job(Job(arguments.dataset, seed, name, arguments.out), base, settings, arguments)
    print(page(arguments.out))


if __name__ == "__main__":
    main()

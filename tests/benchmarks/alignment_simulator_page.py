"""The page of the simulator experiment: everything that :mod:`tests.benchmarks.alignment_simulator` has finished.

Differences are paired: the same users under the variant and under another policy, seed by seed; intervals are bootstrap
intervals over users, of whom every seed has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from recsys.contracts.manifest import read_json
from tests.benchmarks.alignment_rere_page import (
    Finished,
    Results,
    compare,
    over_seeds,
    read_results,
    seed_by_seed,
    table,
)
from tests.benchmarks.paired import RESULTS, machine

mpl.use("agg")
mpl.rcParams["svg.hashsalt"] = "alignment_simulator"  # the same picture from the same results

START: Final = "next-token policy"
IPA: Final = "ipa (dpo)"
GUARDED: Final = "ipa (dpo), no price accepted"
ONE_SHOT: Final = "one-shot dpo"
CONTROL: Final = "next-token only"
LOSS: Final = "loss: "
"""Prefix of the variants that compare losses, on a smaller budget."""
PUSHED: Final = "pushed too far, guard off"
PUSHED_GUARDED: Final = "pushed too far, guard on"

TIME_NAME: Final = "time.json"
UTILITY: Final = "utility"
COLUMNS: Final = {
    UTILITY: "utility, best beam",
    "sampled_utility": "utility, drawn sessions",
    "watch_ms": "watch time",
    "likes": "likes",
    "held_out_reward": "held-out reward",
}
PRICES: Final = {"beam_hr@1": "HR@1", "beam_recall@50": "recall@50"}

NOTES: Final = (
    "utility: P(view) + P(like) + 3 P(follow) + 3 P(share), summed over a session of 5; users respond inside the session",
    "best beam: the session that would be served; drawn sessions: 4 samples from the policy per user",
    "held-out reward: weighted probabilities of the held-out reward model for the best beam",
    "changes are relative to the mean before; 95 % paired bootstrap intervals over users, all seeds pooled",
    f"'{IPA}' accepts falls of HR@1, recall and coverage, as the recipe does; '{GUARDED}' goes back and takes smaller steps",
    f"'{CONTROL}' takes the same steps on the same samples without a preference loss: what mere training would bring",
)


def changes_table(results: Results, against: str) -> list[str]:
    """Every variant against one of them."""
    before = results[against]
    rows = [[against, *(f"{_mean(one.facts['mean'][name] for one in before.values()):.3f}" for name in COLUMNS)]]
    for variant, by_seed in results.items():
        if variant != against and set(by_seed) & set(before):
            rows.append([variant, *map(str, compare(by_seed, before, list(COLUMNS)))])
    return table(["variant", *COLUMNS.values()], rows)


def seeds_table(results: Results, against: str) -> list[str]:
    """Utility of the best beam seed by seed, and over seeds: what the intervals over users do not contain."""
    others = {variant: by_seed for variant, by_seed in results.items() if variant != against}
    return seed_by_seed(others, results[against], UTILITY)


def marks_table(starts: Mapping[int, Finished]) -> list[str]:
    """What the policy can be held against."""
    facts = [one.facts for one in starts.values()]
    rows = [
        [
            name,
            f"{_mean(f['marks'][name][UTILITY] for f in facts):.3f}",
            f"{_mean(f['marks'][name]['watch_ms'] for f in facts) / 1e3:.1f}",
            f"{_mean(f['marks'][name]['likes'] for f in facts):.3f}",
        ]
        for name in facts[0]["marks"]
    ]
    own = [one.facts["mean"] for one in starts.values()]
    cells = [_mean(m[UTILITY] for m in own), _mean(m["watch_ms"] for m in own) / 1e3, _mean(m["likes"] for m in own)]
    rows.append([f"{START}, best beam", f"{cells[0]:.3f}", f"{cells[1]:.1f}", f"{cells[2]:.3f}"])
    rows.sort(key=lambda row: float(row[1]))
    return table(["sessions of", "utility", "watch, s", "likes"], rows)


def rounds_table(by_seed: Mapping[int, Finished]) -> list[str]:
    """Reward, held-out reward and truth over the rounds, means over the seeds that ran a round."""
    facts = [one.facts for one in by_seed.values()]
    rows = []
    for number in range(max(len(f["rounds"]) for f in facts)):
        here = [f["rounds"][number] for f in facts if len(f["rounds"]) > number]
        measured = [one["measured"] for one in here]
        rows.append(
            [
                str(number),
                str(len(here)),
                *(f"{_mean(m[name] for m in measured):.3f}" for name in ("reward", "held_out_reward")),
                *(f"{_mean(one['truth'][name] for one in here):.3f}" for name in (UTILITY, "sampled_utility")),
                f"{_mean(m['beam_hr@1'] for m in measured):.3f}",
                f"{_mean(m['beam_recall@50'] for m in measured):.3f}",
                f"{_mean(m['kl_to_start'] for m in measured):.3f}",
                str(sum(bool(one.get("verdict", {}).get("broken")) for one in here)),
            ]
        )
    header = [
        "round",
        "seeds",
        "reward",
        "held-out reward",
        "utility, best beam",
        "utility, drawn",
        "HR@1",
        "recall@50",
    ]
    return table([*header, "KL to the start", "guard objects"], rows)


def draw_rounds(results: Results, path: Path) -> None:
    """Draw reward, held-out reward and truth over the rounds, means over the seeds that ran a round; truth in units of
    the start."""
    shown = [name for name in (IPA, PUSHED, PUSHED_GUARDED) if name in results]
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3), squeeze=False, sharey="row")
    for axis, name in zip(axes[0], shown, strict=True):
        curves: dict[str, list[float]] = {
            "reward": [],
            "held_out_reward": [],
            "truth, best beam": [],
            "truth, drawn": [],
        }
        facts = [one.facts["rounds"] for one in results[name].values()]
        for number in range(max(map(len, facts))):
            here = [rounds for rounds in facts if len(rounds) > number]
            for scorer in ("reward", "held_out_reward"):
                curves[scorer].append(_mean(rounds[number]["measured"][scorer] for rounds in here))
            for label, key in (("truth, best beam", UTILITY), ("truth, drawn", "sampled_utility")):
                gains = [rounds[number]["truth"][key] / rounds[0]["truth"][key] - 1 for rounds in here]
                curves[label].append(_mean(gains))
        for label, values in curves.items():
            axis.plot(
                values,
                marker="o",
                label=label.replace("held_out_", "held-out "),
                linestyle="-" if "truth" in label else "--",
            )
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set(title=name, xlabel="round")
    axes[0][0].set(ylabel="deviations of the start (dashed)\nshare gained (solid)")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def verdicts(by_seed: Mapping[int, Finished]) -> list[str]:
    """What the guard kept, and why it stopped."""
    return [
        f"- seed {seed}: kept round {one.facts['kept_round']}; {one.facts['stopped'] or 'ran to the end'}"
        for seed, one in sorted(by_seed.items())
    ] + [""]


def cost_table(results: Results) -> list[str]:
    """Processor seconds and pairs per run."""
    rows = []
    for variant, by_seed in results.items():
        facts = [one.facts for one in by_seed.values()]
        trained = [r for f in facts for r in f.get("rounds", [])[1:]]
        pairs = f"{sum(r['pairs'] for r in trained) / len(facts):.0f}" if trained else ""
        skipped = f"{sum(r['skipped_indistinguishable'] for r in trained) / len(facts):.0f}" if trained else ""
        kept = ", ".join(str(f["kept_round"]) for f in facts if "kept_round" in f)
        rows.append([variant, pairs, skipped, kept, f"{_mean(f['cpu_seconds'] for f in facts):.0f}"])
    return table(["variant", "pairs", "skipped", "rounds kept", "processor seconds, measuring included"], rows)


def price_table(results: Results) -> list[str]:
    """What the items of the validation rows pay for it: figures of the guard's rows at the start and in the round kept."""
    rows = []
    for variant, by_seed in results.items():
        facts = [one.facts for one in by_seed.values() if "kept_round" in one.facts]
        if len(facts) > 1:
            rows.append([variant, *map(str, _price(facts)), ", ".join(f"{f['kept_round']}" for f in facts)])
    return table(["variant", *(f"{name}, change" for name in PRICES.values()), "KL to the start", "rounds kept"], rows)


def _price(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Relative changes over seeds, with t intervals where there are several seeds, and the mean divergence."""
    cells = []
    for name in PRICES:
        changes = [
            100 * (f["rounds"][f["kept_round"]]["measured"][name] / f["rounds"][0]["measured"][name] - 1) for f in facts
        ]
        cells.append(over_seeds(changes))
    kl = _mean(f["rounds"][f["kept_round"]]["measured"]["kl_to_start"] for f in facts)
    return [*cells, f"{kl:.3f}"]


def finding(results: Results) -> str:
    """What the page leads with: users' gain under the recipe's method over seeds, its price, and what else was run."""
    said = []
    for variant in (IPA, GUARDED, PUSHED):
        if not {variant, START} <= set(results):
            continue
        seeds = sorted(set(results[variant]) & set(results[START]))
        if len(seeds) < 2:
            continue
        gains = [
            100 * (results[variant][s].facts["mean"][UTILITY] / results[START][s].facts["mean"][UTILITY] - 1)
            for s in seeds
        ]
        hr1, recall, _ = _price([results[variant][seed].facts for seed in seeds])
        said.append(
            f"{variant}: true utility of the best session {over_seeds(gains)}, HR@1 {hr1}, recall@50 {recall}, over "
            f"{len(seeds)} seeds"
        )
    return "; ".join(said) + "." if said else "Not run."


def write_page(runs: Path, seeds: Sequence[int], order: Sequence[str], changed: Sequence[str] = ()) -> str:
    """Write ``results/alignment_simulator.md`` from the finished jobs of these seeds, and return its text.

    Args:
        changed: Keys of the recipe that were changed: those results are no continuation of the recipe's, and have a page of
            their own, ``alignment_simulator_small.md``.
    """
    stem = "alignment_simulator_small" if changed else "alignment_simulator"
    wanted = set(seeds)
    found = {
        name: {seed: one for seed, one in by_seed.items() if seed in wanted}
        for name, by_seed in read_results(runs, set(order)).items()
    }
    results: dict[str, dict[int, Finished]] = {name: found[name] for name in order if found.get(name)}
    command = f"python -m tests.benchmarks.alignment_simulator --first-seed {seeds[0]} --seeds {len(seeds)}"
    command += f" --set {' '.join(changed)}" if changed else ""
    title = "Alignment against the truth of the simulator"
    lines = [f"# {title}{', smaller worlds' if changed else ''}", "", f"**{finding(results)}**", ""]
    lines += [f"`{command}`", "", machine(), ""]
    lines += [f"- {note}" for note in NOTES]
    if START not in results:
        return "\n".join([*lines, "", "nothing is finished yet", ""])
    users = sum(one.facts["rows"] for one in results[START].values())
    lines += [f"- {len(results[START])} seeds, {users} users{_time_taken(runs)}", ""]
    losses = {name.removeprefix(LOSS): one for name, one in results.items() if name.startswith(LOSS)}
    results = {name: one for name, one in results.items() if not name.startswith(LOSS)}
    lines += [f"## Against the {START}", "", *changes_table(results, START)]
    for other in (ONE_SHOT, CONTROL):
        if other in results and IPA in results:
            lines += [f"## {IPA} against {other}", "", *changes_table({n: results[n] for n in (other, IPA)}, other)]
    if losses:
        lines += ["## Losses", "", "Two rounds of 2,000 samples each, everything else as above.", ""]
        lines += changes_table({START: results[START], **losses}, START)
    lines += ["## What items pay", "", "Over seeds, t intervals; figures of the guard's validation rows.", ""]
    lines += price_table({**results, **losses})
    lines += ["## Seed by seed, utility of the best beam", "", *seeds_table({**results, **losses}, START)]
    lines += ["## What a policy can be held against", "", *marks_table(results[START])]
    draw_rounds(results, RESULTS / f"{stem}.svg")
    lines += [f"![Reward, held-out reward and truth over the rounds]({stem}.svg)", ""]
    for name in (IPA, GUARDED, PUSHED, PUSHED_GUARDED):
        if name in results:
            lines += [f"## Rounds: {name}", "", *rounds_table(results[name]), *verdicts(results[name])]
    lines += ["## Cost", "", *cost_table({**results, **losses})]
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    return text


def _time_taken(runs: Path) -> str:
    """What the calls that ran something took together."""
    path = runs / TIME_NAME
    if not path.exists():
        return ""
    spent = read_json(path)
    return f"; all of it took {spent['minutes']:.1f} minutes with {spent['workers']} processes of one thread"


def _mean(values: Iterable[Any]) -> float:
    return float(np.mean([float(value) for value in values]))

"""The page of the month: checks, the nights, utility over nights, costs; a table, a plot and the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from tests.benchmarks.month.checks import Check, costs, quality
from tests.benchmarks.month.nights import Month, NightFound
from tests.benchmarks.month.world import Size, recipe
from tests.benchmarks.paired import RESULTS, machine

mpl.use("agg")
mpl.rcParams["svg.hashsalt"] = "month"  # the same picture from the same results

ARMS = {
    "attainable": "best attainable",
    "served": "served",
    "frozen": "frozen at night 1",
}


EVENTS = {
    "missed": "a missed one",
    "broken": "broken data",
    "SIGTERM": "a SIGTERM in training",
    "rollback": "a rollback",
    "outage": "an MLflow outage",
}


def command(size: Size) -> str:
    """What runs this month again."""
    said = "python -m tests.benchmarks.month"
    for name, value, usual in (("nights", size.nights, Size.nights), ("seed", size.world.seed, Size.world_seed)):
        said += "" if value == usual else f" --{name} {value}"
    return said


def write_page(month: Month, size: Size, found: Sequence[Check], minutes: float, folder: Path = RESULTS) -> str:
    """Write ``month.md`` and ``month.svg`` and return the page."""
    failed = [check for check in found if not check.passed]
    text = "\n".join(
        [
            "# A month of nights",
            "",
            f"**{finding(month, found)}**",
            "",
            f"`{command(size)}`",
            "",
            f"{machine()}; {minutes:.1f} minutes, of which {_cpu(month) / 60:.1f} processor minutes in commands",
            "",
            *_about(month, size),
            *_stopped(month, size),
            "",
            "## What had to hold",
            "",
            f"{len(found) - len(failed)} of {len(found)} hold.",
            "",
            "| question | holds | found |",
            "|---|---|---|",
            *(
                f"| {check.question} | {'yes' if check.passed else '**no**'} | {_cell(check.found)} |"
                for check in found
            ),
            "",
            "## Quality over nights",
            "",
            "![True utility over nights](month.svg)",
            "",
            *_worth_table(month),
            "## The nights",
            "",
            "| night | day | what happened | exit codes of `run` | ends | champion | items | processor s | MB on disk |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(month, night) for night in month.nights),
            "",
        ]
    )
    draw(month, folder / "month.svg")
    (folder / "month.md").write_text(text, encoding="utf-8")
    return text


def finding(month: Month, found: Sequence[Check]) -> str:
    """What the page leads with."""
    failed = sum(not check.passed for check in found)
    held = "all checks hold" if not failed else f"{failed} of {len(found)} checks do not hold"
    events = [EVENTS[night.event] for night in month.nights if night.event]
    lead = f"{len(month.nights)} nights with {', '.join(events) or 'nothing unusual'}: {held}."
    if not month.from_nothing:
        return lead
    warm, cold = costs(month)
    share, low, high = quality(month, "own")
    return (
        f"{lead} A warm night costs {warm / cold:.2f} of a retrain from nothing; its lists are worth {share:+.1%} "
        f"[{low:+.1%}, {high:+.1%}] against that retrain's."
    )


def _about(month: Month, size: Size) -> list[str]:
    world = size.world
    return [
        f"- {size.before} days of log, then {len(month.nights)} nights of `recsys run --as-of DATE`; {world.users:,} users "
        f"and {world.items} items by the end, three in ten of each come on the way; interests wander from day to day",
        "- worth: P(view) + P(like) + 3 P(follow) + 3 P(share) of a list of ten, shown in order, under the world's own "
        "preferences, mean over all users with a list that night",
        "- served: what the batch job wrote with the champion; frozen: the model of night 1 with tonight's histories; from "
        f"nothing: another folder, the same log and recipe, {size.epochs} epochs; a warm night: `nights` "
        f"{recipe(size, Path(), Path())['nights']}",
        f"- the world has seed {world.seed}; what a warm night does was chosen in the world of seed 17, on "
        "nights that are not these",
        "- what is recommended does not change what is logged, so that all are followed over the same month",
        "- a few hundred test rows cannot rule out a loss of 3 %, so that the gate's margins are wider than its defaults: "
        "`promote.margin` .15, `budget` .25, `slice_margin` .2",
        "- seconds are the processor's, start-up of the process included, measured while a retrain runs on the other core",
    ]


def _stopped(month: Month, size: Size) -> list[str]:
    """Say where the nights were ended before their number was full."""
    done, load = len(month.nights), os.getloadavg()[2]
    if done == size.nights:
        return []
    return [
        f"- **{done} of {size.nights} nights**: no more were begun when the time was over (`--minutes`); "
        f"{load:.0f} processes wanted {os.cpu_count()} cores in the last quarter of an hour"
    ]


def _worth_table(month: Month) -> list[str]:
    lines = [
        "| night | served | tonight's own version | frozen at night 1 | from nothing | best attainable | processor s, warm "
        "| from nothing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for night in month.nights:
        other = month.from_nothing.get(night.number)
        if other is None and night.number != 1:
            continue
        cells = [f"{night.worths[arm].mean:.3f}" for arm in ("served", "own", "frozen")]
        cells += [f"{other.worth.mean:.3f}" if other else "", f"{night.worths['attainable'].mean:.3f}"]
        cells += [f"{night.runs[-1].cpu:.1f}", f"{other.ended.cpu:.1f}" if other else ""]
        lines.append(f"| {night.number} | " + " | ".join(cells) + " |")
    if month.from_nothing:
        shown = [
            f"{share:+.1%} [{low:+.1%}, {high:+.1%}]"
            for share, low, high in (quality(month, arm) for arm in ("own", "served", "frozen"))
        ]
        lines += [
            "",
            f"Against retrains, paired by user: tonight's own version {shown[0]}, served {shown[1]}, frozen {shown[2]}.",
        ]
    return [*lines, ""]


def _row(month: Month, night: NightFound) -> str:
    journal = night.journal
    cells = [
        str(night.number),
        str(night.day),
        night.event,
        ", ".join(str(ended.code) for ended in night.runs),
        f"{journal.get('state', '')}: {_cell(str(journal.get('reason', '')))}",
        night.champion or "",
        str(month.items.get(night.number, "")),
        ", ".join(f"{ended.cpu:.1f}" for ended in night.runs),
        f"{night.disk / 1e6:.0f}" if night.disk else "",
    ]
    return "| " + " | ".join(cells) + " |"


def draw(month: Month, path: Path) -> None:
    """Draw utility over nights, by arm, and what the nights cost."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1))
    for arm, label in ARMS.items():
        shown = [night for night in month.nights if arm in night.worths]
        upper.plot(
            [night.number for night in shown], [night.worths[arm].mean for night in shown], marker=".", label=label
        )
    cold = sorted(month.from_nothing.items())
    upper.plot(
        [number for number, _ in cold], [one.worth.mean for _, one in cold], "s", label="from nothing that night"
    )
    for night in month.nights:
        if night.event:
            upper.axvline(night.number, color="grey", linewidth=0.5, linestyle=":")
            upper.annotate(
                night.event, (night.number, 0), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, va="bottom"
            )
    upper.set(ylabel="true utility of a list of ten", ylim=(0, None))
    upper.legend(fontsize=7)
    shown = [night for night in month.nights if night.runs]
    lower.bar(
        [night.number for night in shown], [sum(ended.cpu for ended in night.runs) for night in shown], label="nights"
    )
    lower.plot(
        [number for number, _ in cold], [one.ended.cpu for _, one in cold], "s", color="C3", label="from nothing"
    )
    lower.set(xlabel="night", ylabel="processor seconds")
    lower.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _cpu(month: Month) -> float:
    own = sum(ended.cpu for night in month.nights for ended in night.commands)
    return own + sum(one.ended.cpu for one in month.from_nothing.values())


def _cell(text: str) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= 160 else text[:159] + "…"

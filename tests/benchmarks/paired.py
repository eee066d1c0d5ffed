"""Timing two ways of doing one thing so that the comparison survives a busy machine.

The contestants run in one process, one after the other, round by round; each round's order is reversed. What is reported
is the ratio of their minima and the spread of the per-round ratios: absolute times on a shared machine mean little.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, a value per round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The least disturbed round."""
        return min(self.seconds)

    def faster_than(self, other: Timing) -> str:
        """``12.3 (11.9 … 12.8)``: how many times faster than ``other``, and the lowest and highest round."""
        rounds = sorted(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))
        return f"{other.best / self.best:.2f} ({rounds[0]:.2f} … {rounds[-1]:.2f})"


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int = 3, warmup: bool = True
) -> dict[str, Timing]:
    """Time every contestant ``rounds`` times, taking turns."""
    names = list(contestants)
    if warmup:
        for name in names:
            contestants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def machine() -> str:
    """One line about where the numbers come from; no host name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = f"{names[0]}, {len(names)} cores" if names else model
    return (
        f"{model}; torch {torch.__version__}, {torch.get_num_threads()} thread(s), Python {platform.python_version()}"
    )


def write_table(
    name: str,
    title: str,
    finding: str,
    header: list[str],
    rows: list[list[str]],
    notes: list[str],
    module: str | None = None,
) -> str:
    """Write ``results/<name>.md`` and return its text: the finding, the command that was run, the table, the notes."""
    command = "python -m tests.benchmarks." + " ".join([module or name, *sys.argv[1:]])
    lines = [f"# {title}", "", f"**{finding}**", "", f"`{command}`", "", machine(), ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *[f"- {note}" for note in notes], ""]
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    return text

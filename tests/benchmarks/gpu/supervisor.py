"""Runs the sections in a worker process, outlives it, and records what it said: the half that never imports torch.

An illegal memory access leaves a process without a GPU, and a kernel that never ends leaves it without a word. So the worker
is watched from here: when it dies, the section at work is recorded as failed and a new worker goes on with the next; when a
section takes far longer than it may, the worker is ended and the same happens.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

Row = dict[str, Any]

START_SECONDS: Final = 120.0
"""For the imports and the roofs of a worker."""
PATIENCE: Final = 1.5
"""Sections look at their own clock between measurements; after so many times their seconds the worker is ended."""
SPARE_SECONDS: Final = 20.0
POISONED_CODE: Final = 75
"""Exit code of a worker that lost its GPU, has said so, and asks for a successor."""
TAIL_LINES: Final = 30


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        seconds: What each section may take, in the order they run.
        total: Seconds for all of them.
        options: Passed on to the worker.
    """

    seconds: Mapping[str, float]
    total: float
    options: Sequence[str] = ()

    def command(self, sections: Sequence[str]) -> list[str]:
        """How a worker for these sections is started."""
        return [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.gpu", *sections, "--worker", *self.options]


class Worker:
    """One worker: its lines as they come, the end of what else it printed, and where it is."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.section: str | None = None
        self.since = time.monotonic()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def next_row(self, wait: float) -> Row | None:
        """The next JSON line; anything else that is printed is kept as the tail.

        Raises:
            EOFError: The worker has ended.
            TimeoutError: Nothing came.
        """
        try:
            line = self.lines.get(timeout=max(wait, 0.01))
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            raise EOFError
        if line.startswith('{"'):
            try:
                found: Row = json.loads(line)
            except json.JSONDecodeError:
                pass
            else:
                return found
        self.tail.append(line.rstrip())
        return None

    def end(self) -> int:
        """End the process if it lives, and return its code."""
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def last_words(self) -> str:
        """The end of what it printed, on one line."""
        return " | ".join(line for line in self.tail if line.strip())[-1500:]


def supervise(plan: Plan, lines: Path) -> list[Row]:
    """Run all sections and return every row; each is printed and appended to ``lines`` as it comes."""
    lines.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rows: list[Row] = []
    with lines.open("w", encoding="utf-8") as file:
        remaining = list(plan.seconds)
        while remaining:
            if time.monotonic() - started > plan.total:
                for section in remaining:
                    _note(rows, file, {"section": section, "error": f"not run: {plan.total:g} s for all are over"})
                break
            before = len(remaining)
            _run_worker(plan, remaining, started, rows, file)
            if len(remaining) == before:  # it died before it began: another would, too
                break
    return rows


def _run_worker(plan: Plan, remaining: list[str], started: float, rows: list[Row], file: TextIO) -> None:
    """Run a worker until it ends; sections that are done or lost leave ``remaining``."""
    worker = Worker(plan.command(remaining))
    reason = ""
    while not reason:
        now = time.monotonic()
        allowed = START_SECONDS if worker.section is None else PATIENCE * plan.seconds[worker.section] + SPARE_SECONDS
        limit = min(worker.since + allowed, started + plan.total + SPARE_SECONDS)
        try:
            row = worker.next_row(limit - now)
        except TimeoutError:
            reason = f"ended after {now - worker.since:.0f} s: no time left"
            continue
        except EOFError:
            break
        if row is None:
            continue
        if row.get("event") == "begin":
            worker.section, worker.since = row["section"], time.monotonic()
        elif row.get("event") == "end":
            remaining.remove(row["section"])
            worker.section, worker.since = None, time.monotonic()
        _note(rows, file, row)
    code = worker.end()
    if worker.section is not None:
        remaining.remove(worker.section)
        what = reason or f"the process ended with code {code}"
        _note(rows, file, {"section": worker.section, "error": f"{what}: {worker.last_words()}"})
    elif remaining and (reason or code not in (0, POISONED_CODE)):
        what = reason or f"the process ended with code {code} before a section began"
        _note(rows, file, {"section": remaining[0], "error": f"{what}: {worker.last_words()}"})


def _note(rows: list[Row], file: TextIO, row: Row) -> None:
    rows.append(row)
    line = json.dumps(row)
    print(line, flush=True)
    file.write(line + "\n")
    file.flush()

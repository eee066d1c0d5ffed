"""Threads, seeds, progress: the few things that belong to a process rather than to a stage."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Protocol, TypeVar

logger = logging.getLogger("recsys")
Item = TypeVar("Item")


class Progress(Protocol):
    """How a long loop shows where it is: a bar on a terminal, a plain line now and then elsewhere."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield ``items``, showing how many are done."""
        ...


class PlainProgress:
    """A log line at most every ``every_s`` seconds; the right choice under cron."""

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield ``items`` and log the count from time to time."""
        started = last = time.monotonic()
        count = 0
        for count, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - last >= self.every_s:
                last = now
                logger.info("%s: %d%s, %.0f s", label, count, f" of {total}" if total else "", now - started)


class RichProgress:
    """A bar on standard error."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield ``items`` under a bar with rate and time left."""
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=label, total=total, console=Console(file=sys.stderr), transient=True)


class SilentProgress:
    """Says nothing: for callers that show progress themselves, and for notebooks."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield ``items``."""
        yield from items


class ProgressMode(StrEnum):
    """How long loops show where they are: ``auto`` is a bar on a terminal and plain lines elsewhere."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def make_progress(mode: ProgressMode = ProgressMode.AUTO) -> Progress:
    """Return what shows progress in this mode."""
    if mode is ProgressMode.OFF:
        return SilentProgress()
    if mode is ProgressMode.ON or sys.stderr.isatty():
        return RichProgress()
    return PlainProgress()


def set_threads(count: int) -> None:
    """Fix the number of compute threads of this process; more threads than cores make small kernels many times slower."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    import torch

    torch.set_num_threads(count)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy's global generator and torch; our own code draws from generators that it passes explicitly."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

"""What a command costs, as the kernel counts it: processor and wall seconds, and the most memory that it held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LAUNCHER: Final = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
wall = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
print("\\n" + json.dumps([code, used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024]))
"""
"""A small interpreter between this process and the command: a child's peak counts from what its parent held when it was
made, and a benchmark has torch loaded."""


@dataclass(frozen=True)
class Cost:
    """What one process and its threads used.

    Attributes:
        cpu: Seconds of all cores, user and system.
        wall: Seconds.
        megabytes: Peak of resident memory, MiB.
    """

    cpu: float
    wall: float
    megabytes: float

    @classmethod
    def of(cls, command: Sequence[str | Path]) -> Cost:
        """Run a command to its end, with byte code kept, as it is on a machine where the packages are installed.

        Raises:
            RuntimeError: It ended with another code than 0; the message holds the end of what it said.
        """
        launcher = [sys.executable, "-S", "-E", "-c", _LAUNCHER, *map(str, command)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(launcher, capture_output=True, text=True, check=True, env=environment)
        code, cpu, wall, megabytes = json.loads(done.stdout.rstrip().rpartition("\n")[2])
        if code:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {code}: {done.stderr[-2000:]}")
        return cls(cpu, wall, megabytes)

    def least(self, other: Cost) -> Cost:
        """The smaller of each number: neighbours on the machine only ever add."""
        return Cost(min(self.cpu, other.cpu), min(self.wall, other.wall), min(self.megabytes, other.megabytes))

"""Calls of the command line, each in a process of its own: exit code, processor seconds, what was said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        arguments: After ``recsys``.
        code: Exit code.
        cpu: Processor seconds of the process, start-up included.
        wall: Seconds.
        printed: Standard output.
        said: Messages on standard error, in order.
    """

    arguments: tuple[str, ...]
    code: int
    cpu: float
    wall: float
    printed: str
    said: tuple[str, ...]


def recsys(*arguments: str, stop_at: str | None = None) -> Ended:
    """Call the command line.

    Args:
        stop_at: SIGTERM is sent when a message begins like this.
    """
    # with byte code kept, as it is on a machine where the packages are installed
    left_out = ("MLFLOW_TRACKING_URI", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.cli.app", *arguments]
    started = time.monotonic()
    said = []
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=printed, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        for line in process.stderr:
            said.append(_message(line))
            if stop_at is not None and said[-1].startswith(stop_at):
                process.send_signal(signal.SIGTERM)
                stop_at = None
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        text = printed.read()
    cpu = used.ru_utime + used.ru_stime
    return Ended(arguments, process.returncode, cpu, time.monotonic() - started, text, tuple(said))


def _message(line: str) -> str:
    try:
        found: dict[str, Any] = json.loads(line)
        return str(found["message"])
    except (ValueError, KeyError, TypeError):
        return line.rstrip()


def knows(verb: str) -> bool:
    """Whether the command line has a verb."""
    return recsys(verb, "--help").code == 0


def all_of(commands: Sequence[Ended], verb: str) -> list[Ended]:
    """Those commands that called a verb."""
    return [ended for ended in commands if ended.arguments[0] == verb]

"""A worker's failure, in a module that imports nothing heavy."""

import atexit
import os
import signal
from pathlib import Path

from recsys.contracts.errors import DataError


def refuse(message: str) -> None:
    """Fail as a user's mistake does."""
    raise DataError(message)


def crash(name: str) -> None:
    """Die of a signal on the second process, as native code does; the first is left waiting."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), getattr(signal, name))
    signal.pause()


def abort_while_leaving(folder: str) -> None:
    """Do the work, which is a file with the process's number, and abort when the interpreter is taken down."""
    Path(folder, os.environ["RANK"]).touch()
    atexit.register(os.abort)

"""Being asked to stop: SIGTERM and SIGINT end a command with 143 and 130, with its lock free and nothing half done.

The signal is raised as an exception of its own in the main thread. It is no ``Exception``, so that no part of the program
takes it for a failure it may swallow, and no ``KeyboardInterrupt``, which Lightning answers with exit code 1. (Left to
itself, Lightning ends training on SIGTERM as if it were complete.)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """Somebody asked this process to stop.

    Attributes:
        name: Of the signal.
        exit_code: 128 and the number of the signal, as shells and schedulers know it.
    """

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
        super().__init__(f"stopped by {self.name}; finished stages are kept: run the same command again to go on")


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` in the block at the first SIGTERM or SIGINT.

    A second SIGTERM is ignored, because `timeout` and process groups send it twice; a second SIGINT ends the process now.
    Both stay so until the process has ended: earlier handlers are put back only where nobody asked to stop.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Stopped:
        raise
    except BaseException:
        _put_back(before)
        raise
    _put_back(before)


def _put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)

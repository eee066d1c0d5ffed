"""One run at a time in an output folder: a kernel lock on ``<output_dir>/.lock``.

The kernel releases the lock when the process ends, however it ends, so a SIGKILL leaves nothing to clean up. The text in
the file is only for people: it says who holds the lock. The file itself stays; deleting it would let two runs in.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.contracts.errors import RunLocked
from recsys.contracts.manifest import explain_write_errors


@contextmanager
def run_lock(output_dir: Path, key: str = "output_dir") -> Iterator[None]:
    """Hold the lock of ``output_dir`` for the time of the block.

    Args:
        output_dir: The folder.
        key: What names the folder, for the message.

    Raises:
        RunLocked: Another process holds it; the message says which, on which host, since when.
        ArtifactError: The folder cannot be created or written.
    """
    path = output_dir / ".lock"
    with explain_write_errors(output_dir, key):
        output_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLocked(
                f"another run works in '{output_dir.absolute()}' ({_holder(handle)}); wait for it, or choose another "
                f"{key}"
            ) from error
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        with explain_write_errors(output_dir, key):
            os.ftruncate(handle, 0)
            os.pwrite(handle, text.encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(handle, 0)  # the next holder is not to be called by our name before it has written its own
    finally:
        os.close(handle)


def holder_of(output_dir: Path) -> str | None:
    """Say who holds the lock, ``None`` where nobody seems to. Nobody tries the lock for it: that could send a run away."""
    try:
        return _named((output_dir / ".lock").read_text(errors="replace"))
    except OSError:
        return None


def _holder(handle: int) -> str:
    # without a name the holder has not written its own yet, and one before it was killed
    return _named(os.pread(handle, 4096, 0).decode(errors="replace")) or "it started just now"


def _named(text: str) -> str | None:
    """Who wrote this text into a lock; ``None`` where it is nobody, or a process of this machine that has ended."""
    try:
        holder = json.loads(text)
        name = f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
        if holder["host"] == socket.gethostname():
            os.kill(int(holder["pid"]), 0)  # sends nothing, and fails where nobody has that number
    except PermissionError:
        return name
    except (ValueError, KeyError, TypeError, OSError):
        return None
    return name

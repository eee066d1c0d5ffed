"""Temporary folders that go even when the process that made them was killed.

A model out of a registry is copied to the machine that opens it: a hundred megabytes or more, which a process ended by
SIGKILL or by the kernel for its memory cannot remove. Every folder holds a lock that the kernel releases with its process,
however that ends, and whoever makes the next folder of the same purpose removes those whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_LOCK: Final = ".lock"
_CONTENT: Final = "content"


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Make an empty folder below the system's temporary folder (``TMPDIR``) for the time of the block.

    Args:
        purpose: A word of letters; the folder is called ``recsys-<purpose>-`` and something random.

    Example:
        >>> with scratch_folder("example") as folder:
        ...     _ = (folder / "a.txt").write_text("kept for the time of the block")
        >>> folder.exists()
        False
    """
    prefix = f"recsys-{purpose}-"
    _remove_abandoned(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    handle = _locked(folder)
    try:
        (folder / _CONTENT).mkdir()
        yield folder / _CONTENT
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _locked(folder: Path) -> int:
    """Lock a new folder: under another name, so that nobody ever sees the lock's file without its lock."""
    new = folder / f"{_LOCK}-new"
    handle = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(OSError):  # a file system without locks: then it is removed at the end of the block alone
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _LOCK)
    return handle


def _remove_abandoned(prefix: str) -> None:
    """Remove our own folders whose process has ended; a link is not followed, what cannot be removed stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if folder.lstat().st_uid != os.geteuid():
                continue
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)

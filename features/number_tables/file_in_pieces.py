"""A file that is written piece by piece, and finished only where nothing went wrong."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


class FileInPieces:
    """Base class: as a context manager it finishes the file, or after an error leaves it as it is.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")

    def close(self) -> None:
        """Write the end of the file, and close it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

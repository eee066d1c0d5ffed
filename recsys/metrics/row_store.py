"""Rows of numbers kept until they are wanted again: in memory while they are few, in a temporary file beyond that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

KEPT_BYTES: Final = 1 << 26
"""64 MB stay in memory; what comes after them goes to a file that the operating system deletes with the process."""


class RowStore:
    """Blocks of rows of one width and type, in the order they were added.

    Args:
        scratch: Folder of the temporary file; ``None`` takes the system's.
        kept_bytes: Bytes that stay in memory.

    Example:
        >>> store = RowStore()
        >>> store.add(np.ones((2, 3), np.float32))
        >>> len(store), [block.shape for block in store]
        (2, [(2, 3)])
    """

    def __init__(self, scratch: Path | None = None, kept_bytes: int = KEPT_BYTES) -> None:
        self._scratch, self._room = scratch, kept_bytes
        self._kept: list[npt.NDArray[Any]] = []
        self._shapes: list[tuple[int, ...]] = []
        self._file: IO[bytes] | None = None
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, block: npt.NDArray[Any]) -> None:
        """Add a block of rows ``[b, …]``."""
        if not len(block):
            return
        self._rows += len(block)
        if self._file is None and block.nbytes <= self._room:
            self._room -= block.nbytes
            self._kept.append(block)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 (it lives as long as the store)
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(block).data)
        self._shapes.append(block.shape)
        self._kept = self._kept or [block[:0]]  # the type of what is in the file

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        yield from (block for block in self._kept if len(block))
        position = 0
        for shape in self._shapes:
            block = np.empty(shape, self._kept[0].dtype)
            assert self._file is not None
            self._file.seek(position)
            position += self._file.readinto(block.data.cast("B"))  # type: ignore[attr-defined]
            yield block

    @property
    def num_blocks(self) -> int:
        """Blocks that were added and hold rows."""
        return sum(1 for block in self._kept if len(block)) + len(self._shapes)

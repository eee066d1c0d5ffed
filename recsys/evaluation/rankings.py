"""Rankings on disk: what a system answered for every row of a split, kept so that nobody computes it twice.

Reads and writes ``<folder>/<system>/<filtered|unfiltered>/{items,scores}.npy``, and ``sources.npy`` beside them where it is
known which source brought each item. A folder appears by rename, so a ranking
is there whole or not at all, and a killed stage goes on with the next one.
"""

from __future__ import annotations

import mmap
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ranking import RankedItems, SourcedItems
from recsys.data.histories import Histories

BEAM: Final = "generative (beam)"
"""The policy alone, in pure beam order."""

GUIDED: Final = "generative (guided)"
"""The search guided by item scores, in its own order, with no other source of candidates: by all scorers of a second stage,
or by the dense head as ``decode.guidance`` says."""

DENSE: Final = "dense head"
"""The best items of the whole catalogue by the policy's dense head."""

SERVED: Final = "generative (served)"
"""What ``recommend`` writes by default: candidates of all sources in the order of the ranker, or without a ranker the beam's
items in the order of the dense head."""

UNALIGNED_BEAM: Final = "before alignment (beam)"
UNALIGNED_GUIDED: Final = "before alignment (guided)"
UNALIGNED_SERVED: Final = "before alignment (served)"
"""The same orders by the policy as `train` left it, shown where alignment is on; guided where ``decode.guidance`` is."""

OWN_SYSTEMS: Final = (BEAM, GUIDED, DENSE, SERVED, UNALIGNED_BEAM, UNALIGNED_GUIDED, UNALIGNED_SERVED)
"""Rankings of the policy; baselines have their own names."""

CURVES_FILE: Final = "curves.parquet"
"""Training curves, beside what was trained."""

ROWS_PER_BLOCK: Final = 1 << 16
"""Rows ranked and evaluated at once: 20 metrics in 7 slices of so many rows take 40 MB."""

FILTER_NAMES: Final = {True: "filtered", False: "unfiltered"}

Rankings = dict[str, dict[bool, RankedItems]]
"""By system, then by whether items of the history were left out."""


def histories_in_blocks(histories: Histories) -> Iterator[Histories]:
    """The histories in blocks whose rankings fit into memory; all of them at once where they are few."""
    if len(histories) <= ROWS_PER_BLOCK:
        yield histories
        return
    for start in range(0, len(histories), ROWS_PER_BLOCK):
        yield histories.take(np.arange(start, min(start + ROWS_PER_BLOCK, len(histories))))


def ranking_folder(folder: Path, system: str, exclude_seen: bool) -> Path:
    """Folder of one ranking.

    Example:
        >>> ranking_folder(Path("r"), "generative (beam)", True).as_posix()
        'r/generative_beam/filtered'
    """
    return folder / re.sub(r"[^a-z0-9]+", "_", system.lower()).strip("_") / FILTER_NAMES[exclude_seen]


def write_ranking(path: Path, ranked: RankedItems) -> None:
    """Write one ranking by rename."""
    write_rankings([path], [ranked], len(ranked))


def write_rankings(paths: Sequence[Path], blocks: Iterable[RankedItems | Sequence[RankedItems]], num_rows: int) -> None:
    """Write several rankings of the same rows block by block, each by rename when it is whole.

    Args:
        blocks: For every block of rows one ranking per path, or the ranking itself for one path.
        num_rows: Rows of all blocks together.
    """
    writers: list[_Writer] = []
    try:
        for block in blocks:
            parts = [block] if isinstance(block, RankedItems) else list(block)
            if not writers:
                writers = [
                    _Writer(path, num_rows, ranked.items.shape[1], _columns(ranked))
                    for path, ranked in zip(paths, parts, strict=True)
                ]
            for writer, ranked in zip(writers, parts, strict=True):
                writer.add(ranked)
    finally:
        for writer in writers:
            writer.close()
    for writer in writers:
        writer.publish()


def _columns(ranked: RankedItems) -> dict[str, type[np.generic]]:
    """Files of a ranking; one that knows its sources has them beside items and scores."""
    columns: dict[str, type[np.generic]] = {"items": np.int32, "scores": np.float32}
    return columns | ({"sources": np.uint8} if isinstance(ranked, SourcedItems) else {})


class _Writer:
    """The arrays of one ranking, written row by row."""

    def __init__(self, path: Path, num_rows: int, width: int, columns: Mapping[str, type[np.generic]]) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.part")
        self.missing = num_rows
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        self.files = {}
        for name, kind in columns.items():
            handle = (self.temporary / f"{name}.npy").open("wb")
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(handle, {**header, "shape": (num_rows, width)})
            self.files[name] = (handle, kind)

    def add(self, ranked: RankedItems) -> None:
        for name, (handle, kind) in self.files.items():
            handle.write(np.ascontiguousarray(getattr(ranked, name), dtype=kind).tobytes())
        self.missing -= len(ranked)

    def close(self) -> None:
        for handle, _ in self.files.values():
            handle.close()

    def publish(self) -> None:
        assert not self.missing, f"'{self.path}' misses {self.missing} rows"
        self.temporary.rename(self.path)


def rows_of(ranked: RankedItems, rows: slice) -> RankedItems:
    """Return some rows; their items are a copy, after which none of a memory-mapped file stays in memory.

    The operating system counts what was read of a mapped file as the process's memory, until it is asked not to.
    """
    part = RankedItems(np.array(ranked.items[rows]), ranked.scores[rows])
    if isinstance(ranked.items.base, mmap.mmap):
        ranked.items.base.madvise(mmap.MADV_DONTNEED)
    return part


def read_ranking(path: Path) -> RankedItems:
    """Open one ranking, memory-mapped.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    try:
        items = np.load(path / "items.npy", mmap_mode="r", allow_pickle=False)
        scores = np.load(path / "scores.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"ranking '{path}' cannot be read: {error}; delete its artefact and run `evaluate` again"
        ) from error
    return RankedItems(items, scores)


def read_sources(path: Path) -> npt.NDArray[np.uint8] | None:
    """Open the sources of one ranking's items, memory-mapped, ``[N, k]``; ``None`` where none are kept.

    Raises:
        ArtifactError: The file is damaged.
    """
    file = path / "sources.npy"
    if not file.exists():
        return None
    try:
        sources: npt.NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"ranking '{path}' cannot be read: {error}; delete its artefact and run `evaluate` again"
        ) from error
    return sources


def read_rankings(folder: Path, systems: Sequence[str], filters: Sequence[bool]) -> Rankings:
    """Open the rankings of several systems.

    Args:
        filters: Values of ``exclude_seen`` that were ranked.
    """
    return {
        name: {exclude: read_ranking(ranking_folder(folder, name, exclude)) for exclude in filters} for name in systems
    }

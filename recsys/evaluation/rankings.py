"""Rankings on disk: what a system answered for every row of a split, kept so that nobody computes it twice.

Reads and writes ``<folder>/<system>/<filtered|unfiltered>/{items,scores}.npy``. A folder appears by rename, so a ranking
is there whole or not at all, and a killed stage goes on with the next one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ranking import RankedItems

BEAM: Final = "generative (beam)"
"""The policy in pure beam order."""

SERVED: Final = "generative (served)"
"""The policy's beam items in the order of its dense head: what ``recommend`` writes by default."""

UNALIGNED_BEAM: Final = "before alignment (beam)"
UNALIGNED_SERVED: Final = "before alignment (served)"
"""The same two orders by the policy as `train` left it, shown where alignment is on."""

CURVES_FILE: Final = "curves.parquet"
"""Training curves, beside what was trained."""

FILTER_NAMES: Final = {True: "filtered", False: "unfiltered"}

Rankings = dict[str, dict[bool, RankedItems]]
"""By system, then by whether items of the history were left out."""


def ranking_folder(folder: Path, system: str, exclude_seen: bool) -> Path:
    """Folder of one ranking.

    Example:
        >>> ranking_folder(Path("r"), "generative (beam)", True).as_posix()
        'r/generative_beam/filtered'
    """
    return folder / re.sub(r"[^a-z0-9]+", "_", system.lower()).strip("_") / FILTER_NAMES[exclude_seen]


def write_ranking(path: Path, ranked: RankedItems) -> None:
    """Write one ranking by rename."""
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    np.save(temporary / "items.npy", np.ascontiguousarray(ranked.items, dtype=np.int32))
    np.save(temporary / "scores.npy", np.ascontiguousarray(ranked.scores, dtype=np.float32))
    temporary.rename(path)


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


def read_rankings(folder: Path, systems: Sequence[str], filters: Sequence[bool]) -> Rankings:
    """Open the rankings of several systems.

    Args:
        filters: Values of ``exclude_seen`` that were ranked.
    """
    return {
        name: {exclude: read_ranking(ranking_folder(folder, name, exclude)) for exclude in filters} for name in systems
    }

"""Candidate tables of rows with one target each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Targets
from recsys.ranker.table import CandidateTable


def single_targets(items: npt.ArrayLike) -> Targets:
    """One target and one user per row, with histories that hold nothing."""
    wanted = np.asarray(items, np.int32)
    rows, blank = len(wanted), np.zeros(len(wanted), np.int64)
    return Targets(np.arange(rows, dtype=np.int32), blank, blank, wanted, np.arange(rows + 1, dtype=np.int64))


def candidate_table(
    items: npt.NDArray[np.int32], features: npt.NDArray[np.float32], target: npt.ArrayLike, names: tuple[str, ...]
) -> CandidateTable:
    """Validation rows."""
    return CandidateTable(items, features, names, single_targets(target), np.full(len(items), VALID, np.int8))

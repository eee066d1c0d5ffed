"""Slices: which rows ask for cold, head or tail items, and which users are new or long known.

Reads train counts per item and the targets; produces one boolean per row and slice. Traffic is counted on the train
split only, so a slice does not depend on the answers it measures.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.contracts.dataset import Targets
from recsys.contracts.errors import DataError
from recsys.evaluation.config import SlicesConfig

Mask = npt.NDArray[np.bool_]

ALL_ROWS = "all"


def head_items(train_counts: npt.NDArray[np.integer], share: float) -> Mask:
    """Mark the most popular items that make up ``share`` of the traffic; ties go to the lower item_index.

    Example:
        >>> head_items(np.array([1, 6, 3, 0]), 0.5).tolist(), head_items(np.array([1, 6, 3, 0]), 0.7).tolist()
        ([False, True, False, False], [False, True, True, False])
    """
    order = np.argsort(-train_counts, kind="stable")
    before = np.cumsum(train_counts[order]) - train_counts[order]
    head = np.zeros(len(train_counts), bool)
    head[order] = before < share * train_counts.sum()
    return head


def row_slices(
    targets: Targets, train_counts: npt.NDArray[np.integer], config: SlicesConfig | None = None
) -> dict[str, Mask]:
    """Assign rows to slices.

    A row with several targets is ``cold_items`` if any target is cold, ``head_items`` if all are head, ``tail_items``
    if all are tail; mixed rows are in neither of the last two.

    Args:
        train_counts: ``[I]`` positive events in the train split, as ``items.parquet`` has them.

    Returns:
        ``{slice: [N] bool}``; ``all`` comes first. A slice may be empty.

    Raises:
        DataError: A target is not in the catalogue.
    """
    config = config or SlicesConfig()
    if len(targets.items) and int(targets.items.max()) >= len(train_counts):
        raise DataError(
            f"a target is item_index {int(targets.items.max())}, the item table has {len(train_counts)} rows; "
            "targets and items come from different runs of `prepare`"
        )
    head = head_items(train_counts, config.head_share)[targets.items]
    cold = (train_counts <= config.cold_max_count)[targets.items]
    lengths = targets.history_end - targets.history_start
    return {
        ALL_ROWS: np.ones(len(targets), bool),
        "cold_items": _any(cold, targets),
        "head_items": ~_any(~head, targets),
        "tail_items": ~_any(head, targets),
        "no_history": lengths == 0,
        "new_users": lengths <= config.new_user_max,
        "long_histories": lengths >= config.long_history_min,
    }


def _any(flags: Mask, targets: Targets) -> Mask:
    """Reduce flags of targets to flags of rows."""
    row = np.repeat(np.arange(len(targets)), np.diff(targets.item_offsets))
    return np.bincount(row[flags], minlength=len(targets)) > 0

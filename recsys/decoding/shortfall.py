"""Why a user got fewer items than asked.

Reads an answer and the compiled rules behind it; produces one :class:`Shortfall` per short row. A search loses no item to
a shared or personal rule, so a row is short only when the rules themselves leave too little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.constraints import SharedRules

Reason = Literal["rules", "seen", "quotas"]


@dataclass(frozen=True)
class Shortfall:
    """One row with fewer items than asked.

    Attributes:
        row: Row of the answer.
        wanted, found: Items asked for and given.
        allowed: Items that the shared rules allow this user.
        unseen: Those of them that the user has not seen (equal to ``allowed`` where seen items may come again).
        reason: ``rules``: fewer are allowed than wanted; ``seen``: enough are allowed, but the user has seen them;
            ``quotas``: enough are left, but their groups' quotas are used up.
    """

    row: int
    wanted: int
    found: int
    allowed: int
    unseen: int
    reason: Reason


def explain_shortfalls(
    histories: Histories,
    ranked: RankedItems,
    rules: SharedRules,
    leaf_of_item: npt.NDArray[np.int64],
    segments: npt.NDArray[np.int64] | None,
    exclude_seen: bool,
    has_quotas: bool,
) -> list[Shortfall]:
    """Explain every row of ``ranked`` that ends in -1.

    Args:
        leaf_of_item: From :func:`~recsys.decoding.constraints.leaf_lookups`.
        segments: ``[N]``, or ``None`` when all users are in the first segment.
    """
    wanted = ranked.items.shape[1]
    found_N = (ranked.items >= 0).sum(1)
    short = np.flatnonzero(found_N < wanted)
    seen_items = histories.take(short).seen_items()
    result = []
    for row, seen in zip(short, seen_items, strict=True):
        segment = int(segments[row]) if segments is not None else 0
        allowed = int(rules.num_allowed[segment])
        leaves = leaf_of_item[np.unique(seen).astype(np.int64)]
        unseen = allowed - int((rules.allowed_below[-1][segment, leaves] > 0).sum()) if exclude_seen else allowed
        reason: Reason = "rules" if allowed < wanted else "seen" if unseen < wanted else "quotas"
        assert has_quotas or reason != "quotas", "without quotas a search finds everything that is possible"
        result.append(Shortfall(int(row), wanted, int(found_N[row]), allowed, unseen, reason))
    return result

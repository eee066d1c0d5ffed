"""Why a user got fewer items than asked.

Reads an answer and the compiled rules behind it; produces one :class:`Shortfall` per short row. A search loses no item to
a shared or personal rule, so a row is short only when the rules themselves leave too little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.constraints import CompiledRules

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


def explain_shortfalls(histories: Histories, ranked: RankedItems, rules: CompiledRules) -> list[Shortfall]:
    """Explain every row of ``ranked`` that ends in -1."""
    wanted = ranked.items.shape[1]
    found_N = (ranked.items >= 0).sum(1)
    short = np.flatnonzero(found_N < wanted)
    result = []
    for row, seen in zip(short, histories.take(short).seen_items(), strict=True):
        segment = rules.segment_of(int(row))
        allowed, unseen = rules.count_allowed(segment), rules.count_left(segment, seen)
        reason: Reason = "rules" if allowed < wanted else "seen" if unseen < wanted else "quotas"
        assert rules.quotas is not None or reason != "quotas", (
            "without quotas a search finds everything that is possible"
        )
        result.append(Shortfall(int(row), wanted, int(found_N[row]), allowed, unseen, reason))
    return result

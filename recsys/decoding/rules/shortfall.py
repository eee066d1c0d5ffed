"""Why a user got fewer items than asked.

Reads an answer and the compiled rules behind it; produces one :class:`Shortfall` per short row. A search loses no item to
a shared or personal rule, so a row is short only when the rules themselves leave too little, or when quotas meet a beam that
is too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.rules.constraints import CompiledRules

Reason = Literal["rules", "seen", "quotas", "beam"]


@dataclass(frozen=True)
class Shortfall:
    """One row with fewer items than asked.

    Attributes:
        row: Row of the answer.
        wanted, found: Items asked for and given.
        allowed: Items that the shared rules allow this user.
        unseen: Those of them that the user has not seen (equal to ``allowed`` where seen items may come again).
        reason: ``quotas``: the quotas of groups took items that rules and history would have left; ``rules``: fewer are
            allowed than wanted; ``seen``: enough are allowed, but the user has seen them; ``beam``: a longer list would have
            kept the quotas, but the beam was too narrow to hold it.
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
        segment, found, denied = rules.segment_of(int(row)), int(found_N[row]), rules.denied_of(int(row))
        allowed, unseen = rules.count_allowed(segment, denied), rules.count_left(segment, seen, denied)
        possible = rules.count_within_quotas(segment, seen, denied)
        result.append(
            Shortfall(int(row), wanted, found, allowed, unseen, _reason(wanted, found, allowed, unseen, possible))
        )
    return result


def rows_below_quotas(histories: Histories, ranked: RankedItems, rules: CompiledRules) -> npt.NDArray[np.int64]:
    """Rows with fewer items than rules, history and quotas together permit: the beam was too narrow for them."""
    wanted = ranked.items.shape[1]
    found_N = (ranked.items >= 0).sum(1)
    short = np.flatnonzero(found_N < wanted)
    possible = [
        rules.count_within_quotas(rules.segment_of(int(row)), seen, rules.denied_of(int(row)))
        for row, seen in zip(short, histories.take(short).seen_items(), strict=True)
    ]
    return short[found_N[short] < np.minimum(np.array(possible, np.int64), wanted)]


def sessions_below_quotas(
    histories: Histories, items: npt.NDArray[np.integer], rules: CompiledRules
) -> npt.NDArray[np.int64]:
    """The same for sessions, ``[N, sessions, M]``: rows with fewer than there can be."""
    wanted, length = items.shape[1:]
    found_N = (items[:, :, 0] >= 0).sum(1)
    short = np.flatnonzero(found_N < wanted)
    possible = [
        min(wanted, rules.count_sessions(rules.segment_of(int(row)), seen, length, rules.denied_of(int(row))))
        for row, seen in zip(short, histories.take(short).seen_items(), strict=True)
    ]
    return short[found_N[short] < np.array(possible, np.int64)]


def _reason(wanted: int, found: int, allowed: int, unseen: int, possible: int) -> Reason:
    """Say what took the items: whatever took the last of them comes first.

    Args:
        possible: Length of the longest list that rules, history and quotas together permit.

    Example:
        >>> _reason(wanted=5, found=2, allowed=4, unseen=4, possible=2)
        'quotas'
        >>> _reason(wanted=5, found=2, allowed=4, unseen=4, possible=3)
        'beam'
    """
    if found < min(wanted, possible):
        return "beam"
    if possible < min(wanted, unseen):
        return "quotas"
    return "rules" if allowed < wanted else "seen"

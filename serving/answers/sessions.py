"""Whole sessions as an answer: the policy of a session task generates what a user sees in one visit, items and order.

Legend: N users, k sessions of a user, M items of a session.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.data.histories import Histories
from recsys.decoding.rules.constraints import CompiledRules

Reason = Literal["rules", "seen", "quotas", "beam"]


@dataclass(frozen=True)
class RankedSessions:
    """Generated sessions of N users, best first.

    Attributes:
        items: ``[N, k, M]`` item_index in the order they are to be shown; -1 throughout where fewer sessions were possible.
        scores: ``[N, k]`` float32, not increasing along a row: log-probability, or the second stage's reward; ``-inf``
            where there is no session.
    """

    items: npt.NDArray[np.integer]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class SessionShortfall:
    """One user with fewer sessions than asked; fields as in :class:`~recsys.decoding.rules.shortfall.Shortfall`.

    Attributes:
        reason: ``rules``: the allowed items make fewer different sessions than wanted; ``seen``: enough would be allowed,
            but the user has seen too many of them; ``quotas``: limits per session rule out what would be left;
            ``beam``: more are possible, and the beam was too narrow; ``decode.later_item_width`` narrows it.
    """

    row: int
    wanted: int
    found: int
    allowed: int
    unseen: int
    reason: Reason


def explain_short_sessions(
    histories: Histories, ranked: RankedSessions, rules: CompiledRules
) -> list[SessionShortfall]:
    """Explain every row with fewer than k sessions.

    How many there can be is counted: :meth:`~recsys.decoding.rules.constraints.CompiledRules.count_sessions`.
    """
    wanted, length = ranked.items.shape[1:]
    found_N = (ranked.items[:, :, 0] >= 0).sum(1)
    short = np.flatnonzero(found_N < wanted)
    result = []
    for row, seen in zip(short, histories.take(short).seen_items(), strict=True):
        segment, denied = rules.segment_of(int(row)), rules.denied_of(int(row))
        allowed, unseen = rules.count_allowed(segment, denied), rules.count_left(segment, seen, denied)
        found, possible = int(found_N[row]), rules.count_sessions(segment, seen, length, denied)
        reason: Reason = "rules" if math.perm(allowed, length) < wanted else "seen"
        if found < min(wanted, possible):
            reason = "beam"
        elif possible < min(wanted, math.perm(unseen, length)):
            reason = "quotas"
        result.append(SessionShortfall(int(row), wanted, found, allowed, unseen, reason))
    return result

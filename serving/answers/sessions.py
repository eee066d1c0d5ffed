"""Whole sessions as an answer: the policy of a session task generates what a user sees in one visit, items and order.

Legend: N users, k sessions of a user, M items of a session.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.data.histories import Histories
from recsys.decoding.rules import ItemRules

SESSION_RANK: Final = "session_rank"
PLACE: Final = "place"
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
    """One user with fewer sessions than asked; fields as in :class:`~recsys.decoding.shortfall.Shortfall`.

    Attributes:
        reason: ``rules``: the allowed items make fewer different sessions than wanted; ``seen``: enough would be allowed,
            but the user has seen too many of them; ``quotas``: enough are left, and limits per session rule them out;
            ``beam``: nothing but the beam's width, which ``decode.later_item_width`` narrows.
    """

    row: int
    wanted: int
    found: int
    allowed: int
    unseen: int
    reason: Reason


def session_rows(user_ids: pl.Series, ranked: RankedSessions, item_ids: pl.Series) -> pl.DataFrame:
    """Turn sessions into one row per user, session and place.

    Returns:
        ``row`` (of the answer), ``user_id, session_rank, place, item_id, score``; ranks and places count from 1, and the
        score is the session's.
    """
    row, session, place = np.nonzero(ranked.items >= 0)
    return pl.DataFrame(
        {
            "row": row,
            Columns.USER_ID: user_ids.gather(row),
            SESSION_RANK: (session + 1).astype(np.int32),
            PLACE: (place + 1).astype(np.int32),
            Columns.ITEM_ID: item_ids.gather(ranked.items[row, session, place]),
            Columns.SCORE: ranked.scores[row, session].astype(np.float32),
        }
    )


def explain_short_sessions(
    histories: Histories, ranked: RankedSessions, rules: ItemRules, exclude_seen: bool, num_items: int
) -> list[SessionShortfall]:
    """Explain every row with fewer than k sessions.

    n items make n! / (n - M)! different sessions of M, because the order counts and no item comes twice.

    Args:
        num_items: Of the catalogue.
    """
    wanted, length = ranked.items.shape[1:]
    found_N = (ranked.items[:, :, 0] >= 0).sum(1)
    allowed_SI = rules.allowed
    allowed_SI = np.ones((1, num_items), bool) if allowed_SI is None else np.atleast_2d(allowed_SI)
    short = np.flatnonzero(found_N < wanted)
    result = []
    for row, seen in zip(short, histories.take(short).seen_items(), strict=True):
        allowed_I = allowed_SI[int(rules.segments[row]) if rules.segments is not None else 0]
        allowed = int(allowed_I.sum())
        unseen = allowed - int(allowed_I[np.unique(seen)].sum()) if exclude_seen else allowed
        reason: Reason = "quotas" if rules.quotas is not None else "beam"
        if math.perm(unseen, length) < wanted:
            reason = "rules" if math.perm(allowed, length) < wanted else "seen"
        result.append(SessionShortfall(int(row), wanted, int(found_N[row]), allowed, unseen, reason))
    return result

"""An answer, and the table it becomes: outside ids again, ranks from 1.

Legend: N users, k answers of a user, M items of a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.ranking import RankedItems
from recsys.decoding.rules.shortfall import Shortfall
from serving.answers.sessions import RankedSessions, SessionShortfall
from serving.inputs.history_frame import MappedHistories


@dataclass(frozen=True)
class Answer:
    """What the model gave to some users of a request.

    Attributes:
        asked: Users and histories, N rows.
        ranked: N rows.
        short: The rows with fewer items or sessions than asked, and why.
    """

    asked: MappedHistories
    ranked: RankedItems | RankedSessions
    short: Sequence[Shortfall | SessionShortfall]


def answer_frame(answer: Answer, item_ids: pl.Series) -> pl.DataFrame:
    """Turn an answer into rows, users in the order given.

    Args:
        item_ids: ``[I]`` outside id of each item_index.

    Returns:
        ``user_id, item_id, rank, score, num_unknown_items``; of sessions ``user_id, session_rank, place, item_id, score,
        num_unknown_items``, one row per place, where the score is the session's.
    """
    ranked = answer.ranked
    if isinstance(ranked, RankedSessions):
        row, session, place = np.nonzero(ranked.items >= 0)
        item, score = ranked.items[row, session, place], ranked.scores[row, session]
        names = [Columns.SESSION_RANK, Columns.PLACE, Columns.ITEM_ID]
        ranks = {Columns.SESSION_RANK: session, Columns.PLACE: place}
    else:
        row, place = np.nonzero(ranked.items >= 0)
        item, score = ranked.items[row, place], ranked.scores[row, place]
        names, ranks = [Columns.ITEM_ID, Columns.RANK], {Columns.RANK: place}
    return pl.DataFrame(
        {
            Columns.USER_ID: answer.asked.user_ids.gather(row),
            Columns.ITEM_ID: item_ids.gather(item),
            **{name: (number + 1).astype(np.int32) for name, number in ranks.items()},
            Columns.SCORE: score.astype(np.float32),
            Columns.NUM_UNKNOWN_ITEMS: answer.asked.num_unknown[row],
        }
    ).select(Columns.USER_ID, *names, Columns.SCORE, Columns.NUM_UNKNOWN_ITEMS)

"""One shard of a batch job on disk: the candidates of some users, and why some of them got fewer than asked.

Files:
    part-00000-of-000NN.parquet         one row per user and rank, see :data:`CANDIDATE_COLUMNS`, or of a job that asks for
                                        sessions one per user, session and place, see :data:`SESSION_COLUMNS`; its counts
                                        travel in the file's own metadata, so that nobody has to read the rows again
    shortfalls-00000-of-000NN.parquet   one row per user with fewer answers than asked; missing where there is none

Both appear by rename, the second before the first: a part that is there is complete, and so is what belongs to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.decoding.rules.shortfall import Shortfall
from serving.answers.frame import Answer, answer_frame
from serving.answers.sessions import RankedSessions, SessionShortfall

CANDIDATE_COLUMNS: Final = (
    Columns.USER_ID,
    Columns.ITEM_ID,
    Columns.RANK,
    Columns.SCORE,
    Columns.MODEL_NAME,
    Columns.MODEL_VERSION,
    Columns.SEMANTIC_ID_DIGEST,
    Columns.RUN_ID,
    Columns.SCORED_AT,
)
SESSION_COLUMNS: Final = (
    Columns.USER_ID,
    Columns.SESSION_RANK,
    Columns.PLACE,
    *(name for name in CANDIDATE_COLUMNS if name not in (Columns.USER_ID, Columns.RANK)),
)
"""``session_rank`` counts a user's sessions, ``place`` the items in one; a column ``rank``, which means something else in a
list of items, is not among them. ``score`` is the session's and the same in all its rows."""
LABELS: Final = (Columns.MODEL_NAME, Columns.MODEL_VERSION, Columns.SEMANTIC_ID_DIGEST, Columns.RUN_ID)
SHORTFALL_COLUMNS: Final = {
    Columns.USER_ID: None,
    "wanted": pl.Int32,
    "found": pl.Int32,
    "allowed": pl.Int64,
    "unseen": pl.Int64,
    Columns.REASON: pl.String,
}
REASONS: Final = ("rules", "seen", "quotas", "beam")
_COUNTS_KEY: Final = "recsys.counts"


def shard_names(num_users: int, users_per_shard: int) -> list[str]:
    """Return the file names of a job; a job without users still has one (empty) shard.

    Example:
        >>> shard_names(5, 2)
        ['part-00000-of-00003.parquet', 'part-00001-of-00003.parquet', 'part-00002-of-00003.parquet']
    """
    count = max(-(-num_users // users_per_shard), 1)
    return [f"part-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def shortfall_name(shard_name: str) -> str:
    """Name of the file of shortfalls beside a shard.

    Example:
        >>> shortfall_name("part-00001-of-00003.parquet")
        'shortfalls-00001-of-00003.parquet'
    """
    return shard_name.replace("part-", "shortfalls-", 1)


def write_shard(path: Path, answer: Answer, item_ids: pl.Series, job: Mapping[str, str]) -> None:
    """Write a shard and its shortfalls.

    Args:
        path: The part file.
        item_ids: ``[I]`` outside id of each item_index.
        job: Values of :data:`LABELS` and ``scored_at``.
    """
    user_ids = answer.asked.user_ids
    scored_at = datetime.fromisoformat(job[Columns.SCORED_AT])
    sessions = isinstance(answer.ranked, RankedSessions)
    rows = (
        answer_frame(answer, item_ids)
        .drop(Columns.NUM_UNKNOWN_ITEMS)
        .with_columns(
            *(pl.lit(job[name]).alias(name) for name in LABELS),
            pl.lit(scored_at, dtype=pl.Datetime("us", "UTC")).alias(Columns.SCORED_AT),
        )
        .select(SESSION_COLUMNS if sessions else CANDIDATE_COLUMNS)
    )
    reasons = Counter(shortfall.reason for shortfall in answer.short)
    counts = {
        "users": len(user_ids),
        "users_without_items": int(np.isneginf(answer.ranked.scores[:, 0]).sum()),
        "users_short": len(answer.short),
        **{f"short_by_{reason}": reasons[reason] for reason in REASONS},
        "rows": len(rows),
    }
    shortfalls = path.with_name(shortfall_name(path.name))
    if answer.short:
        _publish(shortfalls, _shortfall_rows(user_ids, answer.short))
    else:
        shortfalls.unlink(missing_ok=True)
    _publish(path, rows, {_COUNTS_KEY: json.dumps(counts)})


def count_shards(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Add up the counts of all shards; only the files' metadata is read.

    Raises:
        ArtifactError: A shard is damaged, or was not written by :func:`write_shard`.
    """
    total: Counter[str] = Counter()
    for name in names:
        try:
            counts = json.loads(pl.read_parquet_metadata(folder / name)[_COUNTS_KEY])
        except (OSError, pl.exceptions.PolarsError, KeyError, ValueError) as error:
            raise ArtifactError(
                f"'{folder / name}' is no shard of a batch job ({type(error).__name__}: {error}); delete it and run again"
            ) from error
        total.update(counts)
    users = total["users"]
    return {
        **total,
        "shards": len(names),
        "rows_per_user": float(np.round(total["rows"] / users, 3)) if users else 0.0,
    }


def _shortfall_rows(user_ids: pl.Series, short: Sequence[Shortfall | SessionShortfall]) -> pl.DataFrame:
    columns = {name: [getattr(each, name) for each in short] for name in list(SHORTFALL_COLUMNS)[1:]}
    rows = pl.DataFrame(columns, schema={name: SHORTFALL_COLUMNS[name] for name in columns})
    return rows.insert_column(0, user_ids.gather([each.row for each in short]).alias(Columns.USER_ID))


def _publish(path: Path, rows: pl.DataFrame, metadata: dict[str, str] | None = None) -> None:
    temporary = path.with_name(f".{path.name}.part")
    rows.write_parquet(temporary, metadata=metadata)
    temporary.replace(path)

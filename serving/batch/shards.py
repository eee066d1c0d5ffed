"""One shard of a batch job on disk: the candidates of some users, and why some of them got fewer than asked.

Files:
    part-00000-of-000NN.parquet         one row per user and rank, see :data:`CANDIDATE_COLUMNS`, or of a job that asks for
                                        sessions one per user, session and place, see :data:`SESSION_COLUMNS`
    shortfalls-00000-of-000NN.parquet   one row per user with fewer answers than asked; missing where there is none
    asked-00000-of-000NN.parquet        every user of the shard, and a number of all that the answer follows from
                                        (:mod:`serving.batch.asked`): what a later job carries over by

All appear by rename, the part last: a part that is there is complete, and so is what belongs to it. What they hold, with
their hashes, is a :class:`ShardRecord` (:mod:`serving.batch.ledger`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.contracts.columns import Columns
from recsys.contracts.contents import FileEntry, sha256_of_file, sync
from recsys.decoding.rules.shortfall import Shortfall
from serving.answers.frame import Answer, answer_frame
from serving.answers.sessions import SessionShortfall
from serving.batch.rows import CandidateRows

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
SHORTFALL_COLUMNS: Final = {
    Columns.USER_ID: None,
    "wanted": pl.Int32,
    "found": pl.Int32,
    "allowed": pl.Int64,
    "unseen": pl.Int64,
    Columns.REASON: pl.String,
}
REASONS: Final = ("rules", "seen", "quotas", "beam")
ASKED: Final = "asked"
_MANY_VALUES: Final = (Columns.USER_ID, Columns.SCORE, ASKED)
_SEARCHED: Final = (Columns.USER_ID,)
"""Columns whose least and largest value a reader may skip a file by."""


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


def asked_name(shard_name: str) -> str:
    """Name of the file of users beside a shard."""
    return shard_name.replace("part-", "asked-", 1)


@dataclass(frozen=True)
class ShardTables:
    """A shard in memory.

    Attributes:
        rows: Candidates.
        short: Users with fewer answers than asked; columns of :data:`SHORTFALL_COLUMNS`.
        asked: Every user in order, and the number of what was asked (``user_id, asked``).
    """

    rows: CandidateRows
    short: pl.DataFrame
    asked: pl.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """Users, those without items, those with fewer answers than asked by reason, and rows."""
        reasons = Counter(self.short[Columns.REASON])
        return {
            "users": len(self.asked),
            "users_without_items": len(self.asked) - len(self.rows.user_ids),
            "users_short": len(self.short),
            **{f"short_by_{reason}": reasons[reason] for reason in REASONS},
            "rows": len(self.rows),
        }


def shard_tables(
    answer: Answer, asked_N: npt.NDArray[np.uint64], item_ids: pl.Series, job: Mapping[str, str]
) -> ShardTables:
    """Turn an answer into the tables of a shard.

    Args:
        asked_N: Of every user, what :func:`~serving.batch.asked.asked_numbers` gives.
        item_ids: ``[I]`` outside id of each item_index.
        job: Values of :data:`~serving.batch.rows.OF_JOB`.
    """
    user_ids = answer.asked.user_ids
    rows = CandidateRows.of_job(answer_frame(answer, item_ids).drop(Columns.NUM_UNKNOWN_ITEMS), job)
    asked = pl.DataFrame({Columns.USER_ID: user_ids, ASKED: asked_N})
    return ShardTables(rows, _shortfall_rows(user_ids, answer.short), asked)


def write_shard(folder: Path, name: str, tables: ShardTables) -> list[FileEntry]:
    """Write a shard and describe its files.

    Args:
        name: Of the part file.
    """
    shortfalls = folder / shortfall_name(name)
    entries = [_publish(folder / asked_name(name), _arrow(tables.asked))]
    if len(tables.short):
        entries.append(_publish(shortfalls, _arrow(tables.short)))
    else:
        shortfalls.unlink(missing_ok=True)
    entries.append(_publish(folder / name, tables.rows.table()))
    return entries


def _shortfall_rows(user_ids: pl.Series, short: Sequence[Shortfall | SessionShortfall]) -> pl.DataFrame:
    columns = {name: [getattr(each, name) for each in short] for name in list(SHORTFALL_COLUMNS)[1:]}
    rows = pl.DataFrame(columns, schema={name: SHORTFALL_COLUMNS[name] for name in columns})
    return rows.insert_column(
        0, user_ids.gather(np.array([each.row for each in short], np.int64)).alias(Columns.USER_ID)
    )


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _is_coded(field: pa.Field) -> bool:
    """Whether values are stored as codes of the different ones there are."""
    return pa.types.is_dictionary(field.type) or field.name not in _MANY_VALUES


def _publish(path: Path, rows: pa.Table) -> FileEntry:
    """Write through a temporary name, on the disk before the real name appears.

    A reader sees plain columns of text and moments: that they were given as codes is not written down.
    """
    temporary = path.with_name(f".{path.name}.part")
    with pq.ParquetWriter(
        temporary,
        rows.schema,
        compression="zstd",
        use_dictionary=[field.name for field in rows.schema if _is_coded(field)],
        write_statistics=[name for name in _SEARCHED if name in rows.column_names],
        store_schema=False,
    ) as writer:
        writer.write_table(rows)
    sync(temporary)
    entry = FileEntry(path=path.name, bytes=temporary.stat().st_size, sha256=sha256_of_file(temporary), rows=len(rows))
    temporary.replace(path)
    return entry

"""The candidates of some users in memory: what a row has of its own, and what a user's rows share once per user.

A user's rows stand together, and all of them come from one job, so that the user and the labels of the job are kept per user
and not per row. Rows are carried over, put in order and written in this form; text is repeated nowhere.

Legend: M users with rows, R rows, J jobs that rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from recsys.contracts.columns import Columns

LABELS: Final = (Columns.MODEL_NAME, Columns.MODEL_VERSION, Columns.SEMANTIC_ID_DIGEST, Columns.RUN_ID)
OF_JOB: Final = (*LABELS, Columns.SCORED_AT)
"""Columns that say which job a row comes from."""

_SCORED_AT: Final = pl.Datetime("us", "UTC")
_MOMENT: Final = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class CandidateRows:
    """Rows of some users, each user's together.

    Attributes:
        user_ids: ``[M]``, each once.
        length_M: Rows of each, 1 and more.
        own: ``[R]`` columns that differ from row to row: items, ranks, scores.
        jobs: ``[J]`` columns of :data:`OF_JOB`.
        job_M: Of which job each user's rows are.
    """

    user_ids: pl.Series
    length_M: npt.NDArray[np.int64]
    own: pl.DataFrame
    jobs: pl.DataFrame
    job_M: npt.NDArray[np.int64]

    @classmethod
    def of_job(cls, rows: pl.DataFrame, job: Mapping[str, str]) -> CandidateRows:
        """Rows that a job has just computed.

        Args:
            rows: ``user_id`` and the columns of the rows.
            job: Values of :data:`OF_JOB`.
        """
        runs = rows[Columns.USER_ID].rle().struct.unnest()
        values = {name: [job[name]] for name in LABELS}
        jobs = pl.DataFrame(values, schema=dict.fromkeys(LABELS, pl.String)).with_columns(
            pl.lit(datetime.fromisoformat(job[Columns.SCORED_AT]), dtype=_SCORED_AT).alias(Columns.SCORED_AT)
        )
        job_M = np.zeros(len(runs), np.int64)
        return cls(_users(runs), _lengths(runs), rows.drop(Columns.USER_ID), jobs, job_M)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> CandidateRows:
        """Rows as they stand in a part file.

        Example:
            >>> label = {name: name for name in LABELS} | {"scored_at": datetime(2026, 1, 1)}
            >>> frame = pl.DataFrame({"user_id": [7, 7, 4], "item_id": [3, 1, 3]})
            >>> rows = CandidateRows.from_frame(frame.with_columns(pl.lit(label[name]).alias(name) for name in OF_JOB))
            >>> rows.user_ids.to_list(), rows.length_M.tolist(), rows.own["item_id"].to_list(), len(rows.jobs)
            ([7, 4], [2, 1], [3, 1, 3], 1)
        """
        runs = frame[Columns.USER_ID].rle().struct.unnest()
        length_M = _lengths(runs)
        label_M = frame.select(pl.col(OF_JOB).gather(np.cumsum(length_M) - length_M))
        neighbours = label_M.to_struct().rle().struct.unnest()  # users of one job stand side by side
        named = neighbours["value"].struct.unnest()
        jobs = named.unique(maintain_order=True)
        number = named.join(jobs.with_row_index("job"), on=OF_JOB, how="left", nulls_equal=True, maintain_order="left")[
            "job"
        ]
        job_M = np.repeat(number.to_numpy().astype(np.int64), neighbours["len"].to_numpy())
        return cls(_users(runs), length_M, frame.drop(Columns.USER_ID, *OF_JOB), jobs, job_M)

    @classmethod
    def joined(cls, parts: Sequence[CandidateRows]) -> CandidateRows:
        """The rows of all parts, one after the other; at least one part."""
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(len(part.jobs) for part in parts[:-1])])
        return cls(
            pl.concat([part.user_ids for part in parts]),
            np.concatenate([part.length_M for part in parts]),
            pl.concat(
                [part.own for part in parts], rechunk=True
            ),  # out of several pieces a row is taken at twice the cost
            pl.concat([part.jobs for part in parts]),
            np.concatenate([part.job_M + first for part, first in zip(parts, before, strict=True)]),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.own)

    def take(self, run_N: npt.NDArray[np.int64]) -> CandidateRows:
        """Return the rows of users given by number, in that order."""
        length_N = self.length_M[run_N]
        start_N = (np.cumsum(self.length_M) - self.length_M)[run_N] - (np.cumsum(length_N) - length_N)
        row_R = pl.Series(np.repeat(start_N, length_N) + np.arange(length_N.sum()), dtype=pl.UInt32)
        own = self.own.select(pl.all().gather(row_R))
        return CandidateRows(self.user_ids.gather(run_N), length_N, own, self.jobs, self.job_M[run_N])

    def between(self, first: int, last: int) -> CandidateRows:
        """Return the rows of the users from number ``first`` to the one before ``last``, without a copy."""
        low, high = (int(self.length_M[:user].sum()) for user in (first, last))
        user_ids, length_M = self.user_ids[first:last], self.length_M[first:last]
        return CandidateRows(user_ids, length_M, self.own[low:high], self.jobs, self.job_M[first:last])

    def frame(self) -> pl.DataFrame:
        """Every column of every row, as a part file has it."""
        row_R = np.repeat(np.arange(len(self.user_ids)), self.length_M)
        labels = self.jobs.select(pl.all().gather(self.job_M[row_R]))
        return pl.concat([self.user_ids.gather(row_R).to_frame(), self.own, labels], how="horizontal")

    def table(self) -> pa.Table:
        """As :meth:`frame`, with text and moments that are repeated as codes of the few there are.

        The codes follow from the rows alone, whatever the rows were put together from.
        """
        columns: dict[str, pa.Array] = {Columns.USER_ID: self._user_column()}
        columns |= {name: _arrow(self.own[name]) for name in self.own.columns}
        used, first = np.unique(self.job_M, return_index=True)
        named = used[np.argsort(first)].tolist()  # jobs in the order in which the rows name them
        for name in OF_JOB:
            values = self.jobs[name].to_list()
            code = {value: number for number, value in enumerate(dict.fromkeys(values[job] for job in named))}
            code_J = np.array([code.get(value, -1) for value in values], np.int32)
            distinct = pa.array(list(code), _MOMENT if name == Columns.SCORED_AT else pa.string())
            columns[name] = pa.DictionaryArray.from_arrays(np.repeat(code_J[self.job_M], self.length_M), distinct)
        fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
        return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))

    def _user_column(self) -> pa.Array:
        if self.user_ids.dtype != pl.String:
            return _arrow(self.user_ids.gather(np.repeat(np.arange(len(self.user_ids)), self.length_M)))
        row_R = np.repeat(np.arange(len(self.user_ids), dtype=np.int32), self.length_M)
        return pa.DictionaryArray.from_arrays(row_R, _arrow(self.user_ids))


def _lengths(runs: pl.DataFrame) -> npt.NDArray[np.int64]:
    return runs["len"].to_numpy().astype(np.int64)


def _arrow(values: pl.Series) -> pa.Array:
    return values.to_arrow(compat_level=pl.CompatLevel.oldest())


def _users(runs: pl.DataFrame) -> pl.Series:
    return runs["value"].alias(Columns.USER_ID)

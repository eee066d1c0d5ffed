"""What answers the shards of a job: a bundle, the users, the rules, and the earlier job that rows are carried over from.

The local engine has one of these, a worker of a cluster another; both give the same tables for the same shard.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from serving.answers.scorer import Scorer
from serving.batch.asked import Numbers, asked_numbers, rule_numbers
from serving.batch.carried import EarlierCandidates, basis_of, merged
from serving.batch.ledger import ShardRecord
from serving.batch.shards import ShardTables, shard_tables, write_shard
from serving.config import RecommendConfig
from serving.inputs.history_frame import MappedHistories
from serving.inputs.rules.item_rules import read_rules
from serving.inputs.user_histories import StoredUsers

logger = logging.getLogger("recsys.serving")

ASKED_TOGETHER: Final = 1024
"""Users of a delta job who are answered at once."""
SHARDS_TOGETHER: Final = 32
"""Shards whose carried users wait for that at most: what a kill costs."""


@dataclass(frozen=True)
class JobSpec:
    """What a job scores, with what, and where.

    Attributes:
        bundle: Bundle folder.
        config: Rules, numbers and options.
        device, precision: As of :meth:`~serving.answers.scorer.Scorer.open`.
        since: Folder of earlier candidates to carry over from; ``None``: everybody is answered.
    """

    bundle: Path
    config: RecommendConfig
    device: torch.device | str = "cpu"
    precision: str | None = None
    since: Path | None = None


@dataclass(frozen=True)
class ScoredShard:
    """A shard, answered.

    Attributes:
        tables: What is to be written.
        answered: Users that the model was asked about; the others were carried over.
        seconds: It took.
        users_T: ``[max_history + 1]`` answered users of whom 0, 1, 2, … events were read: a job keeps this of every shard.
    """

    tables: ShardTables
    answered: int
    seconds: float
    users_T: npt.NDArray[np.int64]

    def write(self, folder: Path, name: str) -> WrittenShard:
        """Write the tables under the part file's name."""
        files = write_shard(folder, name, self.tables)
        record = ShardRecord(shard=name, files=tuple(files), counts=self.tables.counts)
        return WrittenShard(record, self.answered, self.seconds, self.users_T)


@dataclass(frozen=True)
class WrittenShard:
    """A shard on the disk, and how it went; the fields are those of :class:`ScoredShard`."""

    record: ShardRecord
    answered: int
    seconds: float
    users_T: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Looked:
    """A shard of N users of which is known who has to be answered; its length is their number.

    Attributes:
        number: Of the shard.
        first: Its first user.
        user_ids: ``[N]``.
        changed: Those who have to be answered.
        asked_N: What each is asked with, as one number.
        same_N: Who keeps the rows of the earlier job.
        seconds: It took to find out.
    """

    number: int
    first: int
    user_ids: pl.Series
    changed: MappedHistories
    asked_N: Numbers
    same_N: npt.NDArray[np.bool_]
    seconds: float

    def __len__(self) -> int:
        return len(self.changed.user_ids)


class ShardScorer:
    """Answer shard after shard.

    Attributes:
        scorer: The bundle, opened.
        users: Everybody, in order.
        basis: What an earlier job must have been made with so that its rows can be carried over.
        why_full: Why nothing is carried over although an earlier job was named; ``None``: it is, or none was.

    Raises:
        ConfigError, DataError, ArtifactError: As in :func:`~serving.batch.candidates.write_candidates`.
    """

    def __init__(self, spec: JobSpec, users: StoredUsers) -> None:
        config = spec.config
        self.users = users
        self.scorer = Scorer.open(spec.bundle, spec.device, spec.precision)
        config.options.check(config.k)
        self.scorer.catalogue.limits.check_k(config.k, self.scorer.info.name)
        users.check(self.scorer.catalogue)
        own = users.personal_lists(config.exclude_disliked, self.scorer.catalogue)
        rules = read_rules(config, self.scorer.catalogue, users.user_ids, own)
        self._request = self.scorer.request(users, config.k, rules, config.options)
        self._rules_U = rule_numbers(rules, len(users))
        self._size = config.users_per_shard
        self.basis = basis_of(spec.bundle, self.scorer, config)
        self.why_full: str | None = None
        self._earlier: EarlierCandidates | None = None
        if spec.since is not None:
            found = EarlierCandidates.open(spec.since, self.basis)
            if isinstance(found, str):
                self.why_full = found
            else:
                self._earlier, self._place_U = found, found.places(users.user_ids)

    @property
    def carries_over(self) -> bool:
        """Whether unchanged users keep their earlier rows."""
        return self._earlier is not None

    def range_of(self, number: int) -> tuple[int, int]:
        """First user of a shard, and the one after its last."""
        first = number * self._size
        return first, min(first + self._size, len(self.users))

    def scored(self, numbers: Iterable[int], job: dict[str, Any]) -> Iterator[tuple[int, ScoredShard]]:
        """Answer shards, in order.

        A delta job asks the changed users of several shards together: one in a hundred users of a shard is a batch so small
        that the model's fixed cost is most of it. Nobody's answer depends on who is asked beside them.

        Args:
            job: Labels of the rows.

        Yields:
            Each shard's number, and the shard.

        Raises:
            ArtifactError: The model gives a score that is no finite number.
        """
        waiting: list[_Looked] = []
        for number in numbers:
            waiting.append(self._look(number))
            enough = sum(map(len, waiting)) >= ASKED_TOGETHER or len(waiting) == SHARDS_TOGETHER
            if enough or not self.carries_over:
                yield from self._answer(waiting, job)
                waiting = []
        if waiting:
            yield from self._answer(waiting, job)

    def _look(self, number: int) -> _Looked:
        """See which users of a shard have to be answered."""
        started = time.monotonic()
        first, last = self.range_of(number)
        asked, _ = self._request.shard(first, last)
        asked_N = asked_numbers(asked.histories, self._rules_U[first:last])
        same_N = np.zeros(last - first, bool)
        if self._earlier is not None:
            place_N = self._place_U[first:last]
            same_N = (place_N >= 0) & (self._earlier.asked_E[place_N] == asked_N)
        new_N = np.flatnonzero(~same_N)
        unknown = asked.num_unknown[new_N]
        if unknown.any():
            logger.warning(
                "users %d to %d: %d history events of %d users name items that the model does not have; they were left out",
                first,
                last - 1,
                int(unknown.sum()),
                int((unknown > 0).sum()),
            )
        changed = asked if len(new_N) == len(same_N) else asked.take(new_N)
        return _Looked(number, first, asked.user_ids, changed, asked_N, same_N, time.monotonic() - started)

    def _answer(self, shards: list[_Looked], job: dict[str, Any]) -> Iterator[tuple[int, ScoredShard]]:
        """Ask the model about the users of some shards who have to be answered, and put the others' rows beside them."""
        started = time.monotonic()
        asked = shards[0].changed if len(shards) == 1 else MappedHistories.joined([one.changed for one in shards])
        users = np.concatenate([one.first + np.flatnonzero(~one.same_N) for one in shards])
        answer = self.scorer.answer_asked(asked, self._request.rules.take(users), self._request)
        asked_M = np.concatenate([one.asked_N[~one.same_N] for one in shards])
        every = shard_tables(answer, asked_M, self.scorer.catalogue.item_ids, job)
        per_user = (time.monotonic() - started) / max(len(asked.user_ids), 1)
        found = answer.ranked.items >= 0
        with_rows_M = np.concatenate([[0], found.any(axis=tuple(range(1, found.ndim))).cumsum()])
        short_S = np.array([each.row for each in answer.short], np.int64)
        behind = 0
        for one in shards:
            started, ahead, behind = time.monotonic(), behind, behind + len(one)
            tables = every
            if len(shards) > 1:
                low, high = np.searchsorted(short_S, [ahead, behind])
                tables = ShardTables(
                    every.rows.between(with_rows_M[ahead], with_rows_M[behind]),
                    every.short[low:high],
                    every.asked[ahead:behind],
                )
            if self._earlier is not None and one.same_N.any():
                kept = one.user_ids.gather(np.flatnonzero(one.same_N))
                place_N = self._place_U[one.first : one.first + len(one.same_N)]
                rows, short = self._earlier.rows_of(kept, place_N[one.same_N])
                tables = merged(tables, one.user_ids, one.asked_N, one.same_N, rows, short)
            seconds = one.seconds + per_user * len(one) + time.monotonic() - started
            longest = self.scorer.recommender.policy.spec.model.max_history
            read_N = np.minimum(one.changed.histories.lengths, longest)
            yield one.number, ScoredShard(tables, len(one), seconds, np.bincount(read_N, minlength=longest + 1))

    def probe(self, users: int) -> float:
        """Seconds per user of the first ``users`` users; the first call warms up and is not counted."""
        last = min(users, len(self.users))
        if not last:
            return 0.0
        self.scorer.answer(self._request, 0, min(last, 8))
        started = time.monotonic()
        self.scorer.answer(self._request, 0, last)
        return (time.monotonic() - started) / last

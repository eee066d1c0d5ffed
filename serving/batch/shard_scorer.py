"""What answers the shards of a job: a bundle, the users, the rules, and the earlier job that rows are carried over from.

The local engine has one of these, a worker of a cluster another; both give the same tables for the same shard.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serving.answers.scorer import Scorer
from serving.batch.asked import asked_numbers, rule_numbers
from serving.batch.carried import EarlierCandidates, basis_of, merged
from serving.batch.ledger import ShardRecord
from serving.batch.shards import ShardTables, shard_tables, write_shard
from serving.config import RecommendConfig
from serving.inputs.item_rules import read_rules
from serving.inputs.user_histories import StoredUsers

logger = logging.getLogger("recsys.serving")


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
        events_N: Events of the answered users.
    """

    tables: ShardTables
    answered: int
    seconds: float
    events_N: npt.NDArray[np.int64]

    def write(self, folder: Path, name: str) -> WrittenShard:
        """Write the tables under the part file's name."""
        files = write_shard(folder, name, self.tables)
        record = ShardRecord(shard=name, files=tuple(files), counts=self.tables.counts)
        return WrittenShard(record, self.answered, self.seconds, self.events_N)


@dataclass(frozen=True)
class WrittenShard:
    """A shard on the disk, and how it went; the fields are those of :class:`ScoredShard`."""

    record: ShardRecord
    answered: int
    seconds: float
    events_N: npt.NDArray[np.int64]


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

    def score(self, number: int, job: dict[str, Any]) -> ScoredShard:
        """Answer one shard.

        Args:
            job: Labels of the rows.

        Raises:
            ArtifactError: The model gives a score that is no finite number.
        """
        started = time.monotonic()
        first, last = self.range_of(number)
        asked, rules = self._request.shard(first, last)
        asked_N = asked_numbers(asked.histories, self._rules_U[first:last])
        same_N = np.zeros(last - first, bool)
        if self._earlier is not None:
            place_N = self._place_U[first:last]
            same_N = (place_N >= 0) & (self._earlier.asked_E[place_N] == asked_N)
        new_N = np.flatnonzero(~same_N)
        item_ids = self.scorer.catalogue.item_ids
        unknown = asked.num_unknown[new_N]
        if unknown.any():
            logger.warning(
                "users %d to %d: %d history events of %d users name items that the model does not have; they were left out",
                first,
                last - 1,
                int(unknown.sum()),
                int((unknown > 0).sum()),
            )
        answer = self.scorer.answer_asked(asked.take(new_N), rules.take(new_N), self._request)
        tables = shard_tables(answer, asked_N[new_N], item_ids, job)
        if self._earlier is not None and same_N.any():
            kept = asked.user_ids.gather(np.flatnonzero(same_N))
            rows, short = self._earlier.rows_of(kept, place_N[same_N])
            tables = merged(tables, asked.user_ids, asked_N, rows, short)
        events_N = answer.asked.histories.lengths
        return ScoredShard(tables, len(new_N), time.monotonic() - started, events_N)

    def probe(self, users: int) -> float:
        """Seconds per user of the first ``users`` users; the first call warms up and is not counted."""
        last = min(users, len(self.users))
        if not last:
            return 0.0
        self.scorer.answer(self._request, 0, min(last, 8))
        started = time.monotonic()
        self.scorer.answer(self._request, 0, last)
        return (time.monotonic() - started) / last

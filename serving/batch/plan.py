"""What a job will take, measured on a first batch, and how it went.

Reads an opened job; produces plain values for the log, for ``--dry-run`` and for ``report.json``.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from serving.batch.shard_scorer import ShardScorer, WrittenShard
from serving.config import RecommendConfig

PROBE_USERS: Final = 256
"""Of the first batch that is measured."""

BYTES_PER_ROW: Final = 200
"""Of a candidate in memory: three short columns of its own, and room for encoding a shard while the next one is answered."""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        users: Of the job.
        shards: Files, and those of them that are there already.
        users_per_shard: Of one file.
        rows_at_most: Candidates.
        users_per_second: Measured on the first users, one process.
        minutes: Expected for the shards that are missing, if every user is answered.
        memory_mb: Expected peak of this process.
        carries_over: Whether unchanged users keep their earlier rows, which ``minutes`` does not know beforehand.
    """

    users: int
    shards: int
    shards_done: int
    users_per_shard: int
    rows_at_most: int
    users_per_second: float
    minutes: float
    memory_mb: int
    carries_over: bool

    def text(self) -> str:
        """One line for people."""
        kept = "; unchanged users keep their rows and cost next to nothing" if self.carries_over else ""
        return (
            f"{self.users} users in {self.shards} files ({self.shards_done} done), at most {self.rows_at_most} rows; "
            f"{self.users_per_second:.0f} users/s measured, {self.minutes:.1f} minutes and {self.memory_mb} MB "
            f"expected{kept}"
        )

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def make_plan(scorer: ShardScorer, config: RecommendConfig, shards: int, done: int) -> Plan:
    """Measure a first batch and say what the job will take.

    Args:
        done: Shards that are there already.
    """
    users = len(scorer.users)
    seconds = scorer.probe(PROBE_USERS)
    left = max(0, users - done * config.users_per_shard)
    shard_rows = min(users, config.users_per_shard) * config.k
    return Plan(
        users=users,
        shards=shards,
        shards_done=done,
        users_per_shard=config.users_per_shard,
        rows_at_most=users * config.k,
        users_per_second=round(1.0 / seconds, 1) if seconds else 0.0,
        minutes=round(left * seconds / 60.0, 2),
        memory_mb=peak_mb() + 2 * shard_rows * BYTES_PER_ROW // 2**20,
        carries_over=scorer.carries_over,
    )


def peak_mb() -> int:
    """Most memory that this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // 2**20 if sys.platform == "darwin" else peak // 2**10)


def make_report(
    plan: Plan | None,
    engine: str,
    shards: Sequence[WrittenShard],
    counts: dict[str, Any],
    seconds: float,
    why_full: str | None,
) -> dict[str, Any]:
    """What a call did, for ``report.json``; shards that were there already are counted and not listed."""
    answered = sum(shard.answered for shard in shards)
    users = sum(shard.record.counts["users"] for shard in shards)
    return {
        "engine": engine,
        "seconds": round(seconds, 3),
        "users_answered": answered,
        "users_carried_over": users - answered,
        "users_per_second": round(users / seconds, 1) if users and seconds > 0 else None,
        "peak_mb": peak_mb(),
        "full_because": why_full,
        "plan": plan.values() if plan else None,
        "job": counts,
        "shards_kept": counts["shards"] - len(shards),
        "shards": [
            {
                "shard": shard.record.shard,
                "seconds": round(shard.seconds, 3),
                "users_answered": shard.answered,
                "bytes": sum(entry.bytes for entry in shard.record.files),
                **shard.record.counts,
            }
            for shard in sorted(shards, key=lambda shard: shard.record.shard)
        ],
    }

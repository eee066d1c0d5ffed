"""The batch job: candidates for every user as Parquet shards, restartable, in bounded memory.

Reads a bundle and users (:mod:`serving.user_histories`). Writes into ``out_dir``:
    part-00000-of-000NN.parquet   one row per user and rank, see :data:`CANDIDATE_COLUMNS`
    job.json                      what was asked, and when: written first, so that a restart continues the same job
    candidates.json               counts: written last, so that its presence means "complete"

Each shard appears by rename; a restart keeps finished shards. The moment ``scored_at`` belongs to the job, not to the
shard, so that a restarted job gives the same table as an undisturbed one.
"""

from __future__ import annotations

import logging
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import digest_of, explain_write_errors, read_json, write_json
from recsys.runtime import Progress
from serving.config import RecommendConfig
from serving.item_lists import fingerprint, read_item_list
from serving.scorer import NUM_UNKNOWN_ITEMS, Rules, Scorer
from serving.user_histories import UserHistories

logger = logging.getLogger("recsys.serving")

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
JOB_FILE: Final = "job.json"
DONE_FILE: Final = "candidates.json"


def write_candidates(
    bundle: Path, users: UserHistories, config: RecommendConfig, out_dir: Path, progress: Progress
) -> dict[str, Any]:
    """Score all users and write their candidates.

    Args:
        bundle: Bundle folder.
        out_dir: Empty or missing, or the folder of the same job, which is then continued.

    Returns:
        Counts of users, rows, shards, and users per second of the shards that this call scored.

    Raises:
        ArtifactError: ``out_dir`` holds another job, or cannot be written; or the bundle is damaged.
        DataError: A history or an item list does not keep its form.
    """
    scorer = Scorer.open(bundle)
    rules = _rules(scorer, config)
    with explain_write_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        job = _open_job(out_dir, scorer, users, config)
        names = shard_names(len(users), config.users_per_shard)
        started, scored = time.monotonic(), 0
        for number, name in progress.track(list(enumerate(names)), "recommend", len(names)):
            if (out_dir / name).exists():
                continue
            first = number * config.users_per_shard
            last = min(first + config.users_per_shard, len(users))
            _write_shard(out_dir / name, _score_shard(scorer, users, first, last, config.k, rules, job))
            scored += last - first
        seconds = time.monotonic() - started
        counts = _count(out_dir, names, len(users))
        write_json(out_dir / DONE_FILE, counts)
    rate = round(scored / seconds, 1) if scored and seconds > 0 else None
    logger.info("recommend: %d users in %.1f s (%s users/s)", scored, seconds, rate)
    return {**counts, "users_per_second": rate}


def shard_names(num_users: int, users_per_shard: int) -> list[str]:
    """Return the file names of a job; a job without users still has one (empty) shard.

    Example:
        >>> shard_names(5, 2)
        ['part-00000-of-00003.parquet', 'part-00001-of-00003.parquet', 'part-00002-of-00003.parquet']
    """
    count = max(-(-num_users // users_per_shard), 1)
    return [f"part-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def model_version_of(reference: str | None, train_digest: str) -> str:
    """Return the registry version that a model reference names, or a name made of the digest for a bare bundle.

    Example:
        >>> model_version_of("models:/beauty/3", "abcdef0123456789")
        '3'
        >>> model_version_of("runs/bundle", "abcdef0123456789")
        'unregistered-abcdef012345'
    """
    if reference is not None and reference.startswith("models:/"):
        name, _, version = reference.removeprefix("models:/").rpartition("/")
        if name and version.isdigit():
            return version
    return f"unregistered-{train_digest[:12]}"


def _rules(scorer: Scorer, config: RecommendConfig) -> Rules:
    dtype = scorer.catalogue.item_ids.dtype
    return Rules(
        exclude_seen=config.exclude_seen,
        allow=None if config.allow is None else scorer.mask(read_item_list(config.allow, dtype)),
        deny=None if config.deny is None else scorer.mask(read_item_list(config.deny, dtype)),
        rescore=config.rescore,
    )


def _open_job(out_dir: Path, scorer: Scorer, users: UserHistories, config: RecommendConfig) -> dict[str, str]:
    """Read the job that is under way here, or start one."""
    asked = {
        "bundle": scorer.info.digests,
        "users": users.digest,
        "config": config.model_dump(mode="json", exclude={"allow", "deny"}),
        "lists": fingerprint(config.allow, config.deny),
    }
    path = out_dir / JOB_FILE
    if path.exists():
        job: dict[str, str] = read_json(path)
        if job.get("asked") != digest_of(asked):
            raise ArtifactError(
                f"'{out_dir}' holds another job (other model, users, rules or k); choose another folder, or delete this one"
            )
        return job
    if any(out_dir.glob("part-*.parquet")):
        raise ArtifactError(
            f"'{out_dir}' holds part files but no {JOB_FILE}; choose another folder, or delete this one"
        )
    job = {
        "asked": digest_of(asked),
        Columns.MODEL_NAME: scorer.info.name,
        Columns.MODEL_VERSION: model_version_of(config.model, scorer.info.digests["train"]),
        Columns.SEMANTIC_ID_DIGEST: scorer.info.digests["semantic_ids"],
        Columns.RUN_ID: uuid.uuid4().hex,
        Columns.SCORED_AT: datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    write_json(path, job)
    return job


def _score_shard(
    scorer: Scorer, users: UserHistories, first: int, last: int, k: int, rules: Rules, job: dict[str, str]
) -> pl.DataFrame:
    mapped = users.shard(first, last, scorer.info, scorer.catalogue)
    if mapped.num_unknown.any():
        logger.warning(
            "users %d to %d: %d history events of %d users name items that the model does not have; they were left out",
            first,
            last - 1,
            int(mapped.num_unknown.sum()),
            int((mapped.num_unknown > 0).sum()),
        )
    rows = scorer.to_frame(mapped.user_ids, scorer.score_histories(mapped.histories, k, rules), mapped.num_unknown)
    names = (Columns.MODEL_NAME, Columns.MODEL_VERSION, Columns.SEMANTIC_ID_DIGEST, Columns.RUN_ID)
    scored_at = datetime.fromisoformat(job[Columns.SCORED_AT])
    return (
        rows.drop(NUM_UNKNOWN_ITEMS)
        .with_columns(
            *(pl.lit(job[name]).alias(name) for name in names),
            pl.lit(scored_at, dtype=pl.Datetime("us", "UTC")).alias(Columns.SCORED_AT),
        )
        .select(CANDIDATE_COLUMNS)
    )


def _write_shard(path: Path, rows: pl.DataFrame) -> None:
    temporary = path.with_name(f".{path.name}.part")
    rows.write_parquet(temporary)
    temporary.replace(path)


def _count(out_dir: Path, names: list[str], num_users: int) -> dict[str, Any]:
    """Count rows and users from the shards on disk, and check that no user is in two of them."""
    rows, answered = 0, 0
    for name in names:
        users = pl.read_parquet(out_dir / name, columns=[Columns.USER_ID, Columns.RANK])
        rows += len(users)
        answered += int((users[Columns.RANK] == 1).sum())
    return {
        "users": num_users,
        "users_without_items": num_users - answered,
        "rows": rows,
        "shards": len(names),
        "rows_per_user": float(np.round(rows / num_users, 3)) if num_users else 0.0,
    }

"""The batch job: candidates for every user as Parquet shards, restartable, in bounded memory.

Reads a bundle, users (:mod:`serving.inputs.user_histories`) and business rules (:mod:`serving.inputs.item_rules`); writes:
    part-00000-of-000NN.parquet         one row per user and rank, or per place of a session (:mod:`serving.batch.shards`)
    shortfalls-00000-of-000NN.parquet   users of that shard with fewer answers than asked, and why; only where there are any
    job.json                            what was asked, and when: written first, so that a restart continues the same job
    candidates.json                     counts: written last, so that its presence means "complete"

Each shard appears by rename; a restart keeps finished shards. The moment ``scored_at`` belongs to the job, not to the
shard, so that a restarted job gives the same table as an undisturbed one.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import digest_of, explain_write_errors, read_json, write_json
from recsys.model.summary import decoding_flops, fed_widths
from recsys.model.utilisation import describe
from recsys.runtime import Progress
from serving.answers.frame import Answer
from serving.answers.scorer import Scorer
from serving.batch.shards import count_shards, shard_names, write_shard
from serving.bundle.layout import BundleInfo
from serving.config import RULE_FILES, RecommendConfig
from serving.inputs.item_lists import fingerprint
from serving.inputs.item_rules import read_rules
from serving.inputs.request import Request
from serving.inputs.user_histories import StoredUsers

logger = logging.getLogger("recsys.serving")

JOB_FILE: Final = "job.json"
DONE_FILE: Final = "candidates.json"


def write_candidates(
    bundle: Path,
    users: StoredUsers,
    config: RecommendConfig,
    out_dir: Path,
    progress: Progress,
    lock: Callable[[], AbstractContextManager[None]] = nullcontext,
    device: torch.device | str = "cpu",
    precision: str | None = None,
) -> dict[str, Any]:
    """Score all users and write their candidates.

    Args:
        bundle: Bundle folder.
        out_dir: Empty or missing, or the folder of the same job, which is then continued.
        lock: Held while the folder is written; not entered by a request that is refused, which leaves nothing behind.
        device, precision: As of :meth:`~serving.answers.scorer.Scorer.open`.

    Returns:
        Counts of users, rows, shards, users with fewer rows than asked by reason, and users per second of the shards
        that this call scored.

    Raises:
        ArtifactError: ``out_dir`` holds another job, or cannot be written; or the bundle is damaged.
        ConfigError: A rule file is missing, a rule names something that does not exist, or the bundle cannot generate
            sessions, select by reward or be steered as asked.
        DataError: A history or a rule file does not keep its form.
    """
    scorer = Scorer.open(bundle, device, precision)
    config.options.check(config.k)
    scorer.catalogue.limits.check_k(config.k, scorer.info.name)
    users.check(scorer.catalogue)
    rules = read_rules(config, scorer.catalogue, users.user_ids)
    request = scorer.request(users, config.k, rules, config.options)
    with lock(), explain_write_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        job = _open_job(out_dir, scorer.info, users.digest, config)
        names = shard_names(len(users), config.users_per_shard)
        started, scored = time.monotonic(), 0
        lengths: list[npt.NDArray[np.int64]] = []
        with ThreadPoolExecutor(max_workers=1) as writer:
            being_written: Future[None] | None = None
            for number, name in progress.track(list(enumerate(names)), "recommend", len(names)):
                if (out_dir / name).exists():
                    continue
                first = number * config.users_per_shard
                last = min(first + config.users_per_shard, len(users))
                answer = _score_shard(scorer, request, first, last)
                if being_written is not None:  # at most one shard waits, whatever the disk does
                    being_written.result()
                being_written = writer.submit(write_shard, out_dir / name, answer, scorer.catalogue.item_ids, job)
                scored += last - first
                lengths.append(answer.asked.histories.lengths)
            if being_written is not None:
                being_written.result()
        seconds = time.monotonic() - started
        counts = count_shards(out_dir, names)
        write_json(out_dir / DONE_FILE, counts)
    rate = round(scored / seconds, 1) if scored and seconds > 0 else None
    _log_outcome(scorer, config, counts, scored, seconds, lengths)
    return {**counts, "users_per_second": rate}


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


def _open_job(out_dir: Path, info: BundleInfo, users_digest: str, config: RecommendConfig) -> dict[str, str]:
    """Read the job that is under way here, or start one."""
    asked = {
        "bundle": info.digests,
        "users": users_digest,
        "config": config.model_dump(mode="json", exclude=set(RULE_FILES)),
        "rules": fingerprint(config),
    }
    path = out_dir / JOB_FILE
    if path.exists():
        job: dict[str, str] = read_json(path)
        if job.get("asked") != digest_of(asked):
            raise ArtifactError(
                f"'{out_dir}' holds another job (other model, users, rules or settings); choose another folder, or delete "
                "this one"
            )
        return job
    if any(out_dir.glob("part-*.parquet")):
        raise ArtifactError(
            f"'{out_dir}' holds part files but no {JOB_FILE}; choose another folder, or delete this one"
        )
    job = {
        "asked": digest_of(asked),
        Columns.MODEL_NAME: info.name,
        Columns.MODEL_VERSION: model_version_of(config.model, info.digests["train"]),
        Columns.SEMANTIC_ID_DIGEST: info.digests["semantic_ids"],
        Columns.RUN_ID: uuid.uuid4().hex,
        Columns.SCORED_AT: datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    write_json(path, job)
    return job


def _score_shard(scorer: Scorer, request: Request, first: int, last: int) -> Answer:
    answer = scorer.answer(request, first, last)
    unknown = answer.asked.num_unknown
    if unknown.any():
        logger.warning(
            "users %d to %d: %d history events of %d users name items that the model does not have; they were left out",
            first,
            last - 1,
            int(unknown.sum()),
            int((unknown > 0).sum()),
        )
    return answer


def _log_outcome(
    scorer: Scorer,
    config: RecommendConfig,
    counts: Mapping[str, Any],
    scored: int,
    seconds: float,
    lengths: list[npt.NDArray[np.int64]],
) -> None:
    """Say how fast it went, and who got fewer answers than asked; ``lengths`` are those of the scored histories."""
    rate = round(scored / seconds, 1) if scored and seconds > 0 else None
    logger.info("recommend: %d users in %.1f s (%s users/s)", scored, seconds, rate)
    plain = config.second_stage == "none" and "rank" not in scorer.info.digests
    if rate and config.answer == "items" and plain:  # the figures below are of the search alone
        recommender = scorer.recommender
        decode = recommender.config
        widths = fed_widths(max(decode.beam_width, config.k), recommender.index.max_children)
        events_N = np.minimum(np.concatenate(lengths), recommender.policy.spec.model.max_history)
        flops = decoding_flops(recommender.policy, events_N, widths)
        logger.info("recommend: %s", describe(scored, "users", flops, seconds, recommender.device, decode.precision))
    if counts["users_short"]:
        counted = {
            name.removeprefix("short_by_"): count for name, count in counts.items() if name.startswith("short_by_")
        }
        counted["beam too narrow"] = counted.pop("beam")
        logger.warning(
            "recommend: %d of %d users got fewer than %d %s (%s); shortfalls-*.parquet names them",
            counts["users_short"],
            counts["users"],
            config.k,
            config.answer,
            ", ".join(f"{reason} {count}" for reason, count in counted.items()),
        )

"""The batch job: candidates for every user as Parquet shards, restartable, in bounded memory.

Reads a bundle, users (:mod:`serving.inputs.user_histories`), business rules (:mod:`serving.inputs.rules.item_rules`)
and, for a delta job, earlier candidates (:mod:`serving.batch.carried`); writes the files of :mod:`serving.batch.shards`
and :mod:`serving.batch.ledger`.

1. ``job.json`` says what is asked; another job in the folder is refused;
2. shards that are there and intact are kept, all others are answered, by this process or by Ray
   (:mod:`serving.batch.ray_engine`);
3. ``candidates.json`` says that the job is done.

Each shard appears by rename. The moment ``scored_at`` belongs to the job, not to the shard, so that a restarted job gives
the same table as an undisturbed one. A user's answer depends on no other user (:mod:`recsys.decoding.batches`), so neither
the size of shards nor the engine changes a row.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from serving.batch.ledger import JOB_FILE, REPORT_FILE, Ledger
from serving.batch.plan import PROBE_USERS, Plan, make_plan, make_report
from serving.batch.shard_scorer import JobSpec, ShardScorer, WrittenShard
from serving.batch.shards import shard_names
from serving.bundle.layout import BundleInfo
from serving.config import NOT_ASKED, RULE_FILES, Engine, RecommendConfig
from serving.inputs.rules.item_lists import fingerprint
from serving.inputs.user_histories import StoredUsers

logger = logging.getLogger("recsys.serving")

WORTH_A_PLAN: Final = 40 * PROBE_USERS
"""Users from which on a first batch is measured before the job."""


def write_candidates(
    bundle: Path,
    users: StoredUsers,
    config: RecommendConfig,
    out_dir: Path,
    progress: Progress,
    lock: Callable[[], AbstractContextManager[None]] = nullcontext,
    device: torch.device | str = "cpu",
    precision: str | None = None,
    since: Path | None = None,
) -> dict[str, Any]:
    """Score all users and write their candidates.

    Args:
        bundle: Bundle folder.
        out_dir: Empty or missing, or the folder of the same job, which is then continued.
        lock: Held while the folder is written; not entered by a request that is refused, which leaves nothing behind.
        device, precision: As of :meth:`~serving.answers.scorer.Scorer.open`.
        since: Complete folder of earlier candidates, whose rows unchanged users keep; ``None`` answers everybody.

    Returns:
        Counts of users, rows, shards, users with fewer rows than asked by reason, and users per second of the shards
        that this call wrote.

    Raises:
        ArtifactError: ``out_dir`` holds another job, or cannot be written; the bundle or the earlier candidates are damaged.
        ConfigError: A rule file is missing, a rule names something that does not exist, or the bundle cannot generate
            sessions, select by reward or be steered as asked; or Ray is not installed.
        DataError: A history or a rule file does not keep its form.
    """
    spec = JobSpec(bundle, config, device, precision, since)
    scorer = ShardScorer(spec, users)
    if scorer.why_full is not None:
        logger.warning("recommend: everybody is answered, because %s", scorer.why_full)
    with lock(), explain_write_errors(out_dir, "folder"):
        out_dir.mkdir(parents=True, exist_ok=True)
        job = _open_job(out_dir, scorer, config)
        names = shard_names(len(users), config.users_per_shard)
        ledger = Ledger(out_dir)
        records = ledger.intact(names)
        left = [number for number, name in enumerate(names) if name not in records]
        if left or not ledger.is_complete:
            ledger.reopen(records)
        plan = None
        if left and len(users) >= WORTH_A_PLAN:
            plan = make_plan(scorer, config, len(names), len(records))
            logger.info("recommend: %s", plan.text())
        started, written = time.monotonic(), []
        coming = _written(spec, scorer, job, names, left, out_dir)
        for shard in progress.track(coming, "recommend", len(left)):
            ledger.add(shard.record)
            records[shard.record.shard] = shard.record
            written.append(shard)
        seconds = time.monotonic() - started
        counts = ledger.close([records[name] for name in names])
        report = make_report(plan, config.engine, written, counts, seconds, scorer.why_full)
        if written or not (out_dir / REPORT_FILE).exists():
            write_json(out_dir / REPORT_FILE, report)
    _log_outcome(scorer, config, counts, report, sum(shard.users_T for shard in written))
    return {**counts, "users_per_second": report["users_per_second"]}


def plan_candidates(
    bundle: Path,
    users: StoredUsers,
    config: RecommendConfig,
    out_dir: Path,
    device: torch.device | str = "cpu",
    precision: str | None = None,
    since: Path | None = None,
) -> Plan:
    """Say what :func:`write_candidates` would take; writes nothing, and refuses what it would refuse."""
    scorer = ShardScorer(JobSpec(bundle, config, device, precision, since), users)
    names = shard_names(len(users), config.users_per_shard)
    return make_plan(scorer, config, len(names), len(Ledger(out_dir).intact(names)))


def _written(
    spec: JobSpec,
    scorer: ShardScorer,
    job: dict[str, Any],
    names: Sequence[str],
    left: Sequence[int],
    out_dir: Path,
) -> Iterator[WrittenShard]:
    """Answer and write the missing shards, by the engine that is asked for; yields each when its files are there."""
    if spec.config.engine == Engine.RAY:
        from serving.batch.ray_engine import written_by_ray

        yield from written_by_ray(spec, scorer.users.source, job, names, left, out_dir)
        return
    with ThreadPoolExecutor(max_workers=1) as writer:
        being_written: Future[WrittenShard] | None = None
        for number, scored in scorer.scored(left, job):
            if being_written is not None:  # at most one shard waits, whatever the disk does
                yield being_written.result()
            being_written = writer.submit(scored.write, out_dir, names[number])
        if being_written is not None:
            yield being_written.result()


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


def _open_job(out_dir: Path, scorer: ShardScorer, config: RecommendConfig) -> dict[str, Any]:
    """Read the job that is under way here, or start one."""
    info: BundleInfo = scorer.scorer.info
    asked = {
        "bundle": info.digests,
        "users": scorer.users.digest,
        "config": config.model_dump(mode="json", exclude={*RULE_FILES, *NOT_ASKED}),
        "rules": fingerprint(config),
    }
    path = out_dir / JOB_FILE
    if path.exists():
        job: dict[str, Any] = read_json(path)
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
        "basis": scorer.basis,
        Columns.MODEL_NAME: info.name,
        Columns.MODEL_VERSION: model_version_of(config.model, info.digests["train"]),
        Columns.SEMANTIC_ID_DIGEST: info.digests["semantic_ids"],
        Columns.RUN_ID: uuid.uuid4().hex,
        Columns.SCORED_AT: datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    write_json(path, job)
    return job


def _log_outcome(
    scorer: ShardScorer,
    config: RecommendConfig,
    counts: Mapping[str, Any],
    report: Mapping[str, Any],
    users_T: npt.NDArray[np.int64] | int,
) -> None:
    """Say how fast it went, and who got fewer answers than asked.

    Args:
        users_T: Answered users by the number of their events that were read; 0 where no shard was written.
    """
    rate, seconds, answered = report["users_per_second"], report["seconds"], report["users_answered"]
    carried = f", {report['users_carried_over']} of them carried over" if report["users_carried_over"] else ""
    users = answered + report["users_carried_over"]
    speed = f" ({rate} users/s)" if rate is not None else ""  # of nobody there is none
    logger.info("recommend: %d users%s in %.1f s%s", users, carried, seconds, speed)
    plain = config.second_stage == "none" and "rank" not in scorer.scorer.info.digests
    local = config.engine == Engine.LOCAL and not carried
    if (
        answered and seconds and config.answer == "items" and plain and local
    ):  # the figures below are of the search alone
        recommender = scorer.scorer.recommender
        decode = recommender.config
        widths = fed_widths(max(decode.beam_width, config.k), recommender.index.max_children)
        flops = sum(
            count * decoding_flops(recommender.policy, np.array([events]), widths)
            for events, count in enumerate(np.asarray(users_T).tolist())
            if count
        )
        logger.info("recommend: %s", describe(answered, "users", flops, seconds, recommender.device, decode.precision))
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

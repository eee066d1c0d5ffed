"""The batch job on a Ray cluster: every worker opens the bundle once and answers shards with the same scorer.

Workers write their shards themselves, so bundle, users and the folder of candidates must be paths that every node sees; what
travels is a shard's number there and its record back. A worker that dies is started again and its shard asked again; a
shard appears by rename, so nothing is half written and nothing twice in the list. The driver keeps the list.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from recsys.contracts.errors import ArtifactError, ConfigError
from serving.batch.shard_scorer import JobSpec, ShardScorer, WrittenShard
from serving.inputs.user_histories import UserSource

logger = logging.getLogger("recsys.serving")

OBJECT_STORE_BYTES: Final = 100 * 2**20
"""Of a cluster that is started here: records are small."""

RESTARTS: Final = 20
"""How often a worker may die, and a shard be asked again, before the job fails."""


class ShardWorker:
    """One worker: a scorer that writes what it answers."""

    def __init__(self, spec: JobSpec, source: UserSource, job: dict[str, Any], out_dir: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._scorer, self._job, self._out_dir = ShardScorer(spec, source.open()), job, out_dir

    def write(self, number: int, name: str) -> WrittenShard:
        """Answer and write one shard."""
        ((_, scored),) = self._scorer.scored([number], self._job)
        return scored.write(self._out_dir, name)


def written_by_ray(
    spec: JobSpec,
    source: UserSource,
    job: dict[str, Any],
    names: Sequence[str],
    left: Sequence[int],
    out_dir: Path,
) -> Iterator[WrittenShard]:
    """Let workers answer the missing shards; yields each when its files are there, in no particular order.

    The cluster is the one that ``RAY_ADDRESS`` names; without it one is started on this machine, and stopped at the end.

    Raises:
        ConfigError: Ray is not installed.
        ArtifactError: A worker fails again and again.
    """
    ray = _ray()
    started_here = not ray.is_initialized()
    if started_here:
        _start(ray, spec.config.ray_workers)
    try:
        threads = torch.get_num_threads()
        gpus = 1 if str(spec.device).startswith("cuda") else 0
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(ShardWorker)
        count = min(len(left), spec.config.ray_workers or int(ray.cluster_resources().get("CPU", 1)))
        here = replace(spec, bundle=spec.bundle.resolve(), since=spec.since.resolve() if spec.since else None)
        there = replace(source, path=source.path.resolve())
        workers = [actor.remote(here, there, job, out_dir.resolve(), threads) for _ in range(count)]
        waiting, asked = list(left), {}
        for worker in workers:
            number = waiting.pop(0)
            asked[worker.write.remote(number, names[number])] = worker
        while asked:
            done, _ = ray.wait(list(asked), num_returns=1)
            worker = asked.pop(done[0])
            result = ray.get(done[0])
            if waiting:
                number = waiting.pop(0)
                asked[worker.write.remote(number, names[number])] = worker
            yield result
    except ray.exceptions.RayActorError as error:
        raise ArtifactError(
            f"recommend: a Ray worker died more than {RESTARTS} times ({str(error).splitlines()[0]}); finished shards "
            "are kept, run the same command again"
        ) from error
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    finally:
        if started_here:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("recommend.engine is ray, which is not installed; pip install 'recsys-gen[ray]'") from error
    return ray


def _start(ray: Any, workers: int | None) -> None:
    import os

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "include_dashboard": False}
    if not os.environ.get("RAY_ADDRESS"):
        settings |= {"object_store_memory": OBJECT_STORE_BYTES, "num_cpus": workers}
    ray.init(**settings)

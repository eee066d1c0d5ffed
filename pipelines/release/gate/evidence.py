"""What a verdict is made from: rows of evaluations, answers of registered versions to today's rows, slices, a probe.

Reads ``per_user.parquet`` and summaries of evaluations, the prepared data and bundles; produces
:class:`~pipelines.release.gate.verdict.Evidence`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.release.gate.config import PromoteConfig
from pipelines.release.gate.shares import Mask, Values
from pipelines.release.gate.verdict import Evidence, Service
from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.contracts.errors import ArtifactError, RecsysError
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.device import AUTO, resolve_device

if TYPE_CHECKING:
    import polars as pl

    from recsys.contracts.dataset import Targets
    from serving.answers.scorer import Scorer
    from serving.inputs.user_histories import MappedUsers, PreparedUsers
    from serving.registry.model_registry import Registry, Version

logger = logging.getLogger("recsys.pipelines")


@dataclass(frozen=True)
class EvaluatedRows:
    """``per_user.parquet``, seen items filtered, in the order of the evaluated rows.

    Attributes:
        user_ids: ``[N]``.
        served: ``[N]`` metric of the served ranking.
        baselines: The same of every baseline.
    """

    user_ids: pl.Series
    served: Values
    baselines: dict[str, Values]


@dataclass
class Witness:
    """Answers questions about versions on the rows that a challenger was evaluated on.

    Attributes:
        evaluation: Of the challenger.
        prepared: The data it was evaluated on.
        device: Name of the device that versions answer on, as in a recipe.
    """

    registry: Registry
    store: ArtifactStore
    evaluation: Artifact
    prepared: Artifact
    config: PromoteConfig
    device: str = AUTO

    def gather(self, challenger: Version, champion: Version | None, anchor: Version | None) -> Evidence:
        """Collect the evidence.

        Args:
            anchor: ``None`` where it is the champion.

        Raises:
            ArtifactError: An evaluation or a bundle is missing or damaged, or does not belong to these rows.
        """
        rows = evaluated_rows(self.evaluation.path, self.config.metric)
        users = rows.user_ids.rank("dense").to_numpy().astype(np.int64)
        if champion is None:
            return Evidence(users, rows.served, baselines=rows.baselines)
        theirs, their_coverage = self._values_of(champion, rows)
        best = None if anchor is None else self._values_of(anchor, rows)[0]
        ours = self._probe(challenger, self._coverage_of(self.evaluation))
        return Evidence(
            users,
            rows.served,
            theirs,
            best,
            rows.baselines,
            self.slices(len(users)),
            ours,
            self._probe(champion, their_coverage),
        )

    def slices(self, num_rows: int) -> dict[str, Mask]:
        """The slices of the evaluation, and the largest categories of the wanted items.

        Raises:
            ArtifactError: The prepared data have another number of rows than the evaluation.
        """
        from recsys.evaluation.config import EvaluateConfig
        from recsys.evaluation.slices import ALL_ROWS, row_slices

        targets, items = self._targets, self._users.prepared.items
        if len(targets) != num_rows:
            raise ArtifactError(
                f"'{self.evaluation.path}' holds {num_rows} rows, the data it names have {len(targets)}; run "
                "`evaluate` again"
            )
        settings = EvaluateConfig.model_validate(self.evaluation.manifest.config["evaluate"]).slices
        found = row_slices(targets, items[Columns.TRAIN_COUNT].to_numpy(), settings)
        del found[ALL_ROWS]
        category_I = items[Columns.CATEGORY_INDEX].to_numpy()
        wanted = category_I[targets.items[np.minimum(targets.item_offsets[:-1], max(len(targets.items) - 1, 0))]]
        counts = np.bincount(wanted[wanted > 0])
        for category in np.argsort(-counts, kind="stable")[: self.config.segments]:
            if counts[category]:
                found[f"category {category}"] = wanted == category
        return found

    @cached_property
    def _users(self) -> PreparedUsers:
        from serving.inputs.user_histories import PreparedUsers

        return PreparedUsers(self.prepared.path, self.prepared.digest)

    @cached_property
    def _targets(self) -> Targets:
        return self._users.prepared.targets(SPLIT_NAMES.index(split_of(self.evaluation)))

    @cached_property
    def _k(self) -> int:
        return int(self.config.metric.rpartition("@")[2])

    def _values_of(self, version: Version, rows: EvaluatedRows) -> tuple[Values, float | None]:
        """Metric per row and coverage: of the version's own evaluation if it was made on these rows, else of answers now."""
        own = self._evaluation_of(version)
        if own is None:
            logger.info("promote: version %s was evaluated on other data; it answers today's rows now", version.number)
            return self._answer_today(version)
        theirs = evaluated_rows(own.path, self.config.metric)
        if not theirs.user_ids.equals(rows.user_ids):
            raise ArtifactError(
                f"'{own.path}' and '{self.evaluation.path}' were made from the same data but hold other users; "
                "delete the older one and run `evaluate` again"
            )
        return theirs.served, self._coverage_of(own)

    def _evaluation_of(self, version: Version) -> Artifact | None:
        """A version's own evaluation, if it is in this store, of the same data and the same split."""
        digest = version.tags.get("evaluation_digest", "")
        if version.tags.get("data_digest") != self.prepared.digest or not digest:
            return None
        found = self.store.find(self.evaluation.manifest.kind, digest)
        return found if found is not None and split_of(found) == split_of(self.evaluation) else None

    def _coverage_of(self, evaluation: Artifact) -> float | None:
        from recsys.evaluation.rankings import SERVED

        systems = evaluation.manifest.summary.get("systems", {})
        figure = systems.get(SERVED, {}).get("filtered", {}).get(f"coverage@{self._k}")
        return None if figure is None else float(figure["mean"])

    def _answer_today(self, version: Version) -> tuple[Values, float]:
        """Let a version's bundle rank for the rows that the challenger was evaluated on."""
        from recsys.contracts.ranking import RankedItems
        from recsys.metrics.ranking import coverage_of, exposures, row_metrics
        from serving.bundle.catalogue import index_of

        # as many places as the challenger was ranked for: they widen the beam, and a narrower one finds less
        places = max(self._k, *self.evaluation.manifest.config["evaluate"]["ks"])
        ours = self._users.prepared.items[Columns.ITEM_ID]
        try:
            scorer = self._scorer(version)
            ranked = scorer.answer(scorer.request(self._asked(scorer, self._targets), places)).ranked
            here = index_of(scorer.catalogue.item_ids, ours, f"the item ids of version {version.number}")
        except RecsysError as error:
            raise ArtifactError(
                f"version {version.number} of '{version.name}' cannot answer today's rows, so that nothing can be compared "
                f"with it: {error}"
            ) from error
        items = np.where(ranked.items >= 0, here[ranked.items], -1).astype(np.int32)
        found = row_metrics(RankedItems(items, ranked.scores), self._targets, [self._k])[self.config.metric]
        values = found.astype(np.float32).astype(np.float64)  # as exact as what an evaluation keeps
        return values, coverage_of(exposures(RankedItems(items, ranked.scores), self._k, len(ours)))

    def _probe(self, version: Version, coverage: float | None) -> Service:
        """Let a bundle answer some rows, spread over all, and look at length and time of the answers."""
        count = min(self.config.probe_rows, len(self._targets)) if self.config.probe_rows else 0
        if not count:
            return Service(coverage)
        asked = self._targets.take(np.linspace(0, len(self._targets) - 1, count).astype(np.int64))
        scorer = self._scorer(version)
        request = scorer.request(self._asked(scorer, asked), self._k)
        scorer.answer(request, 0, min(8, count))  # what is made once is not a row's time
        started = time.perf_counter()
        answer = scorer.answer(request)
        return Service(coverage, len(answer.short) / count, (time.perf_counter() - started) / count)

    def _asked(self, scorer: Scorer, targets: Targets) -> MappedUsers:
        from serving.inputs.user_histories import MappedUsers

        return MappedUsers(self._users.map_targets(targets, scorer.catalogue))

    def _scorer(self, version: Version) -> Scorer:
        from serving.answers.scorer import Scorer

        return Scorer.open(self.registry.open_bundle(version, self.store).path, resolve_device(self.device))


def evaluated_rows(folder: Path, metric: str) -> EvaluatedRows:
    """Read one metric of the served ranking and the baselines, seen items filtered.

    Raises:
        ArtifactError: The table is missing or damaged, or the evaluation has no such system or metric.
    """
    import polars as pl

    from recsys.contracts.table_checks import check_file_types, check_table
    from recsys.contracts.tables import PerUserTable
    from recsys.evaluation.rankings import OWN_SYSTEMS, SERVED

    path = folder / "per_user.parquet"
    remedy = "run `evaluate` again"
    check_file_types(path, PerUserTable, remedy)
    table = pl.scan_parquet(path, glob=False)
    if metric not in table.collect_schema().names():
        raise ArtifactError(
            f"'{folder}' was evaluated without '{metric}'; set promote.metric or evaluate.ks so that they fit"
        )
    ours = [name for name in OWN_SYSTEMS if name != SERVED]
    wanted = pl.col(Columns.EXCLUDE_SEEN) & ~pl.col(Columns.SYSTEM).is_in(ours)
    rows = table.select(Columns.SYSTEM, Columns.EXCLUDE_SEEN, Columns.USER_ID, metric).filter(wanted).collect()
    check_table(rows, PerUserTable, path, remedy)
    systems = {str(key[0]): frame for key, frame in rows.partition_by(Columns.SYSTEM, as_dict=True).items()}
    served = systems.pop(SERVED, None)
    if served is None:
        raise ArtifactError(f"'{folder}' holds no rows of '{SERVED}'; run `evaluate` again")
    users = served[Columns.USER_ID]
    for name, frame in systems.items():
        if not frame[Columns.USER_ID].equals(users):
            raise ArtifactError(f"'{path}': '{name}' was evaluated on other users than '{SERVED}'; {remedy}")
    values = {name: frame[metric].to_numpy().astype(np.float64) for name, frame in systems.items()}
    return EvaluatedRows(users, served[metric].to_numpy().astype(np.float64), values)


def split_of(evaluation: Artifact) -> str:
    """Name of the split that an evaluation evaluated."""
    return str(evaluation.manifest.config["evaluate"]["split"])

"""Runs stages through the store: what exists is skipped, what is new is published whole or not at all.

Reads a plan (:mod:`pipelines.engine.stage`); produces artefacts below ``<output_dir>/artifacts``. Knows nothing about the
meaning of a stage, of MLflow, or of the command line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.engine.stage import PlannedStage, Stage, earlier_results, explain, pin, plan_stage
from recsys.config import FrozenConfig
from recsys.contracts.errors import ArtifactError, CannotExtend
from recsys.contracts.manifest import Artifact, ArtifactStore, verify_files
from recsys.runtime import Progress

logger = logging.getLogger("recsys.pipelines")


@dataclass(frozen=True)
class Outcome:
    """What happened to one stage.

    Attributes:
        ran: ``False`` when the artefact was there already.
        seconds: Wall-clock time of the work, 0 when skipped.
    """

    stage: Stage
    artifact: Artifact
    ran: bool
    seconds: float


@dataclass
class Runner:
    """Carries a configuration and the artefacts of the stages that are done.

    Attributes:
        config: The run configuration, handed to each stage.
        seed: Seed of all stages.
        store: Where artefacts live.
        progress: How long loops show where they are.
        after: Called with each outcome, skipped or not, after publication.
        extend: Start from an earlier result where a stage can and one fits.
        bases: Artefacts to start from, by stage name, for the stages that can grow.
        pinned: Results that stand whatever has become of the raw files, by stage name.
        where: Says of a stage where it runs, for the log and the summary in its manifest; ``None`` where it has no choice.
        outcomes: What happened so far, by stage name.
        working_on: The stage at work; after an error, the one that failed.
    """

    config: FrozenConfig
    seed: int
    store: ArtifactStore
    progress: Progress
    after: Callable[[Outcome], None] = lambda outcome: None
    extend: bool = False
    bases: Mapping[str, Artifact] = field(default_factory=dict)
    pinned: Mapping[str, Artifact] = field(default_factory=dict)
    where: Callable[[str, Any], str | None] = lambda name, config: None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    working_on: str | None = None

    def run_all(self, stages: Iterable[Stage]) -> None:
        """Run the stages in order, each with the artefacts of the stages before it."""
        for stage in stages:
            self.run(stage, {name: self.outcomes[name].artifact for name in stage.parents})

    def run(self, stage: Stage, inputs: Mapping[str, Artifact]) -> Outcome:
        """Run one stage unless its artefact exists.

        Args:
            inputs: Opened artefacts of the stage's parents, by stage name.
        """
        self.working_on = stage.name
        base = self.bases.get(stage.name)
        parents = {name: inputs[name].digest for name in stage.parents}
        planned = plan_stage(stage, self.config, self.seed, parents, base.digest if base else None)
        step = pin(planned, self.pinned.get(stage.name))
        artifact = self.store.find(stage.kind, step.digest)
        if artifact is not None:
            logger.info("%s: up to date (digest %s)", stage.name, step.digest[:16])
            outcome = Outcome(stage, artifact, ran=False, seconds=0.0)
        else:
            outcome = self._work(step, inputs)
        self.outcomes[stage.name] = outcome
        self.after(outcome)
        self.working_on = None
        return outcome

    def open_parents(self, stage: Stage, steps: Mapping[str, PlannedStage]) -> dict[str, Artifact]:
        """Open the artefacts a stage reads, for a run of that stage alone.

        Args:
            steps: The plan, by stage name.

        Raises:
            ArtifactError: A parent has not run with this configuration; the message names it.
        """
        inputs = {}
        for name in stage.parents:
            parent = steps[name]
            artifact = self.store.find(parent.stage.kind, parent.digest)
            if artifact is None:
                raise ArtifactError(
                    f"'{stage.name}' reads the result of '{name}', which has not run with this configuration "
                    f"(expected '{self.store.path_of(parent.stage.kind, parent.digest)}'; "
                    f"{explain(parent, self.store)}); run `recsys {name}` with the same config first, or `recsys run`"
                )
            inputs[name] = artifact
        return inputs

    def _work(self, step: PlannedStage, inputs: Mapping[str, Artifact]) -> Outcome:
        stage = step.stage
        where = self.where(stage.name, self.config)
        on = f" on {where}" if where else ""
        logger.info("%s: running%s (%s)", stage.name, on, explain(step, self.store))
        started = time.monotonic()
        artifact = self._extended(step) if self.extend and stage.extend is not None else None
        if artifact is None:
            artifact = self._published(step, lambda work: self._result(step, inputs, work))
        seconds = time.monotonic() - started
        logger.info("%s: done in %.1f s (digest %s)", stage.name, seconds, step.digest[:16])
        return Outcome(stage, artifact, ran=True, seconds=seconds)

    def _result(self, step: PlannedStage, inputs: Mapping[str, Artifact], work: Path) -> dict[str, Any]:
        """Do the work of a stage, from its base where it has one."""
        stage = step.stage
        if stage.grow is None or step.base is None:
            return stage.run(self.config, inputs, work, self.progress)
        base = self.bases[stage.name]
        verify_files(base, "")  # it may have been opened long ago, by its manifest alone
        return stage.grow(self.config, inputs, base, work, self.progress)

    def _extended(self, step: PlannedStage) -> Artifact | None:
        """Reach the result from an earlier one; ``None`` where none fits, with the reason in the log."""
        extend, earlier = step.stage.extend, earlier_results(step, self.store)
        assert extend is not None  # the caller has looked
        try:
            if not earlier:
                raise CannotExtend("there is no earlier result of this code and configuration")
            return self._published(step, lambda work: extend(self.config, earlier, work, self.progress))
        except CannotExtend as reason:
            logger.warning("%s: nothing to append to (%s); doing everything anew", step.stage.name, reason)
            return None

    def _published(self, step: PlannedStage, work_in: Callable[[Path], dict[str, Any]]) -> Artifact:
        """Let somebody write files into a work folder, and publish them."""
        with self.store.work_folder(step.stage.kind, step.digest, resumable=step.stage.resumable) as work:
            summary = work_in(work)
            where = self.where(step.stage.name, self.config)
            if where is not None:
                summary = {**summary, "ran_on": where}
            return self.store.publish(
                work,
                kind=step.stage.kind,
                digest=step.digest,
                code_version=step.code,
                seed=step.seed,
                parents=step.parents,
                config=step.config,
                summary=summary,
                rows=parquet_rows(work),
            )


def parquet_rows(folder: Path) -> dict[str, int]:
    """Return the number of rows of every Parquet file below ``folder``, read from the footers."""
    import polars as pl  # and not pyarrow, which a log of text needs nowhere else

    paths = (
        path
        for path in folder.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return {
        path.relative_to(folder).as_posix(): int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
        for path in paths
    }

"""A workflow that makes its artefacts out of nothing, for tests of what nights do around it; store and journal are real."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.config import RunConfig
from pipelines.engine.lock import run_lock
from pipelines.engine.runner import Outcome
from pipelines.engine.stage import select_sections
from pipelines.nightly import night as nightly
from pipelines.nightly.footing import Footing
from pipelines.nightly.journal import Journal, Night
from pipelines.release.gate.audit import AuditLog
from pipelines.release.gate.keeper import GateDecision
from pipelines.stages import EMBED, EVALUATE, EXPORT, PREPARE, RECOMMEND, TOKENIZE, TRAIN
from recsys.contracts.errors import GateRefused
from recsys.contracts.manifest import Artifact, ArtifactStore, digest_of
from recsys.runtime import PlainProgress
from tests.toy.nights import day_of

PATH = (PREPARE, EMBED, TOKENIZE, TRAIN, EVALUATE, EXPORT)


@dataclass
class World:
    """What lives outside of a night: the registry, the days that have events, and what goes wrong.

    Attributes:
        output: The output folder.
        versions: Digest of the bundle of each version.
        champion: Number of the version that serves.
        empty: Days without events.
        fails_run: A refusal fails the run.
        decided: Versions that the gate decided on.
        refused: Days whose challenger the gate refuses.
        failing: Called with day and step before each step.
        fill: Share of the IDs of the generation that are taken, by day.
    """

    output: Path
    versions: list[str] = field(default_factory=list)
    champion: str | None = None
    empty: set[date] = field(default_factory=set)
    refused: set[date] = field(default_factory=set)
    failing: Callable[[date, str], None] = lambda day, step: None
    fill: dict[date, float] = field(default_factory=dict)
    fails_run: bool = False
    decided: set[str] = field(default_factory=set)

    def config(self, **nights: Any) -> RunConfig:
        """Configuration of the nights."""
        source = {"kind": "simulated"}
        values = {"name": "shop", "output_dir": str(self.output), "source": source, "nights": nights}
        return RunConfig.model_validate(values)

    def night(self, number: int, config: RunConfig | None = None) -> nightly.NightReport:
        """Run the night of a day."""
        config = config or self.config()
        with run_lock(config.output_dir):
            return nightly.run_nights(config, day_of(number), PlainProgress())

    def journal(self) -> list[Night]:
        """All nights so far."""
        return Journal(self.output, "shop").nights()

    def workflow(self, config: RunConfig, progress: Any, footing: Footing) -> FakeWorkflow:
        """What nights take for the real one."""
        return FakeWorkflow(self, config, footing)


class FakeWorkflow:
    """Steps and order of :class:`~pipelines.workflow.Workflow`."""

    def __init__(self, world: World, config: RunConfig, footing: Footing) -> None:
        self.world, self.config, self.footing = world, config, footing
        self.store = ArtifactStore(world.output / "artifacts")
        self.runner = SimpleNamespace(outcomes={})
        self.version: Any = None
        self.decision: GateDecision | None = None
        self.noted: Callable[[], None] = lambda: None

    def registry(self) -> Any:
        """Aliases alone."""
        champion = self.world.champion
        version = None if champion is None else self._version(champion)
        versions = [self._version(str(number)) for number, _ in enumerate(self.world.versions, 1)]
        return SimpleNamespace(by_alias=lambda name, alias: version, versions=lambda name: versions)

    def _version(self, number: str) -> Any:
        digest = self.world.versions[int(number) - 1]
        return SimpleNamespace(number=number, tags={"bundle_digest": digest}, reference=f"models:/shop/{number}")

    def run(self, append: bool) -> Any:
        """Do everything."""
        day, world = self.config.features.as_of, self.world
        assert day is not None
        for stage in PATH:
            world.failing(day, stage.name)
            self._stage(stage, day)
        digest = self.runner.outcomes[EXPORT.name].artifact.digest
        world.failing(day, "register")
        if digest not in world.versions:
            world.versions.append(digest)
        self.version = self._version(str(world.versions.index(digest) + 1))
        self.noted()
        world.failing(day, "decide")
        self.decision = self._decided(day)
        promoted = self.decision.promoted
        self.noted()
        if not promoted and world.fails_run:
            raise GateRefused("by the test")
        world.failing(day, "recommend")
        self._stage(RECOMMEND, day)
        return SimpleNamespace(decision=self.decision)

    def _decided(self, day: date) -> GateDecision:
        """Decide once, write that down, and say of a version that was decided on only that it was."""
        world, number = self.world, self.version.number
        if world.champion == number or number in world.decided:
            champion = world.champion == number
            return GateDecision(champion, "it was decided on before", number, world.champion, moved=False)
        promoted = day not in world.refused
        decision = GateDecision(promoted, "by the test", number, world.champion, promoted, {"share": 0.25})
        log = AuditLog(world.output)
        record = log.record("shop", number, asdict(decision))
        log.append("promoted" if promoted else "refused", "shop", "by the test", record, challenger=number)
        world.decided.add(number)
        if promoted:
            world.champion = number
        return decision

    def _stage(self, stage: Any, day: date) -> None:
        base = self.footing.bases.get(stage.name)
        parents = {name: outcome.artifact.digest for name, outcome in self.runner.outcomes.items()}
        digest = digest_of([stage.name, day.isoformat(), base, parents])
        artifact = self.store.find(stage.kind, digest)
        ran = artifact is None
        if artifact is None:
            artifact = self._made(stage, day, digest, base)
        self.runner.outcomes[stage.name] = Outcome(stage, artifact, ran, 1.0 if ran else 0.0)
        self.noted()

    def _made(self, stage: Any, day: date, digest: str, base: str | None) -> Artifact:
        summary: dict[str, Any] = {}
        values = self.config.model_dump(mode="json")
        with self.store.work_folder(stage.kind, digest) as work:
            if stage is PREPARE:
                last = "2026-10-01T12:00:00" if day in self.world.empty else f"{day}T12:00:00"
                summary["last_event"] = last
            if stage is TOKENIZE:
                anew = base is None or self.config.tokenize.generation == "new"
                founder = digest if anew or base is None else _generation(self.store.path_of(stage.kind, base))
                (work / "semantic_ids.json").write_text(json.dumps({"generation": founder}))
                summary["figures"] = {"fill": self.world.fill.get(day, 0.0)}
            parents = {name: outcome.artifact.digest for name, outcome in self.runner.outcomes.items()}
            sections = select_sections(values, stage.sections, (*stage.ignored, *(key for key, _ in stage.added)))
            return self.store.publish(
                work,
                kind=stage.kind,
                digest=digest,
                code_version="0",
                seed=1,
                parents=parents,
                config=sections,
                summary=summary,
            )


def _generation(folder: Path) -> str:
    return str(json.loads((folder / "semantic_ids.json").read_text())["generation"])

"""What the verbs do: stages through the store, then registry, gate and candidates.

Reads a :class:`~pipelines.config.RunConfig`; produces artefacts, a registered version, moved aliases, candidates, and a
:class:`RunReport` for people.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import RunConfig, to_yaml
from pipelines.described import night_check
from pipelines.engine.code_version import PROJECT_ROOT
from pipelines.engine.runner import Outcome, Runner
from pipelines.engine.stage import PlannedStage, explain, newest_first, plan_stage, with_ancestors
from pipelines.nightly.footing import Footing, footing_of
from pipelines.placement import check_placements, say_placement
from pipelines.release.gate.keeper import Gate, GateDecision
from pipelines.release.nights import champion_data
from pipelines.release.tracking import Tracker, git_sha, tracked
from pipelines.stages import BY_NAME, EVALUATE, EXPORT, PREPARE, RECOMMEND, STAGES, stages_of
from recsys.contracts.errors import ArtifactError, ConfigError, GateRefused
from recsys.contracts.manifest import Artifact, ArtifactStore, digest_of, explain_write_errors, open_artifact
from recsys.runtime import Progress, set_threads
from serving.registry.masking import shown

if TYPE_CHECKING:
    from serving.registry.model_registry import Registry, Version

logger = logging.getLogger("recsys.pipelines")

VERB_STAGES = {**{stage.name: (stage.name,) for stage in STAGES}, "evaluate": ("baselines", "evaluate")}
"""Stages behind each verb; `evaluate` fits the baselines too."""


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        outcomes: By stage name.
        version: The version made of this run's bundle.
        decision: What the gate said about it.
        candidates: Folder of candidates, and the reference of the model that made them.
        registered: This run registered the version.
    """

    outcomes: dict[str, Outcome]
    version: Version
    decision: GateDecision
    candidates: Path
    served_by: str
    registered: bool

    @property
    def worked(self) -> bool:
        """Whether anything was done at all."""
        return self.registered or self.decision.moved or any(outcome.ran for outcome in self.outcomes.values())


class Workflow:
    """One configuration at work in one output folder; the caller holds the folder's lock.

    Attributes:
        version: Of this configuration's bundle, once it is registered or was found.
        decision: What the gate said about it, once it did.
        noted: Called when a stage is done, the version registered, and the decision made.

    Args:
        footing: What it stands on; ``None``: the latest night, where the folder has nights.
    """

    def __init__(self, config: RunConfig, progress: Progress, footing: Footing | None = None) -> None:
        self.footing = footing or footing_of(config)
        self.config = config = self.footing.config
        self._config_text = to_yaml(config)
        self.store = ArtifactStore(config.output_dir / "artifacts")
        self.tracker = Tracker(
            output_dir=config.output_dir,
            config=config.tracking,
            name=config.name,
            tags={
                "git_sha": git_sha(PROJECT_ROOT),
                "config_hash": digest_of(config.model_dump(mode="json"))[:16],
                "split": str(config.evaluate.split),
            },
            config_text=self._config_text,
        )
        self.runner = Runner(config, config.seed, self.store, progress, after=self._after, where=say_placement)
        self.runner.pinned = self.footing.pinned
        self._with_champion = False
        self.noted: Callable[[], None] = lambda: None
        self.version: Version | None = None
        self.decision: GateDecision | None = None

    def run(self, append: bool = False) -> RunReport:
        """Do everything, skipping what exists.

        Args:
            append: Read only the files that came since the last preparation, where nothing else has changed.

        Raises:
            ArtifactError: MLflow cannot be reached; the stages' results are kept.
            GateRefused: The gate refused, and the configuration says that this fails the run or there is no champion.
            ConfigError: The gate asks for a cut-off that is not evaluated.
        """
        self._check_gate()
        self.runner.extend = append
        check_placements((stage.name for stage in stages_of(self.config)), self.config)
        self._begin()
        self._with_champion = True
        with tracked(self.tracker):
            self.runner.run_all(stage for stage in stages_of(self.config) if stage is not RECOMMEND)
            version, registered = self._register(self.runner.outcomes[EXPORT.name].artifact)
            self.noted()
            decision = self._decide(version)
            self.noted()
            if not decision.promoted and (decision.champion is None or self.config.promote.on_refusal == "fail"):
                raise GateRefused(_refusal(version, decision))
            outcome, served_by = self._recommend(self.runner.outcomes[PREPARE.name].artifact)
        return RunReport(self.runner.outcomes, version, decision, outcome.artifact.path, served_by, registered)

    def _check_gate(self) -> None:
        """Refuse before anything is trained what the gate could not decide on."""
        metric, cuts = self.config.promote.metric, self.config.evaluate.ks
        if int(metric.rpartition("@")[2]) not in cuts:
            raise ConfigError(
                f"promote.metric is '{metric}', and evaluate.ks has {', '.join(map(str, cuts))}: the gate compares what was "
                "evaluated; set one of the two so that they fit"
            )

    def run_until(self, name: str) -> dict[str, Outcome]:
        """Run a stage and everything that it reads from, skipping what exists; nothing is registered or promoted.

        Args:
            name: Of the stage.

        Returns:
            What happened, by stage name.
        """
        stages = with_ancestors(stages_of(self.config), (name,))
        check_placements((stage.name for stage in stages), self.config)
        self._begin()
        with tracked(self.tracker):
            self.runner.run_all(stages)
        return self.runner.outcomes

    def run_verb(self, verb: str, append: bool = False) -> Outcome:
        """Run the stage behind one verb, whose parents must be there.

        `prepare` needs neither torch nor MLflow, which take seconds to import: it runs without them, and its record waits
        for the next run or verb, unless MLflow is a server that somebody may be watching.

        Args:
            verb: Its name.
            append: As in :meth:`run`.

        Raises:
            ArtifactError: A parent has not run with this configuration.
        """
        self.runner.extend = append
        check_placements(VERB_STAGES[verb], self.config)
        light = verb == PREPARE.name
        self.tracker.postponed = light and self.tracker.is_file
        self._begin(with_torch=not light)
        steps = self.steps(verb)
        with tracked(self.tracker):
            if not light:
                self._compare_data(self.store.find(PREPARE.kind, steps[PREPARE.name].digest, verify=False))
            for name in VERB_STAGES[verb]:
                stage = steps[name].stage
                if stage is RECOMMEND:
                    return self._recommend(self._existing(steps, PREPARE.name, verb))[0]
                outcome = self.runner.run(stage, self.runner.open_parents(stage, steps))
        return outcome

    def export(self) -> tuple[Outcome, Version]:
        """Build the bundle and register it."""
        outcome = self.run_verb(EXPORT.name)
        return outcome, self._register(outcome.artifact)[0]

    def promote(self) -> tuple[Version, GateDecision]:
        """Evaluate the version made of this configuration's bundle.

        Raises:
            ArtifactError: It has not been exported and registered, or not evaluated.
            GateRefused: The gate said no.
        """
        self._begin()
        steps = self.steps()
        bundle = self._existing(steps, EXPORT.name, "promote")
        for name in (PREPARE.name, EVALUATE.name):
            self.runner.outcomes[name] = Outcome(
                BY_NAME[name], self._existing(steps, name, "promote"), ran=False, seconds=0.0
            )
        self.version = version = self.registry().find_bundle(self.config.registered_name, bundle.digest)
        if version is None:
            raise ArtifactError(
                f"the bundle '{bundle.path}' is not registered at '{shown(self.tracker.uri)}'; run `recsys export` first"
            )
        decision = self._decide(version)
        if not decision.promoted:
            raise GateRefused(_refusal(version, decision))
        return version, decision

    def steps(self, verb: str | None = None) -> dict[str, PlannedStage]:
        """The plan, by stage name: of all stages, or of those that ``verb`` runs or reads, whatever the config says."""
        stages = stages_of(self.config, VERB_STAGES[verb] if verb else ())
        if verb:
            stages = with_ancestors(stages, VERB_STAGES[verb])
        return {step.stage.name: step for step in self.footing.steps(stages)}

    def registry(self, *, create: bool = True) -> Registry:
        """Connect to the registry.

        Args:
            create: Make a database file that is missing.

        Raises:
            TrackingUnreachable: The server does not answer.
            ConfigError: There is no database, and none is to be made.
        """
        from serving.registry.model_registry import Registry

        uri, timeout = self.tracker.uri, self.config.tracking.timeout_s
        return Registry(uri, self.config.output_dir / "registry", timeout, create=create)

    def _begin(self, with_torch: bool = True) -> None:
        if with_torch:
            set_threads(self.config.num_threads)
        self.runner.bases = self.footing.open_bases(STAGES, self.store)
        with explain_write_errors(self.config.output_dir):
            (self.config.output_dir / "config.yaml").write_text(self._config_text, encoding="utf-8")

    def _after(self, outcome: Outcome) -> None:
        self.noted()
        self.tracker.note(outcome.stage.name, outcome.artifact, outcome.seconds)
        if outcome.ran:
            self.tracker.flush()
        if outcome.stage.name == PREPARE.name:
            self._compare_data(outcome.artifact)

    def _compare_data(self, prepared: Artifact | None) -> None:
        """Stop before anything is trained on data that differ from the champion's in a way that nobody meant."""
        if prepared is None:
            return
        name = self.config.registered_name
        champion = champion_data(self.registry, self.store, name) if self._with_champion else None
        night_check(self.config).check(prepared, champion)

    def result_of(self, name: str, verb: str) -> Artifact:
        """What a stage has made with this configuration.

        Raises:
            ArtifactError: It has not run.
        """
        return self._existing(self.steps(), name, verb)

    def _existing(self, steps: dict[str, PlannedStage], name: str, verb: str) -> Artifact:
        step = steps[name]
        artifact = self.store.find(step.stage.kind, step.digest)
        if artifact is None:
            raise ArtifactError(
                f"`{verb}` reads the result of '{name}', which has not run with this configuration "
                f"({explain(step, self.store)}); run `recsys {name}` with the same config first, or `recsys run`"
            )
        return artifact

    def _register(self, bundle: Artifact) -> tuple[Version, bool]:
        """Make a version of the bundle, once."""
        registry = self.registry()
        known = registry.find_bundle(self.config.registered_name, bundle.digest)
        if known is not None:
            self.version = known
            logger.info("register: up to date (%s version %s)", known.name, known.number)
            return known, False
        self.tracker.flush()
        run_id = self.tracker.run_of(EXPORT.name, bundle.digest)
        if run_id is None:
            raise ArtifactError(
                f"the bundle '{bundle.path}' is not logged at '{shown(self.tracker.uri)}' yet; run again when MLflow answers"
            )
        with self.tracker.working_on(run_id):
            version = registry.register(bundle.path, run_id, self._version_tags(bundle))
        self.version = version
        logger.info("register: %s version %s", version.name, version.number)
        return version, True

    def _version_tags(self, bundle: Artifact) -> dict[str, str]:
        from serving.registry.aliases import BUNDLE_TAG

        parents = bundle.manifest.parents
        tags = {
            **self.tracker.tags,
            BUNDLE_TAG: bundle.digest,
            "data_digest": parents[PREPARE.name],
            "train_digest": parents["train"],
            "semantic_id_digest": str(bundle.manifest.summary["semantic_id_digest"]),
        }
        step = self.steps()[EVALUATE.name]
        if self.store.find(step.stage.kind, step.digest, verify=False) is not None:
            tags["evaluation_digest"] = step.digest
        return tags

    def _decide(self, version: Version) -> GateDecision:
        outcomes = self.runner.outcomes
        config = self.config
        gate = Gate(self.registry(), self.store, config.output_dir, config.promote, config.device)
        self.decision = decision = gate.decide(
            version, outcomes[EVALUATE.name].artifact, outcomes[PREPARE.name].artifact
        )
        log = logger.info if decision.promoted else logger.warning
        log(
            "promote: version %s %s: %s",
            version.number,
            "passes" if decision.promoted else "is refused",
            decision.reason,
        )
        return decision

    def _recommend(self, prepared: Artifact) -> tuple[Outcome, str]:
        """Write candidates with the champion, or the model that the configuration names."""
        from serving.registry.aliases import CHAMPION

        reference = self.config.recommend.model or f"models:/{self.config.registered_name}@{CHAMPION}"
        bundle, pinned = self.open_model(reference)
        runner = dataclasses.replace(self.runner, config=_answered_by(self.config, pinned))
        self.runner.working_on = RECOMMEND.name
        outcome = runner.run(RECOMMEND, {PREPARE.name: prepared, EXPORT.name: bundle})
        self.runner.working_on = None
        return outcome, pinned

    def open_model(self, reference: str) -> tuple[Artifact, str]:
        """Open the bundle behind a reference or folder, and pin aliases to the version they mean now."""
        if not reference.startswith("models:/"):
            return open_artifact(Path(reference), EXPORT.kind), reference
        registry = self.registry(create=False)
        version = registry.resolve(reference)
        return registry.open_bundle(version, self.store), version.reference


def describe_plan(config: RunConfig, verb: str | None = None, footing: Footing | None = None) -> list[dict[str, Any]]:
    """Say for every stage, or those of one verb, whether it would run and why; writes nothing.

    Args:
        verb: Its name; ``None``: all stages.
        footing: What the run would stand on; ``None``: the latest night, where the folder has nights.

    `recommend` is planned with this configuration's own bundle, as if it became champion.
    """
    store = ArtifactStore(config.output_dir / "artifacts")
    rows = []
    shown = VERB_STAGES[verb] if verb else None
    stages = stages_of(config, shown or ())
    for step in (footing or footing_of(config)).steps(with_ancestors(stages, shown) if shown else stages):
        name = step.stage.name
        if shown is not None and name not in shown:
            continue
        if step.stage is RECOMMEND and config.recommend.model is None:
            step = _as_run_pins_it(step, config, store)
        done = store.find(step.stage.kind, step.digest, verify=False) is not None
        rows.append(
            {
                "stage": name,
                "action": "skip" if done else "run",
                "digest": step.digest[:16],
                "why": "up to date" if done else explain(step, store),
            }
        )
    return rows


def _answered_by(config: RunConfig, reference: str) -> RunConfig:
    """The configuration with the model that `recommend` answers with."""
    settings = config.recommend.model_copy(update={"model": reference})
    return config.model_copy(update={"recommend": settings})


def _as_run_pins_it(step: PlannedStage, config: RunConfig, store: ArtifactStore) -> PlannedStage:
    """Plan `recommend` with the version that a run writes in place of no model, as far as earlier candidates name it."""
    named = {
        result.manifest.config["recommend"]["model"]: None for result in newest_first(store.root / step.stage.kind)
    }
    ours = [model for model in named if model.startswith(f"models:/{config.registered_name}/")]
    plans = [plan_stage(step.stage, _answered_by(config, model), config.seed, step.parents) for model in ours]
    done = (plan for plan in plans if store.find(plan.stage.kind, plan.digest, verify=False))
    return next(done, plans[0] if plans else step)


def _refusal(version: Version, decision: GateDecision) -> str:
    stays = "there is still none" if decision.champion is None else f"version {decision.champion} stays"
    return (
        f"version {version.number} of '{version.name}' does not become champion: {decision.reason}; {stays}. If you know "
        f"better: `recsys rollback --to {version.number}` moves the alias, and the keys of `promote` say what is asked"
    )

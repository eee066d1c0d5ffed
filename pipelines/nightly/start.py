"""What a night starts from: the champion, and the newest semantic IDs of its generation, or nothing at all.

Reads the registry, the journal and manifests; produces a :class:`Start`. The rules:

- **Weights** come from the champion, so that what a refused night learned is left behind, and after a `recsys rollback` the
  next night goes on from the version that serves.
- **Item vectors and semantic IDs** come from the newest finished night of the champion's generation, whatever its verdict.
  A refused version is in the registry and may be served later (`recsys rollback --to`), and after a rollback the IDs of the
  version that was left have been seen outside. So an ID that any version has is never given to another item.
- A generation whose versions were all refused is left behind with them: its codes mean nothing to the champion.
- A **full** night fits vectors and codebooks anew, and the codes are named after the generation before. By the schedule, or
  where the generation is used up, its policy still starts from the champion (``nights.full_start``), with all of ``train``'s
  epochs; where something does not fit any more it starts from nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from pipelines.engine.stage import PlannedStage, Stage, changed_keys, make_plan
from pipelines.nightly.journal import Night
from pipelines.release.gate.audit import AuditLog
from pipelines.stages import EMBED, PREPARE, TOKENIZE, TRAIN
from recsys.contracts.manifest import Artifact, ArtifactStore, read_json
from serving.registry.mlflow_client import TrackingUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.config import RunConfig
    from serving.registry.model_registry import Registry

logger = logging.getLogger("recsys.pipelines")

BUNDLE_KIND: Final = "bundle"
_FIXED: Final = {EMBED: ("embed",), TOKENIZE: ("tokenize",), TRAIN: ("model",)}
"""Sections that a base must have been made with, by stage: other ones give vectors, codes or weights of another form."""


@dataclass(frozen=True)
class Start:
    """What a night starts from.

    Attributes:
        kind: ``warm`` or ``full``.
        why: One sentence.
        bases: Digests, by stage name; those of a full night are what its codes are named after, and its policy starts from.
        champion: Version that is champion now.
    """

    kind: Literal["warm", "full"]
    why: str
    bases: Mapping[str, str] = field(default_factory=dict)
    champion: str | None = None


@dataclass(frozen=True)
class Champion:
    """The version that serves, and the artefacts behind it, as far as they are in this folder.

    Attributes:
        number: Its version.
        digests: By stage name.
    """

    number: str
    digests: Mapping[str, str]


def start_of(config: RunConfig, nights: Sequence[Night], store: ArtifactStore, champion: Champion | None) -> Start:
    """Decide what a night starts from.

    Args:
        nights: Those before it, in the order of days.
        champion: The version that serves; ``None`` where there is none.
    """
    if champion is None:
        return Start("full", "there is no champion to start from")
    from recsys.semantic_ids.generations.growth import refit_reasons  # needs torch: not for a plan without nights

    def start(kind: Literal["warm", "full"], why: str, *stages: Stage) -> Start:
        return Start(kind, why, {stage.name: bases[stage.name].digest for stage in stages}, champion.number)

    bases: dict[str, Artifact] = {}
    if not config.nights.warm_start:
        return start("full", "nights.warm_start is off")
    found = _champions_artifacts(champion, store)
    if isinstance(found, str):
        return start("full", found)
    bases = found | _newest_of_generation(nights, found[TOKENIZE.name], store)
    wrong = _does_not_fit(config, bases)
    if wrong is not None:
        return start("full", wrong, TOKENIZE)
    since, full_start = (
        _since_full(nights),
        (TOKENIZE, TRAIN) if config.nights.full_start == "champion" else (TOKENIZE,),
    )
    if config.nights.full_every is not None and since is not None and since >= config.nights.full_every:
        return start("full", f"{since} nights since the last full one (nights.full_every)", *full_start)
    used_up = refit_reasons(bases[TOKENIZE.name].manifest.summary.get("figures", {}), config.tokenize.refit)
    if used_up and (since is None or since >= config.nights.full_wait):
        return start("full", "; ".join(used_up), *full_start)
    return start("warm", f"from version {champion.number}", EMBED, TOKENIZE, TRAIN)


def champion_of(
    registry: Callable[[], Registry], config: RunConfig, nights: Sequence[Night], store: ArtifactStore
) -> Champion | None:
    """Find the champion; where the registry does not answer, by the record of this folder.

    Where the record is behind nothing is trained in vain: the gate asks the registry again, and decides by that alone.

    Raises:
        ArtifactError: There was a champion, and its alias was deleted; the gate would say so when the night is trained.
    """
    from pipelines.release.gate.keeper import refuse_lost_alias
    from serving.registry.aliases import BUNDLE_TAG, CHAMPION

    name = config.registered_name
    try:
        opened = registry()
        version = opened.by_alias(name, CHAMPION)
        if version is None:
            refuse_lost_alias(opened, name, config.output_dir)
    except TrackingUnreachable as error:
        moves = [
            event for event in AuditLog(config.output_dir).events(name) if event["event"] in ("promoted", "rolled back")
        ]
        number = str(moves[-1]["challenger"]) if moves else None
        logger.warning("%s; by the record of this folder version %s is champion", error, number)
        night = next((night for night in reversed(nights) if night.version == number), None)
        stages = {} if night is None else night.stages
        return None if number is None else Champion(number, {name: stage.digest for name, stage in stages.items()})
    if version is None:
        return None
    bundle = store.find(BUNDLE_KIND, version.tags.get(BUNDLE_TAG, "none"), verify=False)
    return Champion(version.number, {} if bundle is None else bundle.manifest.parents)


def _champions_artifacts(champion: Champion, store: ArtifactStore) -> dict[str, Artifact] | str:
    """Open what a warm night needs of the champion, or say what is missing."""
    found: dict[str, Artifact] = {}
    digests = dict(champion.digests)
    for stage in (TRAIN, TOKENIZE, EMBED, PREPARE):
        artifact = store.find(stage.kind, digests.get(stage.name, "none"), verify=False)
        if artifact is None:
            return f"the result of '{stage.name}' behind version {champion.number} is not in this folder"
        found[stage.name] = artifact
        if stage is TRAIN:
            digests = {**artifact.manifest.parents, **digests}
    return found


def _newest_of_generation(nights: Sequence[Night], semantic_ids: Artifact, store: ArtifactStore) -> dict[str, Artifact]:
    """The item vectors and semantic IDs of the latest night that has the generation of these; empty for none."""
    for night in reversed(nights):
        if not night.has_result or not {EMBED.name, TOKENIZE.name} <= night.stages.keys():
            continue
        found = {
            stage.name: store.find(stage.kind, night.stages[stage.name].digest, verify=False)
            for stage in (EMBED, TOKENIZE)
        }
        opened = {name: artifact for name, artifact in found.items() if artifact is not None}
        if len(opened) == len(found) and _generation(opened[TOKENIZE.name]) == _generation(semantic_ids):
            return opened
    return {}


def _generation(semantic_ids: Artifact) -> str | None:
    head: dict[str, Any] = read_json(semantic_ids.path / "semantic_ids.json")
    return head.get("generation")


def _does_not_fit(config: RunConfig, bases: Mapping[str, Artifact]) -> str | None:
    """Say why a base is of another form than the configuration asks for; ``None`` where all fit."""
    now = {step.stage.name: step for step in make_plan([PREPARE, EMBED, TOKENIZE, TRAIN], config, config.seed)}
    for stage, sections in _FIXED.items():
        differing = _differing(now[stage.name], bases[stage.name], sections)
        if differing is not None:
            return f"{differing}: what '{stage.name}' made before does not fit any more"
    return None


def _differing(step: PlannedStage, base: Artifact, sections: Sequence[str]) -> str | None:
    before, now = (
        {name: values[name] for name in sections if name in values} for values in (base.manifest.config, step.config)
    )
    return next(iter(changed_keys(before, now)), None)


def _since_full(nights: Sequence[Night]) -> int | None:
    """Nights with a result since the last full one, that one included; ``None`` where there was none."""
    results = [night for night in nights if night.has_result]
    return next((number for number, night in enumerate(reversed(results), 1) if night.kind == "full"), None)

"""What a verb stands on in a folder that has nights: the day, the data and the bases of the latest one.

Reads the journal; produces a :class:`Footing`. Without nights it changes nothing. With them `evaluate`, `export` or
`explain`
find the digests of the night, also when files of the next day have come since: its prepared data are taken as they are, as
long as code and configuration are those that made them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from pipelines.engine.stage import PlannedStage, Stage, make_plan
from pipelines.nightly.journal import Journal
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, ArtifactStore

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from recsys.config import FrozenConfig

logger = logging.getLogger("recsys.pipelines")

_PINNED = ("prepare", "prepared")


@dataclass(frozen=True)
class Footing:
    """What a run stands on.

    Attributes:
        config: The configuration, with the day that is seen.
        bases: Digests of the artefacts that stages grow from, by stage name.
        pinned: Results that stand although raw files have changed since, by stage name.
    """

    config: RunConfig
    bases: Mapping[str, str] = field(default_factory=dict)
    pinned: Mapping[str, Artifact] = field(default_factory=dict)

    @property
    def day(self) -> date | None:
        """The last day that is seen."""
        return self.config.features.as_of

    def steps(self, stages: Sequence[Stage]) -> list[PlannedStage]:
        """Plan these stages, parents before children."""
        return make_plan(stages, self.config, self.config.seed, self.bases, self.pinned)

    def open_bases(self, stages: Sequence[Stage], store: ArtifactStore) -> dict[str, Artifact]:
        """Open the artefacts that these stages grow from.

        Raises:
            ArtifactError: One is gone.
        """
        opened = {}
        for stage in stages:
            digest = self.bases.get(stage.name) if stage.grow is not None else None
            if digest is None:
                continue
            artifact = store.find(stage.kind, digest, verify=False)
            if artifact is None:
                raise ArtifactError(
                    f"'{stage.name}' of the night of {self.day} grew from '{store.path_of(stage.kind, digest)}', which is "
                    "gone; restore it, or begin anew with `recsys run --as-of DATE nights.warm_start=false` for a later day"
                )
            opened[stage.name] = artifact
        return opened


def with_day(config: RunConfig, day: date) -> RunConfig:
    """Return the configuration that sees the events up to the end of a day."""
    return config.model_copy(update={"features": config.features.model_copy(update={"as_of": day})})


def config_of_night(config: RunConfig, day: date, kind: str, bases: Mapping[str, str]) -> RunConfig:
    """Return the configuration that a night of this kind works with.

    A full night fits codebooks anew and names their codes after its base, and a policy that starts from the champion there
    has the epochs, the rates and the rows of ``train``.
    """
    dated = with_day(config, day)
    if kind != "full":
        return dated
    changes: dict[str, FrozenConfig] = {}
    if "tokenize" in bases:
        changes["tokenize"] = config.tokenize.model_copy(update={"generation": "new"})
    if "train" in bases:
        epochs = {"epochs": config.train.max_epochs, "minutes": None, "rows": "all"}
        rates = {"learning_rate_share": 1.0, "warmup_share": config.train.warmup_share}
        changes["nights"] = config.nights.model_copy(update=epochs | rates)
    return dated.model_copy(update=changes)


def footing_of(config: RunConfig) -> Footing:
    """Return what single verbs stand on: the night of ``features.as_of`` where that is set, else the latest one."""
    journal = Journal(config.output_dir, config.registered_name)
    asked = config.features.as_of
    night = journal.last_result() if asked is None else journal.of(asked)
    if night is None or not night.has_result:
        return Footing(config)
    stage, kind = _PINNED
    store = ArtifactStore(config.output_dir / "artifacts")
    prepared = store.find(kind, night.stages[stage].digest, verify=False) if stage in night.stages else None
    stands = config_of_night(config, night.day, str(night.kind), night.bases)
    return Footing(stands, night.bases, {} if prepared is None else {stage: prepared})

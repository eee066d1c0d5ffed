"""The learned second stage of item lists: what fits together, on disk and in memory.

A fitted stage is four things: item scorers counted on train events, the weights of their sum and of that sum in the search,
facts of the items, and the ranker of the candidates. The `rank` stage writes them, the bundle holds a copy, and a
:class:`~recsys.decoding.recommender.Recommender` answers with them.

Files:
    scorers/              what was counted
    fusion.json           weights of the scorers, guidance of the search
    items.safetensors     facts of the items
    ranker.json, …        the ranker, and the guard's verdict
    second_stage.json     what it was fitted for, and digests of the above: written last
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json, sha256_of_file, write_json
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.weights import unique_state
from recsys.ranker.config import CandidateCounts
from recsys.ranker.features import ItemFacts, feature_names
from recsys.ranker.fitted import FittedRanker
from recsys.ranker.fusion import Fusion
from recsys.scorers.scorer_set import ScorerSet

STAGE_FILE: Final = "second_stage.json"
SCORERS_FOLDER: Final = "scorers"
DENSE: Final = "dense"
FUSED: Final = "fused"
BEAM: Final = "beam"
TRANSITIONS: Final = "transitions"
_FORMAT: Final = 1


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    num_items: int
    semantic_id_digest: str
    policy_digest: str
    counts: CandidateCounts
    files: dict[str, str]


@dataclass(frozen=True)
class SecondStage:
    """Item scorers, their sum, item facts and the ranker of the candidates.

    Attributes:
        scorers: Counted on train events.
        fusion: Weights of the dense head and of every scorer, and of their sum in the search.
        facts: Of every item.
        ranker: Orders the candidates.
        counts: Candidates that every source gives.
        semantic_id_digest: Of the semantic IDs that the search uses.
        policy_digest: Hash of the weights of the policy that it was fitted for; another policy's scores have other scales.
    """

    scorers: ScorerSet
    fusion: Fusion
    facts: ItemFacts
    ranker: FittedRanker
    counts: CandidateCounts
    semantic_id_digest: str
    policy_digest: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the candidate sources, in the order of their bits."""
        return candidate_sources(self.counts, self.scorers.names)

    @property
    def searches(self) -> bool:
        """Whether what is served needs a search: the simple orders are read off the scores of the whole catalogue."""
        return self.ranker.served not in (DENSE, FUSED)

    def check(self, semantic_id_digest: str, policy_digest: str, num_items: int) -> None:
        """Refuse to answer for another catalogue or policy than it was fitted for.

        Raises:
            ArtifactError: It was fitted for others, or its parts do not belong together.
        """
        for name, own, given in (
            ("semantic IDs", self.semantic_id_digest, semantic_id_digest),
            ("policy weights", self.policy_digest, policy_digest),
        ):
            if own != given:
                raise ArtifactError(
                    f"the second stage was fitted for the {name} {own[:16]}, the policy beside it has {given[:16]}; "
                    "run `rank` again for this policy"
                )
        if self.scorers.num_items != num_items or self.facts.num_items != num_items:
            raise ArtifactError(
                f"the second stage knows {self.scorers.num_items} items (facts of {self.facts.num_items}), the "
                f"catalogue has {num_items}; run `rank` again"
            )
        scored = (DENSE, *self.scorers.names)
        if self.fusion.names != scored:
            raise ArtifactError(
                f"the second stage sums {', '.join(self.fusion.names)}, its scorers are {', '.join(scored)}; run "
                "`rank` again"
            )
        expected = feature_names([*scored, FUSED], self.sources)
        if self.ranker.feature_names != expected:
            differing = sorted(set(self.ranker.feature_names) ^ set(expected)) or ["their order"]
            raise ArtifactError(
                f"the second stage was fitted on other features than are gathered here ({', '.join(differing)}); run "
                "`rank` again"
            )

    def save(self, folder: Path) -> None:
        """Write all files; the head last, so that a folder with one is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        self.scorers.save(folder / SCORERS_FOLDER)
        self.fusion.save(folder)
        self.facts.save(folder)
        self.ranker.save(folder)
        head = _Head(
            format=_FORMAT,
            num_items=self.facts.num_items,
            semantic_id_digest=self.semantic_id_digest,
            policy_digest=self.policy_digest,
            counts=self.counts,
            files=_hashes(folder),
        )
        write_json(folder / STAGE_FILE, head.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> SecondStage:
        """Read what :meth:`save` wrote, and verify it.

        Raises:
            ArtifactError: A file is missing, damaged or was not written with the others.
        """
        path = folder / STAGE_FILE
        try:
            head = _Head.model_validate(read_json(path))
        except (OSError, ValidationError) as error:
            raise ArtifactError(f"ranker '{path}' cannot be read: {error}; run `rank` again") from error
        if head.format != _FORMAT:
            raise ArtifactError(
                f"ranker '{path}' has format {head.format}, this code reads {_FORMAT}; run `rank` again"
            )
        found = _hashes(folder)
        if found != head.files:
            wrong = sorted(name for name in found.keys() | head.files.keys() if found.get(name) != head.files.get(name))
            raise ArtifactError(
                f"ranker '{folder}' is damaged: {', '.join(wrong)} is missing, changed or does not belong there; run `rank` "
                "again"
            )
        return cls(
            scorers=ScorerSet.load(folder / SCORERS_FOLDER, catalogue=head.semantic_id_digest),
            fusion=Fusion.load(folder),
            facts=ItemFacts.load(folder, head.num_items),
            ranker=FittedRanker.load(folder),
            counts=head.counts,
            semantic_id_digest=head.semantic_id_digest,
            policy_digest=head.policy_digest,
        )


def candidate_sources(counts: CandidateCounts, scorers: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the sources that give candidates; the beam always does.

    Example:
        >>> candidate_sources(CandidateCounts(fused=0), ("transitions",))
        ('beam', 'dense', 'transitions')
    """
    sizes = {DENSE: counts.dense, FUSED: counts.fused, TRANSITIONS: counts.transitions * (TRANSITIONS in scorers)}
    return (BEAM, *(name for name, size in sizes.items() if size))


def policy_digest(policy: GenerativeRecommender) -> str:
    """Hash of the weights of a policy, whatever device they are on."""
    content = hashlib.sha256()
    for name, tensor in sorted(unique_state(policy).items()):
        content.update(name.encode())
        content.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).tobytes())
    return content.hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """Sha256 of every file but the head, by its place in the folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (STAGE_FILE, "manifest.json") and not path.name.startswith(".")
    }

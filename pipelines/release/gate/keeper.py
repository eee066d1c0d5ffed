"""The gate at work: evidence, verdict, record, aliases, tags.

Reads versions and their evidence; moves the aliases ``champion``, ``previous`` and ``anchor``; adds to the record in
``<output_dir>/promotions`` (:mod:`pipelines.release.gate.audit`).

Order of writes: record, aliases under a journal, the tags that say "evaluated", the line of the log. A kill in between
repeats or finishes the same moves; a champion that somebody moved back by hand after a decision stays where it was put.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipelines.release.gate.aliases import AliasMovedError, AliasMover
from pipelines.release.gate.audit import AuditLog
from pipelines.release.gate.config import PromoteConfig
from pipelines.release.gate.evidence import Witness
from pipelines.release.gate.verdict import Check, Evidence, Findings, decide
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.device import AUTO
from serving.registry.aliases import ANCHOR, CHAMPION

if TYPE_CHECKING:
    from serving.registry.model_registry import Registry, Version

logger = logging.getLogger("recsys.pipelines")

GATE_AGAINST: Final = "gate_against"
GATE_VERDICT: Final = "gate_verdict"
PASSED: Final = "pass"
REFUSED: Final = "refused"
"""Verdicts of the gate."""
ROLLED_BACK: Final = "rolled back"
"""Verdict on a version that somebody took back."""
MAX_TAG: Final = 4500
"""Characters of a tag that every MLflow takes."""


@dataclass(frozen=True)
class GateDecision:
    """The outcome of one decision.

    Attributes:
        promoted: The challenger is (now) champion.
        reason: One sentence.
        challenger, champion: Version numbers; ``champion`` is the one evaluated against, ``None`` when there was none.
        moved: This call moved aliases.
        numbers: Means, difference and its interval, where there was a comparison.
        checks: Every question that was asked.
    """

    promoted: bool
    reason: str
    challenger: str
    champion: str | None
    moved: bool
    numbers: dict[str, float] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Gate:
    """Evaluates versions of one output folder.

    Attributes:
        registry: Where versions and aliases live.
        store: Where evaluations live.
        output_dir: Gets the record.
        config: The rule.
        device: Name of the device that versions answer on, as in a recipe.
    """

    registry: Registry
    store: ArtifactStore
    output_dir: Path
    config: PromoteConfig
    device: str = AUTO

    def decide(self, challenger: Version, evaluation: Artifact, prepared: Artifact) -> GateDecision:
        """Decide on a version and move the aliases when it passes.

        Args:
            evaluation: Evaluation of the challenger.
            prepared: The data it was evaluated on.

        Raises:
            ArtifactError: The alias ``champion`` is gone although there was one, or evidence is missing.
        """
        mover = AliasMover(self.registry, challenger.name, self.output_dir)
        log = AuditLog(self.output_dir)
        mover.repair()
        champion = self.registry.by_alias(challenger.name, CHAMPION)
        if champion is None:
            refuse_lost_alias(self.registry, challenger.name, self.output_dir, challenger)
        elif champion.number == challenger.number:
            if GATE_VERDICT not in challenger.tags:  # killed between the move and the tags
                self.registry.set_tags(challenger, {GATE_VERDICT: PASSED})
                log.append("promoted", challenger.name, "an interrupted promotion", challenger=challenger.number)
            return GateDecision(True, "it is the champion already", challenger.number, champion.number, moved=False)
        elif challenger.tags.get(GATE_AGAINST) == champion.number:
            before = challenger.tags.get(GATE_VERDICT, "compared")
            reason = (
                f"compared with version {champion.number} before ({before}): {challenger.tags.get('gate_reason', '')}"
            )
            return GateDecision(False, reason, challenger.number, champion.number, moved=False)
        anchor = self._anchor(challenger.name, champion)
        verdict = decide(self.gather(challenger, champion, anchor, evaluation, prepared), self.config)
        decision = GateDecision(
            verdict.promoted,
            verdict.reason,
            challenger.number,
            None if champion is None else champion.number,
            verdict.promoted,
            verdict.numbers,
            verdict.checks,
        )
        record = log.record(challenger.name, challenger.number, self._record(challenger, decision, anchor, evaluation))
        try:
            self._apply(mover, challenger, decision, verdict)
        except AliasMovedError as moved:
            log.append("overtaken", challenger.name, str(moved), record, challenger=challenger.number)
            return GateDecision(False, str(moved), challenger.number, decision.champion, moved=False)
        event = "promoted" if decision.promoted else "refused"
        log.append(
            event,
            challenger.name,
            decision.reason,
            record,
            challenger=challenger.number,
            champion=decision.champion,
            anchor=anchor.number if anchor else decision.champion,
        )
        return decision

    def gather(
        self,
        challenger: Version,
        champion: Version | None,
        anchor: Version | None,
        evaluation: Artifact,
        prepared: Artifact,
    ) -> Evidence:
        """Collect what the verdict is made from."""
        witness = Witness(self.registry, self.store, evaluation, prepared, self.config, self.device)
        return witness.gather(challenger, champion, anchor)

    def _anchor(self, name: str, champion: Version | None) -> Version | None:
        """The best champion so far, ``None`` where the champion is it."""
        if champion is None:
            return None
        anchor = self.registry.by_alias(name, ANCHOR)
        if anchor is None:  # the first promotion set it
            logger.warning(
                "no version of '%s' carries the alias '%s': it, or its version, was deleted; what all nights together may "
                "lose (promote.budget) counts from the champion, version %s, from now on; it can be put on a better one",
                name,
                ANCHOR,
                champion.number,
            )
            return None
        return None if anchor.number == champion.number else anchor

    def _record(
        self, challenger: Version, decision: GateDecision, anchor: Version | None, evaluation: Artifact
    ) -> dict[str, Any]:
        return {
            **asdict(decision),
            "anchor": decision.champion if anchor is None else anchor.number,
            "model": challenger.name,
            "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "evaluation_digest": evaluation.digest,
            "rule": self.config.model_dump(mode="json"),
            "challenger_tags": challenger.tags,
        }

    def _apply(self, mover: AliasMover, challenger: Version, decision: GateDecision, verdict: Findings) -> None:
        if decision.promoted:
            mover.move(challenger.number, decision.champion)
            if verdict.anchor_moves or self.registry.by_alias(challenger.name, ANCHOR) is None:
                best = challenger.number if verdict.anchor_moves or decision.champion is None else decision.champion
                self.registry.point(challenger.name, ANCHOR, best)
        shown = json.dumps({check.name: [check.passed, check.numbers] for check in decision.checks})
        tags = {
            GATE_VERDICT: PASSED if decision.promoted else REFUSED,
            "gate_reason": decision.reason[:MAX_TAG],
            "gate_checks": shown if len(shown) <= MAX_TAG else "see the record in promotions/",
            GATE_AGAINST: "none" if decision.champion is None else decision.champion,
        }
        self.registry.set_tags(challenger, tags)


def refuse_lost_alias(registry: Registry, name: str, output_dir: Path, challenger: Version | None = None) -> None:
    """Without its champion the next version would pass uncompared, and a night would train from nothing.

    A registry that was made anew counts from 1 again, so that numbers of the record may be those of versions that nobody has
    made champion: of one that waits for its first verdict, and of a first version that was refused. Where the record's
    champions are all unknown to the registry, this is said and goes on.

    Args:
        challenger: Version that is being decided on.

    Raises:
        ArtifactError: A version was champion before, and no version carries the alias.
    """
    events = AuditLog(output_dir).events(name)
    moved: list[str] = []
    for event in events:
        if event["event"] in ("promoted", ROLLED_BACK):
            moved.append(event["challenger"])
        elif event["event"] == "refused" and event.get("champion") is None:  # new, in a registry without a champion
            moved = [number for number in moved if number != event["challenger"]]
    undecided = challenger.number if challenger is not None and GATE_VERDICT not in challenger.tags else None
    there = {one.number: one.tags.get(GATE_VERDICT) for one in registry.versions(name)}
    passed = sorted((number for number, verdict in there.items() if verdict == PASSED), key=int)
    # the record's last one, else the tags': it can be a version that was taken back, or that the gate refused
    champions = [number for number in (*passed, *moved) if number in there and number != undecided]
    if moved and not champions:
        logger.warning(
            "no version of '%s' in the registry was champion, and the record in '%s' says that version %s was: the registry "
            "was made anew, or is another one; the next version is decided on as a first one",
            name,
            output_dir / "promotions",
            moved[-1],
        )
    if champions:
        last = champions[-1]
        raise ArtifactError(
            f"no version of '{name}' carries the alias '{CHAMPION}', and version {last} was made "
            "champion before: the alias was deleted, so that there is nothing to compare with; put it back with "
            f"`recsys rollback --to {last}`, or register under another name (export.registered_name)"
        )

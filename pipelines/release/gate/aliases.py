"""Moving ``champion`` and ``previous`` so that nobody else's move is lost and an interruption costs nothing.

MLflow has no "move if it is still there". So the aliases are read, moved and read again: a champion that somebody else
moved meanwhile stays where that other put it, and our first half is undone. What is left is the instant between a read and
the write after it.

A journal is written before the first move and removed after the last; a process that finds one finishes what was begun if
the champion has moved, and undoes it otherwise. What somebody who goes back writes once the aliases stand is part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from pipelines.release.gate.audit import FOLDER, AuditLog
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import explain_write_errors, read_json, write_json
from serving.registry.aliases import ANCHOR, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from serving.registry.model_registry import Version

logger = logging.getLogger("recsys.pipelines")

JOURNAL: Final = ".moving-{model}.json"


class AliasRegistry(Protocol):
    """The part of a registry that moves need."""

    def aliases(self, name: str) -> Mapping[str, str]:
        """Version number of each alias."""
        ...

    def point(self, name: str, alias: str, number: str) -> None:
        """Move an alias."""
        ...

    def remove_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        ...

    def versions(self, name: str) -> Sequence[Version]:
        """All versions."""
        ...

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Write tags on a version."""
        ...


@dataclass(frozen=True)
class Afterwards:
    """What is written once the aliases stand; writing it twice changes nothing.

    Attributes:
        event: Of the record.
        words: The same for people.
        anchor: The new champion becomes the anchor too.
        left_tags: Tags of the version that is champion no more.
    """

    event: str
    words: str
    anchor: bool = False
    left_tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Repaired:
    """What became of a move that was interrupted.

    Attributes:
        words: For people.
        finished: The event that its move belonged to, where the champion had moved; ``None`` where it was undone, and for
            a promotion, whose record the gate completes.
    """

    words: str
    finished: str | None = None


class AliasMovedError(ArtifactError):
    """Somebody else moved the champion meanwhile; their move stands."""


@dataclass(frozen=True)
class AliasMover:
    """Moves the aliases of one registered model.

    Attributes:
        output_dir: Gets the journal.
    """

    registry: AliasRegistry
    name: str
    output_dir: Path

    @property
    def journal(self) -> Path:
        """File that lies there while a move is under way."""
        return self.output_dir / FOLDER / JOURNAL.format(model=self.name)

    def move(self, to: str, expected: str | None, afterwards: Afterwards | None = None) -> None:
        """Make a version champion, and the champion previous.

        Args:
            to: Number of the version.
            expected: Number of the champion that it was compared with.
            afterwards: What belongs to the move; an interrupted one is finished with it.

        Raises:
            AliasMovedError: The champion is another one by now; nothing of ours stays moved.
        """
        before = self.registry.aliases(self.name)
        self._still(before, expected)
        with explain_write_errors(self.output_dir):
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            begun = {"to": to, "champion": expected, "previous": before.get(PREVIOUS)}
            write_json(self.journal, begun | ({"afterwards": asdict(afterwards)} if afterwards is not None else {}))
        if expected is not None:
            self.registry.point(self.name, PREVIOUS, expected)
        try:
            self._still(self.registry.aliases(self.name), expected)
            self.registry.point(self.name, CHAMPION, to)
            self._still(self.registry.aliases(self.name), to)
        except AliasMovedError:
            self._undo(before.get(PREVIOUS), expected)
            self.journal.unlink()
            raise
        self._write_afterwards(to, expected, afterwards)
        self.journal.unlink()

    def repair(self) -> Repaired | None:
        """Finish or undo a move that was interrupted; returns what was done, ``None`` where there was nothing to do."""
        if not self.journal.exists():
            return None
        begun: dict[str, Any] = read_json(self.journal)
        left = begun.get("afterwards")
        afterwards = Afterwards(**left) if left is not None else None
        finished = None
        now = self.registry.aliases(self.name)
        if now.get(CHAMPION) == begun["to"]:
            if begun["champion"] is not None:
                self.registry.point(self.name, PREVIOUS, begun["champion"])
            self._write_afterwards(begun["to"], begun["champion"], afterwards)
            finished = afterwards.event if afterwards is not None else None
            words = f"an interrupted move was finished: version {begun['to']} is champion"
        else:
            self._undo(begun["previous"], begun["champion"])
            words = f"an interrupted move to version {begun['to']} was undone: version {now.get(CHAMPION)} is champion"
        self.journal.unlink()
        logger.warning("%s: %s", self.name, words)
        if finished is None:
            AuditLog(self.output_dir).append("repaired", self.name, words)
        return Repaired(words, finished)

    def _write_afterwards(self, to: str, left: str | None, afterwards: Afterwards | None) -> None:
        if afterwards is None:
            return
        if afterwards.anchor:
            self.registry.point(self.name, ANCHOR, to)
        for version in self.registry.versions(self.name):
            if version.number == left:
                self.registry.set_tags(version, afterwards.left_tags)
        log = AuditLog(self.output_dir)
        last = log.last(self.name)
        line = {"event": afterwards.event, "challenger": to, "champion": left}
        if last is None or any(last.get(key) != value for key, value in line.items()):
            log.append(afterwards.event, self.name, afterwards.words, challenger=to, champion=left)

    def _still(self, aliases: Mapping[str, str], expected: str | None) -> None:
        found = aliases.get(CHAMPION)
        if found != expected:
            theirs, ours = (f"version {number}" if number else "nobody" for number in (found, expected))
            raise AliasMovedError(
                f"the alias '{CHAMPION}' of '{self.name}' is {theirs}, and the comparison was made with {ours}: somebody "
                "else moved it meanwhile, and that stands; run again to compare with the champion there is now"
            )

    def _undo(self, previous: str | None, ours: str | None) -> None:
        """Put ``previous`` back, unless somebody else has moved it on, or the other's champion followed the same version."""
        now = self.registry.aliases(self.name)
        if ours is None or now.get(PREVIOUS) != ours or now.get(CHAMPION) != ours:
            return
        if previous is None:
            self.registry.remove_alias(self.name, PREVIOUS)
        else:
            self.registry.point(self.name, PREVIOUS, previous)

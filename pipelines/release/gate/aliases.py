"""Moving ``champion`` and ``previous`` so that nobody else's move is lost and an interruption costs nothing.

MLflow has no "move if it is still there". So the aliases are read, moved and read again: a champion that somebody else
moved meanwhile stays where that other put it, and our first half is undone. What is left is the instant between a read and
the write after it.

A journal is written before the first move and removed after the last; a process that finds one finishes what was begun if
the champion has moved, and undoes it otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pipelines.release.gate.audit import FOLDER
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import explain_write_errors, read_json, write_json
from serving.registry.aliases import CHAMPION, PREVIOUS

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

    def move(self, to: str, expected: str | None) -> None:
        """Make a version champion, and the champion previous.

        Args:
            to: Number of the version.
            expected: Number of the champion that it was compared with.

        Raises:
            AliasMovedError: The champion is another one by now; nothing of ours stays moved.
        """
        before = self.registry.aliases(self.name)
        self._still(before, expected)
        with explain_write_errors(self.output_dir):
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.journal, {"to": to, "champion": expected, "previous": before.get(PREVIOUS)})
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
        self.journal.unlink()

    def repair(self) -> str | None:
        """Finish or undo a move that was interrupted; returns what was done, ``None`` where there was nothing to do."""
        if not self.journal.exists():
            return None
        begun = read_json(self.journal)
        now = self.registry.aliases(self.name)
        if now.get(CHAMPION) == begun["to"]:
            if begun["champion"] is not None:
                self.registry.point(self.name, PREVIOUS, begun["champion"])
            words = f"an interrupted move was finished: version {begun['to']} is champion"
        else:
            self._undo(begun["previous"], begun["champion"])
            words = f"an interrupted move to version {begun['to']} was undone: version {now.get(CHAMPION)} is champion"
        self.journal.unlink()
        logger.warning("%s: %s", self.name, words)
        return words

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

"""What the gate decided and who moved what, for ever: ``<output_dir>/promotions``.

00007-shop-v12.json   a decision: every check with its numbers, the rule, the evaluation
log.jsonl             one line per event, appended and never rewritten; each holds the hash of the line before it and of the
                      decision's file, so that a changed or missing line shows
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import append_lines, canonical_json, explain_write_errors, sha256_of_file, write_json

LOG_NAME: Final = "log.jsonl"
FOLDER: Final = "promotions"
_LINK: Final = "line_before"


class AuditLog:
    """The record of one output folder."""

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / FOLDER
        self.path = self.folder / LOG_NAME

    def record(self, model: str, number: str, decision: Mapping[str, Any]) -> Path:
        """Write a decision's file and return it."""
        with explain_write_errors(self.folder.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            numbers = [int(path.name[:5]) for path in self.folder.glob("[0-9][0-9][0-9][0-9][0-9]-*.json")]
            path = self.folder / f"{max(numbers, default=0) + 1:05d}-{model}-v{number}.json"
            write_json(path, decision)
        return path

    def append(self, event: str, model: str, words: str, record: Path | None = None, **versions: str | None) -> None:
        """Add a line.

        Args:
            event: Such as ``promoted``, ``refused``, ``rolled back``.
            words: The reason, for people.
            versions: Numbers, by role.
        """
        with explain_write_errors(self.folder.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            before = self._lines()
            line = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "event": event,
                "model": model,
                **versions,
                "reason": words,
                "record": record.name if record else None,
                "record_sha256": sha256_of_file(record) if record else None,
                _LINK: _hash(before[-1]) if before else None,
            }
            append_lines(self.path, f"{canonical_json(line)}\n")

    def events(self, model: str | None = None) -> list[dict[str, Any]]:
        """Return all lines, oldest first.

        Args:
            model: Only of this registered model.

        Raises:
            ArtifactError: A line, or a decision's file, was changed or taken out.
        """
        lines = self._lines()
        for number, line in enumerate(lines):
            expected = _hash(lines[number - 1]) if number else None
            record = self.folder / str(line["record"]) if line.get("record") else None
            if line.get(_LINK) != expected:
                raise ArtifactError(
                    f"'{self.path}': line {number + 1} does not follow the line before it; the log was changed by hand, and "
                    "cannot be relied on: restore it from a copy, or move it away to begin a new one"
                )
            if record is not None and record.exists() and sha256_of_file(record) != line["record_sha256"]:
                raise ArtifactError(
                    f"'{record}' has changed since it was written; restore it from a copy, or move '{self.path}' away to "
                    "begin a new log"
                )
        return [line for line in lines if model is None or line["model"] == model]

    def last(self, model: str) -> dict[str, Any] | None:
        """Return the last line of a model, whether or not the record can be relied on; ``None`` where there is none."""
        return next((line for line in reversed(self._lines()) if line.get("model") == model), None)

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # torn by a kill: its event has no line
                continue
            if isinstance(line, dict):
                found.append(line)
        return found


def _hash(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(line).encode()).hexdigest()

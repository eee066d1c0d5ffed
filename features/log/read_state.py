"""What has to be known of the files in a log, beside the log, before new files can be added to it.

Reads and writes ``read.json`` in the folder of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from features.sources.as_of import HELD_BACK
from features.sources.base import EventStream
from recsys.contracts.errors import CannotExtend
from recsys.contracts.manifest import read_json, write_json

_NAME: Final = "read.json"
WARNINGS: Final = "warnings"
WHOLE_COLUMNS: Final = "there are warnings about whole columns, which count over all files"


@dataclass(frozen=True)
class ReadState:
    """Of the files that a log was read from.

    Attributes:
        fingerprints: Path relative to the source's folder -> what :meth:`~features.sources.base.Source.fingerprint` says.
        facts: What was met in them, for the data report.
        types: Type of every column that was read, over all files.
    """

    fingerprints: Mapping[str, str]
    facts: Mapping[str, Any]
    types: Mapping[str, str]

    @classmethod
    def of(cls, stream: EventStream, fingerprints: Mapping[str, str], facts: Mapping[str, Any]) -> ReadState:
        """Take what belongs to the files of a stream; other files, of items and users, are read anew every time.

        Nor do files belong to it that hold events after the day of the log: they are still to be read.
        """
        later = {found["file"] for found in facts.get(HELD_BACK, ())}
        files = [file for file in stream.files if stream.by_file and file not in later]
        own = {file: fingerprints[file] for file in files if file in fingerprints}
        return cls(own, facts, dict(stream.types))

    def save(self, folder: Path) -> None:
        """Write it beside the log."""
        write_json(folder / _NAME, vars(self))

    @classmethod
    def load(cls, folder: Path) -> ReadState:
        """Read it.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        values = read_json(folder / _NAME)
        try:
            return cls(**values)
        except TypeError as error:
            raise CannotExtend(f"'{folder / _NAME}' is of another version") from error

    def why_not(self, stream: EventStream, now: Mapping[str, str]) -> str | None:
        """Say why the files of ``stream`` are not these and some more; ``None`` when they are.

        Args:
            stream: The events as they are now.
            now: Fingerprints of all files of the source as they are now.
        """
        if not self.fingerprints or not stream.by_file or not set(stream.files) <= set(now):
            return "the source has no files that could be read one without the others"
        later = self.facts.get(HELD_BACK, ())
        halves = [found for found in later if found["rows"] < found["of"]]
        if halves:
            return (
                f"'{halves[0]['file']}' holds {halves[0]['rows']} events after the day of the earlier result beside "
                f"{halves[0]['of'] - halves[0]['rows']} others, and files are read whole"
            )
        gone = [file for file in self.fingerprints if file not in stream.files]
        if gone:
            return f"'{gone[0]}' is not there any more"
        changed = [file for file, fingerprint in self.fingerprints.items() if now[file] != fingerprint]
        if changed:
            return f"'{changed[0]}' has changed"
        for column in sorted({*self.types, *stream.types}):
            before, after = self.types.get(column, "not read"), stream.types.get(column, "not read")
            if before != after:
                return f"column '{column}' was {before} in the files read earlier and is {after} over all files"
        if self.facts.get(WARNINGS):
            return WHOLE_COLUMNS
        return None

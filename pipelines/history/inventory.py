"""Everything an output folder holds or held: artefacts, those that were cleaned away, and the versions made of them.

Reads the manifests below ``<output_dir>/artifacts``, ``<output_dir>/cleaned.jsonl`` and the registry; produces an
:class:`Inventory`. A cleaned artefact leaves one line, so that what was made from it can still be told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recsys.contracts.errors import ArtifactError, RecsysError
from recsys.contracts.manifest import (
    MANIFEST_NAME,
    Artifact,
    append_lines,
    canonical_json,
    explain_write_errors,
    open_artifact,
)

if TYPE_CHECKING:
    from serving.registry.model_registry import Registry, Version

CLEANED_NAME: Final = "cleaned.jsonl"
BASE_PREFIX: Final = "base:"
"""Of a parent that a stage grew from: its result is part of the child, which needs the parent no more."""
_FACTS: Final = ("semantic_id_digest", "registered_name", "num_users", "num_items", "num_events", "rows")


@dataclass(frozen=True)
class Known:
    """An artefact that is or was there.

    Attributes:
        digest: All of it.
        parents: Digest of each parent, by stage name; ``base:<stage>`` where it grew from an earlier artefact.
        path: Its folder; ``None`` where it was cleaned away.
        bytes: Of its files and its manifest.
        made_at: When it was published, seconds since 1970 by the clock of the machine.
        model: Reference of the model that made candidates.
        facts: A few figures of its summary.
        cleaned_at: When it was cleaned away.
    """

    kind: str
    digest: str
    parents: Mapping[str, str]
    path: Path | None
    bytes: int
    made_at: float
    model: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    cleaned_at: str | None = None

    @property
    def needs(self) -> list[str]:
        """Digests of the parents that it cannot be explained or made again without."""
        return [digest for name, digest in self.parents.items() if not name.startswith(BASE_PREFIX)]


@dataclass
class Inventory:
    """What there is.

    Attributes:
        artefacts: By digest.
        versions: Of every model that was registered from this folder, oldest first.
        aliases: Version number by alias, by model.
        unreadable: Folders that look like artefacts and cannot be opened.
        registry_error: Why versions and aliases are not known; ``None`` where they are.
    """

    artefacts: dict[str, Known] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    unreadable: list[Path] = field(default_factory=list)
    registry_error: str | None = None

    def aliases_of(self, version: Version) -> list[str]:
        """Aliases that a version carries."""
        found = self.aliases.get(version.name, {})
        return sorted(alias for alias, number in found.items() if number == version.number)


def read_inventory(output_dir: Path, name: str, registry: Callable[[], Registry]) -> Inventory:
    """Read everything; a registry that does not answer is told in the result.

    Args:
        name: Registered name of the configuration; other names that bundles of this folder carry are looked up as well.
    """
    found = Inventory()
    for known in read_cleaned(output_dir):
        found.artefacts[known.digest] = known
    for path in sorted((output_dir / "artifacts").glob(f"[!.]*/[!.]*/{MANIFEST_NAME}")):
        try:
            known = known_of(open_artifact(path.parent, verify=False))
        except FileNotFoundError:  # renamed or deleted by a run meanwhile
            continue
        except ArtifactError:
            if not path.exists():
                continue
            found.unreadable.append(path.parent)
            continue
        found.artefacts[known.digest] = known
    names = {name} | {
        str(known.facts["registered_name"]) for known in found.artefacts.values() if "registered_name" in known.facts
    }
    try:
        opened = registry()
        for each in sorted(names):
            found.versions += opened.versions(each)
            found.aliases[each] = opened.aliases(each)
    except RecsysError as error:
        found.registry_error = str(error)
    return found


def known_of(artifact: Artifact) -> Known:
    """Describe an artefact that is there."""
    manifest = artifact.manifest
    asked = manifest.config.get("recommend")
    status = (artifact.path / MANIFEST_NAME).stat()
    return Known(
        manifest.kind,
        manifest.digest,
        manifest.parents,
        artifact.path,
        sum(entry.bytes for entry in manifest.files) + status.st_size,
        status.st_mtime,
        asked.get("model") if isinstance(asked, dict) else None,
        {key: manifest.summary[key] for key in _FACTS if key in manifest.summary},
    )


def read_cleaned(output_dir: Path) -> list[Known]:
    """Read what was cleaned away; a line that a kill cut short belongs to an artefact that is still there."""
    path = output_dir / CLEANED_NAME
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            found.append(Known(path=None, **line))
        except (ValueError, TypeError):
            continue
    return found


def write_cleaned(output_dir: Path, gone: Iterable[Known]) -> None:
    """Add a line per artefact, on the disk before this returns.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [
        canonical_json(
            {
                "kind": known.kind,
                "digest": known.digest,
                "parents": dict(known.parents),
                "bytes": known.bytes,
                "made_at": known.made_at,
                "model": known.model,
                "facts": dict(known.facts),
                "cleaned_at": now,
            }
        )
        for known in gone
    ]
    if not lines:
        return
    with explain_write_errors(output_dir):
        append_lines(output_dir / CLEANED_NAME, "".join(f"{line}\n" for line in lines))

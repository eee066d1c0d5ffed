"""What an output folder needs no more: found, told, and deleted so that a kill leaves nothing half.

Kept are, of every kind, the newest artefacts, and of every model the newest versions and those with an alias; what any of
these was made from; what a tracking record that waits speaks of; what the last night, and one that is to go on, have and
start from; and work that is newer than the last result of its kind.
The record of promotions, the journals of nights and the rows of MLflow stay; files that MLflow holds for what is deleted go
where they lie in the output folder.

Everything is renamed out of sight first, and deleted then: what a killed call has renamed, the next one deletes. No link is
followed.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipelines.history.inventory import Inventory, Known, write_cleaned
from pipelines.nightly.journal import Journal
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, explain_write_errors, read_json
from recsys.paths import bytes_below
from serving.registry.aliases import BUNDLE_TAG, CLEANED_TAG
from serving.registry.file_store import ARTIFACTS_NAME

if TYPE_CHECKING:
    from serving.registry.model_registry import Registry, Version

logger = logging.getLogger("recsys.pipelines")

TRASH: Final = ".trash-"


@dataclass(frozen=True)
class Doomed:
    """A folder to delete.

    Attributes:
        what: What it is, for people; equal for things that are counted together.
        path: The folder.
        bytes: Of all files below it.
        known: The artefact, where it is one.
        version: The version whose files these are, where they are a version's.
    """

    what: str
    path: Path
    bytes: int
    known: Known | None = None
    version: Version | None = None


@dataclass(frozen=True)
class Sweep:
    """What a call would delete, or has deleted.

    Attributes:
        doomed: Folders.
        kept: How many artefacts stay.
        left_alone: What could not be looked at, and why.
    """

    doomed: tuple[Doomed, ...]
    kept: int
    left_alone: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of everything to delete."""
        return sum(one.bytes for one in self.doomed)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{"what": one.what, "path": str(one.path), "bytes": one.bytes} for one in self.doomed]
        return {"delete": rows, "bytes": self.bytes, "kept_artefacts": self.kept, "left_alone": list(self.left_alone)}

    def to_text(self, done: bool) -> str:
        """One line per kind of thing, and the sum."""
        counts: dict[str, list[int]] = {}
        for one in self.doomed:
            counts.setdefault(one.what, []).append(one.bytes)
        lines = [f"{what:32} {len(sizes):5d}  {sum(sizes) / 1e6:10,.1f} MB" for what, sizes in sorted(counts.items())]
        verb = "deleted" if done else "would delete"
        lines.append(f"{verb} {len(self.doomed)} folders, {self.bytes / 1e6:,.1f} MB; {self.kept} artefacts are kept")
        return "\n".join([*lines, *(f"left alone: {words}" for words in self.left_alone)])


def plan_sweep(output_dir: Path, inventory: Inventory, keep: int) -> Sweep:
    """Find what is needed no more.

    Args:
        keep: How many of the newest artefacts of each kind, and versions of each model, are kept.

    Raises:
        ArtifactError: The registry does not answer: what aliases need is not known.
    """
    if inventory.registry_error is not None:
        raise ArtifactError(
            f"nothing is deleted while it is not known which versions have an alias: {inventory.registry_error}"
        )
    needed = needed_digests(output_dir, inventory, keep)
    there = [known for known in inventory.artefacts.values() if known.path is not None]
    left = [f"'{path}' cannot be opened" for path in inventory.unreadable]
    doomed = []
    for known in there:
        if known.digest in needed or known.path is None:
            continue
        if any(path.is_symlink() for path in (known.path, known.path.parent, known.path.parent.parent)):
            left.append(f"'{known.path}' is a link, or behind one")
            continue
        doomed.append(Doomed(known.kind, known.path, bytes_below(known.path), known))
    doomed += [Doomed("unfinished work", path, bytes_below(path)) for path in _old_work(output_dir / "artifacts")]
    logged, elsewhere = _logged(output_dir, inventory, needed, keep)
    doomed += logged
    if elsewhere:
        left.append(f"files of {elsewhere} old versions, which MLflow keeps elsewhere: its server deletes them")
    doomed += _left_over(output_dir)
    return Sweep(tuple(doomed), sum(known.digest in needed for known in there), tuple(left))


def needed_digests(output_dir: Path, inventory: Inventory, keep: int) -> set[str]:
    """Digests of the artefacts that are kept."""
    needed = set()
    by_kind: dict[str, list[Known]] = {}
    for known in inventory.artefacts.values():
        if known.path is not None:
            by_kind.setdefault(known.kind, []).append(known)
    for found in by_kind.values():
        needed |= {known.digest for known in sorted(found, key=lambda one: one.made_at)[-keep:]}
    for version in _kept_versions(inventory, keep):
        needed |= {digest for tag, digest in version.tags.items() if tag.endswith("_digest")}
    needed |= _pending(output_dir) | _of_nights(output_dir, inventory)
    waiting = list(needed)
    while waiting:
        known_or_none = inventory.artefacts.get(waiting.pop())
        for parent in known_or_none.needs if known_or_none is not None else ():
            if parent not in needed:
                needed.add(parent)
                waiting.append(parent)
    return needed


def sweep(output_dir: Path, planned: Sweep, registry: Callable[[], Registry]) -> None:
    """Delete what was planned; the caller holds the lock of the folder.

    Args:
        registry: Opens the registry; asked where files of versions are among it.

    Raises:
        ArtifactError: The folder cannot be written; what was not reached stays as it was.
    """
    with explain_write_errors(output_dir):
        _write_down(output_dir, [one.known for one in planned.doomed if one.known is not None])
        opened = registry() if any(one.version is not None for one in planned.doomed) else None
        for one in planned.doomed:
            if (
                one.version is not None and opened is not None
            ):  # said before it is true: a version without files must not look whole
                opened.set_tags(one.version, {CLEANED_TAG: datetime.now(UTC).isoformat(timespec="seconds")})
            _throw_away(one.path)
    logger.info("clean: deleted %d folders, %.1f MB", len(planned.doomed), planned.bytes / 1e6)


def _write_down(output_dir: Path, gone: list[Known]) -> None:
    """Write the lines of what goes. On a full disk, which is when people clean, the largest of it makes room first.

    Its manifest stays until the lines are written, so that a kill in between loses nothing that could be told.
    """
    try:
        write_cleaned(output_dir, gone)
    except ArtifactError as error:
        largest = max(gone, key=lambda known: known.bytes)
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full or largest.path is None:
            raise
        logger.warning("clean: the disk is full; '%s' goes first, to make room for the record", largest.path)
        for path in sorted(largest.path.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MANIFEST_NAME:
                path.unlink()
        write_cleaned(output_dir, gone)


def _kept_versions(inventory: Inventory, keep: int) -> list[Version]:
    found: list[Version] = []
    for name in dict.fromkeys(version.name for version in inventory.versions):
        ours = [version for version in inventory.versions if version.name == name]
        found += [version for version in ours if version in ours[-keep:] or inventory.aliases_of(version)]
    return found


def _pending(output_dir: Path) -> set[str]:
    """Digests of artefacts that MLflow is still to learn of."""
    found = set()
    for path in (output_dir / "tracking" / "pending").glob("[!.]*.json"):
        try:
            folder = output_dir / str(read_json(path)["artifact"])
            found.add(str(read_json(folder / MANIFEST_NAME)["digest"]))
        except (ArtifactError, KeyError, TypeError):  # the next run sets it aside and names it
            continue
    return found


def _of_nights(output_dir: Path, inventory: Inventory) -> set[str]:
    """Digests of what nights that are to go on, and the last one with a result, have and start from.

    Raises:
        ArtifactError: The journal is damaged: what it needs is not known.
    """
    found = set()
    for name in inventory.aliases:
        journal = Journal(output_dir, name)
        try:
            nights = journal.nights()
        except ConfigError:  # those of another model
            continue
        for night in nights:
            if not night.finished or night == journal.last_result():
                found |= {*night.bases.values(), *(stage.digest for stage in night.stages.values())}
    return found


def _old_work(store: Path) -> list[Path]:
    """Work folders that are older than the newest result of their kind: nobody goes on with them."""
    found = []
    for kind in _folders(store, "[!.]*"):
        published = [path.stat().st_mtime for path in kind.glob(f"[!.]*/{MANIFEST_NAME}")]
        newest = max(published, default=None)
        if newest is not None:
            found += [work for work in _folders(kind, ".work-*") if _touched(work) < newest]
    return found


def _logged(output_dir: Path, inventory: Inventory, needed: set[str], keep: int) -> tuple[list[Doomed], int]:
    """Files that MLflow holds in this folder for what is deleted, and bundles fetched for versions that are not kept.

    Returns:
        The folders, and how many versions have their files elsewhere.
    """
    kept = {(version.name, version.number) for version in _kept_versions(inventory, keep)}
    old = [version for version in inventory.versions if (version.name, version.number) not in kept]
    old = [version for version in old if version.tags.get(BUNDLE_TAG) not in needed]
    found, elsewhere = [], 0
    for version in old:
        place = output_dir / ARTIFACTS_NAME / "models" / (version.model_id or "none")
        if place.is_dir() and not place.is_symlink():
            found.append(Doomed("registered model", place, bytes_below(place), version=version))
        elif CLEANED_TAG not in version.tags:
            elsewhere += 1
        cached = _folders(output_dir / "registry", f"{version.name}-v{version.number}-*")
        found += [Doomed("fetched bundle", path, bytes_below(path)) for path in cached]
    for path in sorted((output_dir / "tracking" / "logged" / "own").glob("*.json")):
        digits = path.stem.rpartition("-")[2]
        if any(digest.startswith(digits) for digest in needed):
            continue
        try:
            run_id = str(read_json(path)["run_id"])
        except (ArtifactError, KeyError, TypeError):
            continue
        folder = output_dir / ARTIFACTS_NAME / run_id
        if run_id.isalnum() and folder.is_dir() and not folder.is_symlink():
            found.append(Doomed("files of a tracked stage", folder, bytes_below(folder)))
    return found, elsewhere


def _left_over(output_dir: Path) -> list[Doomed]:
    """What a killed call had renamed and not deleted, and half a download."""
    stores = _folders(output_dir / "artifacts", "[!.]*")
    places = [*stores, output_dir / "registry", output_dir / ARTIFACTS_NAME, output_dir / ARTIFACTS_NAME / "models"]
    found = [path for place in places for path in _folders(place, f"{TRASH}*")]
    found += _folders(output_dir / "registry", ".*.part")
    return [Doomed("left over", path, bytes_below(path)) for path in found]


def _throw_away(path: Path) -> None:
    if not path.name.startswith(TRASH):
        trash = path.with_name(f"{TRASH}{path.name}")
        if trash.exists():
            shutil.rmtree(trash)
        path.rename(trash)
        path = trash
    shutil.rmtree(path)


def _folders(place: Path, pattern: str) -> list[Path]:
    """Real folders; links are nobody's."""
    if place.is_symlink():
        return []
    return sorted(path for path in place.glob(pattern) if path.is_dir() and not path.is_symlink())


def _touched(folder: Path) -> float:
    """When anything below a folder was last written; just now where it vanishes meanwhile, since a run is at work in it."""
    try:
        return max(
            os.lstat(Path(parent) / name).st_mtime for parent, _, names in os.walk(folder) for name in (".", *names)
        )
    except (FileNotFoundError, ValueError):  # the second: nothing is left to look at
        return float("inf")

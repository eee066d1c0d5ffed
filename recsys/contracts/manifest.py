"""Artefacts: folders of files that a stage publishes whole or not at all, described by a typed manifest.

A stage writes into ``<store>/<kind>/.work-<digest>``; when all files are there the manifest is written (temporary file,
then rename) and the folder is renamed to ``<store>/<kind>/<digest>``. No manifest, no artefact: a half-written folder can
never be opened. The digest is an *input* digest: kind, code version of the stage, configuration, seed, the digests of
the parents and the fingerprints of raw files. It never contains the clock, so a stage whose digest exists is skipped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.contracts.contents import (
    KNOWN,
    MANIFEST_NAME,
    FileEntry,
    check_files,
    content_hashes,
    describe_files,
    sha256_of_file,
    sync,
)
from recsys.contracts.errors import ArtifactError

__all__ = ["MANIFEST_NAME", "FileEntry", "content_hashes", "sha256_of_file"]

SCHEMA_VERSION: Final = 1
MAX_JSON_BYTES: Final = 2**28
"""A manifest of a million files is smaller."""


class Manifest(BaseModel):
    """What an artefact is, where it came from, and what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    schema_version: int = SCHEMA_VERSION
    digest: str
    code_version: str
    seed: int
    parents: dict[str, str]
    config: dict[str, Any]
    summary: dict[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def content_digest(self) -> str:
        """Digest of what it is and of every byte of its files: equal for copies, and for nothing else."""
        files = {entry.path: entry.sha256 for entry in self.files}
        return digest_of({"kind": self.kind, "digest": self.digest, "parents": self.parents, "files": files})


@dataclass(frozen=True)
class Artifact:
    """A published artefact, opened."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Input digest of the stage that made it."""
        return self.manifest.digest


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest_of(value: Any) -> str:
    """Return the sha256 of the canonical JSON of ``value``, 64 hex digits.

    Example:
        >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file and a rename, so that a reader sees the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=2, sort_keys=True, ensure_ascii=False, default=str)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: The file is missing or is no JSON.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ArtifactError(f"'{path}' has {size} bytes, at most {MAX_JSON_BYTES} are read; it is none of ours")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"'{path}' does not exist; the stage that writes it has not finished, run it again"
        ) from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"'{path}' cannot be read as JSON: {error}; delete its folder and run the stage again"
        ) from error


def open_artifact(path: Path, kind: str | None = None, *, verify: bool = True) -> Artifact:
    """Open a published artefact.

    Args:
        path: The artefact's folder.
        kind: Expected kind; ``None`` accepts any.
        verify: Compare the size and sha256 of every file with the manifest, and look that there is no other.

    Raises:
        ArtifactError: No manifest, another kind or schema version, a path that leads out of the folder, or a file that is
            missing, has changed, is a link, or is not in the manifest.
    """
    if (path / MANIFEST_NAME).is_symlink():
        raise ArtifactError(
            f"'{path / MANIFEST_NAME}' is a link, expected a file; delete '{path}' and run its stage again"
        )
    if not (path / MANIFEST_NAME).exists():
        raise ArtifactError(f"'{path}' holds no {MANIFEST_NAME}: the artefact was never finished; run its stage again")
    try:
        manifest = Manifest.model_validate(read_json(path / MANIFEST_NAME))
    except ValidationError as error:
        raise ArtifactError(
            f"'{path / MANIFEST_NAME}' is not a manifest of schema {SCHEMA_VERSION}: {error}"
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"'{path}' has schema version {manifest.schema_version}, this code reads {SCHEMA_VERSION}; run its stage again"
        )
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"'{path}' is an artefact of kind '{manifest.kind}', expected '{kind}'")
    if verify:
        check_files(path, manifest.files)
    return Artifact(path, manifest)


def verify_files(artifact: Artifact, *prefixes: str) -> None:
    """Compare the files of an artefact whose path begins with one of ``prefixes`` with its manifest.

    Raises:
        ArtifactError: One is missing or has changed.
    """
    entries = [entry for entry in artifact.manifest.files if entry.path.startswith(prefixes)]
    paths = [artifact.path / entry.path for entry in entries]
    if all(path.is_file() for path in paths):
        hashes = content_hashes(paths)
        entries = [entry for entry, found in zip(entries, hashes, strict=True) if found != entry.sha256]
    check_files(artifact.path, entries, whole=False)


class ArtifactStore:
    """The folder that holds all artefacts of one workspace, ``<root>/<kind>/<digest>``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path_of(self, kind: str, digest: str) -> Path:
        """Folder of an artefact, whether it exists or not."""
        return self.root / kind / digest[:16]

    def find(self, kind: str, digest: str, *, verify: bool = True) -> Artifact | None:
        """Return the artefact with this digest, or ``None`` when it has not been published."""
        path = self.path_of(kind, digest)
        if not (path / MANIFEST_NAME).exists():
            return None
        artifact = open_artifact(path, kind, verify=verify)
        if artifact.digest != digest:
            raise ArtifactError(f"'{path}' has digest {artifact.digest}, expected {digest}; delete it and run again")
        return artifact

    @contextmanager
    def work_folder(self, kind: str, digest: str, *, resumable: bool = False) -> Iterator[Path]:
        """Yield the folder a stage writes into; it survives a kill, and only a resumable stage finds it as it was.

        Raises:
            ArtifactError: The output folder cannot be written (no permission, no space left).
        """
        path = self.root / kind / f".work-{digest[:16]}"
        with explain_write_errors(self.root):
            if path.exists() and not resumable:
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            yield path

    def publish(
        self,
        work: Path,
        *,
        kind: str,
        digest: str,
        code_version: str,
        seed: int,
        parents: Mapping[str, str],
        config: Mapping[str, Any],
        summary: Mapping[str, Any],
        rows: Mapping[str, int] | None = None,
    ) -> Artifact:
        """Describe every file in ``work`` with a manifest and rename the folder into place.

        Files and folders whose name starts with a dot are scratch of the stage; they are removed first.
        """
        for scratch in list(work.rglob(".*")):
            if scratch.is_dir() and not scratch.is_symlink():
                shutil.rmtree(scratch)
            else:
                scratch.unlink(missing_ok=True)
        with explain_write_errors(self.root):
            files = describe_files(work, rows)
        manifest = Manifest(
            kind=kind,
            digest=digest,
            code_version=code_version,
            seed=seed,
            parents=dict(parents),
            config=dict(config),
            summary=json.loads(canonical_json(dict(summary))),
            files=files,
        )
        final = self.path_of(kind, digest)
        with explain_write_errors(self.root):
            write_json(work / MANIFEST_NAME, manifest.model_dump(mode="json"))
            sync(work)
            if final.exists():  # a folder without a manifest, or a damaged one that the caller decided to replace
                shutil.rmtree(final)
            work.rename(final)
            sync(final.parent)
        KNOWN.renamed(work, final)
        return Artifact(final, manifest)


def append_lines(path: Path, text: str) -> None:
    """Add lines to a file, on the disk before this returns; a torn line before them, of a killed process, is ended first.

    Args:
        text: Ends in a line break.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        left = b"\n" * torn + text.encode()
        while left:  # a disk that runs full takes a part, and says so at the next call
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


_IN_THE_WAY: Final = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP),
    *(errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG),
)


@contextmanager
def explain_write_errors(root: Path, key: str = "output_dir") -> Iterator[None]:
    """Turn 'no space' and 'no permission' into an :class:`ArtifactError` that names the folder and the way out.

    Args:
        root: The folder.
        key: What names it, for the message.
    """
    try:
        yield
    except ArtifactError:  # explained already
        raise
    except Exception as error:
        root = root.absolute()
        if _is_full(error):
            raise ArtifactError(
                f"no space left while writing below '{root}' ({error}); free space and run again: finished stages are kept"
            ) from error
        if _is_too_large(error):
            raise ArtifactError(
                f"a file may not become so large below '{root}' ({error}); raise the limit of the shell or the file system "
                f"(`ulimit -f`), or choose another {key}: finished stages are kept"
            ) from error
        if not isinstance(error, OSError):
            raise
        if error.errno in _IN_THE_WAY:
            raise ArtifactError(
                f"cannot write below '{root}' ({error}); make it writable or choose another {key}: nothing was lost"
            ) from error
        raise


def _is_full(error: Exception) -> bool:
    """Whether the disk is full; Polars raises its own error without ``errno``, and NumPy names only the bytes it missed."""
    text = str(error)
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT) or " requested and " in text
    return "No space left on device" in text or "Disk quota exceeded" in text


def _is_too_large(error: Exception) -> bool:
    return "File too large" in str(error) or (isinstance(error, OSError) and error.errno == errno.EFBIG)

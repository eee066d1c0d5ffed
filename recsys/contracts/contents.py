"""What a published folder holds, and whether it is that: a list of files with hashes, their order on the disk, their check.

Reads and writes the ``files`` of a manifest (:mod:`recsys.contracts.manifest`). A list of files may come from anywhere, so
that it can name nothing outside its folder, and no link: what a loader reads is what was hashed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from recsys.contracts.errors import ArtifactError

MANIFEST_NAME: Final = "manifest.json"


def inner_path(text: str) -> str:
    """Return a relative path that stays in its folder, as it is.

    Example:
        >>> inner_path("model/weights.safetensors")
        'model/weights.safetensors'
        >>> inner_path("../../etc/passwd")
        Traceback (most recent call last):
        ValueError: '../../etc/passwd' is no path inside the folder: expected names with / between them, without '..'

    Raises:
        ValueError: It is absolute, leads out, or is not written in the plain form.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or str(path) != text or ".." in path.parts or text == "." or "\0" in text or "\\" in text:
        raise ValueError(f"{text!r} is no path inside the folder: expected names with / between them, without '..'")
    return text


class FileEntry(BaseModel):
    """One published file: path relative to the artefact, size in bytes, content hash, rows where that makes sense."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(inner_path)]
    bytes: int = Field(ge=0)
    sha256: str
    rows: int | None = None


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass(frozen=True)
class Identity:
    """What of a file changes when its content does, as far as a file system tells.

    Every write changes ``ctime_ns``, which no program can set back, as it can ``mtime_ns``; a copy has another ``inode``.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        """Ask the file system."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class KnownHash:
    """What was found when a file was read.

    Attributes:
        identity: Of the file, asked before it was read.
        read_ns: When it was asked, nanoseconds since 1970 by the clock of this machine.
        sha256: Of the content.
    """

    identity: Identity
    read_ns: int
    sha256: str


@dataclass
class KnownHashes:
    """Hashes of files that were read, so that none is read twice while it stays as it is.

    Attributes:
        files: Absolute path -> what is known of it.
        final: Likewise, of files that were read while their folder was still worked in (:func:`read_meanwhile`).
    """

    files: dict[str, KnownHash] = field(default_factory=dict)
    final: dict[str, KnownHash] = field(default_factory=dict)

    def hash_of(self, path: Path) -> str:
        """Return the sha256 of a file's content, which is read unless it is known under this path and identity."""
        identity = Identity.of(path)
        known = self.files.get(os.path.abspath(path))
        return known.sha256 if known is not None and known.identity == identity else self.read(path)

    def read(self, path: Path) -> str:
        """Read a file, and know its sha256 from now on."""
        now, identity = time.time_ns(), Identity.of(path)
        sha256 = sha256_of_file(path)
        self.files[os.path.abspath(path)] = KnownHash(identity, now, sha256)
        return sha256

    def read_final(self, path: Path) -> str:
        """Return the sha256 of a file that is published now; one that was read before as final is not read again."""
        early, identity = self.final.pop(os.path.abspath(path), None), Identity.of(path)
        if early is None or early.identity != identity:
            return self.read(path)
        # nobody else writes into the folder: that the file stayed as it is holds of this moment, too
        self.files[os.path.abspath(path)] = KnownHash(identity, time.time_ns(), early.sha256)
        return early.sha256

    def renamed(self, before: Path, now: Path) -> None:
        """Know the files below a folder under its new name; what else was known below that name is forgotten."""
        old, new = (os.path.join(os.path.abspath(folder), "") for folder in (before, now))
        moved = {new + path[len(old) :]: known for path, known in self.files.items() if path.startswith(old)}
        self.files = {path: known for path, known in self.files.items() if not path.startswith((old, new))} | moved


KNOWN: Final = KnownHashes()
"""What this process has read, and what a run has kept of earlier ones (:mod:`pipelines.engine.kept_hashes`)."""


def content_hashes(paths: Iterable[Path]) -> list[str]:
    """Return the sha256 of each file, several at a time; a file whose :class:`Identity` is known is not read again.

    A run asks for the raw files' hashes when it plans and when it works.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(KNOWN.hash_of, paths))


@contextmanager
def read_meanwhile(folder: Path) -> Iterator[None]:
    """Put the files that are in a folder onto the disk and read their hashes while the block does something else.

    The block may add files; those that are there are final. What cannot be read is left to :func:`describe_files`, which
    finds again what is wrong.
    """
    found = [path for path in _files(folder) if not path.is_symlink() and path.is_file() and not _hidden(folder, path)]
    enough = Event()

    def read() -> None:
        for path in sorted(found, key=lambda path: path.stat().st_size, reverse=True):
            if enough.is_set():
                return
            identity, name = Identity.of(path), os.path.abspath(path)
            if name not in KNOWN.final or KNOWN.final[name].identity != identity:
                sync(path)
                KNOWN.final[name] = KnownHash(identity, time.time_ns(), sha256_of_file(path))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(read)  # an error comes up again where the files are described
        try:
            yield
        except BaseException:
            enough.set()
            raise


def describe_files(folder: Path, rows: Mapping[str, int] | None = None) -> tuple[FileEntry, ...]:
    """Describe every file below a folder, manifests and hidden files aside, once they are on the disk for good.

    Args:
        rows: Rows of some files, by path relative to ``folder``.

    Raises:
        ArtifactError: There is a link among them, whose content could change without its hash.
    """
    found = []
    for path in sorted(_files(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"'{path}' is a link or no plain file, which cannot be published; write a file there")
        sync(path)
        if path.name != MANIFEST_NAME and not _hidden(folder, path):
            size, hashed = path.stat().st_size, KNOWN.read_final(path)
            found.append(FileEntry(path=name, bytes=size, sha256=hashed, rows=(rows or {}).get(name)))
    for parent, _, _ in os.walk(folder):
        sync(Path(parent))
    return tuple(found)


def check_files(folder: Path, entries: Iterable[FileEntry], *, whole: bool = True) -> None:
    """Compare files with the list of them.

    Args:
        whole: ``entries`` are all that may be there; hidden files, which nobody publishes and no loader reads, aside.

    Raises:
        ArtifactError: A file is missing, has changed, is a link, or is not on the list.
    """
    listed = set()
    for entry in entries:
        listed.add(entry.path)
        _check_file(folder, entry)
    if not whole:
        return
    for path in sorted(_files(folder)):
        if _hidden(folder, path) or (path.name == MANIFEST_NAME and not path.is_symlink()):
            continue
        if path.relative_to(folder).as_posix() not in listed:
            raise ArtifactError(
                f"'{path}' is not listed in the manifest of '{folder}', so that it was not published with it; take it away, "
                "or delete the folder and run its stage again"
            )


def _check_file(root: Path, entry: FileEntry) -> None:
    path = root / entry.path
    for part in (path, *path.parents):
        if part == root:
            break
        if part.is_symlink():
            raise ArtifactError(
                f"'{part}' is a link, and a published folder holds files only; delete '{root}' and run its stage again"
            )
    if not path.is_file():
        raise ArtifactError(f"'{path}' is listed in the manifest but missing; delete '{root}' and run its stage again")
    try:
        size = path.stat().st_size
        same = size == entry.bytes and sha256_of_file(path) == entry.sha256
    except OSError as error:
        raise ArtifactError(
            f"'{path}' cannot be read ({error}); make it readable, or restore it from a copy"
        ) from error
    if not same:
        how = (
            f"{size} bytes, manifest says {entry.bytes}"
            if size != entry.bytes
            else "as long as it was, with another hash"
        )
        raise ArtifactError(
            f"'{path}' has changed since it was published ({how}); delete '{root}' and run its stage again"
        )


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder; links are not followed."""
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)
        yield from (path for name in folders if (path := Path(parent) / name).is_symlink())


def _hidden(folder: Path, path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, so that a power cut cannot take them back."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

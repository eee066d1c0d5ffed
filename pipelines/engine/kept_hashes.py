"""Hashes of files, kept in the output folder from run to run, so that a file that nobody has touched is not read again.

Reads and writes ``<output_dir>/.known_hashes.json``. Like git's index it trusts what the file system says: a file is not
read where path, device, inode, size, and both times, to the nanosecond, are those of the file that was read, and both times
were clearly over when it was. Everything else is read. The file holds nothing that could not be found again: it may be
deleted, and whatever is wrong with it means that everything is read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

from recsys.contracts.contents import KNOWN, Identity, KnownHash
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import digest_of, read_json

logger = logging.getLogger("recsys.pipelines")

NAME: Final = ".known_hashes.json"
MARGIN_NS: Final = 2_000_000_000
"""A file that was changed less than this before it was read may have been changed once more within the same tick of the file
system's clock (2 s on FAT, 1 s on ext3 and HFS+, milliseconds elsewhere); git calls such a file racily clean."""

_VERSION: Final = 1


@contextmanager
def kept_hashes(output_dir: Path, *, trust: bool) -> Iterator[None]:
    """Know for the time of the block what earlier runs in this folder have read, and keep afterwards what this one has.

    Args:
        output_dir: Of the run, which holds its lock.
        trust: Take what was kept; else every file is read.
    """
    path = output_dir / NAME
    before = dict(KNOWN.files)
    KNOWN.files = _load(path) if trust else {}
    try:
        yield
    finally:
        _save(path, KNOWN.files)
        KNOWN.files = before


def _load(path: Path) -> dict[str, KnownHash]:
    """Read what was kept; nothing, with a line in the log, where it is damaged."""
    try:
        if not path.exists():
            return {}
        found = read_json(path)
        if found["version"] != _VERSION or found["digest"] != digest_of(found["files"]):
            raise ValueError("it is of another version, or its digest is not that of its content")
        return {name: KnownHash(Identity(*values[:5]), values[5], values[6]) for name, values in found["files"].items()}
    except (ArtifactError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        logger.warning("'%s' cannot be used (%s); all files are read", path, error)
        return {}


def _save(path: Path, files: Mapping[str, KnownHash]) -> None:
    """Keep what is sure to be noticed when it changes, of files that are still there."""
    kept: dict[str, Any] = {
        name: [*astuple(known.identity), known.read_ns, known.sha256]
        for name, known in files.items()
        if is_sure(known) and os.path.exists(name)
    }
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"version": _VERSION, "files": kept, "digest": digest_of(kept)}))
        temporary.replace(path)  # not synced: it can be done without
    except OSError as error:
        logger.warning("'%s' cannot be written (%s); the next run reads all files again", path, error)
        temporary.unlink(missing_ok=True)


def is_sure(known: KnownHash) -> bool:
    """Whether any later change of the file gives it another identity.

    Example:
        Changed 3 s before it was read, and 1 s before.

        >>> changed = Identity(1, 2, 3, 7_000_000_000, 7_000_000_000)
        >>> is_sure(KnownHash(changed, 10_000_000_000, "ab")), is_sure(KnownHash(changed, 8_000_000_000, "ab"))
        (True, False)
    """
    identity = known.identity
    return identity.inode != 0 and max(identity.mtime_ns, identity.ctime_ns) + MARGIN_NS < known.read_ns

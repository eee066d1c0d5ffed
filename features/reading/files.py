"""Which files belong to a table, in which order, and what their content is.

Reads folders; produces lists of files and their fingerprint. The order is natural (``part-2`` before ``part-10``), because
the order of the rows decides between events of the same instant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from recsys.contracts.errors import DataError
from recsys.contracts.manifest import content_hashes

PARQUET_ENDINGS: Final = (".parquet", ".pq")
TEXT_ENDINGS: Final = (".csv", ".tsv", ".txt", ".dat", ".data")
DATA_ENDINGS: Final = (*PARQUET_ENDINGS, *TEXT_ENDINGS, *(f"{ending}.gz" for ending in TEXT_ENDINGS))

_UNFINISHED: Final = (".crc", ".part", ".tmp", ".temp", ".inprogress", ".crdownload", ".swp", ".bak", ".lock", "~")
_PATTERN: Final = re.compile(r"[*?\[]")
_SHOWN: Final = 20
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class DataFiles:
    """The files of one table.

    Attributes:
        paths: In natural order of their path relative to ``root``.
        root: The folder that relative paths start from.
        where: The name under which messages speak of them.
        ignored: Hidden and unfinished files that a pattern matched as well, relative.
    """

    paths: tuple[Path, ...]
    root: Path
    where: str
    ignored: tuple[str, ...] = ()


def find_files(root: Path, pattern: str, key: str) -> DataFiles:
    """Find the files of a table.

    Args:
        root: Folder of the source.
        pattern: A file, a folder (all data files below it), or a pattern such as ``day=*/part-*.parquet`` or
            ``**/*.csv``, relative to ``root``; a folder that it matches stands for all data files below.
        key: Key of the recipe, for messages.

    Raises:
        DataError: There is no such file, or one is a link to nothing.
    """
    path = root / pattern
    where = str(path)
    if path.is_file():
        return DataFiles((path,), root, where)
    if path.is_dir():
        found = _below(path)
    elif _PATTERN.search(pattern):
        matched = list(root.glob(pattern)) if not Path(pattern).is_absolute() else _absolute_glob(Path(pattern))
        found = [file for one in matched for file in (_below(one) if one.is_dir() else [one])]
    else:
        raise missing_file(path, key)
    files = list(dict.fromkeys(one for one in found if not one.is_dir()))
    kept = [one for one in files if not is_ignored(relative_name(one, root))]
    for one in kept:
        if not one.is_file():
            raise missing_file(one, key)
    if not kept:
        raise DataError(f"no file matches '{where}' (looked in '{root.resolve()}'); {_there(root)}; set {_keys(key)}")
    ignored = tuple(sorted(relative_name(one, root) for one in set(files) - set(kept)))
    kept.sort(key=lambda one: natural_key(relative_name(one, root)))
    return DataFiles(tuple(kept), root, where, ignored)


def _below(folder: Path) -> list[Path]:
    return [one for one in folder.rglob("*") if one.name.lower().endswith(DATA_ENDINGS)]


def _absolute_glob(pattern: Path) -> list[Path]:
    return list(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def missing_file(path: Path, key: str) -> DataError:
    """Return the error for a file that does not exist: where it was looked for, and what is there instead."""
    if not path.exists() and path.is_symlink():
        return DataError(f"'{path}' (for {key}) is a link to '{os.readlink(path)}', which does not exist")
    return DataError(
        f"'{path}' does not exist (for {key}; looked in '{path.parent.resolve()}'); {_there(path.parent)}; "
        f"set {_keys(key)}"
    )


def _keys(key: str) -> str:
    return key if key == "source.path" else f"source.path or {key}"


def _there(folder: Path) -> str:
    if not folder.is_dir():
        return f"the folder '{folder}' does not exist"
    names = sorted(one.name + ("/" if one.is_dir() else "") for one in folder.iterdir())
    more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    return f"files there: {', '.join(names[:_SHOWN]) or 'none'}{more}"


def is_ignored(relative: str) -> bool:
    """Return whether a file is hidden or unfinished, as writers of folders leave them behind.

    Example:
        >>> [is_ignored(name) for name in ("_SUCCESS", "day=1/.part-0.crc", "_temporary/part-0.csv", "part-0.csv")]
        [True, True, True, False]
    """
    parts = [part for part in Path(relative).parts if part != ".."]
    hidden = any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts)
    return hidden or parts[-1].lower().endswith(_UNFINISHED)


def natural_key(relative: str) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Return the key that sorts numbers in names as numbers, folder by folder.

    Example:
        >>> sorted(["part-10.csv", "part-2.csv", "a/part-1.csv"], key=natural_key)
        ['a/part-1.csv', 'part-2.csv', 'part-10.csv']
    """
    return tuple(
        tuple(
            (0, int(piece), piece) if piece.isascii() and piece.isdigit() else (1, 0, piece)
            for piece in re.split(r"([0-9]+)", part)
            if piece
        )
        for part in Path(relative).parts
    )


def relative_name(path: Path, root: Path) -> str:
    """Return the path relative to ``root``, with ``/``."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()


def place_of(file: str, row: int) -> str:
    """Phrase where a record stands, as an editor or a data frame counts.

    Args:
        file: Its name.
        row: Place in the file from 0; of a text file, the line.

    Example:
        >>> place_of("log.csv", 11), place_of("log.parquet", 11)
        ("'log.csv', line 12", "'log.parquet', row 11 (from 0)")
    """
    text = "." in Path(file).name and not file.lower().endswith(PARQUET_ENDINGS)
    return f"'{file}', line {row + 1}" if text else f"'{file}', row {row} (from 0)"


def hive_keys(relative: str) -> dict[str, str | None]:
    """Return the ``key=value`` parts of a path; values are text.

    Example:
        >>> hive_keys("country=at/day=2024-01-01/part-0.parquet")
        {'country': 'at', 'day': '2024-01-01'}
    """
    pairs = (part.partition("=") for part in Path(relative).parts[:-1] if "=" in part)
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, _, value in pairs}


def fingerprint(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Return what the content of a source depends on: path relative to its folder -> sha256.

    A file that is rewritten (even with the same size and time), added, removed or renamed changes it.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    found = list(dict.fromkeys(paths))
    for path in found:
        if not path.is_file():
            raise missing_file(path, "the source")
    try:
        hashes = content_hashes(found)
    except OSError as error:
        raise DataError(
            f"'{error.filename}' cannot be read: {error.strerror}; allow reading, or leave it out"
        ) from error
    return dict(zip((relative_name(path, root) for path in found), hashes, strict=True))

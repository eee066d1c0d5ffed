"""Which files belong to a table, in which order, and what their content is.

Reads folders; produces lists of files and their fingerprint. The order is natural (``part-2`` before ``part-10``), because
the order of the rows decides between events of the same instant.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from recsys.contracts.errors import DataError
from recsys.contracts.manifest import content_hashes

PARQUET_ENDINGS: Final = (".parquet", ".pq")
TEXT_ENDINGS: Final = (".csv", ".tsv", ".txt", ".dat", ".data")
DATA_ENDINGS: Final = (*PARQUET_ENDINGS, *TEXT_ENDINGS, *(f"{ending}.gz" for ending in TEXT_ENDINGS))

PACKED: Final = (".zst", ".zstd", ".bz2", ".xz", ".lz4", ".lzma", ".br", ".snappy", ".zip", ".7z", ".z")
_OTHER_FORMS: Final = {
    "packed in a way that is not read; unpack it, or use gzip": (
        *(f"{ending}{packed}" for ending in (*TEXT_ENDINGS, *PARQUET_ENDINGS) for packed in PACKED),
        *(f"{ending}.gz" for ending in PARQUET_ENDINGS),
    ),
    "JSON lines; convert it to CSV or Parquet, with a column for each key": (
        *(f"{ending}{packed}" for ending in (".jsonl", ".ndjson") for packed in ("", ".gz", *PACKED)),
    ),
    "neither text nor Parquet; convert it to Parquet": (".orc", ".avro", ".arrow", ".feather", ".ipc"),
    "without an ending that says what it is; give it one, such as .csv": (".psv", ".tab", ".parq"),
}
"""What a file of a folder is that holds data and is not read, by its ending."""

_PART: Final = re.compile(r"(?:part-[rm]?-?\d+(?:-[0-9a-f-]+)?(?:[.-]c\d+)?|\d{6}_\d+)(?:\.gz)?")
"""Names that Hadoop, Hive and Spark give to data, without an ending."""

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
        ignored: Hidden and unfinished files that a pattern matched as well, and those of a folder that are no data;
            relative.
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
    others: list[Path] = []
    if path.is_dir():
        found, others = _below(path)
    elif _PATTERN.search(pattern):
        found = []
        for one in _matched(root, pattern):
            data, rest = _below(one) if one.is_dir() else ([one], [])
            found, others = found + data, others + rest
    else:
        raise missing_file(path, key)
    files = list(dict.fromkeys([*found, *others]))
    other = set(others) - set(found)
    kept = [one for one in files if one not in other and not is_ignored(relative_name(one, root))]
    for one in kept:
        if not one.is_file():
            raise missing_file(one, key)
    if not kept:
        _refuse_other_forms(other, root, key)
        hidden = next((one for one in files if one not in other), None)
        if hidden is not None:
            raise DataError(
                f"'{where}' matches hidden and unfinished files only, such as '{relative_name(hidden, root)}', which a "
                f"pattern passes over; name the one that is meant in {_keys(key)}, or rename it"
            )
        raise DataError(f"no file matches '{where}' (looked in '{root.resolve()}'); {_there(root)}; set {_keys(key)}")
    _refuse_other_forms(other, root, key)
    twice = next((one for one in kept if one.suffix == ".gz" and one.with_suffix("") in kept), None)
    if twice is not None:
        raise DataError(
            f"'{twice}' stands beside '{twice.stem}', and its rows would be read twice; move one of them away, or name the "
            f"files that are meant by a pattern in {_keys(key)}"
        )
    ignored = tuple(sorted(printable(relative_name(one, root)) for one in set(files) - set(kept)))
    kept.sort(key=lambda one: natural_key(relative_name(one, root)))
    return DataFiles(tuple(kept), root, where, ignored)


def _matched(root: Path, pattern: str) -> list[Path]:
    """Return the files and folders that match; behind ``**`` folders that are links are entered like others."""
    start, parts = root, list(Path(pattern).parts)
    if Path(pattern).is_absolute():
        start, parts = Path(Path(pattern).anchor), parts[1:]
    while len(parts) > 1 and (start / parts[0]).is_dir():  # a folder of that very name, brackets and all
        start, parts = start / parts[0], parts[1:]
    if "**" not in parts:
        return list(start.glob(str(Path(*parts))))
    at = parts.index("**")
    found: dict[Path, None] = {}
    for folder in start.glob(str(Path(*parts[:at]))) if at else [start]:
        for file in _walk(folder):
            names = file.relative_to(folder).parts
            if parts[-1] != "**" and _matches(names, parts[at:]):
                found[file] = None
                continue
            for length in range(len(names)):
                if _matches(names[:length], parts[at:]):
                    found[folder.joinpath(*names[:length])] = None
                    break
    return list(found)


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; ``**`` stands for any number of folders."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_matches(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield all files below a folder; a folder that is a link is entered, unless it holds the link itself.

    Raises:
        DataError: A folder cannot be listed.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(
            f"the folder '{folder}' cannot be listed ({error.strerror}); allow reading, or move it away"
        ) from error
    for name in names:
        one = folder / name
        if one.is_dir():
            yield from _walk(one, above | {real})
        else:
            yield one


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the data files below a folder, and all other files."""
    data: list[Path] = []
    others: list[Path] = []
    for one in _walk(folder):
        (data if one.name.lower().endswith(DATA_ENDINGS) else others).append(one)
    return data, others


def _refuse_other_forms(others: Iterable[Path], root: Path, key: str) -> None:
    """Refuse a file that lies among the data files of a folder and looks like data that would not be read.

    Raises:
        DataError: Names it, what it is, and what to do.
    """
    for one in sorted(others):
        if is_ignored(relative_name(one, root)):
            continue
        name = one.name.lower()
        what = next((what for what, endings in _OTHER_FORMS.items() if name.endswith(endings)), None)
        if what is None and _PART.fullmatch(name):
            what = list(_OTHER_FORMS)[-1]
        beside = next((one.with_name(one.name[: -len(packed)]) for packed in PACKED if name.endswith(packed)), one)
        if what is not None and not (beside != one and beside.exists()):  # unpacked, it is read
            raise DataError(
                f"'{one}' lies among the data of {key} and would not be read: it is {what}; or move it away, or name the "
                "files that are meant by a pattern, such as 'logs/*.csv'"
            )


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


def source_names(paths: Iterable[Path], root: Path) -> tuple[str, ...]:
    """Return what the files of a source are called in everything that is written about them.

    Raises:
        DataError: A name is no UTF-8, so that nothing could be written about the file.
    """
    names = tuple(relative_name(path, root) for path in paths)
    for name in names:
        if printable(name) != name:
            raise DataError(
                f"'{root}' holds the file '{printable(name)}', whose name has bytes that are no UTF-8; rename it, or move "
                "it away if it is not meant"
            )
    return names


def printable(name: str) -> str:
    r"""Return the name of a file with bytes that are no UTF-8 written out, as it may stand in a report.

    Example:
        >>> printable("é.csv"), printable(os.fsdecode(b"\xff.csv"))
        ('é.csv', '\\xff.csv')
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
        DataError: A file is missing or cannot be read, or its name is no UTF-8.
    """
    found = list(dict.fromkeys(paths))
    names = source_names(found, root)
    for path in found:
        if not path.is_file():
            raise missing_file(path, "the source")
    try:
        hashes = content_hashes(found)
    except OSError as error:
        raise DataError(
            f"'{error.filename}' cannot be read: {error.strerror}; allow reading, or leave it out"
        ) from error
    return dict(zip(names, hashes, strict=True))

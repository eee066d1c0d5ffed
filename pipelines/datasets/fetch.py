"""``recsys fetch``: a public data set from its publisher into a folder that a recipe can read.

Downloads the files of :mod:`pipelines.datasets.catalogue`, unpacks archives, and leaves a record of what was fetched, so
that the same command again does nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse

from pipelines.datasets.archives import is_archive, unpack
from pipelines.datasets.catalogue import RemoteDataset, RemoteFile, catalogue
from pipelines.datasets.transfer import Checksum, Patience, fetch_file, fetch_text
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import explain_write_errors, write_json
from recsys.runtime import Progress

logger = logging.getLogger("recsys.pipelines")

RECORD: Final = ".fetched.json"
"""In the folder of a data set: address, checksum and files of everything that was fetched into it."""

_LONGEST_NAME: Final = 240  # of the 255 bytes that file systems allow, with room for an ending of ours


@dataclass(frozen=True)
class Fetched:
    """What is in the folder now.

    Attributes:
        folder: Where.
        files: Relative paths of the data files.
        new: Whether anything was downloaded; false where all was there.
    """

    folder: Path
    files: tuple[str, ...]
    new: bool


def with_addresses(dataset: RemoteDataset, urls: Sequence[str], checksum: Checksum | None) -> RemoteDataset:
    """Replace the publisher's addresses: a mirror, or a newer place of the same files.

    The publisher's checksums still apply to a file of the same name, unless another is given.

    Raises:
        ConfigError: Another number of addresses than files, or a checksum for several files.
    """
    if checksum is not None and len(dataset.files) > 1:
        raise ConfigError(f"--checksum is of one file and '{dataset.name}' has {len(dataset.files)}; leave it out")
    if urls and len(urls) != len(dataset.files):
        raise ConfigError(
            f"--url is given {len(urls)} times and '{dataset.name}' has {len(dataset.files)} files: "
            f"{', '.join(file_name(file.url) for file in dataset.files)}; give one for each, in this order"
        )
    names = [file_name(url) for url in urls]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--url gives two files the name '{twice}', and one would take the place of the other")
    files = []
    for place, file in enumerate(dataset.files):
        url = urls[place] if urls else file.url
        same = file_name(url) == file_name(file.url)
        known = replace(file, url=url) if same else RemoteFile(url)
        files.append(replace(known, checksum=checksum, checksum_url=None) if checksum is not None else known)
    return replace(dataset, files=tuple(files))


def fetch(
    dataset: RemoteDataset,
    folder: Path,
    progress: Progress,
    *,
    keep_archives: bool = False,
    again: bool = False,
    patience: Patience | None = None,
) -> Fetched:
    """Fetch what is not there yet.

    Args:
        dataset: What.
        folder: Where its files go; made if need be.
        progress: Shows megabytes.
        keep_archives: Leave an archive beside what came out of it.
        again: Fetch even what is there.
        patience: Time limits and tries.

    Raises:
        DataError: See :func:`pipelines.datasets.transfer.fetch_file` and :func:`pipelines.datasets.archives.unpack`.
        ArtifactError: The folder cannot be written, or the disk is full.
    """
    record = _read_record(folder)
    names: list[str] = []
    new = False
    with explain_write_errors(folder, "--out"):
        for file in dataset.files:
            known = record.get(file.url)
            if known is None or again or not _there(folder, known, file):
                known = _fetch_one(file, folder, progress, keep_archives, patience)
                record[file.url] = known
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / RECORD, record)
                new = True
            names += [str(entry["name"]) for entry in known["files"]]
    return Fetched(folder, tuple(names), new)


def _fetch_one(
    file: RemoteFile, folder: Path, progress: Progress, keep_archives: bool, patience: Patience | None
) -> dict[str, Any]:
    checksum = file.checksum
    if checksum is None and file.checksum_url is not None:
        text = fetch_text(file.checksum_url, patience)
        checksum = Checksum.in_text(text) if text is not None else None
    name = file_name(file.url)
    if checksum is None:
        logger.info("%s: its publisher gives no checksum; only the length is compared", name)
    target = fetch_file(file.url, folder / name, checksum=checksum, progress=progress, patience=patience)
    names = [name]
    if is_archive(target):
        logger.info("%s: unpacking %.0f MB", name, target.stat().st_size / 1e6)
        names = unpack(target, folder, reserved=(RECORD, ".lock"))
        if not keep_archives:
            target.unlink()
    return {
        "checksum": f"{checksum.algorithm}:{checksum.value}" if checksum is not None else None,
        "files": [{"name": one, "size": (folder / one).stat().st_size} for one in names],
    }


def _there(folder: Path, known: dict[str, Any], file: RemoteFile) -> bool:
    """Whether all files of an earlier fetch are there in their size, and what is asked for is the same version."""
    wanted = file.checksum
    if wanted is not None and known.get("checksum") != f"{wanted.algorithm}:{wanted.value}":
        return False
    paths = [(folder / entry["name"], entry["size"]) for entry in known["files"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"'{folder / RECORD}' cannot be read ({error}); delete it and run the command again") from error
    if not isinstance(record, dict):
        return {}
    return {url: known for url, known in record.items() if _is_known(known)}


def _is_known(known: Any) -> bool:
    """Whether an entry of the record has the form that it is written in."""
    files = known.get("files") if isinstance(known, dict) else None
    return isinstance(files, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("size"), int) for one in files
    )


def file_name(url: str) -> str:
    """Return the last part of an address.

    Raises:
        ConfigError: The address is none, or ends in no name that a file of data can have.

    Example:
        >>> file_name("https://zenodo.org/records/1/files/a%20b.zip?download=1")
        'a b.zip'
    """
    try:
        name = Path(unquote(urlparse(url).path)).name
    except ValueError as error:
        raise ConfigError(f"'{url}' is no address: {error}") from error
    if not name or name.startswith(".") or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(f"'{url}' ends in no file name; give the address of the file itself")
    return name


def listing() -> str:
    """Return all data sets as lines of text: name, size, terms, page, address."""
    lines = []
    for dataset in catalogue():
        lines += [
            dataset.name,
            f"    size   {dataset.size}",
            f"    terms  {dataset.terms}",
            f"    page   {dataset.page}",
        ]
        lines += [f"    file   {file.url}" for file in dataset.files]
    return "\n".join(lines)


def recipe_snippet(dataset: RemoteDataset, folder: Path) -> str:
    """Return the lines of a recipe that read the data set."""
    import yaml

    source = {**dataset.recipe, "path": str(folder)}
    return yaml.safe_dump({"source": source}, sort_keys=False, allow_unicode=True).rstrip()

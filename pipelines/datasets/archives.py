"""Unpack an archive from the network without trusting it.

No member may leave the folder, none may be a link, a device or a second file of the same name, and all must fit the disk.
A folder that encloses everything is left out: ``ml-100k/u.data`` becomes ``u.data``.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from recsys.contracts.errors import ArtifactError, DataError


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: As it stands there.
        size: Bytes, unpacked.
        open: Opens it.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Return whether a file of this name is unpacked; a single ``.gz`` file is not, its readers read it as it is."""
    return path.name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


def unpack(archive: Path, into: Path) -> list[str]:
    """Unpack all files.

    Args:
        archive: ``.zip``, ``.tar`` or a compressed tar.
        into: Folder, made if need be; files of the same name are replaced.

    Returns:
        The files, as paths relative to ``into``, in the order of the archive.

    Raises:
        DataError: The archive is damaged, or holds something that a data set does not.
        ArtifactError: It does not fit the disk.
    """
    with _members(archive) as members:
        names = _safe_names(members, archive)
        needed = sum(member.size for member in members)
        into.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(into).free
        if needed > free:
            raise ArtifactError(
                f"'{archive}' unpacks to {needed / 1e6:.0f} MB and '{into}' has {free / 1e6:.0f} MB left; free space or "
                "choose another folder with --out"
            )
        for member, name in zip(members, names, strict=True):
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.part")
            with member.open() as source, part.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            if part.stat().st_size != member.size:
                raise DataError(f"'{archive}': '{member.name}' is damaged; delete the archive and fetch it again")
            part.replace(target)
    return [str(name) for name in names]


@contextmanager
def _members(archive: Path) -> Iterator[list[Member]]:
    """List the files; anything the archive's own reader objects to is damage."""
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                yield [_zip_member(opened, info, archive) for info in opened.infolist() if not info.is_dir()]
        else:
            with tarfile.open(archive) as opened_tar:
                yield [_tar_member(opened_tar, info, archive) for info in opened_tar if not info.isdir()]
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: a password
        raise DataError(f"'{archive}' cannot be unpacked: {error}; delete it and fetch it again") from error


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> Member:
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise _refused(archive, info.filename, "is a link or a device")
    return Member(info.filename, info.file_size, lambda: opened.open(info))


def _tar_member(opened: tarfile.TarFile, info: tarfile.TarInfo, archive: Path) -> Member:
    if not info.isreg():
        raise _refused(archive, info.name, "is a link or a device")

    def content() -> IO[bytes]:
        file = opened.extractfile(info)
        assert file is not None  # it is a regular file
        return file

    return Member(info.name, info.size, content)


def _safe_names(members: list[Member], archive: Path) -> list[PurePosixPath]:
    """Return where every member goes, without a folder that encloses all."""
    names = []
    for member in members:
        name = PurePosixPath(member.name.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or not name.parts or ":" in name.parts[0] or "\0" in member.name:
            raise _refused(archive, member.name, "points outside the folder")
        names.append(name)
    if not names:
        raise DataError(f"'{archive}' holds no file; is it the right one?")
    if len({name.parts[0] for name in names}) == 1 and all(len(name.parts) > 1 for name in names):
        names = [PurePosixPath(*name.parts[1:]) for name in names]
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if repeated:
        raise _refused(archive, str(min(repeated)), "stands in it twice")
    return names


def _refused(archive: Path, name: str, why: str) -> DataError:
    return DataError(f"'{archive}': member '{name}' {why}; nothing was unpacked. Fetch the archive from its publisher")

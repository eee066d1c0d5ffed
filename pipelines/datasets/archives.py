"""Unpack an archive from the network without trusting it.

No member may leave the folder, none may be a link, a device or a second file of the same name, none may take the place of a
file that is not of the data set, and all must fit the disk.
A folder that encloses everything is left out: ``ml-100k/u.data`` becomes ``u.data``.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from recsys.contracts.errors import ArtifactError, DataError

_LONGEST_NAME: Final = 240  # of the 255 bytes that file systems allow, with room for an ending of ours


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


def unpack(archive: Path, into: Path, reserved: Collection[str] = ()) -> list[str]:
    """Unpack all files.

    Args:
        archive: ``.zip``, ``.tar`` or a compressed tar.
        into: Folder, made if need be; files of the same name are replaced.
        reserved: Names in ``into`` that no member may have, beside that of the archive.

    Returns:
        The files, as paths relative to ``into``, in the order of the archive.

    Raises:
        DataError: The archive is damaged, or holds something that a data set does not.
        ArtifactError: It does not fit the disk.
    """
    with _members(archive) as members:
        kept = {*reserved, *([archive.name] if archive.parent.resolve() == into.resolve() else [])}
        names = _safe_names(members, archive, {name.casefold() for name in kept})
        needed = sum(member.size for member in members)
        into.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(into).free
        if needed > free:
            raise ArtifactError(
                f"'{archive}' unpacks to {needed / 1e6:.1f} MB and '{into}' has {free / 1e6:.1f} MB left; free space or "
                "choose another folder with --out"
            )
        for member, name in zip(members, names, strict=True):
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            try:
                with member.open() as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                if part.stat().st_size != member.size:
                    raise DataError(f"'{archive}': '{member.name}' is damaged; delete the archive and fetch it again")
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
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
                members = [_tar_member(opened_tar, info, archive) for info in opened_tar if not info.isdir()]
                _read_to_the_end(opened_tar)
                yield members
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: a password
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(archive, error) from error  # what gzip and bzip2 say of damage


def _read_to_the_end(opened: tarfile.TarFile) -> None:
    """Read what comes behind the last member, where the packing keeps its checksum; a tar itself has none of its files."""
    assert opened.fileobj is not None
    while opened.fileobj.read(1 << 20):
        pass


def _damaged(archive: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"'{archive}' cannot be unpacked: {reason}; delete it and fetch it again")


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


def _safe_names(members: list[Member], archive: Path, reserved: Collection[str]) -> list[PurePosixPath]:
    """Return where every member goes, without a folder that encloses all; case does not tell names apart."""
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
    seen: set[str] = set()
    folders = {str(folder).casefold() for name in names for folder in name.parents}
    for name in names:
        same = str(name).casefold()
        if same in seen:
            raise _refused(archive, str(name), "stands in it twice")
        if same in folders:
            raise _refused(archive, str(name), "is a file and a folder")
        if same in reserved:
            raise _refused(archive, str(name), "has the name of a file that is not of the data set")
        if any(len(part.encode("utf-8", "surrogateescape")) > _LONGEST_NAME for part in name.parts):
            raise _refused(archive, str(name), "has a name that no file can have")
        seen.add(same)
    return names


def _refused(archive: Path, name: str, why: str) -> DataError:
    return DataError(f"'{archive}': member '{name}' {why}; nothing was unpacked. Fetch the archive from its publisher")

"""The places that a run reads from and writes to, looked at before anything is done there.

A relative ``output_dir`` or ``source.path`` starts at the working directory of the command; what is said about it names the
whole path, so that a command given in the wrong folder is seen to be.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.paths import MAX_PATH_BYTES

if TYPE_CHECKING:
    from pipelines.config import RunConfig

ROOM_BELOW: Final = 400
"""Bytes that the longest path below an output folder takes: the code and files of a registered model."""


def check_places(config: RunConfig) -> None:
    """Refuse an output folder that cannot be one, and a relative source folder that is not there.

    Raises:
        ConfigError: The path of the output folder is too long.
        ArtifactError: The output folder, or a folder above it, is a file or a dangling link.
        DataError: ``source.path`` is relative, and not there.
    """
    check_output(config.output_dir)
    source = getattr(config.source, "path", None)
    if isinstance(source, Path) and not source.is_absolute() and not source.exists():
        raise DataError(
            f"source.path '{source}' is '{source.absolute()}', and there is no such folder; a relative path starts at the "
            f"working directory, '{Path.cwd()}'"
        )


def check_output(folder: Path, key: str = "output_dir") -> None:
    """Refuse a folder that cannot be made or written into.

    Args:
        key: What the folder is called, for the message.

    Raises:
        ConfigError: Its path is too long.
        ArtifactError: It, or a folder above it, is a file or a dangling link.
    """
    full = folder.absolute()
    if len(os.fsencode(full)) > MAX_PATH_BYTES - ROOM_BELOW:
        raise ConfigError(
            f"{key} has a path of {len(os.fsencode(full))} bytes; files below it need room, at most "
            f"{MAX_PATH_BYTES - ROOM_BELOW} work: '{full}'"
        )
    for path in (full, *full.parents):
        if path.is_dir():
            return
        if os.path.lexists(path):
            what = "a link to a place that is gone" if path.is_symlink() and not path.exists() else "a file"
            raise ArtifactError(
                f"cannot write below '{full}': '{path}' is {what}, not a folder; choose another {key}, or move it away"
            )

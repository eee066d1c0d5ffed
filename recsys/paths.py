"""Paths in configurations: what every path is checked for when it is read, and how an override gives one as it is typed.

Also the size of a folder in which others may be at work.
"""

from __future__ import annotations

import os
import re
import types
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator

from recsys.strict_yaml import load_yaml

MAX_NAME_BYTES: Final = 255
"""Longest name of a file or folder on the file systems in use (ext4, XFS, APFS, NTFS)."""
MAX_PATH_BYTES: Final = 4095

_QUOTED: Final = re.compile(r"""\s*('.*'|".*")\s*""", re.DOTALL)
_NOTHING: Final = ("", "~", "null", "Null", "NULL")


def checked_path(value: Any) -> Any:
    """Return a path as configurations hold it: ``~`` expanded; everything else in it is taken as it is written.

    Args:
        value: Text or path; anything else is what YAML made of a name such as ``2026-11-27``.

    Example:
        >>> checked_path("runs/50% off? #1")
        PosixPath('runs/50% off? #1')

    Raises:
        ValueError: It is no text, empty, longer than file systems take, or starts with the ``~`` of an unknown user.
    """
    if not isinstance(value, str | Path):
        raise ValueError(f"expected a path, and YAML reads this as {type(value).__name__}; put quotes around it")
    text = str(value)
    if not text.strip():
        raise ValueError("expected a path; '.' is the working directory")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError("the name holds bytes that are no UTF-8; rename it, or reach it by a symbolic link") from error
    if "\0" in text:
        raise ValueError("the name holds a NUL character, which no file system takes")
    longest = max(Path(text).parts, key=lambda part: len(part.encode()), default="")
    if len(longest.encode()) > MAX_NAME_BYTES or size > MAX_PATH_BYTES:
        raise ValueError(
            f"the longest name in it takes {len(longest.encode())} bytes and the whole {size}; file systems take names of "
            f"at most {MAX_NAME_BYTES} bytes and paths of {MAX_PATH_BYTES}"
        )
    try:
        return Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError as error:
        raise ValueError(f"there is no such home folder ({error}); write ./~… for a folder of that name") from error


def bytes_below(folder: Path) -> int:
    """Sum of the sizes of all files below a folder, links not followed; 0 where there is none.

    What vanishes meanwhile counts as nothing: a run may be at work there.
    """
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(parent) / name).st_size
            except FileNotFoundError:
                continue
    return total


ConfigPath = Annotated[Path, BeforeValidator(checked_path)]
"""Type of every path in a configuration."""


def read_override(text: str, annotations: list[Any]) -> Any:
    """Read the value of an override: what a field of text or a path takes is taken as typed, anything else is YAML.

    As typed means that ``output_dir=2026-11-27``, ``source.interactions=*.csv`` and ``source.path=a: b #2`` are those
    names. One pair of quotes around the whole is taken off, as YAML does.

    Args:
        annotations: Types of the field in the configurations that may stand there; none for an unknown key.

    Example:
        >>> read_override("2026-11-27", [Path]), read_override("[1, 2]", [tuple[int, ...]])
        ('2026-11-27', [1, 2])

    Raises:
        yaml.YAMLError: The text is no YAML.
    """
    kinds = set().union(*map(_kinds, annotations)) if annotations else {object}
    if kinds <= {str, Path, type(None)}:
        if type(None) in kinds and text in _NOTHING:
            return None
        if not _QUOTED.fullmatch(text):
            return text
    return load_yaml(text)


def _kinds(annotation: Any) -> set[Any]:
    """The types that a field takes: members of unions apart, a choice of texts as text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if origin is Literal:
        return {type(choice) for choice in get_args(annotation)}
    return {annotation}

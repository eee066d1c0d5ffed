"""Why a file cannot be read, by kind, each with its own way out.

Produces :class:`~recsys.contracts.errors.DataError`; "fetch it again" is said of files that were cut off, and of no others.
"""

from __future__ import annotations

import codecs
import difflib
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from recsys.contracts.errors import DataError

_RUNS: Final = re.compile(rb"[\x80-\xff]{3,}")
_ASCII: Final = bytes(range(0x80))
_NO_CONTROLS_OF_LATIN_1: Final = bytes({*range(0x100)} - {*range(0x80, 0xA0)})
_LONGEST_NAME: Final = 80
_MOST_NAMES: Final = 60
_ICONV: Final = {"latin-1": "ISO-8859-1"}
_UTF16_NUL_SHARE: Final = 0.2  # in UTF-16 half of the bytes of Latin text are NUL; a stray NUL is one in thousands
_UTF32_NUL_SHARE: Final = 0.6  # three quarters


def closest(name: str, known: Sequence[str]) -> str:
    """Phrase the columns that exist, the most similar first.

    Example:
        >>> closest("userid", ["item_id", "user_id"])
        "did you mean 'user_id'? columns there: item_id, user_id"
    """
    folded = {other.lower(): other for other in known}
    found = [folded[near] for near in difflib.get_close_matches(name.lower(), folded, n=1)]
    hint = f"did you mean '{found[0]}'? " if found else ""
    if found and found[0] != name and _composed(found[0]) == _composed(name):
        hint = f"'{found[0]}' is there with its accents written in another way (Unicode); copy the name from the file; "
    shown = [other if len(other) <= _LONGEST_NAME else f"{other[:_LONGEST_NAME]}…" for other in known[:_MOST_NAMES]]
    more = f" and {len(known) - _MOST_NAMES} others" if len(known) > _MOST_NAMES else ""
    return f"{hint}columns there: {', '.join(shown) or 'none'}{more}"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@contextmanager
def explain_file_errors(path: Path) -> Iterator[None]:
    """Turn what the system and the parsers raise while a file is read into a :class:`DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"'{path}' cannot be read: no permission; allow reading with `chmod u+r '{path}'`") from error
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist any more; it was there when the table was opened") from error
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"'{path}' cannot be read: the compressed file is cut off or damaged ({_first_line(error)}); fetch it again"
        ) from error
    except Exception as error:
        # by name, because a text file is read without importing pyarrow
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("polars", "pyarrow"):
            raise _by_message(path, error) from error
        raise


def _by_message(path: Path, error: Exception) -> DataError:
    reason = _first_line(error)
    lowered = reason.lower()
    start = f"'{path}' cannot be read: {reason}"
    if isinstance(error, NotImplementedError) or "not implemented" in lowered or "unsupported" in lowered:
        return DataError(
            f"{start}; the file uses a type or a compression that is not supported: write it again without"
        )
    if "crypt" in lowered:
        return DataError(f"{start}; the file is encrypted: write it without encryption")
    if "utf" in lowered:
        return DataError(f"{start}; a text column holds bytes that are not UTF-8: write the column as UTF-8 text")
    return DataError(f"{start}; the file is cut off or damaged: fetch it again")


def not_encoded(
    path: Path, start: bytes, line: int, byte: int, bad: bytes, encoding: str, *, declarable: bool = True
) -> DataError:
    """Return the error for a file that is not valid in its encoding.

    Args:
        start: First bytes of the file, from which another encoding is guessed.
        line: First offending line, from 1.
        byte: Place of the first offending byte in the file, from 0.
        bad: The offending byte and its neighbours.
        encoding: The declared encoding.
        declarable: Whether the recipe can declare another one.
    """
    probable = probable_encoding(start, bad)
    said = f"'{path}' is not valid {encoding}: line {line}, byte {byte} is " + " ".join(
        f"0x{one:02x}" for one in bad[:1]
    )
    if probable is None and not declarable:
        return DataError(
            f"{said}. It is probably not Western text: convert it to UTF-8; fetching it again does not help"
        )
    if probable is None:
        return DataError(
            f"{said}. It is probably not Western text: declare what it was written in as source.encoding, such as "
            "cp1251 or koi8-r (Cyrillic), shift_jis, gb18030, big5 or euc_kr; fetching it again does not help"
        )
    name = _ICONV.get(probable, probable.upper())
    key = f"set source.encoding: {probable}, or " if declarable else ""
    return DataError(
        f"{said}. It is probably {probable}: {key}convert it with "
        f"`iconv -f {name} -t UTF-8 '{path.name}' > new.csv`; fetching it again does not help"
    )


def probable_encoding(start: bytes, bad: bytes = b"") -> str | None:
    r"""Guess the encoding of a file that is not UTF-8; ``None`` where it is no Western one.

    Letters with accents stand among ASCII letters; other scripts are runs of bytes above 0x7f.

    Example:
        >>> probable_encoding("naïve".encode("utf-16")), probable_encoding(b"caf\xe9"), probable_encoding(b"it\x92s")
        ('utf-16', 'latin-1', 'cp1252')
    """
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    nulls = start.count(0) / max(len(start), 1)
    if nulls > _UTF32_NUL_SHARE:
        return "utf-32-le" if start[3::4].count(0) >= start[0::4].count(0) else "utf-32-be"
    if nulls > _UTF16_NUL_SHARE:
        return "utf-16-le" if start[1::2].count(0) >= start[0::2].count(0) else "utf-16-be"
    above = len(start.translate(None, _ASCII))
    in_runs = sum(len(run) for run in _RUNS.findall(start)) if above else 0  # a file of ASCII has none
    if in_runs > above / 2:
        return None
    # 0x80 to 0x9f are control characters in Latin-1 and curly quotes, dashes and the euro sign in Windows' cp1252
    controls = len((start + bad).translate(None, _NO_CONTROLS_OF_LATIN_1))
    return "cp1252" if controls else "latin-1"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

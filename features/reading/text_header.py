"""The header of a text file: names of the columns, cleaned, and the separator they betray when the declared one is wrong.

Reads the first lines of a file; produces :class:`TextHeader`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from features.reading.quoted_records import RecordReader
from features.reading.text_bytes import read_blocks
from features.reading.text_format import TextFormat
from recsys.contracts.errors import DataError
from recsys.contracts.plain_text import strip_text

SUBSTITUTES: Final = tuple(bytes([value]) for value in (*range(0x1F, 0x0D, -1), *range(8, 0, -1)))
"""Control characters that stand for a separator of several bytes while a block is read."""

_GUESSES: Final = ("::", "\t", ";", "|", ",", "\x01", "^", "~")
_LONGEST_HINT: Final = 8
"""Of the line ``sep=;``, by which a spreadsheet knows the separator; it is no header."""
_HEADER_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class TextHeader:
    """The columns of one file.

    Attributes:
        names: Of all fields, without blanks around them; empty for a field without a name.
        places: Name -> place of the field, of the names that stand there once.
        twice: Names that stand there more than once.
        stripped: Names that had blanks around them.
        lines: How many lines of the file come before the data.
        comments: How many of those are remarks.
        line: The header as it is written; ``None`` when the file has none.
    """

    names: tuple[str, ...]
    places: dict[str, int]
    twice: frozenset[str]
    stripped: tuple[str, ...]
    lines: int
    separator: bytes
    line: bytes | None
    comments: int = 0

    @property
    def num_fields(self) -> int:
        """How many fields a record has."""
        return len(self.names)

    def line_with(self, single: bytes) -> bytes | None:
        """Return the line with ``single`` in the place of the separator."""
        return None if self.line is None else self.line.replace(self.separator, single)


def read_header(path: Path, text: TextFormat) -> TextHeader:
    """Read the names of a file's columns.

    Raises:
        DataError: The file has no bytes, or only blank lines; its one column shows another separator.
    """
    separator = text.separator.encode()
    if text.header:
        next(iter(read_blocks(path, text.encoding, 1 << 16, declarable=text.encoding_key)))
        return _header(list(text.header), 0, separator, None)
    data = b""
    final = False
    for block in read_blocks(path, text.encoding, 1 << 16, declarable=text.encoding_key):
        data += block.data
        final = block.final
        if _has_header(data, text) or len(data) > _HEADER_BYTES:
            break
    if not data.strip():
        size = path.stat().st_size
        raise DataError(
            f"'{path}' is empty ({size} bytes): not even a header is there; write the file again, or leave it out"
        )
    comment = text.comment.encode() if text.comment is not None else None
    blank = comments = 0
    while True:
        line, _, following = data.partition(b"\n")
        hint = line.strip()
        is_comment = comment is not None and line.startswith(comment)
        is_hint = bool(following) and hint[:4].lower() == b"sep=" and len(hint) <= _LONGEST_HINT
        if hint and not is_hint and not is_comment:
            break
        if not following:
            raise DataError(
                f"'{path}' has no header: all of its first lines are comments or blank; check source.comment"
            )
        data, blank, comments = following, blank + 1, comments + is_comment
    names, lines, written = _split(path, data, text, final=final)
    _refuse_comment(path, data, len(names), text)
    shown = names[0] if len(names) == 1 else ""
    guess = next((guess for guess in _GUESSES if guess != text.separator and guess in shown), None)
    if guess is not None:
        raise DataError(
            f"'{path}': the header {shown[:200]!r} is one column when it is split at {text.separator!r}; it looks split at "
            f"{guess!r}: {text.remedy or f'set source.separator: {_yaml(guess)}'}"
        )
    return replace(_header(names, blank + lines, separator, written), comments=comments)


def _yaml(text: str) -> str:
    """Return a text as a recipe writes it: a tab is one only in double quotes."""
    return repr(text) if text.isprintable() else json.dumps(text)


def _has_header(data: bytes, text: TextFormat) -> bool:
    """Whether some line is neither blank nor a remark."""
    if text.comment is None:
        return bool(data.strip())
    return any(line.strip() and not line.startswith(text.comment.encode()) for line in data.split(b"\n"))


def _refuse_comment(path: Path, data: bytes, num_names: int, text: TextFormat) -> None:
    """Refuse a header that begins with ``#`` where the lines behind it have another number of fields.

    Raises:
        DataError: It is a comment.
    """
    if text.comment is not None or not data.startswith(b"#"):
        return
    quote = (text.quote or "\n").encode()  # a field in quotes may hold separators
    lines = (line for line in data.split(b"\n") if line.strip() and not line.startswith(b"#") and quote not in line)
    other = next(lines, None)
    if other is not None and other.count(text.separator.encode()) + 1 != num_names:
        shown = data.split(b"\n", 1)[0][:100].decode("utf-8", "replace").strip()
        way_out = "take such lines out of the file" if text.remedy else "set source.comment: '#'"
        raise DataError(f"'{path}' begins with {shown!r}, which looks like a comment and is no header: {way_out}")


def _split(path: Path, data: bytes, text: TextFormat, *, final: bool) -> tuple[list[str], int, bytes]:
    """Return the names, how many lines they take, and the bytes of those lines."""
    separator = text.separator.encode()
    single = separator
    if len(separator) > 1:
        single = next((byte for byte in SUBSTITUTES if byte not in data), separator[:1])
        data = data.replace(separator, single)
    if not data.endswith(b"\n"):
        data += b"\n"
    end = data.index(b"\n")
    ends, starts = [end], [0]
    if text.quote is None or text.quote.encode() not in data[:end]:
        fields, lines = data[:end].removesuffix(b"\r").split(single), 1
    else:
        ends = [place for place, value in enumerate(data[:_HEADER_BYTES]) if value == ord("\n")]
        starts = [0, *(end + 1 for end in ends[:-1])]
        record = RecordReader(single, text.quote.encode(), 0).read(data, starts, ends, 0, final=final)
        if record.fields is None:
            raise DataError(
                f"'{path}': a quote in the header is not closed; mend the header, or "
                f"{text.remedy or 'set source.quote: null'}"
            )
        fields, lines = record.fields, record.lines
    written = data[: ends[lines - 1]].removesuffix(b"\r").replace(single, separator)
    return [one.replace(single, separator).decode() for one in fields], lines, written


def _header(written: list[str], lines: int, separator: bytes, line: bytes | None) -> TextHeader:
    names = [strip_text(name) for name in written]
    counts = Counter(names)
    return TextHeader(
        names=tuple(names),
        places={name: place for place, name in enumerate(names) if name and counts[name] == 1},
        twice=frozenset(name for name, count in counts.items() if name and count > 1),
        stripped=tuple(name for name, raw in zip(names, written, strict=True) if name != raw and name),
        lines=lines,
        separator=separator,
        line=line,
    )

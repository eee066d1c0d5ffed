"""The bytes of a text file as UTF-8, in blocks of whole lines: decompressed, decoded, without a byte-order mark.

Reads one file; produces :class:`Block`. Memory is bounded by the size of a block.
"""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from features.reading.errors import not_encoded, probable_encoding
from recsys.contracts.errors import DataError

BLOCK_BYTES: Final = 16 << 20  # about 350,000 events; the memory of a block is some ten times this

LONGEST_LINE: Final = 64 << 20
"""Bytes; a file without line ends is no table, and would have to be held in memory as a whole."""

_OTHER_FORMATS: Final = {
    b"PAR1": "a Parquet file; give it the ending .parquet",
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet); unpack it, or export the sheet as CSV",
    b"BZh": "compressed with bzip2; unpack it with `bunzip2`, or use gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it with `unxz`, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it with `unzstd`, or use gzip",
    b"ORC": "an ORC file; convert it to Parquet",
    b"Obj\x01": "an Avro file; convert it to Parquet",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
}


@dataclass(frozen=True)
class Block:
    """Some whole lines of a file.

    Attributes:
        data: UTF-8; ends with a line end, the last block of a file perhaps without.
        final: Whether it is the last one.
    """

    data: bytes
    final: bool


def read_blocks(
    path: Path, encoding: str, block_bytes: int = BLOCK_BYTES, *, declarable: bool = True
) -> Iterator[Block]:
    r"""Yield the blocks of a file, at least one; an empty file gives one empty block.

    Line ends are ``\n`` or ``\r\n``, as in the file; a lone ``\r`` ends a line in files that have no ``\n`` at all.
    ``declarable`` says whether the recipe can declare an encoding, for messages.

    Raises:
        DataError: The file is no text, is compressed in a way that is not supported, or is not valid in ``encoding``.
    """
    name = codecs.lookup(encoding).name
    with _open(path) as file:
        head = file.read(block_bytes)
        _check_text(path, head, name, declarable=declarable)
        utf8 = _Utf8Check(path, declarable=declarable)
        decoder = utf8 if name in ("utf-8", "utf-8-sig", "ascii") else _Decoder(path, name, encoding)
        returns_only: bool | None = None
        rest = b""
        piece = head
        while True:
            following = file.read(block_bytes) if piece else b""
            final = not following
            text = decoder.decode(piece, final=final)
            if returns_only is None and text:
                returns_only = b"\n" not in text and b"\r" in text
            if returns_only:
                text = text.replace(b"\r", b"\n")
            cut = len(text) if final else text.rfind(b"\n") + 1
            if cut or final:
                yield Block(rest + text[:cut], final)
                rest = text[cut:]
            else:
                rest += text
                if len(rest) > LONGEST_LINE:
                    raise DataError(
                        f"'{path}' has a line of more than {LONGEST_LINE >> 20} MB, so it is no text table; check its format"
                    )
            if final:
                return
            piece = following


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as raw:
        magic = raw.read(2)
    return cast("IO[bytes]", gzip.open(path, "rb")) if magic == b"\x1f\x8b" else path.open("rb")


def _check_text(path: Path, head: bytes, encoding: str, *, declarable: bool) -> None:
    for magic, what in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise DataError(f"'{path}' is no text file: it is {what}")
    first = head[:64].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if first.startswith((b"{", b"[{")):
        raise DataError(f"'{path}' holds JSON; convert it to CSV or Parquet, with a column for each key")
    if first.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"'{path}' is a page in HTML or XML, such as one that asks to log in; fetch the file itself")
    probable = probable_encoding(head[: 1 << 16])
    if probable is not None and probable.startswith("utf-") and not encoding.startswith(probable[:6]):
        at = head.find(b"\0") if not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else 0
        line = head[:at].count(b"\n") + 1
        raise not_encoded(path, head[: 1 << 16], line, at, head[at : at + 4], encoding, declarable=declarable)


class _Utf8Check:
    """Passes UTF-8 on as it is, and names the first byte that is not."""

    def __init__(self, path: Path, *, declarable: bool) -> None:
        self.path = path
        self.declarable = declarable
        self.byte = 0
        self.lines = 0
        self.kept = b""
        self.seen = False  # whether there was any character beyond ASCII

    def decode(self, piece: bytes, *, final: bool) -> bytes:
        if self.byte == 0 and piece.startswith(codecs.BOM_UTF8):
            piece = piece[len(codecs.BOM_UTF8) :]
            self.byte = len(codecs.BOM_UTF8)
        text = self.kept + piece
        if not text.isascii():
            try:
                _, used = codecs.utf_8_decode(text, "strict", final)
            except UnicodeDecodeError as error:
                if (
                    (self.seen or not text[: error.start].isascii())
                    and final
                    and error.reason == "unexpected end of data"
                ):
                    raise DataError(
                        f"'{self.path}' ends inside of a character: it is cut off, fetch it again"
                    ) from error
                bad = text[error.start : error.start + 1]
                line = self.lines + text.count(b"\n", 0, error.start) + 1
                around = text[max(error.start - 1000, 0) : error.start + 1000]
                byte = self.byte + error.start
                raise not_encoded(self.path, around, line, byte, bad, "UTF-8", declarable=self.declarable) from error
            text, self.kept = text[:used], text[used:]
            self.seen = self.seen or not text.isascii()
        else:
            self.kept = b""
        self.byte += len(text)
        self.lines += text.count(b"\n")
        return text


class _Decoder:
    """Decodes any other encoding piece by piece."""

    def __init__(self, path: Path, name: str, declared: str) -> None:
        self.path = path
        self.declared = declared
        self.decoder = codecs.getincrementaldecoder(name)("strict")
        self.byte = 0
        self.lines = 0
        self.first = True

    def decode(self, piece: bytes, *, final: bool) -> bytes:
        waiting = len(self.decoder.getstate()[0])
        try:
            text = self.decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            line = self.lines + error.object[: error.start].decode(self.declared, "ignore").count("\n") + 1
            byte = self.byte - waiting + error.start
            shown = f"0x{error.object[error.start]:02x}" if error.start < len(error.object) else "the end"
            raise DataError(
                f"'{self.path}' is not valid {self.declared}, which source.encoding declares: line {line}, byte {byte} is "
                f"{shown} ({error.reason}); declare the encoding the file is written in"
            ) from error
        except UnicodeError as error:  # without a place, such as UTF-16 that does not say which byte comes first
            start = piece[: 1 << 16]
            probable = "utf-8" if start.isascii() and b"\0" not in start else probable_encoding(start)
            way_out = f"set source.encoding: {probable}" if probable else "declare the encoding the file is written in"
            raise DataError(
                f"'{self.path}' is not valid {self.declared}, which source.encoding declares ({error}); {way_out}"
            ) from error
        if self.first and text:
            text, self.first = text.removeprefix("\ufeff"), False
        if len(text) == len(piece) and not piece.isascii():
            self._refuse_utf8(piece, final=final)
        self.byte += len(piece)
        self.lines += text.count("\n")
        return text.encode("utf-8")

    def _refuse_utf8(self, piece: bytes, *, final: bool) -> None:
        """Refuse UTF-8 that is declared as a code of one byte per character: it would read 'Ã©' for 'é' without a word."""
        try:
            codecs.utf_8_decode(piece, "strict", final)
        except UnicodeDecodeError:
            return
        start = next(place for place, value in enumerate(piece) if value > 0x7F)
        word = piece[start : start + 4].decode("utf-8", "ignore")[:1]
        line = self.lines + piece.count(b"\n", 0, start) + 1
        raise DataError(
            f"'{self.path}' is UTF-8, and source.encoding declares {self.declared}: line {line} has '{word}', which would "
            f"be read as '{word.encode().decode(self.declared, 'replace')}'; set source.encoding: utf-8"
        )

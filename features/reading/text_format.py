"""How a text file is written: separator, quote, encoding, markers of null, names of its columns.

Reads nothing; a configuration only.
"""

from __future__ import annotations

import codecs
from typing import Final, Self

from pydantic import Field, field_validator, model_validator

from recsys.config import FrozenConfig

_LINE_ENDS: Final = frozenset("\r\n")


class TextOptions(FrozenConfig):
    """What a source of files says about text files.

    Attributes:
        separator: Of any length; without it a tab for ``.tsv`` and a comma for all others.
        quote: Around fields that hold separators or line ends; ``null``: quotes are plain text.
        encoding: ``utf-8``, ``latin-1``, ``cp1252``, ``utf-16`` …
        comment: What a line begins with that is a remark and no record, such as ``#``; ``None``: every line is a record,
            since ids may begin with any character.
    """

    separator: str | None = None
    quote: str | None = '"'
    encoding: str = "utf-8"
    comment: str | None = None

    @model_validator(mode="after")
    def _is_text_format(self) -> Self:
        self.text_format("")
        return self

    def text_format(self, name: str, header: tuple[str, ...] = ()) -> TextFormat:
        """Return the format of the file ``name``.

        Raises:
            ValueError: The separator, the quote or the encoding can be none.
        """
        separator = self.separator
        if separator is None:
            separator = "\t" if name.lower().removesuffix(".gz").endswith(".tsv") else ","
        return TextFormat(
            separator=separator, quote=self.quote, encoding=self.encoding, comment=self.comment, header=header
        )


class TextFormat(FrozenConfig):
    """Form of CSV, TSV and similar files, one record on a line; a quoted field may hold line ends.

    Attributes:
        separator: Between the fields, of any length (``::`` in MovieLens 1M).
        quote: Around a field that holds separators or line ends, doubled inside it; ``None``: quotes are plain text.
        encoding: Any that Python knows; a byte-order mark is taken away.
        comment: Lines that begin with it are passed over and counted; ``None``: there are none.
        header: Names of the columns, for files whose first line is data already; empty: the first line names them.
        remedy: What to do about a file that is written otherwise, where the recipe has no keys for it; empty: it has.
        encoding_key: Whether the recipe can declare another encoding.

    Example:
        >>> TextFormat(separator="::", header=("user_id", "item_id", "rating", "timestamp")).quote
        '"'
    """

    separator: str = Field(",", min_length=1)
    quote: str | None = Field('"', min_length=1, max_length=1)
    encoding: str = "utf-8"
    comment: str | None = Field(None, min_length=1)
    header: tuple[str, ...] = ()
    remedy: str = ""
    encoding_key: bool = True

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            text_encoding = codecs.lookup(encoding)._is_text_encoding
        except LookupError:
            text_encoding = False
        if not text_encoding:
            raise ValueError(f"'{encoding}' is no encoding that Python knows; try utf-8, latin-1, cp1252 or utf-16")
        return encoding

    @field_validator("header")
    @classmethod
    def _distinct_names(cls, header: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' stands twice in the header; columns are found by their names")
        return header

    @model_validator(mode="after")
    def _no_line_ends(self) -> Self:
        if _LINE_ENDS & set(self.separator + (self.quote or "") + (self.comment or "")):
            raise ValueError("separator, quote and comment must not hold line ends")
        if self.comment is not None and (self.separator in self.comment or (self.quote or "\n") in self.comment):
            raise ValueError(f"comment {self.comment!r} must hold neither the separator nor the quote")
        if self.quote is not None and (self.quote in self.separator or not self.quote.isascii()):
            raise ValueError(f"quote {self.quote!r} must be one ASCII character that is not part of the separator")
        return self

"""What surrounds a text and is not part of it: blanks, line ends, byte-order marks, characters without width.

Used wherever ids are read from text: by the sources that read logs, and by the serving side that reads lists of items. A
spreadsheet leaves them, nobody sees them, and `` A1`` is not the item ``A1``.
"""

from __future__ import annotations

from typing import Final

import polars as pl

_WITHOUT_WIDTH: Final = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
SURROUNDINGS: Final = "\0" + "".join(map(chr, filter(lambda code: chr(code).isspace(), range(0x3001)))) + _WITHOUT_WIDTH
"""Characters that are removed at both ends; inside a text they stay, because Persian and emoji need some of them."""


def strip_text(text: str) -> str:
    r"""Return a text without what surrounds it.

    Example:
        >>> strip_text("\ufeff A 1\u200b\r\n")
        'A 1'
    """
    return text.strip(SURROUNDINGS)


def strip_expression(text: pl.Expr) -> pl.Expr:
    r"""Return the same of a column of texts.

    Example:
        >>> pl.select(strip_expression(pl.lit("\u00a0x\t"))).item()
        'x'
    """
    return text.str.strip_chars(SURROUNDINGS)

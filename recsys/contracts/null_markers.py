"""Texts that stand for nothing: what databases and data frames write where a value is missing.

Used wherever ids come in as text: by the sources that read logs, and by the serving side that is given users.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from recsys.contracts.plain_text import strip_text

MACHINE_MARKERS: Final = (
    *("NULL", "Null", "null", "<NULL>", "<null>", "(null)", "[NULL]", "\\N"),
    *("NaN", "nan", "NAN", "Nan", "-nan", "-NaN", "NaT", "<NA>", "#N/A", "#NA"),
)
"""What only a program writes where nothing is."""

NULL_MARKERS: Final = (
    *MACHINE_MARKERS,
    *("None", "none", "NONE", "nil", "NIL", "Nil", "undefined", "NA", "N/A", "n/a"),
)
"""What stands for nothing where an id is expected; as the answer to a question ``none`` is a value.

Source: pandas' default ``na_values``, the dumps of MySQL, Hive and PostgreSQL (``\\N``), and what DBeaver, Oracle
tools, Ruby and JavaScript print. ``na`` in lower case, ``-``, ``?`` and ``0`` are not in the list: they are values too
often.
"""


NUMPY_MISSING: Final = -(2**63)
"""What NumPy and pandas make of a missing number or time that is cast to an integer."""


def null_markers(texts: pl.Series, markers: tuple[str, ...] = NULL_MARKERS) -> pl.Series:
    """Return whether each text stands for nothing: empty, or a null marker; null stays null.

    Args:
        texts: String, without blanks around.
        markers: What counts as one.

    Example:
        >>> null_markers(pl.Series(["u7", "NULL", "", "nullable"])).to_list()
        [False, True, True, False]
    """
    return texts.is_in(["", *markers])


def is_null_marker(text: str) -> bool:
    r"""Return whether a text stands for nothing, blanks around it aside.

    Example:
        >>> is_null_marker(" nan\ufeff"), is_null_marker(""), is_null_marker("7")
        (True, True, False)
    """
    bare = strip_text(text)
    return not bare or bare in NULL_MARKERS

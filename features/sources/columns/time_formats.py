"""Declared formats of times: which ones can be read without a loss, and how Polars spells them.

Reads nothing. A format is refused with the recipe where a part of the text would be passed over or read as something else.
"""

from __future__ import annotations

import re
from typing import Final

import polars as pl

_DIRECTIVE: Final = re.compile(r"%([-_0]?\.?:*#?\d?)([A-Za-z%+])")
_YEARS: Final = frozenset("YyCGgDFxcvs+")
_MONTHS: Final = frozenset("mbBhDFxcvs+")
_DAYS: Final = frozenset("de")


def check_format(form: str) -> None:
    """Check a declared format.

    Raises:
        ValueError: It names no year; or a day and no month; or a zone by its name, which Polars passes over; or ``%f``
            other than behind a point, which Polars reads as a number of nanoseconds; or Polars cannot read it.
    """
    parts = [(flags, letter) for flags, letter in _DIRECTIVE.findall(form) if letter != "%"]
    letters = {letter for _, letter in parts}
    if not letters & _YEARS:
        raise ValueError(f"timestamp_format '{form}' names no year; expected one such as %Y-%m-%d %H:%M")
    if letters & _DAYS and not letters & _MONTHS:
        raise ValueError(f"timestamp_format '{form}' names a day and no month (%m); %M are minutes")
    if "Z" in letters:
        raise ValueError(
            f"timestamp_format '{form}' has %Z, which passes over the name of a zone, so that 10:00 EST and 10:00 CET would "
            "be one instant; write the name as it stands (… EST) and declare source.timestamp_zone, or write offsets (%z)"
        )
    form = polars_format(form)
    if any(flags == "" and letter == "f" for flags, letter in _DIRECTIVE.findall(form)):
        raise ValueError(
            f"timestamp_format '{form}' has %f, which counts nanoseconds: ',5' would be 5 ns and not half a second; write "
            "%.f for a point and a fraction of any length, or %3f, %6f or %9f for so many digits"
        )
    try:
        pl.Series(["x"]).str.to_datetime(form, time_unit="us", strict=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0].removeprefix("Invalid format string: ")
        raise ValueError(f"timestamp_format '{form}' cannot be read: {reason}") from error


def polars_format(form: str) -> str:
    """Return a format as Polars spells it: ``.%f`` of Python, a point and a fraction, is ``%.f``.

    Example:
        >>> polars_format("%Y-%m-%d %H:%M:%S.%f")
        '%Y-%m-%d %H:%M:%S%.f'
    """
    return re.sub(r"(?<!%)((?:%%)*)\.%f", r"\1%.f", form)

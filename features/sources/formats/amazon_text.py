"""Titles, descriptions, categories and votes of the Amazon files made readable: tags, entities and scripts of pages go.

Produces the values of columns for :mod:`features.sources.formats.json_lines`.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Iterable
from typing import Any, Final

import polars as pl

from features.sources.formats.json_lines import JsonField

_BLOCK: Final = re.compile(r"<(script|style)\b.*?(</\1\s*>|$)|<!--.*?(-->|$)", re.IGNORECASE | re.DOTALL)
_ALT: Final = re.compile(r"""<img\b[^<>]*\balt\s*=\s*["']([^"'<>]*)["'][^<>]*>""", re.IGNORECASE)
_TAG: Final = re.compile(r"</?[a-zA-Z][^<>]*>")
_BY: Final = re.compile(r"^\s*by\s*\n")
_SCRIPT: Final = re.compile(r"\bgetTime\b|\bfunction\s*\(|\bwindow\.\w+\s*=")


def plain(text: str) -> str | None:
    """Return a text without HTML, in one line; ``None`` where nothing is left, or where it was a script of the page.

    A picture stands for its ``alt``, as in ``main_cat`` of 2018; ``<`` that begins no tag stays.

    Example:
        >>> plain("<b>Tom &amp; Jerry</b><br/>  5 < 6")
        'Tom & Jerry 5 < 6'
    """
    if not text.isascii():  # an escape that was cut in two, as "\\ud83d", is no character
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _BLOCK.sub(" ", text)
    if _SCRIPT.search(text):
        return None
    text = _TAG.sub(" ", _ALT.sub(r" \1 ", text))
    return " ".join(html.unescape(text).split()) or None


def _texts(value: Any) -> list[str]:
    """Every text in a value, whatever its shape: a list's entries, an object's ``key: value``."""
    return [text for text in (plain(one) for one in _leaves(value)) if text is not None]


def _leaves(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            shown = ", ".join(_leaves(one))
            if shown.strip():
                yield f"{str(key).strip().rstrip(':')}: {shown}"
    elif value is not None:
        yield str(value)


def _title(value: Any) -> str | None:
    return " ".join(_texts(value)) or None


def _brand(value: Any) -> str | None:
    """The brand; the page's own "by", which stands on a line before it, is not part of it."""
    return _title(_BY.sub("", value) if isinstance(value, str) else value)


def _first_path(value: Any) -> list[str] | None:
    """A path of categories; the first where an item has several, as in the files of 2014."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return _texts(value) or None


def _votes(value: Any) -> float:
    """Helpful votes: ``[2, 3]``, two of three, in 2014, and a text such as ``"1,234"`` in 2018."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, int) for one in value):
        return float(value[0])
    if isinstance(value, str) and value.replace(",", "").isdecimal():
        return float(value.replace(",", ""))
    raise ValueError("is no number of votes")


def _details(value: Any) -> list[str] | None:
    """An object, or its JSON as text, as ``key: value`` texts."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    return _texts(value) or None


TITLE: Final = JsonField(pl.String(), _title)
VOTES: Final = JsonField(pl.Float64(), _votes)
BRAND: Final = JsonField(pl.String(), _brand)
TEXTS: Final = JsonField(pl.List(pl.String), lambda value: _texts(value) or None)
CATEGORIES: Final = JsonField(pl.List(pl.String), _first_path)
DETAILS: Final = JsonField(pl.List(pl.String), _details)

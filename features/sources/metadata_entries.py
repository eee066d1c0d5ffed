"""Metadata columns of any type as lists of texts: what stands in them, entry by entry.

Reads one column of an item table; produces lists of String. Numbers, decimals, categories and dates are written as
text, lists of lists are laid flat, and structs, bytes and durations are refused by name: nothing says what text they
are.
"""

from __future__ import annotations

import ast
import json
from typing import Any, Final, Literal

import polars as pl
from pydantic import model_validator

from recsys.config import FrozenConfig
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import MACHINE_MARKERS
from recsys.contracts.plain_text import SURROUNDINGS

Take = Literal["all", "first", "leading", "trailing"]

_WRITTEN_LIST: Final = r"^\s*[\[{].*[\]}]\s*$"


class MetadataColumn(FrozenConfig):
    """One column of the item table; a plain string in the recipe is short for ``{column: …}``.

    Attributes:
        column: Its name.
        optional: Absent is allowed and named in the data report; otherwise absent is an error.
        separator: Splits a text into a list (``|`` in MovieLens).
        lists: The text is a list as JSON writes it or Python prints it: ``["Drama", "War"]``, ``['Drama', 'War']``.
        missing: Values that mean "not known", such as ``Unknown``; null markers such as ``nan`` mean it anyway.
        take: Which entries of the list. ``leading`` is the first entry if it never stands behind another one in any
            item: the brand, where a list is "brand, category, sub-category …" but the brand may be left out.
            ``trailing`` is the rest: the category path without such a brand.
    """

    column: str
    optional: bool = False
    separator: str | None = None
    lists: bool = False
    missing: tuple[str, ...] = ()
    take: Take = "all"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_form(self) -> MetadataColumn:
        if self.lists and self.separator is not None:
            raise ValueError(f"column '{self.column}' has both a separator and lists: true; give one")
        return self


def entries(series: pl.Series, declared: MetadataColumn, where: str, *, names: bool = False) -> pl.Series:
    """Return the entries of one column, null where there is none.

    Args:
        series: The column.
        declared: How it is written and what to take of it.
        where: The table, for messages.
        names: Its entries become categories or authors, so that ``['Drama']`` must not become one called so.

    Returns:
        Lists of String, without blanks around, null markers and values that are declared missing.

    Raises:
        DataError: The type has no text, or a list is written as text and not declared.

    Example:
        >>> genres = MetadataColumn(column="genres", separator="|")
        >>> entries(pl.Series(["Drama|War", "nan", None]), genres, "items").to_list()
        [['Drama', 'War'], None, None]
        >>> entries(pl.Series([[["a"], ["b", "c"]]]), MetadataColumn(column="paths"), "items").to_list()
        [['a', 'b', 'c']]
    """
    lists = _lists(series, declared, where, names=names)
    element = pl.element().str.strip_chars(SURROUNDINGS)
    nothing = ["", *MACHINE_MARKERS, "None", *declared.missing]
    keep = element.is_not_null() & ~element.is_in(nothing)
    frame = lists.to_frame("l").select(pl.col("l").list.eval(element.filter(keep)))
    if declared.take == "first":
        frame = frame.select(pl.col("l").list.head(1))
    elif declared.take in ("leading", "trailing"):
        behind = frame.select(pl.col("l").list.slice(1).explode().drop_nulls().unique()).to_series()
        leads = ~pl.col("l").list.first().is_in(behind.implode())
        if declared.take == "leading":
            frame = frame.select(pl.when(leads).then(pl.col("l").list.head(1)))
        else:
            frame = frame.select(pl.when(leads).then(pl.col("l").list.slice(1)).otherwise(pl.col("l")))
    return frame.select(pl.when(pl.col(frame.columns[0]).list.len() > 0).then(pl.col(frame.columns[0]))).to_series()


def _lists(series: pl.Series, declared: MetadataColumn, where: str, *, names: bool) -> pl.Series:
    dtype = series.dtype
    if dtype == pl.Null:
        return pl.Series([None] * len(series), dtype=pl.List(pl.String))
    if isinstance(dtype, pl.List | pl.Array):
        return _flat(series, declared, where)
    texts = _as_text(series, declared, where)
    if declared.separator is not None:
        split = texts.str.split(declared.separator)
        _check_no_written_lists(texts, declared, where, names=names)
        return split
    if declared.lists:
        return pl.Series([_parsed(text, declared, where) for text in texts], dtype=pl.List(pl.String))
    _check_no_written_lists(texts, declared, where, names=names)
    return texts.to_frame("t").select(pl.when(pl.col("t").is_not_null()).then(pl.concat_list("t"))).to_series()


def _flat(series: pl.Series, declared: MetadataColumn, where: str) -> pl.Series:
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    while isinstance(series.dtype, pl.List) and isinstance(series.dtype.inner, pl.List | pl.Array):
        inner = series.dtype.inner
        inside = pl.element().arr.to_list() if isinstance(inner, pl.Array) else pl.element()
        series = series.to_frame("l").select(pl.col("l").list.eval(inside.explode())).to_series()
    assert isinstance(series.dtype, pl.List)
    _check_has_text(series.dtype.inner, series.dtype, declared, where)
    return series.cast(pl.List(pl.String))


def _as_text(series: pl.Series, declared: MetadataColumn, where: str) -> pl.Series:
    _check_has_text(series.dtype, series.dtype, declared, where)
    return series.cast(pl.String)


def _check_has_text(inner: pl.DataType | Any, dtype: pl.DataType, declared: MetadataColumn, where: str) -> None:
    simple = inner.is_numeric() or inner in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Date, pl.Null)
    if simple or isinstance(inner, pl.Datetime):
        return
    way_out = "write it as text"
    if isinstance(inner, pl.Struct):
        fields = ", ".join(field.name for field in inner.fields)
        way_out = f"put one of its fields ({fields}) into a column of its own"
    raise DataError(
        f"{where}: metadata column '{declared.column}' is {dtype}, expected text, a number or lists of them; {way_out}"
    )


def _check_no_written_lists(texts: pl.Series, declared: MetadataColumn, where: str, *, names: bool) -> None:
    if not names:
        return
    written = texts.str.contains(_WRITTEN_LIST).fill_null(False)
    if 2 * int(written.sum()) > len(texts) - texts.null_count():
        raise DataError(
            f"{where}: metadata column '{declared.column}' holds lists written as text, such as "
            f"{texts.filter(written)[0]!r}; declare {{column: {declared.column}, lists: true}}"
        )


def _parsed(text: str | None, declared: MetadataColumn, where: str) -> list[str] | None:
    """Return the entries of a list written as text, however deep; a text that is no list is one entry."""
    bare = (text or "").strip(SURROUNDINGS)
    if not bare:
        return None
    if not bare.startswith(("[", "{", "(")):
        return [bare]
    value: object = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(bare)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if value is None or isinstance(value, dict):
        raise DataError(
            f"{where}: metadata column '{declared.column}' is declared 'lists: true', but {bare[:100]!r} is no list in "
            "JSON or Python; mend the file, or leave 'lists' out"
        )
    return list(_leaves(value))


def _leaves(value: object) -> list[str]:
    if isinstance(value, set):  # in Python's order of the day; as text it is the same every day
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [leaf for one in value for leaf in _leaves(one)]
    return [] if value is None else [str(value)]

"""A CSV file of histories: one row per user, lists as JSON (``"[3, 7]"``), ids as text until the model says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import is_null_marker
from recsys.contracts.plain_text import SURROUNDINGS, strip_text
from serving.inputs.callers_frame import to_frame
from serving.inputs.history_frame import OPTIONAL_LISTS


def read_csv_histories(path: Path, where: str) -> pl.LazyFrame:
    """Read a CSV file of histories: lists are JSON."""
    table = pl.read_csv(path, infer_schema=False, glob=False)
    table = table.rename({name: strip_text(name) for name in table.columns})
    if Columns.ITEM_IDS not in table.columns:  # no histories, as whoever checks the columns says
        return table.lazy()
    lists = [name for name in (Columns.ITEM_IDS, *OPTIONAL_LISTS, Columns.DENY_ITEM_IDS) if name in table.columns]
    cells = {name: [_json_list(text, name, row, where) for row, text in enumerate(table[name])] for name in lists}
    ids = table[Columns.USER_ID].str.strip_chars(SURROUNDINGS) if Columns.USER_ID in table.columns else None
    others = table.drop(lists) if ids is None else table.drop(lists).with_columns(ids)
    return pl.concat([others, to_frame(cells, where)], how="horizontal").lazy()


def _json_list(text: str | None, name: str, row: int, where: str) -> Any:
    if text is None or is_null_marker(text):
        return None
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"{where}: column '{name}' is {text[:60]!r} in row {row}, expected a JSON list such as [3, 7] "
            f"({type(error).__name__})"
        ) from None


def whole_numbers(texts: pl.Series, where: str) -> pl.Series:
    """Parse user ids of a CSV file as integers; ``007`` is refused, because the user 7 is another one."""
    numbers = texts.cast(pl.Int64, strict=False)
    wrong = numbers.is_null() | (numbers.cast(pl.String) != texts).fill_null(True)
    if wrong.any():
        raise DataError(
            f"{where}: user_id is {texts.filter(wrong)[0]!r} ({int(wrong.sum())} such rows), the model's users are "
            "integers; give "
            "ids of the same type as in the training data"
        )
    return numbers

"""Files of business rules: lists of items, and small tables of users or items.

People write such files by hand and in spreadsheets, so what cannot be seen goes: byte-order marks, blanks and
characters without width around a value or a column name (:mod:`~recsys.contracts.plain_text`), and quotes
around a line. Null markers are no ids. What was left out is counted in the log, and so is what the model does not know.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.contracts.null_markers import null_markers
from recsys.contracts.plain_text import SURROUNDINGS, strip_text
from serving.config import RULE_FILES, RecommendConfig
from serving.inputs.history_columns import id_values

logger = logging.getLogger("recsys.serving")

COMMENT: Final = "#"


def read_item_list(path: Path, dtype: pl.DataType, known: pl.Series | None = None) -> pl.Series:
    """Read the ids of a list: Parquet or CSV with a column ``item_id``, or plain text with one id per line.

    In plain text a first line ``item_id`` and lines that begin with ``#`` are no ids, unless the catalogue has such an item.

    Args:
        dtype: Type of the catalogue's ids; text is parsed into it.
        known: The catalogue's ids.

    Raises:
        ConfigError: The file is missing.
        DataError: It has no column ``item_id``, or an id is not of the catalogue's type.
    """
    _require(path)
    if path.suffix.lower() in (".parquet", ".csv"):
        table = _read(path)
    else:
        table = pl.DataFrame({Columns.ITEM_ID: _lines(path, known)}, schema={Columns.ITEM_ID: pl.String})
    ids = _select(table, path, {Columns.ITEM_ID: dtype}, known={Columns.ITEM_ID: known})[Columns.ITEM_ID]
    if ids.null_count():
        logger.warning(
            "'%s': %d of %d entries are empty or null markers; they were left out", path, ids.null_count(), len(ids)
        )
    return ids.drop_nulls().unique(maintain_order=True)


def _lines(path: Path, known: pl.Series | None) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"item list '{path}' cannot be read: {error}; give UTF-8 text, one id per line") from error
    ids = set() if known is None else set(known.cast(pl.String))
    result = []
    for number, line in enumerate(lines):
        text = _unquoted(strip_text(line))
        heading = (number == 0 and text == Columns.ITEM_ID) or text.startswith(COMMENT)
        if text and not (heading and text not in ids):
            result.append(text)
    return result


def _unquoted(text: str) -> str:
    """Take quotes off a line that stands in them as a whole; doubled ones inside are one."""
    for quote in ('"', "'"):
        if len(text) >= 2 and text[0] == quote == text[-1]:
            (fields,) = csv.reader([text], quotechar=quote, strict=False)
            return strip_text(fields[0]) if len(fields) == 1 else text
    return text


def read_rule_table(path: Path, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Read a table of rules, Parquet or CSV; columns that are not asked for are left out.

    Args:
        columns: Names and types that are needed; text is parsed into the type, blanks around it and null markers go.

    Raises:
        ConfigError: The file is missing, or neither Parquet nor CSV.
        DataError: A column is missing, or a value is not of its type.
    """
    _require(path)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"rule file '{path}' ends in '{path.suffix}', expected .parquet or .csv")
    return _select(_read(path), path, columns)


def refuse_rows(table: pl.DataFrame, bad: pl.Expr, path: Path, why: str) -> None:
    """Raise a :class:`DataError` that counts the rows for which ``bad`` holds and shows the first."""
    rows = table.filter(bad)
    if len(rows):
        raise DataError(f"rule file '{path}': {len(rows)} of {len(table)} rows {why}; the first is {rows.row(0)}")


def fingerprint(config: RecommendConfig) -> dict[str, str]:
    """Content hashes of the rule files that are set.

    Raises:
        ConfigError: A file is missing.
    """
    paths: dict[str, Path | None] = {name: getattr(config, name) for name in RULE_FILES}
    for path in paths.values():
        if path is not None:
            _require(path)
    return {name: sha256_of_file(path) for name, path in paths.items() if path is not None}


def _require(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"rule file '{path}' does not exist; give a Parquet or CSV file, or a text file of item ids")


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path, glob=False)
        return pl.read_csv(path, infer_schema=False, glob=False)
    except pl.exceptions.NoDataError as error:
        raise DataError(f"rule file '{path}' is empty; its first line is to name the columns") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"rule file '{path}' cannot be read: {error}; write it again as UTF-8 CSV or Parquet"
        ) from error


def _select(
    table: pl.DataFrame,
    path: Path,
    columns: Mapping[str, pl.DataType],
    known: Mapping[str, pl.Series | None] | None = None,
) -> pl.DataFrame:
    names = {strip_text(name): name for name in table.columns}
    missing = [name for name in columns if name not in names]
    if missing:
        hint = "; the first line of a CSV file names its columns" if path.suffix.lower() == ".csv" else ""
        raise DataError(f"rule file '{path}' has the columns {table.columns}, expected '{missing[0]}'{hint}")
    known = known or {}
    found = [_cast(table[names[name]].alias(name), dtype, path, known.get(name)) for name, dtype in columns.items()]
    return pl.DataFrame(found)


def _cast(values: pl.Series, dtype: pl.DataType, path: Path, known: pl.Series | None) -> pl.Series:
    """Return the values in their type; text without what surrounds it, ids that are null markers as null.

    A text that the catalogue holds exactly as it stands is left alone.
    """
    where = f"rule file '{path}': column '{values.name}'"
    is_id = values.name in (Columns.ITEM_ID, Columns.USER_ID)
    if values.dtype == pl.Null:
        return values.cast(dtype)
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        numbers = id_values(values, where)
        if dtype == pl.String and not is_id:
            return numbers.cast(pl.String)  # names of segments and categories may be numbers
        if not (numbers.dtype.is_integer() and dtype.is_integer()):
            raise DataError(
                f"{where} is to hold {dtype}, found {values.dtype}; give ids of the same type as in the training data"
            )
        return numbers
    texts = values.cast(pl.String)
    if not is_id:
        bare = texts.str.strip_chars(SURROUNDINGS)
        return bare.replace("", None)
    texts = plain_texts(texts, known if dtype == pl.String else None)
    try:
        return texts.cast(dtype)
    except pl.exceptions.PolarsError as error:
        wrong = texts.filter(texts.cast(dtype, strict=False).is_null() & texts.is_not_null())
        raise DataError(
            f"{where} is to hold {dtype}, and {len(wrong)} values do not, the first is {wrong[0]!r}; give ids of the "
            "same type as "
            "in the training data"
        ) from error


def plain_texts(texts: pl.Series, known: pl.Series | None = None) -> pl.Series:
    """Return texts without what surrounds them, null markers as null.

    Args:
        known: Texts that are ids exactly as they stand, and are left alone.

    Example:
        >>> plain_texts(pl.Series(["\ufeffA1 ", "NULL", "nil"]), pl.Series(["A1", "nil"])).to_list()
        ['A1', None, 'nil']
    """
    ids = (pl.Series([], dtype=pl.String) if known is None else known).implode()
    bare = texts.str.strip_chars(SURROUNDINGS)
    frame = pl.DataFrame(
        {"given": texts, "bare": bare, "exact": texts.is_in(ids), "nothing": null_markers(bare) & ~bare.is_in(ids)}
    )
    chosen = pl.when("exact").then("given").when(~pl.col("nothing")).then("bare")
    return frame.select(chosen.alias(texts.name)).to_series()

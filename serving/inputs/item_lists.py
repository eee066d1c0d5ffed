"""Files of business rules: lists of items, and small tables of users or items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import sha256_of_file
from serving.config import RULE_FILES, RecommendConfig


def read_item_list(path: Path, dtype: pl.DataType) -> pl.Series:
    """Read the ids of a list: Parquet or CSV with a column ``item_id``, or plain text with one id per line.

    Args:
        dtype: Type of the catalogue's ids; text is parsed into it.

    Raises:
        ConfigError: The file is missing.
        DataError: It has no column ``item_id``, or an id is not of the catalogue's type.
    """
    _require(path)
    if path.suffix in (".parquet", ".csv"):
        table = _read(path)
    else:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise DataError(f"item list '{path}' cannot be read: {error}; give UTF-8 text, one id per line") from error
        table = pl.DataFrame({Columns.ITEM_ID: [line for line in lines if line]}, schema={Columns.ITEM_ID: pl.String})
    return _select(table, path, {Columns.ITEM_ID: dtype})[Columns.ITEM_ID].drop_nulls().unique(maintain_order=True)


def read_rule_table(path: Path, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Read a table of rules, Parquet or CSV; columns that are not asked for are left out.

    Args:
        columns: Names and types that are needed; text is parsed into the type.

    Raises:
        ConfigError: The file is missing, or neither Parquet nor CSV.
        DataError: A column is missing, or a value is not of its type.
    """
    _require(path)
    if path.suffix not in (".parquet", ".csv"):
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
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        return pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"rule file '{path}' cannot be read: {error}; write it again") from error


def _select(table: pl.DataFrame, path: Path, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"rule file '{path}' has the columns {table.columns}, expected '{missing[0]}'")
    return pl.DataFrame([_cast(table[name], dtype, path) for name, dtype in columns.items()])


def _cast(values: pl.Series, dtype: pl.DataType, path: Path) -> pl.Series:
    try:
        typed = values.cast(dtype)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"rule file '{path}': column '{values.name}' is to hold {dtype}, and a value does not: {error}"
        ) from error
    if values.dtype.is_float() and (typed.cast(values.dtype) != values).any():  # a cast to integers would cut them off
        raise DataError(
            f"rule file '{path}': column '{values.name}' is to hold {dtype}, found fractions; write whole ids"
        )
    return typed

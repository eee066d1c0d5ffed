"""Allow and deny lists of items, read from files."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import sha256_of_file


def read_item_list(path: Path, dtype: pl.DataType) -> pl.Series:
    """Read the ids of a list: Parquet or CSV with a column ``item_id``, or plain text with one id per line.

    Args:
        dtype: Type of the catalogue's ids; text is parsed into it.

    Raises:
        ConfigError: The file is missing.
        DataError: It has no column ``item_id``, or an id is not of the catalogue's type.
    """
    _require(path)
    try:
        if path.suffix == ".parquet":
            table = pl.read_parquet(path)
        elif path.suffix == ".csv":
            table = pl.read_csv(path, infer_schema=False)
        else:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            table = pl.DataFrame(
                {Columns.ITEM_ID: [line for line in lines if line]}, schema={Columns.ITEM_ID: pl.String}
            )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(f"item list '{path}' cannot be read: {error}") from error
    if Columns.ITEM_ID not in table.columns:
        raise DataError(f"item list '{path}' has the columns {table.columns}, expected 'item_id'")
    try:
        return table[Columns.ITEM_ID].drop_nulls().cast(dtype).unique(maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"item list '{path}': the model's item ids are {dtype}, and a listed id is not: {error}"
        ) from error


def fingerprint(allow: Path | None, deny: Path | None) -> dict[str, str]:
    """Content hashes of the lists that are set.

    Raises:
        ConfigError: A file is missing.
    """
    hashes = {}
    for name, path in (("allow", allow), ("deny", deny)):
        if path is not None:
            _require(path)
            hashes[name] = sha256_of_file(path)
    return hashes


def _require(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"item list '{path}' does not exist; give a Parquet, CSV or text file of item ids")

"""Item vectors that were made elsewhere: reads a Parquet or npy file, produces ``[I, D]`` in the order of the catalogue.

    vectors.parquet   one row per item: its id, and the vector as a list, as a fixed-size array, or as numbered columns
    vectors.npy       ``[N, D]``, with the ids of its rows beside it: one a line in ids.txt, or ids.npy

Ids are compared as the catalogue has them: as text where its ids are text, as integers where they are. Rows of other items
are left out and counted; an item of the catalogue without a vector is dealt with by rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from features.embeddings.factorise import FloatArray
from recsys.config import FrozenConfig
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.contracts.plain_text import strip_text
from recsys.paths import ConfigPath

Flags = npt.NDArray[np.bool_]

RIDGE: Final = 1.0
"""Strength of the pull to zero where missing vectors are told from texts: one item's worth, as texts have length one."""


class PrecomputedConfig(FrozenConfig):
    """Where the vectors are, and what becomes of items without one.

    Attributes:
        path: A ``.parquet`` or ``.npy`` file; its content enters the stage's digest, its place does not.
        id_column: Parquet: column of the item ids.
        vector_column: Parquet: column of lists or arrays, or the common start of numbered columns (``vector_0 …``).
        ids: npy: file with the ids of the rows, ``.txt`` (one a line) or ``.npy``.
        missing: An item without a vector: ``zeros`` leaves its place at the mean of the others, ``text`` tells its vector
            from its text, by ridge regression on the items that have both.
        max_missing_share: More items without a vector than this share stop the stage.
    """

    path: ConfigPath
    id_column: str = "item_id"
    vector_column: str = "vector"
    ids: ConfigPath | None = None
    missing: Literal["zeros", "text"] = "zeros"
    max_missing_share: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.path.suffix not in (".parquet", ".npy"):
            raise ValueError(f"path '{self.path}' ends in neither .parquet nor .npy; write the vectors as one of them")
        if (self.path.suffix == ".npy") != (self.ids is not None):
            raise ValueError("ids is the file of row ids beside a .npy, and for a .npy only")
        if self.ids is not None and self.ids.suffix not in (".txt", ".npy"):
            raise ValueError(f"ids '{self.ids}' ends in neither .txt (one id a line) nor .npy")
        return self

    @property
    def files(self) -> dict[str, Path]:
        """The files that are read, by the key that names them."""
        return {"path": self.path} | ({"ids": self.ids} if self.ids is not None else {})


def fingerprint(config: PrecomputedConfig | None) -> dict[str, str]:
    """Content hashes of the files, by key.

    Raises:
        DataError: A file is missing.
    """
    found = {}
    for key, path in (config.files if config is not None else {}).items():
        if not path.is_file():
            raise DataError(f"embed.precomputed.{key} '{path.absolute()}' is no file; name the file of item vectors")
        found[f"embed.precomputed.{key}"] = sha256_of_file(path)
    return found


def precomputed_embedding(item_ids: pl.Series, config: PrecomputedConfig) -> tuple[FloatArray, dict[str, int]]:
    """Return ``[I, D]`` float32 with a zero row where an item has no vector, and counts for the report.

    Args:
        item_ids: ``[I]`` ids of the catalogue, integers or text.

    Raises:
        DataError: The file cannot be read or is no table of vectors; an id is there twice; a vector of the catalogue is not
            finite, zero, or of another width; or more items are without one than the configuration allows.
    """
    where = f"embed.precomputed '{config.path}'"
    ids, vectors = _read_npy(config, where) if config.ids is not None else _read_parquet(config, where)
    rows = pl.DataFrame({"item_id": _like(ids, item_ids.dtype, where)}).with_row_index("row").drop_nulls()
    twice = rows.filter(pl.col("item_id").is_duplicated())
    if len(twice):
        first = twice["item_id"][0]
        places = twice.filter(pl.col("item_id") == first)["row"].to_list()
        raise DataError(
            f"{where}: item {first!r} has {len(places)} vectors (rows {places[0]} and {places[1]}, counted from 0), and "
            f"{twice['item_id'].n_unique()} items have more than one; keep one row per item"
        )
    matched = pl.DataFrame({"item_id": item_ids}).join(rows, on="item_id", how="left", maintain_order="left")["row"]
    has = matched.is_not_null().to_numpy()
    values, given = _take(vectors, matched.drop_nulls().cast(pl.Int64), item_ids.filter(pl.Series(has)), where)
    has[np.flatnonzero(has)[~given]] = False
    missing = int((~has).sum())
    if missing > config.max_missing_share * len(item_ids):
        examples = ", ".join(repr(value) for value in item_ids.filter(pl.Series(~has)).head(3))
        raise DataError(
            f"{where}: {missing} of {len(item_ids)} items have no vector ({examples}, …; {len(ids)} rows in the file, "
            f"{int(matched.is_not_null().sum())} of them match), more than embed.precomputed.max_missing_share "
            f"{config.max_missing_share:g}; check that the ids are those of the log, add vectors, or allow it"
        )
    result = np.zeros((len(item_ids), values.shape[1]), np.float32)
    result[has] = values[given]
    return result, {"rows": len(ids), "unused_rows": len(ids) - int(has.sum()), "items_missing": missing}


@dataclass(frozen=True)
class TextRidge:
    """Tells vectors from texts, by ridge regression on the items that have both.

    Attributes:
        centre: ``[T]`` mean of the texts.
        mean: ``[D]`` mean of the vectors.
        slopes: ``[T, D]``.
    """

    centre: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    slopes: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, vectors: FloatArray, has: Flags, text: FloatArray) -> TextRidge | None:
        """Learn from the items with a vector and a text; ``None`` where there is none.

        Args:
            vectors: ``[I, D]``.
            has: ``[I]``, which rows were given.
            text: ``[I, T]``, zero rows for items without text.
        """
        both = has & text.any(axis=1)
        if not both.any():
            return None
        centre, mean = text[both].mean(0, dtype=np.float64), vectors[both].mean(0, dtype=np.float64)
        x, y = text[both] - centre, vectors[both] - mean
        return cls(centre, mean, np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y))

    def fill(self, vectors: FloatArray, has: Flags, text: FloatArray) -> FloatArray:
        """Fill the rows that were not given and have a text; the others stay as they are.

        Example:
            >>> given, text = np.array([[2.0], [4.0], [0.0]], np.float32), np.array([[1.0], [1.0], [1.0]], np.float32)
            >>> has = np.array([True, True, False])
            >>> TextRidge.fit(given, has, text).fill(given, has, text).round(2).tolist()  # 3, their mean
            [[2.0], [4.0], [3.0]]
        """
        wanted = ~has & text.any(axis=1)
        filled = vectors.copy()
        filled[wanted] = (text[wanted] - self.centre) @ self.slopes + self.mean
        return filled


def _read_npy(config: PrecomputedConfig, where: str) -> tuple[pl.Series, Any]:
    assert config.ids is not None
    vectors = _load(config.path, where)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.shape[1]:
        raise DataError(f"{where} is {vectors.dtype} of shape {vectors.shape}, expected numbers [rows, width]")
    if config.ids.suffix == ".npy":
        ids = _load(config.ids, f"embed.precomputed.ids '{config.ids}'")
        if ids.ndim != 1 or ids.dtype.kind not in "iuU":
            raise DataError(f"'{config.ids}' is {ids.dtype} of shape {ids.shape}, expected [rows] of integers or text")
        series = pl.Series(ids.tolist())
    else:
        try:
            lines = config.ids.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"'{config.ids}' cannot be read: {error}; write one id a line, as UTF-8 text") from error
        series = pl.Series([strip_text(line) for line in lines], dtype=pl.String)
    if len(series) != len(vectors):
        raise DataError(
            f"{where} has {len(vectors)} rows, '{config.ids}' has {len(series)} ids; one id per row is needed"
        )
    return series, vectors


def _load(path: Path, where: str) -> np.ndarray[Any, Any]:
    try:
        loaded: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{where} cannot be read: {error}; write it with numpy.save, numbers or text only") from error
    return loaded


def _read_parquet(config: PrecomputedConfig, where: str) -> tuple[pl.Series, Any]:
    try:
        table = pl.scan_parquet(config.path, glob=False)
        schema = table.collect_schema()
        names = _vector_names(schema, config, where)
        frame = table.select(config.id_column, *names).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{where} cannot be read: {error}; write it again as Parquet") from error
    vectors = frame.select(names) if len(names) > 1 or not schema[names[0]].is_nested() else frame[names[0]]
    return frame[config.id_column], vectors


def _vector_names(schema: pl.Schema, config: PrecomputedConfig, where: str) -> list[str]:
    """The column of vectors, or the numbered columns."""
    if config.id_column not in schema:
        raise DataError(
            f"{where} has no column '{config.id_column}' of item ids (embed.precomputed.id_column): {list(schema)[:20]}"
        )
    kind = schema.get(config.vector_column)
    if kind is not None:
        if not isinstance(kind, pl.List | pl.Array) or not _is_number(kind.inner):
            raise DataError(
                f"{where}: column '{config.vector_column}' is {kind}, expected a list or an array of numbers"
            )
        return [config.vector_column]
    numbered = {
        int(match.group(1)): name
        for name in schema
        if (match := re.fullmatch(re.escape(config.vector_column) + r"[_.\-]?(\d+)", name))
    }
    if not numbered:
        raise DataError(
            f"{where} has neither a column '{config.vector_column}' (embed.precomputed.vector_column) nor numbered ones "
            f"such as '{config.vector_column}_0': {list(schema)[:20]}"
        )
    gaps = sorted(set(range(min(numbered), max(numbered) + 1)) - set(numbered))
    wrong = [name for name in numbered.values() if not _is_number(schema[name])]
    if gaps or min(numbered) > 1 or wrong:
        what = f"column '{wrong[0]}' is {schema[wrong[0]]}" if wrong else f"number {gaps[0] if gaps else 0} is missing"
        raise DataError(
            f"{where}: the columns '{config.vector_column}…' are numbered, but {what}; write all as numbers"
        )
    return [numbered[number] for number in sorted(numbered)]


def _is_number(kind: Any) -> bool:
    return bool(kind.is_numeric()) and not kind.is_decimal()


def _like(ids: pl.Series, kind: pl.DataType, where: str) -> pl.Series:
    """Give the ids the catalogue's type; an id that has none there becomes null, as no item can be meant."""
    if kind == pl.String:
        if not (ids.dtype.is_integer() or ids.dtype == pl.String):
            raise DataError(f"{where}: ids are {ids.dtype}, the catalogue's are text; write them as text or integers")
        return ids.cast(pl.String)
    if ids.dtype == pl.String:
        numbers = ids.cast(kind, strict=False)
        return numbers.set(numbers.cast(pl.String).ne_missing(ids), None)  # "007" is not item 7
    if not ids.dtype.is_integer():
        raise DataError(f"{where}: ids are {ids.dtype}, the catalogue's are {kind}; write them as integers")
    return ids.cast(kind, strict=False)


def _take(vectors: Any, rows: pl.Series, ids: pl.Series, where: str) -> tuple[FloatArray, Flags]:
    """Vectors of some rows ``[n, D]`` as float32, and which of them are no null; every one of these must say something."""
    if isinstance(vectors, np.ndarray):
        values, given = vectors[rows.to_numpy()].astype(np.float32), np.ones(len(rows), bool)
    elif isinstance(vectors, pl.DataFrame):
        part = vectors[rows.to_list()].cast(pl.Float32)
        given = ~part.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()
        values = part.to_numpy().astype(np.float32)
    else:
        part = vectors.gather(rows).cast(pl.List(pl.Float32))
        given = part.is_not_null().to_numpy()
        widths = part.list.len()
        width = int(widths.drop_nulls().mode().min() or 0)
        other = (widths != width).fill_null(False)
        if other.any() or not width:
            first = other.arg_true()[0] if other.any() else 0
            raise DataError(
                f"{where}: the vector of item {ids[first]!r} has {widths[first]} numbers, others have {width}; all need the "
                "same width"
            )
        values = np.zeros((len(part), width), np.float32)
        values[given] = part.drop_nulls().explode().fill_null(float("nan")).to_numpy().reshape(-1, width)
    for wrong, what in (
        (given & ~np.isfinite(values).all(axis=1), "holds NaN, null, an infinity, or what float32 cannot hold"),
        (given & ~values.any(axis=1), "is all zeros, which says nothing"),
    ):
        if wrong.any():
            raise DataError(
                f"{where}: the vector of item {ids[int(wrong.argmax())]!r} {what}, as do {int(wrong.sum())} in all; mend "
                "them, or leave their rows out: an item without a row is missing, which embed.precomputed.missing deals with"
            )
    return values, given

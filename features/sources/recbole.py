"""RecBole atomic files: tab-separated ``.inter``, ``.item`` and ``.user`` whose header declares types as ``name:type``.

Reads a folder; produces ``RawTables`` through the same column map as the table source.

Source: RecBole documentation, "Atomic files": types ``token``, ``token_seq``, ``float``, ``float_seq``; sequences are
separated by spaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import polars as pl

from features.sources.mapped import MappedSource, OpenedTable, explain_read_errors
from recsys.contracts.errors import DataError

_SUFFIX: Final = {"interactions": "inter", "items": "item", "users": "user"}
_TYPES: Final = ("token", "token_seq", "float", "float_seq")


class RecBoleSource(MappedSource):
    """A RecBole data set; in the column map, names are given without their ``:type``.

    Attributes:
        path: The folder.
        name: Stem of the files; the folder's name when not given, as RecBole has it.
        kind: Names this form of source.
        user_id_column: Id column of the table of users.
    """

    kind: Literal["recbole"] = "recbole"
    path: Path
    name: str | None = None

    def _open(self, kind: Literal["interactions", "items", "users", "prehistory"]) -> OpenedTable | None:
        path = self._path(kind)
        if path is None:
            return None
        where = str(path)
        with explain_read_errors(where):
            scanned = pl.scan_csv(path, separator="\t", infer_schema=False, quote_char=None)
            header = scanned.collect_schema().names()
        return OpenedTable(scanned.select(_typed(column, where) for column in header), where)

    def _files(self) -> Iterator[Path]:
        for kind in ("interactions", "items", "users", "prehistory"):
            path = self._path(kind)
            if path is not None:
                yield path

    def _path(self, kind: str) -> Path | None:
        stem = self.name if self.name is not None else self.path.resolve().name
        if kind == "prehistory":
            return None if self.prehistory is None else self.path / self.prehistory.file
        path = self.path / f"{stem}.{_SUFFIX[kind]}"
        if path.is_file():
            return path
        if kind == "interactions":
            there = sorted(p.name for p in self.path.glob("*.inter")) if self.path.is_dir() else []
            raise DataError(
                f"'{path}' does not exist; .inter files there: {', '.join(there) or 'none'}; set source.name"
            )
        return None


def _typed(column: str, where: str) -> pl.Expr:
    """Turn the text column ``name:type`` into a typed column ``name``; an empty field is null."""
    name, separator, kind = column.rpartition(":")
    if not separator or kind not in _TYPES:
        raise DataError(
            f"'{where}': header '{column}' is not 'name:type' with a type of {', '.join(_TYPES)}; is it an atomic file?"
        )
    text = pl.when(pl.col(column) != "").then(pl.col(column))
    if kind == "float":
        return text.cast(pl.Float64).alias(name)
    if kind == "token_seq":
        return text.str.split(" ").alias(name)
    if kind == "float_seq":
        return text.str.split(" ").cast(pl.List(pl.Float64)).alias(name)
    return text.alias(name)

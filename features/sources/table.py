"""Parquet or CSV tables with a column map: the main source.

Reads a folder (or one file) of interactions, and optionally items, users and a prehistory; produces ``RawTables``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl

from features.sources.mapped import MappedSource, OpenedTable
from recsys.contracts.errors import DataError


class TableSource(MappedSource):
    """Interactions in Parquet or CSV.

    Attributes:
        path: A folder that holds the files below, or the interactions file itself.
        interactions: File name or pattern (``part-*.parquet``) inside ``path``.
        items: File name inside ``path``, or ``None``.
        users: File name inside ``path``, or ``None``.
        csv_separator: For files that end in ``.csv``, ``.tsv``, ``.csv.gz``.
        kind: Names this form of source.
        user_id_column: Id column of the table of users.

    Example:
        >>> TableSource(path="logs", timestamp_unit="ms").columns.user_id
        'user_id'
    """

    kind: Literal["table"] = "table"
    path: Path
    interactions: str = "interactions.parquet"
    items: str | None = None
    users: str | None = None
    csv_separator: str = ","

    def _open(self, kind: Literal["interactions", "items", "users", "prehistory"]) -> OpenedTable | None:
        paths = self._paths(kind)
        if not paths:
            return None
        where = str(paths[0]) if len(paths) == 1 else str(self.path / self.interactions)
        if paths[0].suffix == ".parquet":
            return OpenedTable(pl.scan_parquet(paths, glob=False), where)
        if {".csv", ".tsv"} & set(paths[0].suffixes):
            separator = "\t" if ".tsv" in paths[0].suffixes else self.csv_separator
            # what is in a file decides no type: an id is text unless declared, and a number is read where one is expected
            scanned = pl.scan_csv(paths, separator=separator, infer_schema=False, glob=False)
            return OpenedTable(scanned, where, is_text=True)
        raise DataError(f"'{paths[0]}' ends in neither .parquet nor .csv/.tsv; convert it or rename it")

    def _files(self) -> Iterator[Path]:
        for kind in ("interactions", "items", "users", "prehistory"):
            yield from self._paths(kind)

    def _paths(self, kind: str) -> list[Path]:
        if kind == "interactions" and not self.path.is_dir():
            paths = [self.path]
        else:
            name = {
                "interactions": self.interactions,
                "items": self.items,
                "users": self.users,
                "prehistory": self.prehistory.file if self.prehistory is not None else None,
            }[kind]
            if name is None:
                return []
            folder = self.path if self.path.is_dir() else self.path.parent
            paths = sorted(folder.glob(name)) if "*" in name else [folder / name]
            if not paths:
                raise DataError(f"no file matches '{folder / name}'; set source.path and source.{kind}")
        for path in paths:
            if not path.is_file():
                inside = sorted(p.name for p in path.parent.glob("*") if p.is_file()) if path.parent.is_dir() else []
                raise DataError(
                    f"'{path}' does not exist (for {kind}); files there: {', '.join(inside[:20]) or 'none'}; "
                    f"set source.path or source.{kind}"
                )
        return paths

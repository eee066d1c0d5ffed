"""Text or Parquet tables with a column map: the main source.

Reads a folder (or one file) of interactions, and optionally items, users and a prehistory; produces ``RawTables``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

from pydantic import field_validator, model_validator

from features.reading import DataFiles, OpenedTable, TextFormat, TextOptions, find_files, open_files
from features.sources.item_columns import metadata_columns
from features.sources.mapped import MappedSource, TableKind
from recsys.paths import ConfigPath


class TableSource(TextOptions, MappedSource):
    """Interactions in Parquet, CSV, TSV or any other separated text; see :class:`TextOptions` for the latter.

    The columns of a table are found by name in each of its files; ``key=value`` folders are columns of text.

    Attributes:
        path: A folder that holds the files below, or the interactions file itself.
        interactions: File, folder or pattern (``day=*/part-*.parquet``, ``**/*.csv``) inside ``path``. Files are read in
            natural order of their relative paths: ``part-2`` before ``part-10``; a folder, also one that a pattern
            matches, stands for all data files below it.
        items: The same for the items, or ``None``.
        users: The same for the users, or ``None``.
        header: Names of the columns of interactions, for text files whose first line is data already.
        kind: Names this form of source.
        user_id_column: Id column of the table of users.

    Example:
        >>> TableSource(path="logs", timestamp_unit="ms").columns.user_id
        'user_id'
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"csv_separator": "separator"}

    kind: Literal["table"] = "table"
    path: ConfigPath
    interactions: str = "interactions.parquet"
    items: str | None = None
    users: str | None = None
    header: tuple[str, ...] = ()

    @field_validator("header")
    @classmethod
    def _is_header(cls, header: tuple[str, ...]) -> tuple[str, ...]:
        return TextFormat(header=header).header

    @model_validator(mode="after")
    def _has_the_tables(self) -> Self:
        if self.items is None and metadata_columns(self.item_columns):
            raise ValueError(
                "item_columns names columns, but there is no table of items; set source.items, or leave it out"
            )
        if self.users is None and self.user_columns:
            raise ValueError(
                "user_columns names columns, but there is no table of users; set source.users, or leave it out"
            )
        return self

    def _open(self, kind: TableKind) -> OpenedTable | None:
        files = self._table_files(kind)
        if files is None:
            return None
        header = self.header if kind == "interactions" else ()
        return open_files(files, self.text_format(files.paths[0].name, header))

    def _files(self) -> Iterator[Path]:
        for kind in get_args(TableKind):
            files = self._table_files(kind)
            yield from () if files is None else files.paths

    def _table_files(self, kind: TableKind) -> DataFiles | None:
        if kind == "interactions" and not self.path.is_dir():
            return find_files(self.path.parent, self.path.name, "source.path")
        name = {
            "interactions": self.interactions,
            "items": self.items,
            "users": self.users,
            "prehistory": self.prehistory.file if self.prehistory is not None else None,
        }[kind]
        if name is None:
            return None
        return find_files(self._root(), name, f"source.{kind}")

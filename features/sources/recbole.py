"""RecBole atomic files: tab-separated ``.inter``, ``.item`` and ``.user`` whose header declares types as ``name:type``.

Reads a folder; produces ``RawTables`` through the same column map as the table source. The declared types say what a
sequence is; every other value is read like one of any text file: ids as they are written, numbers where they are expected.

Source: RecBole documentation, "Atomic files": types ``token``, ``token_seq``, ``float``, ``float_seq``; sequences are
separated by spaces.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import polars as pl
from pydantic import Field, field_validator

from features.reading import FILE, DataFiles, OpenedTable, TextFormat, find_files, open_text
from features.reading.files import missing_file
from features.sources.derived import Derived, DerivedTable
from features.sources.formats.layout import files_in, refuse_packed
from features.sources.mapped import MappedSource, TableKind
from recsys.contracts.columns import SPLIT_NAMES, TEST, TRAIN, Columns
from recsys.contracts.errors import DataError
from recsys.paths import ConfigPath

_SUFFIX: Final = {"interactions": "inter", "items": "item", "users": "user"}
_TYPES: Final = ("token", "token_seq", "float", "float_seq")
_REMEDY: Final = "write the file again with tabs, as atomic files are, or read it as source.kind: table"


class RecBoleSource(MappedSource):
    """A RecBole data set; in the column map, names are given without their ``:type``.

    Attributes:
        path: The folder.
        name: Stem of the files; the folder's name when not given, as RecBole has it.
        benchmark_filename: Middle parts of the files of a given split, ``NAME.train.inter`` and so on, in the order train,
            valid, test; two are train and test. They take the place of ``NAME.inter``, and the column ``split`` says of each
            event where it stood: map it with ``columns: {split: split}`` for ``features.split.kind: given``.
        encoding: Of the files.
        kind: Names this form of source.
        user_id_column: Id column of the table of users.
    """

    kind: Literal["recbole"] = "recbole"
    path: ConfigPath
    name: str | None = None
    benchmark_filename: tuple[str, ...] = Field((), max_length=3)
    encoding: str = "utf-8"

    @field_validator("benchmark_filename")
    @classmethod
    def _two_or_three(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError(f"{list(names)}: expected two or three different parts, as in [train, valid, test]")
        return names

    def _open(self, kind: TableKind) -> OpenedTable | None:
        files = self._table_files(kind)
        if files is None:
            return None
        text = TextFormat(separator="\t", quote=None, encoding=self.encoding, remedy=_REMEDY)
        whole = self._titles() if kind == "items" else set()
        table = AtomicTable(open_text(files.paths, files.root, text, files.where), whole)
        if kind == "items":
            self._check_one_form(table)
        if kind != "interactions" or not self.benchmark_filename:
            return table
        if Columns.SPLIT in table.schema:
            raise DataError(
                f"'{files.where}' has a column '{Columns.SPLIT}' beside a split by files; rename the column"
            )
        splits = SPLIT_NAMES if len(self.benchmark_filename) == 3 else (SPLIT_NAMES[TRAIN], SPLIT_NAMES[TEST])
        stood = {place: splits[files.paths.index(self.path / name)] for place, name in enumerate(table.files)}
        split = pl.col(FILE).replace_strict(stood, return_dtype=pl.String)
        return DerivedTable(table, {Columns.SPLIT: Derived((), split, pl.String())})

    def _titles(self) -> set[str]:
        """Columns that are read as one text: RecBole writes a title as a sequence of its words."""
        columns = self.item_columns
        lists = {one.column for one in (*columns.categories, *columns.author)}
        return {one.column for one in columns.title} | ({one.column for one in columns.text} - lists)

    def _check_one_form(self, table: AtomicTable) -> None:
        """Refuse a sequence that is a title, one text, and a list of names as well: it would be one name.

        Raises:
            DataError: Names the column.
        """
        names = {one.column for one in (*self.item_columns.categories, *self.item_columns.author)}
        for title in self.item_columns.title:
            if title.column in names and table.is_sequence(title.column):
                raise DataError(
                    f"'{table.where}': '{title.column}' is a sequence and both a title, which is read as one text, and "
                    "categories or author, which are read word by word; name another column for one of them in "
                    "source.item_columns"
                )

    def _files(self) -> Iterator[Path]:
        for kind in get_args(TableKind):
            files = self._table_files(kind)
            yield from () if files is None else files.paths

    def _table_files(self, kind: TableKind) -> DataFiles | None:
        if kind == "prehistory":
            return None if self.prehistory is None else find_files(self.path, self.prehistory.file, "source.prehistory")
        stem = self.name if self.name is not None else self.path.resolve().name
        if kind == "interactions" and self.benchmark_filename:
            names = [f"{stem}.{part}.inter" for part in self.benchmark_filename]
            parts = [self._named(name) for name in names]
            for one, name in zip(parts, names, strict=True):
                if one is None:
                    raise missing_file(self.path / name, "source.benchmark_filename")
            return DataFiles(tuple(one for one in parts if one), self.path, str(self.path / f"{stem}.*.inter"))
        path = self._named(f"{stem}.{_SUFFIX[kind]}")
        if path is not None:
            return DataFiles((path,), self.path, str(path))
        if kind == "interactions":
            there = sorted(p.name for p in self.path.glob("*.inter")) if self.path.is_dir() else []
            raise DataError(
                f"'{self.path / f'{stem}.inter'}' does not exist (looked in '{self.path.resolve()}'); .inter files there: "
                f"{', '.join(there) or 'none'}; set source.path and source.name"
            )
        return None

    def _named(self, name: str) -> Path | None:
        """Return the file of this name, plain or packed; of the ending, upper and lower case do not matter.

        Raises:
            DataError: It is there twice, or packed in a way that is not read.
        """
        stem, suffix = name.rsplit(".", 1)
        if not self.path.is_dir():
            return None

        def is_it(bare: str) -> bool:
            start, dot, end = bare.rpartition(".")
            return bool(dot) and (start, end.lower()) == (stem, suffix)

        found = [path for path in files_in(self.path) if is_it(re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE))]
        if len(found) > 1:
            raise DataError(f"'{self.path}' holds '{found[0].name}' and '{found[1].name}'; delete one of them")
        if not found:
            refuse_packed(self.path, is_it)
        return found[0] if found else None

    def _expected(self, kind: TableKind) -> str:
        stem = self.name if self.name is not None else self.path.resolve().name
        return f"'{stem}.{_SUFFIX[kind]}' in '{self.path.name}'"


class AtomicTable(OpenedTable):
    """An atomic file: the columns of a text table under their bare names, sequences as lists.

    A column whose header is not ``name:type`` is refused when the recipe names it, and no other.

    Args:
        text: The file as text.
        whole: Sequences that stay one text, as they are written.
    """

    is_text = True

    def __init__(self, text: OpenedTable, whole: Collection[str] = ()) -> None:
        self._text = text
        self._written: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        for written in text.schema:
            name, _, kind = written.rpartition(":")
            name = name if kind in _TYPES and name else written
            if name in self._written:
                raise DataError(f"'{text.where}': '{self._written[name]}' and '{written}' name one column; rename one")
            self._written[name], self._kinds[name] = written, kind if name != written else ""
        if not any(self._kinds.values()):
            raise self._no_type(next(iter(self._kinds), ""))
        schema: dict[str, pl.DataType] = {name: pl.String() for name in self._kinds}
        self._lists = {name for name, kind in self._kinds.items() if kind.endswith("_seq") and name not in whole}
        schema |= {name: pl.List(pl.String()) for name in self._lists}
        super().__init__(text.where, text.files, schema)

    def _no_type(self, name: str) -> DataError:
        return DataError(
            f"'{self._text.where}': header '{name}' is not 'name:type' with a type of {', '.join(_TYPES)}; is it an atomic "
            "file?"
        )

    @property
    def notes(self) -> dict[str, object]:
        """See :attr:`OpenedTable.notes`."""
        return self._text.notes

    @property
    def plain(self) -> bool:
        """See :attr:`OpenedTable.plain`."""
        return self._text.plain

    def is_sequence(self, name: str) -> bool:
        """Return whether a column is there and declared a sequence."""
        return self._kinds.get(name, "").endswith("_seq")

    def batches(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """See :meth:`OpenedTable.batches`."""
        self.check_asked(columns)
        for name in columns:
            if not self._kinds[name]:
                raise self._no_type(name)
        written = [self._written[name] for name in columns]
        values = [self._values(name) for name in columns]
        for batch in self._text.batches(written, only):
            yield batch.select(*values, pl.exclude(written))

    def _values(self, name: str) -> pl.Expr:
        text = pl.col(self._written[name])
        return (text.str.split(" ") if name in self._lists else text).alias(name)

"""Columns made of others while a table is read: genres out of flags, the year out of a title.

Wraps an opened table; the rest of ``features`` sees the new columns as if they stood in the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from features.reading import FILE, RAW, REFUSED, ROW, OpenedTable


@dataclass(frozen=True)
class Derived:
    """A column made of others.

    Attributes:
        inputs: Columns of the table that it needs.
        expression: Makes it of them.
        dtype: Its type.
    """

    inputs: tuple[str, ...]
    expression: pl.Expr
    dtype: pl.DataType


class DerivedTable(OpenedTable):
    """An opened table with more columns.

    Args:
        table: The table as it is in the files.
        derived: New columns by name; one of the same name hides the table's own.
    """

    def __init__(self, table: OpenedTable, derived: Mapping[str, Derived]) -> None:
        self.is_text = table.is_text
        self._table = table
        self._derived = dict(derived)
        schema = dict(table.schema) | {name: column.dtype for name, column in derived.items()}
        super().__init__(table.where, table.files, schema)

    @property
    def notes(self) -> dict[str, object]:
        """See :attr:`OpenedTable.notes`."""
        return self._table.notes

    def batches(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """See :meth:`OpenedTable.batches`."""
        self.check_asked(columns)
        plain = [name for name in columns if name not in self._derived]
        inputs = [name for asked in columns if asked in self._derived for name in self._derived[asked].inputs]
        made = [
            self._derived[name].expression.alias(name) if name in self._derived else pl.col(name) for name in columns
        ]
        for batch in self._table.batches(list(dict.fromkeys([*plain, *inputs])), only):
            yield batch.select(*made, FILE, ROW, REFUSED, RAW)

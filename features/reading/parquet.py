"""Parquet tables: several files as one, columns found by name, types widened where nothing is lost.

Reads files batch by batch with PyArrow, which decodes row groups piece by piece and knows all types of the format; produces
batches in Polars types. Columns that are not asked for are not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from features.reading.errors import explain_file_errors
from features.reading.files import hive_keys, relative_name
from features.reading.opened import FILE, PLACE_TYPES, RAW, REFUSED, ROW, OpenedTable
from features.reading.parquet_types import Unreadable, common_type, readable_type
from recsys.contracts.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS: Final = 1 << 18
"""Rows of a batch: about 262,000."""

_EXACT_IN_FLOAT: Final = 1 << 53


def open_parquet(paths: Sequence[Path], root: Path, where: str | None = None) -> OpenedTable:
    """Open Parquet files as one table.

    Args:
        paths: In the order in which they are to be read.
        root: Folder that relative paths start from; ``key=value`` parts below it are columns of text.
        where: For messages; the first path for ``None``.

    Raises:
        DataError: A file is missing, damaged or without columns.
    """
    return ParquetTable(paths, root, where or str(paths[0]))


class ParquetTable(OpenedTable):
    """See :func:`open_parquet`."""

    is_text = False

    def __init__(self, paths: Sequence[Path], root: Path, where: str) -> None:
        self._paths = list(paths)
        self._types = [_file_types(path) for path in paths]
        files = tuple(relative_name(path, root) for path in paths)
        self._hive = [hive_keys(name) for name in files]
        self._conflicts: dict[str, str] = {}
        schema: dict[str, pl.DataType] = {}
        self._set_by: dict[str, int] = {}
        for place, types in enumerate(self._types):
            for name, dtype in types.items():
                self._join(schema, place, name, dtype)
        for keys in self._hive:
            for name in keys:
                schema.setdefault(name, pl.String())
        self.float32 = frozenset(name for types in self._types for name, dtype in types.items() if dtype == pl.Float32)
        super().__init__(where, files, schema)

    def _join(self, schema: dict[str, pl.DataType], place: int, name: str, dtype: pl.DataType | Unreadable) -> None:
        path = self._paths[place]
        if isinstance(dtype, Unreadable):
            schema.setdefault(name, dtype.dtype)
            self._conflicts.setdefault(
                name, f"'{path}': column '{name}' is {dtype.shown}, which cannot be read; {dtype.advice}"
            )
            return
        known = schema.get(name)
        if known is None or known == pl.Null:
            schema[name] = dtype
            self._set_by[name] = place
            return
        joined = None if name not in self._set_by else common_type(known, dtype)
        if joined is not None:
            schema[name] = joined
        elif name in self._set_by:
            before = self._paths[self._set_by[name]]
            self._conflicts.setdefault(
                name,
                f"column '{name}' is {known} in '{before}' and {dtype} in '{path}', and nothing holds both without "
                f"loss; write the column with one type in all files",
            )

    @property
    def notes(self) -> dict[str, object]:
        """See :attr:`OpenedTable.notes`."""
        return {"ignored_files": list(self.ignored)} if self.ignored else {}

    def batches(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """See :meth:`OpenedTable.batches`."""
        self.check_asked(columns)
        for name in columns:
            if name in self._conflicts:
                raise DataError(self._conflicts[name])
        for place in self.chosen(only):
            with explain_file_errors(self._paths[place]):
                yield from self._read(place, columns)

    def _read(self, place: int, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        import pyarrow.parquet as pq

        path, types = self._paths[place], self._types[place]
        present = [name for name in columns if name in types]
        with pq.ParquetFile(path) as file:
            row, total = 0, file.metadata.num_rows
            if not present:
                for start in range(0, total, BATCH_ROWS):
                    rows = min(BATCH_ROWS, total - start)
                    yield self._batch(place, columns, {}, rows, start)
                return
            for batch in file.iter_batches(BATCH_ROWS, columns=present):
                found = {name: self._column(place, name, batch.column(name), row) for name in present}
                yield self._batch(place, columns, found, batch.num_rows, row)
                row += batch.num_rows
        if row != total:
            raise DataError(f"'{path}': its footer counts {total} rows, and {row} were read; the file is damaged")

    def _batch(
        self, place: int, columns: Sequence[str], found: dict[str, pl.Series], rows: int, first: int
    ) -> pl.DataFrame:
        hive = self._hive[place]
        absent = {
            name: pl.repeat(hive.get(name), rows, dtype=self.schema[name], eager=True)
            for name in columns
            if name not in found
        }
        return pl.DataFrame(
            {
                **{name: found.get(name, absent.get(name)) for name in columns},
                FILE: pl.repeat(place, rows, dtype=pl.Int32(), eager=True),
                ROW: pl.int_range(first, first + rows, dtype=pl.Int64, eager=True),
                REFUSED: pl.repeat(None, rows, dtype=pl.String(), eager=True),
                RAW: pl.repeat(None, rows, dtype=pl.String(), eager=True),
            },
            schema={**{name: self.schema[name] for name in columns}, **PLACE_TYPES},
        )

    def _column(self, place: int, name: str, values: pa.Array, first: int) -> pl.Series:
        """Return a column of a batch in the type of the whole table."""
        return to_series(values, self.schema[name], f"'{self._paths[place]}'", name, first)


def to_series(values: pa.Array, target: pl.DataType, where: str, name: str, first: int) -> pl.Series:
    """Turn Arrow values into a Polars column of the type ``target``, which :func:`readable_type` or its union gave.

    Args:
        where, name, first: The file, the column and the row of the first value, for messages.

    Raises:
        DataError: A value does not fit: a UInt64 beyond 2^63 - 1, binary that is no UTF-8, a whole number beyond 2^53
            that would become a float.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_null(kind):
        return pl.repeat(None, len(values), dtype=target, eager=True)
    if pa.types.is_uint64(kind) and target != pl.UInt64:
        beyond = pc.greater(values, pa.scalar((1 << 63) - 1, pa.uint64()))
        _refuse_any(beyond, values, where, name, first, "lies beyond 2^63 - 1; write the column as text")
        values = values.cast(pa.int64())
    if pa.types.is_integer(kind) and target == pl.Float64:
        values = values.cast(pa.int64())
        beyond = pc.greater(pc.abs_checked(values), pa.scalar(_EXACT_IN_FLOAT, pa.int64()))
        _refuse_any(
            beyond, values, where, name, first, "does not fit into a float, which another file has in this column"
        )
    if pa.types.is_decimal(kind):
        values = values.cast(_arrow_of(target))
    if _is_binary(kind):
        values = _as_text(values, where, name, first)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pa.timestamp(kind.unit, "UTC"))
    series: Any = pl.from_arrow(values)
    return series.rename(name).cast(target)


def _arrow_of(target: pl.DataType) -> pa.DataType:
    import pyarrow as pa

    if target == pl.Int64:
        return pa.int64()
    return pa.float64() if target == pl.Float64 else pa.string()


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _as_text(values: pa.Array, where: str, name: str, first: int) -> pa.Array:
    import pyarrow as pa

    try:
        return values.cast(pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid:
        for row, value in enumerate(values.to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: column '{name}' is binary, and row {first + row} ({value[:20]!r}) is no UTF-8 text; write "
                    "the column as text"
                ) from error
        raise


def _refuse_any(bad: pa.Array, values: pa.Array, where: str, name: str, first: int, why: str) -> None:
    row = bad.index(True).as_py()
    if row >= 0:
        raise DataError(f"{where}: column '{name}', row {first + row}: {values[row].as_py()} {why}")


def _file_types(path: Path) -> dict[str, pl.DataType | Unreadable]:
    """Read the footer of a file: column -> type.

    Raises:
        DataError: The file is damaged, or has no columns.
    """
    import pyarrow.parquet as pq

    with explain_file_errors(path):
        if path.stat().st_size == 0:
            raise DataError(f"'{path}' is empty (0 bytes), so it is no Parquet file: write it again, or leave it out")
        schema = pq.read_schema(path)
    if not len(schema):
        raise DataError(f"'{path}' has no columns: write it again, or leave it out")
    return {field.name: readable_type(field.type) for field in schema}

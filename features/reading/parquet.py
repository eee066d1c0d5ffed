"""Parquet tables: several files as one, columns found by name, types widened where nothing is lost.

Reads files batch by batch with PyArrow, which decodes row groups piece by piece and knows all types of the format; produces
batches in Polars types. Columns that are not asked for are not looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import polars as pl

from features.reading.errors import explain_file_errors
from features.reading.files import hive_keys, source_names
from features.reading.opened import FILE, PLACE_TYPES, RAW, REFUSED, ROW, OpenedTable
from features.reading.parquet_types import Unreadable, common_type, is_uuid, readable_type
from recsys.contracts.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS: Final = 1 << 18
"""Rows of a batch: about 262,000."""

_AT_INDEX: Final = re.compile(r"^Invalid UTF8 sequence at string index (\d+)$")
_EXACT_IN_FLOAT: Final = 1 << 53
_MAGIC: Final = b"PAR1"


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
        files = source_names(paths, root)
        self._hive = [hive_keys(name) for name in files]
        self._conflicts: dict[str, str] = {}
        self.unreadable = self._conflicts
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
        found: dict[str, object] = {
            "ignored_files": list(self.ignored),
            "rows_without_column": self.rows_without,
        }
        return {name: value for name, value in found.items() if value}

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
        present = [name for name in columns if name in self._types[place]]
        row = 0
        for rows, arrays in _pieces(self._paths[place], present):
            where = f"'{self._paths[place]}'"
            found = {name: to_series(values, self.schema[name], where, name, row) for name, values in arrays.items()}
            yield self._batch(place, columns, found, rows, row)
            row += rows
        self.lacks(place, set(columns) - set(present) - self._hive[place].keys(), row)

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


def _pieces(path: Path, present: Sequence[str]) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Yield the columns of a file piece by piece: number of rows, column -> values.

    Raises:
        DataError: The footer counts other rows than there are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
    except pa.ArrowNotImplementedError:  # a column of more than 64 bits, perhaps not even an asked one
        yield from _pieces_by_polars(path, present)
        return
    with opened as file:
        total = file.metadata.num_rows
        if not present:
            yield from ((min(BATCH_ROWS, total - start), {}) for start in range(0, total, BATCH_ROWS))
            return
        read = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=list(present)):
            yield batch.num_rows, {name: batch.column(name) for name in present}
            read += batch.num_rows
    if read != total:
        raise DataError(f"'{path}': its footer counts {total} rows, and {read} were read; the file is damaged")


def _pieces_by_polars(path: Path, present: Sequence[str]) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    frame = pl.scan_parquet(path, glob=False)
    if not present:
        total = frame.select(pl.len()).collect().item()
        yield from ((min(BATCH_ROWS, total - start), {}) for start in range(0, total, BATCH_ROWS))
        return
    narrow = frame.select(present).with_columns(pl.col(pl.Int128, pl.UInt128).cast(pl.String))
    for batch in narrow.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        yield len(batch), {name: batch[name].to_arrow() for name in present}


def to_series(values: pa.Array, target: pl.DataType, where: str, name: str, first: int) -> pl.Series:
    """Turn Arrow values into a Polars column of the type ``target``, which :func:`readable_type` or its union gave.

    Args:
        where, name, first: The file, the column and the row of the first value, for messages.

    Raises:
        DataError: A value does not fit: a UInt64 beyond 2^63 - 1, binary that is no UTF-8, a whole number beyond 2^53
            that would become a float.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if isinstance(values.type, pa.BaseExtensionType):
        values = _without_extension(values)
    kind = values.type
    if pa.types.is_null(kind):
        return pl.repeat(None, len(values), dtype=target, eager=True)
    if pa.types.is_uint64(kind) and target != pl.UInt64:
        import pyarrow.compute as pc  # a tenth of a second, for few files

        beyond = pc.greater(values, pa.scalar((1 << 63) - 1, pa.uint64()))
        _refuse_any(beyond, values, where, name, first, "lies beyond 2^63 - 1; write the column as text")
        values = values.cast(pa.int64())
    if pa.types.is_integer(kind) and target == pl.Float64:
        import pyarrow.compute as pc

        values = values.cast(pa.int64())
        beyond = pc.greater(pc.abs_checked(values), pa.scalar(_EXACT_IN_FLOAT, pa.int64()))
        _refuse_any(
            beyond, values, where, name, first, "does not fit into a float, which another file has in this column"
        )
    if pa.types.is_decimal(kind):
        # to the nearest float by way of the digits: Arrow's own cast makes 0.30000000000000004 of a third of the values
        values = values.cast(pa.int64() if target == pl.Int64 else pa.string())
    if target == pl.Float64 and (pa.types.is_float32(kind) or pa.types.is_float16(kind)):
        # beside 64 bits in another file .3 is .3, and not the .30000001192092896 that 32 bits hold
        return pl.Series(name, _Handed(values.cast(pa.float32()))).cast(pl.String).cast(target)
    if _is_binary(kind):
        values = _as_text(values, where, name, first)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or target == pl.String:
        _check_utf8(values, where, name, first)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pa.timestamp(kind.unit, "UTC"))
    # a day so far off that the finer unit of another file cannot hold it is not known, and does not stop the run
    return pl.Series(name, _Handed(values)).cast(target, strict=not target.is_temporal())


@dataclass(frozen=True)
class _Handed:
    """Arrow values for the C interface alone: Polars' own way imports pyarrow.compute, a tenth of a second."""

    values: pa.Array

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        capsules: tuple[object, object] = self.values.__arrow_c_array__(requested_schema)
        return capsules


def _without_extension(values: pa.Array) -> pa.Array:
    import pyarrow as pa

    if not is_uuid(values.type):
        return values.storage
    written = (None if value is None else str(UUID(bytes=value)) for value in values.storage.to_pylist())
    return pa.array(written, pa.large_string())


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


def _check_utf8(values: pa.Array, where: str, name: str, first: int) -> None:
    """Refuse texts that are none: some writers put bytes of Latin-1 into a column that is called text.

    Raises:
        DataError: Names the first such row.
    """
    import pyarrow as pa

    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        row = f"row {first + int(found.group(1))}" if (found := _AT_INDEX.match(str(error))) else f"behind row {first}"
        raise DataError(
            f"{where}: column '{name}' is called text, and {row} is no UTF-8; write the column again as UTF-8 text"
        ) from error


def _refuse_any(bad: pa.Array, values: pa.Array, where: str, name: str, first: int, why: str) -> None:
    row = bad.index(True).as_py()
    if row >= 0:
        raise DataError(f"{where}: column '{name}', row {first + row}: {values[row].as_py()} {why}")


def _file_types(path: Path) -> dict[str, pl.DataType | Unreadable]:
    """Read the footer of a file: column -> type.

    Raises:
        DataError: The file is no Parquet file, damaged, or has no columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with explain_file_errors(path):
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
        if not head:
            raise DataError(f"'{path}' is empty (0 bytes), so it is no Parquet file: write it again, or leave it out")
        if head != _MAGIC[: len(head)]:
            raise DataError(
                f"'{path}' is no Parquet file: it begins with {head!r}; give it the ending of what it is, such as .csv"
            )
        try:
            types = [(field.name, readable_type(field.type)) for field in pq.read_schema(path)]
        except pa.ArrowNotImplementedError:
            types = [(name, _type_in_polars(dtype)) for name, dtype in pl.read_parquet_schema(path).items()]
    if not types:
        raise DataError(f"'{path}' has no columns: write it again, or leave it out")
    counts = Counter(name for name, _ in types)
    twice = Unreadable("there more than once", "give each column a name of its own")
    return {name: twice if counts[name] > 1 else dtype for name, dtype in types}


def _type_in_polars(dtype: pl.DataType) -> pl.DataType | Unreadable:
    """Return the type a column is read as when Polars reads it; integers of 128 bits become text, as long decimals do."""
    if dtype in (pl.Int128, pl.UInt128):
        return pl.String()
    return readable_type(pl.Series([], dtype=dtype).to_arrow().type)

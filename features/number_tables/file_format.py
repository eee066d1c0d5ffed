"""The parts of a Parquet file that are not values: heads of pages, and the list of all parts at the end.

Source: ``parquet.thrift`` of the Parquet format, written in Thrift's compact protocol; numbers of fields are those of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from features.number_tables.encodings import varint, zigzag

MAGIC: Final = b"PAR1"
BOOLEAN, INT32, INT64, FLOAT = 0, 1, 2, 4
PLAIN, RLE, DELTA = 0, 3, 5
UINT_8, INT_8 = 11, 15
"""What a column of 32 bits stands for where it is less."""

_REQUIRED, _OPTIONAL, _REPEATED = 0, 1, 2
_OF_LISTS = 3
_LIST_PATH: Final = ("list", "element")
"""What the format calls the list inside a column of lists, and its items."""

_CREATED_BY: Final = "recsys"
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_LAST_OF_KIND: Final = 4

Field = tuple[int, int, Any]
"""Number of a field, its type, its value; a list is the type of what is in it, and those values."""


@dataclass(frozen=True)
class ColumnFormat:
    """How one column is stored.

    Attributes:
        name: Of the column.
        physical: What a value is on the disk.
        converted: What it stands for; ``None``: itself.
        nullable: Whether values may be missing.
        encoding: ``PLAIN`` or ``DELTA``.
        in_lists: Whether a row holds a list of values, at least one; the rest is about those values.
    """

    name: str
    physical: int
    converted: int | None
    nullable: bool
    encoding: int
    in_lists: bool = False


@dataclass(frozen=True)
class Chunk:
    """Where the values of a column of one row group are.

    Attributes:
        offset: First byte in the file.
        size: Bytes, with the head of the page.
        values: How many there are, missing ones too.
    """

    offset: int
    size: int
    values: int


def page_head(column: ColumnFormat, values: int, size: int) -> bytes:
    """Return the head of a page, which holds all values of a column of one row group.

    Args:
        column: The column.
        values: How many there are, missing ones too.
        size: Bytes that follow.
    """
    data: list[Field] = [(1, _I32, values), (2, _I32, column.encoding), (3, _I32, RLE), (4, _I32, RLE)]
    return _struct([(1, _I32, 0), (2, _I32, size), (3, _I32, size), (5, _STRUCT, data)])


def footer(columns: Sequence[ColumnFormat], groups: Sequence[tuple[int, Sequence[Chunk]]]) -> bytes:
    """Return the end of a file.

    Args:
        columns: All columns.
        groups: Rows of each row group, and where its columns are.
    """
    schema = [[(4, _BINARY, "schema"), (5, _I32, len(columns))]]
    schema += [element for column in columns for element in _described(column)]
    listed = [_row_group(columns, rows, chunks) for rows, chunks in groups]
    rows = sum(rows for rows, _ in groups)
    written = _struct(
        [
            (1, _I32, 2),
            (2, _LIST, (_STRUCT, schema)),
            (3, _I64, rows),
            (4, _LIST, (_STRUCT, listed)),
            (6, _BINARY, _CREATED_BY),
        ]
    )
    return written + len(written).to_bytes(4, "little") + MAGIC


def _described(column: ColumnFormat) -> list[list[Field]]:
    """Return what the schema says of a column: itself, or a column of lists, the list in it, and the items of that."""
    list_name, name = _LIST_PATH if column.in_lists else ("", column.name)
    fields: list[Field] = [
        (1, _I32, column.physical),
        (3, _I32, _OPTIONAL if column.nullable else _REQUIRED),
        (4, _BINARY, name),
    ]
    values = fields if column.converted is None else [*fields, (6, _I32, column.converted)]
    if not column.in_lists:
        return [values]
    outer: list[Field] = [(3, _I32, _REQUIRED), (4, _BINARY, column.name), (5, _I32, 1), (6, _I32, _OF_LISTS)]
    return [outer, [(3, _I32, _REPEATED), (4, _BINARY, list_name), (5, _I32, 1)], values]


def _row_group(columns: Sequence[ColumnFormat], rows: int, chunks: Sequence[Chunk]) -> list[Field]:
    found = []
    for column, chunk in zip(columns, chunks, strict=True):
        facts: list[Field] = [
            (5, _I64, chunk.values),
            (6, _I64, chunk.size),
            (7, _I64, chunk.size),
            (9, _I64, chunk.offset),
        ]
        written = _kind(column) + _fields(facts, after=_LAST_OF_KIND) + b"\0"
        found.append([(2, _I64, chunk.offset), (3, _STRUCT, written)])
    return [(1, _LIST, (_STRUCT, found)), (2, _I64, sum(chunk.size for chunk in chunks)), (3, _I64, rows)]


@cache
def _kind(column: ColumnFormat) -> bytes:
    """What the list of all parts says of a column in every row group alike."""
    return _fields(
        [
            (1, _I32, column.physical),
            (2, _LIST, (_I32, [column.encoding, RLE])),
            (3, _LIST, (_BINARY, [column.name, *(_LIST_PATH if column.in_lists else ())])),
            (_LAST_OF_KIND, _I32, 0),  # not compressed
        ]
    )


def _value(kind: int, value: Any) -> bytes:
    if kind in (_I32, _I64):
        return varint(zigzag(value))
    if kind == _BINARY:
        text = value.encode()
        return varint(len(text)) + text
    if kind == _LIST:
        inner, values = value
        head = bytes([len(values) << 4 | inner]) if len(values) < 15 else bytes([0xF0 | inner]) + varint(len(values))
        return head + b"".join(_value(inner, each) for each in values)
    return value if isinstance(value, bytes) else _struct(value)


def _struct(fields: Sequence[Field]) -> bytes:
    return _fields(fields) + b"\0"


def _fields(fields: Sequence[Field], after: int = 0) -> bytes:
    """Return fields that follow the one with the number ``after``; a struct may be given as the bytes that it is."""
    found, last = bytearray(), after
    for number, kind, value in fields:  # each says by how much its number is above the last one's; all are below 16
        found.append((number - last) << 4 | kind)
        found += _value(kind, value)
        last = number
    return bytes(found)

"""JSON lines, one object per line, plain or gzip: the declared keys as columns, every other key left alone.

Reads files; produces batches. A line that is no object, or whose value is of another type than declared, is a refused row
with the line; nothing is guessed. The *loose* form, lines of Python dictionaries as in the Amazon files of 2014, is read as
well where it is declared.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import polars as pl

from features.reading import FILE, RAW, REFUSED, ROW, OpenedTable
from features.reading.errors import explain_file_errors
from features.reading.files import source_names
from recsys.contracts.errors import DataError

BATCH_ROWS: Final = 50_000
SHOWN_CHARACTERS: Final = 2_000
"""How much of a refused line is kept."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
_DEEP: Final = 900
_LOOSE: Final = re.compile(r"\s*\{\s*u?'")
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class JsonField:
    """A key that becomes a column.

    Attributes:
        dtype: Type of the column.
        read: Makes the column's value of the JSON value, which is never ``None``; raises ``ValueError`` with the reason,
            which follows the name of the key.
    """

    dtype: pl.DataType
    read: Callable[[Any], Any]


class JsonLinesTable(OpenedTable):
    """Files of JSON lines as one table; see the module.

    Args:
        paths: In the order in which they are to be read.
        root: Folder that relative paths start from.
        fields: Keys that become columns; a key that a line does not have is null there.
        where: For messages.
        loose: Whether lines may be Python dictionaries.
    """

    is_text = False

    def __init__(
        self, paths: Sequence[Path], root: Path, fields: Mapping[str, JsonField], where: str, *, loose: bool = False
    ) -> None:
        self._paths = tuple(paths)
        self._fields = dict(fields)
        self._loose = loose
        self._refused: dict[int, int] = {}
        self._blank: dict[int, int] = {}
        names = source_names(paths, root)
        super().__init__(where, names, {name: field.dtype for name, field in fields.items()})

    @property
    def notes(self) -> dict[str, object]:
        """See :attr:`OpenedTable.notes`."""
        found = {"malformed_lines": sum(self._refused.values()), "blank_lines": sum(self._blank.values())}
        return {name: count for name, count in found.items() if count}

    def batches(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """See :meth:`OpenedTable.batches`."""
        self.check_asked(columns)
        for place in self.chosen(only):
            with explain_file_errors(self._paths[place]):
                yield from self._read(place, columns)

    def _read(self, place: int, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        self._refused[place] = self._blank[place] = 0
        numbers: list[int] = []
        lines: list[bytes] = []
        with open_bytes(self._paths[place]) as file:
            for number, line in enumerate(file):
                if number == 0:
                    line = line.removeprefix(_BOM)
                    self._check_first(place, line)
                text = line.strip()
                if not text:
                    self._blank[place] += 1
                    continue
                numbers.append(number)
                lines.append(text)
                if len(lines) == BATCH_ROWS:
                    yield self._batch(place, columns, numbers, lines)
                    numbers, lines = [], []
        if lines:
            yield self._batch(place, columns, numbers, lines)

    def _batch(self, place: int, columns: Sequence[str], numbers: list[int], lines: list[bytes]) -> pl.DataFrame:
        """Read lines: by Arrow where it finds nothing to object to in any of them, else one by one."""
        values = parse_all(lines, {name: self._fields[name] for name in columns})
        reasons: list[str | None] = [None] * len(lines)
        if values is None:
            values, reasons = self._one_by_one(columns, lines)
            self._refused[place] += sum(reason is not None for reason in reasons)
        shown = [
            None if reason is None else line[:SHOWN_CHARACTERS].decode("utf-8", "replace")
            for line, reason in zip(lines, reasons, strict=True)
        ]
        return values.with_columns(
            pl.repeat(place, len(lines), dtype=pl.Int32, eager=True).alias(FILE),
            pl.Series(ROW, numbers, dtype=pl.Int64),
            pl.Series(REFUSED, reasons, dtype=pl.String),
            pl.Series(RAW, shown, dtype=pl.String),
        )

    def _one_by_one(self, columns: Sequence[str], lines: list[bytes]) -> tuple[pl.DataFrame, list[str | None]]:
        wanted = [(name, self._fields[name].read) for name in columns]
        nothing = tuple(None for _ in wanted)
        rows: list[tuple[Any, ...]] = []
        reasons: list[str | None] = []
        for line in lines:
            try:
                record = parse_object(line, loose=self._loose)
                rows.append(tuple(_value(record, name, read) for name, read in wanted))
                reasons.append(None)
            except ValueError as error:
                rows.append(nothing)
                reasons.append(str(error))
        parts = list(zip(*rows, strict=True))
        data = {name: pl.Series(parts[at], dtype=self.schema[name]) for at, name in enumerate(columns)}
        return pl.DataFrame(data), reasons

    def _check_first(self, place: int, line: bytes) -> None:
        if line.lstrip().startswith(b"["):
            name = self._paths[place].name
            raise DataError(
                f"'{self._paths[place]}' is one JSON list, expected one object per line; convert it with "
                f"`jq -c '.[]' '{name}' > lines.json`"
            )


def parse_all(lines: list[bytes], fields: Mapping[str, JsonField]) -> pl.DataFrame | None:
    """Read lines that are all well formed, six times as fast as one by one; ``None`` where anything is not.

    Arrow reads a stream of objects. Each line is one of them if all begin with ``{`` and end with ``}`` and their number is
    that of the objects: what goes on with an object begun on a line before does not begin with ``{``.

    Args:
        lines: Stripped, none blank.
        fields: Columns; ``None`` is returned unless all are plain texts, numbers or booleans.
    """
    import pyarrow as pa
    import pyarrow.json as pj

    if not fields or any(field not in _ARROW for field in fields.values()):
        return None
    block = b"\n".join(lines)
    if not all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        return None
    if any(len(line) > _DEEP and line.count(b"[") + line.count(b"{") > _DEEP for line in lines):
        return None  # Python gives up on a depth of about a thousand, Arrow on none
    try:
        block.decode("utf-8")  # Arrow takes any bytes inside a string
        table = pj.read_json(
            pa.BufferReader(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=pa.schema([(name, getattr(pa, _ARROW[field])()) for name, field in fields.items()]),
                unexpected_field_behavior="ignore",
            ),
        )
    except (ValueError, pa.ArrowException):
        return None
    frame = pl.DataFrame(pl.from_arrow(table)).select(list(fields))
    numbers = [name for name, field in fields.items() if field is NUMBER]
    if len(frame) != len(lines) or any(frame[name].is_infinite().any() for name in numbers):
        return None
    return frame.with_columns(pl.col(numbers).fill_nan(None))


def parse_object(line: bytes, *, loose: bool = False) -> dict[str, Any]:
    """Read one line.

    Args:
        line: UTF-8, without its end.
        loose: Whether a Python dictionary of literals is one, too; nothing in it is run.

    Raises:
        ValueError: The reason why it is no object.

    Example:
        >>> parse_object(b"{'asin': '7', 'price': None}", loose=True)
        {'asin': '7', 'price': None}
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the line is not valid UTF-8") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if not loose:
            raise ValueError(
                f"the line is {'a Python dictionary and no' if _LOOSE.match(text) else 'not valid'} JSON"
            ) from None
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError("the line is neither JSON nor a Python dictionary") from None
    if not isinstance(found, dict):
        raise ValueError("the line is no object of keys and values")
    return found


def _value(record: dict[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
    value = record.get(name)
    if value is None:
        return None
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"'{name}' {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {_kind(value)}, expected text")
    if not value.isascii() and _HALF_PAIR.search(value):
        raise ValueError("holds half of a surrogate pair, which is no character")
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is {_kind(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise ValueError("is a number too large to be one")
    return None if math.isnan(number) else number


def _integer(value: Any) -> int | None:
    number = _number(value)
    if number is None:
        return None
    if not isinstance(value, int) and not number.is_integer():
        raise ValueError("is a number with a fraction, expected a whole number")
    if not -(2**63) <= value < 2**63:
        raise ValueError("is a number beyond 64 bits")
    return int(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"is {_kind(value)}, expected true or false")
    return value


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "something else")


TEXT: Final = JsonField(pl.String(), _text)
NUMBER: Final = JsonField(pl.Float64(), _number)
INTEGER: Final = JsonField(pl.Int64(), _integer)
BOOLEAN: Final = JsonField(pl.Boolean(), _boolean)

_ARROW: Final = {TEXT: "string", NUMBER: "float64", INTEGER: "int64", BOOLEAN: "bool_"}
"""Fields that Arrow reads as they are read here, and what it calls their types."""


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, plain or gzip: its first bytes decide, not its name."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")

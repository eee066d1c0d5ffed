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
from features.reading.files import relative_name
from recsys.contracts.errors import DataError

BATCH_ROWS: Final = 50_000
SHOWN_CHARACTERS: Final = 2_000
"""How much of a refused line is kept."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
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
        names = tuple(relative_name(path, root) for path in paths)
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
        wanted = [(name, self._fields[name].read) for name in columns]
        self._refused[place] = self._blank[place] = 0
        rows: list[tuple[Any, ...]] = []
        with open_bytes(self._paths[place]) as file:
            for number, line in enumerate(file):
                if number == 0:
                    line = line.removeprefix(_BOM)
                    self._check_first(place, line)
                text = line.strip()
                if not text:
                    self._blank[place] += 1
                    continue
                try:
                    record = parse_object(text, loose=self._loose)
                    values = [_value(record, name, read) for name, read in wanted]
                except ValueError as error:
                    self._refused[place] += 1
                    shown = text[:SHOWN_CHARACTERS].decode("utf-8", "replace")
                    rows.append((*(None for _ in wanted), number, str(error), shown))
                else:
                    rows.append((*values, number, None, None))
                if len(rows) == BATCH_ROWS:
                    yield self._frame(place, columns, rows)
                    rows = []
        if rows:
            yield self._frame(place, columns, rows)

    def _check_first(self, place: int, line: bytes) -> None:
        if line.lstrip().startswith(b"["):
            name = self._paths[place].name
            raise DataError(
                f"'{self._paths[place]}' is one JSON list, expected one object per line; convert it with "
                f"`jq -c '.[]' '{name}' > lines.json`"
            )

    def _frame(self, place: int, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> pl.DataFrame:
        """Turn rows into columns; types are those of the fields, which made the values."""
        parts = list(zip(*rows, strict=True))
        data = {name: pl.Series(parts[at], dtype=self.schema[name]) for at, name in enumerate(columns)}
        data |= {
            FILE: pl.repeat(place, len(rows), dtype=pl.Int32, eager=True),
            ROW: pl.Series(parts[-3], dtype=pl.Int64),
            REFUSED: pl.Series(parts[-2], dtype=pl.String),
            RAW: pl.Series(parts[-1], dtype=pl.String),
        }
        return pl.DataFrame(data)


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
            raise ValueError("the line is not valid JSON") from None
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


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, plain or gzip: its first bytes decide, not its name."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")

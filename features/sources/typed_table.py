"""Declared types of columns: what ``source.types`` says of columns that hold no ids, applied before the columns are read.

Reads an opened table; produces the same batches with the declared columns in their type. A value that is none of the type
refuses its row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, Literal

import polars as pl

from features.reading import RAW, REFUSED, OpenedTable
from features.sources.columns.rows import as_json
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import null_markers
from recsys.contracts.plain_text import strip_expression

ColumnType = Literal["integer", "text", "number", "boolean", "datetime"]

_TYPES: Final[Mapping[str, pl.DataType]] = {
    "integer": pl.Int64(),
    "text": pl.String(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
}
_WORDS: Final = (pl.Categorical, pl.Enum)
_TRUE: Final = ("true", "t", "yes", "y", "on", "1", "1.0")
_FALSE: Final = ("false", "f", "no", "n", "off", "0", "0.0")


class TypedTable(OpenedTable):
    """A table with some columns in declared types.

    Args:
        table: As opened.
        types: Column -> type; columns that the table lacks are passed over. A ``datetime`` stays as it is: dates are read by
            what ``timestamp_unit`` and ``timestamp_format`` say.
        markers: Texts that stand for nothing.
    """

    def __init__(self, table: OpenedTable, types: Mapping[str, ColumnType], markers: tuple[str, ...]) -> None:
        self._table = table
        self._types = {name: kind for name, kind in types.items() if kind in _TYPES and name in table.schema}
        self._markers = markers
        self.is_text = table.is_text
        self.unreadable = table.unreadable
        self.float32 = frozenset(table.float32 - set(self._types))
        for name in self._types:
            dtype = table.schema[name]
            if not (dtype.is_numeric() or dtype in (*_WORDS, pl.String, pl.Boolean, pl.Null)):
                raise DataError(
                    f"{table.where}: source.types declares '{name}' as {self._types[name]}, but it is {dtype}; take it out "
                    "of source.types, or convert it in the file"
                )
        super().__init__(
            table.where, table.files, {**table.schema, **{name: _TYPES[kind] for name, kind in self._types.items()}}
        )

    @property
    def notes(self) -> dict[str, object]:
        """See :attr:`OpenedTable.notes`."""
        return self._table.notes

    @property
    def plain(self) -> bool:
        """See :attr:`OpenedTable.plain`."""
        return self._table.plain

    def batches(self, columns: Sequence[str], only: Collection[str] | None = None) -> Iterator[pl.DataFrame]:
        """See :meth:`OpenedTable.batches`."""
        declared = {name: self._types[name] for name in columns if name in self._types}
        for batch in self._table.batches(columns, only):
            yield self._typed(batch, columns, declared) if declared else batch

    def _typed(self, batch: pl.DataFrame, columns: Sequence[str], declared: Mapping[str, str]) -> pl.DataFrame:
        reason = batch[REFUSED]
        found = []
        for name, kind in declared.items():
            # what stands for nothing in a text is left to its part: 'none' is the answer that a signal may ask for
            known = self._known(batch[name], () if kind == "text" else self._markers)
            values = _READERS[kind](known)
            wrong = (values.is_null() & known.is_not_null()) & reason.is_null()
            if wrong.any():
                words = f"{name} is not {'an' if kind == 'integer' else 'a'} {kind}"
                reason = reason.to_frame("r").select(pl.when(wrong).then(pl.lit(words)).otherwise("r")).to_series()
            found.append(values.alias(name))
        new = reason.is_not_null() & batch[REFUSED].is_null()
        raw = batch[RAW]
        if new.any():  # what stood there, before it became null
            raw = raw.scatter(new.arg_true(), as_json(batch.filter(new).select(columns)))
        return batch.with_columns(*found, reason.alias(REFUSED), raw.alias(RAW))

    @staticmethod
    def _known(values: pl.Series, markers: tuple[str, ...]) -> pl.Series:
        if values.dtype in _WORDS:
            values = values.cast(pl.String)
        if values.dtype != pl.String:
            return values
        bare = values.to_frame("v").select(strip_expression(pl.col("v"))).to_series()
        return bare.to_frame("v").select(pl.when(~null_markers(bare, markers)).then("v")).to_series()


def _integers(values: pl.Series) -> pl.Series:
    if values.dtype.is_integer() or values.dtype == pl.Boolean:
        return values.cast(pl.Int64, strict=False)
    numbers = values.cast(pl.Float64, strict=False)
    whole = numbers.to_frame("n").select(pl.when(pl.col("n") == pl.col("n").round()).then("n")).to_series()
    exact = values.cast(pl.Int64, strict=False) if values.dtype == pl.String else whole.cast(pl.Int64, strict=False)
    return exact.to_frame("e").select(pl.col("e").fill_null(whole.cast(pl.Int64, strict=False))).to_series()


def _numbers(values: pl.Series) -> pl.Series:
    return values.cast(pl.Float64, strict=False)


def _booleans(values: pl.Series) -> pl.Series:
    """Read ``true``, ``t``, ``yes``, ``y``, ``on``, 1 and their opposites, in any case."""
    words = values.cast(pl.String).str.to_lowercase()
    return (
        words.to_frame("w")
        .select(pl.when(pl.col("w").is_in(_TRUE)).then(True).when(pl.col("w").is_in(_FALSE)).then(False))
        .to_series()
    )


def _texts(values: pl.Series) -> pl.Series:
    return values.cast(pl.String)


_READERS: Final[Mapping[str, Callable[[pl.Series], pl.Series]]] = {
    "integer": _integers,
    "number": _numbers,
    "boolean": _booleans,
    "text": _texts,
}

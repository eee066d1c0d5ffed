r"""Ids: whole numbers or text, kept as written.

In a text file every value is text, so an id is text too, unless ``source.types`` says ``integer``: '007' and '7' are
two users, and a summary line at the end changes no other row. In Parquet an id keeps its type; integers of any width
become Int64. Blanks around a text id are stripped, null markers (``NULL``, ``\N``, ``nan`` …) are "nobody", and both
are counted.
"""

from __future__ import annotations

from typing import Final, Literal

import polars as pl

from features.sources.columns.cells import ColumnReader, Parsed, Place, Refusal, no_rows, phrase
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import NULL_MARKERS, NUMPY_MISSING

IdType = Literal["integer", "text"]

ODD_SHARE: Final = 0.95
"""From this share of integers on (in rows or in distinct values), text ids that are none are worth a warning."""

_MAX_ODD: Final = 1000
_GLANCE: Final = 1000  # below so many texts a first look spares nothing
_EXACT_FLOAT: Final = 2**53
_EXACT_FLOAT32: Final = 2**24


class IdReader(ColumnReader):
    """Reads an id column.

    Args:
        column: Its name in the file.
        canonical: ``user_id``, ``item_id`` or ``session_id``.
        raw_type: Its type in the file.
        where: The table, for messages.
        declared: What ``source.types`` says.
        markers: Texts that stand for nothing.

    Raises:
        DataError: The type can be no id.
    """

    def __init__(
        self,
        column: str,
        canonical: str,
        raw_type: pl.DataType,
        where: str,
        *,
        declared: IdType | None = None,
        markers: tuple[str, ...] = NULL_MARKERS,
    ) -> None:
        super().__init__(column, canonical, id_type(column, raw_type, where, declared), where, markers)
        self._is_text = raw_type in (pl.String, pl.Categorical, pl.Enum, pl.Binary)
        self._float32 = raw_type == pl.Float32
        self._oddity = IntegerLike()

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        if not self._is_text:
            return self._read_numbers(raw)
        texts, damaged = self._texts(raw, plain=place.plain)
        if self.dtype == pl.String:
            self._oddity.see(texts, place)
            return self._parsed(texts, "UTF-8", damaged)
        values = texts.cast(pl.Int64, strict=False)
        return self._parsed(values, "an integer", texts.is_not_null() & ~canonical_integers(texts, values))

    def _texts(self, raw: pl.Series, *, plain: bool) -> tuple[pl.Series, pl.Series]:
        if raw.dtype != pl.Binary:
            return self.known(raw.cast(pl.String), plain=plain), no_rows(len(raw))
        decoded = [_decoded(value) for value in raw]  # Polars has no conversion that survives a damaged value
        texts = pl.Series(raw.name, decoded, dtype=pl.String)
        return self.known(texts), texts.is_null() & raw.is_not_null()

    def _read_numbers(self, raw: pl.Series) -> Parsed:
        if raw.dtype.is_float():
            known = raw.cast(pl.Float64).fill_nan(None)
            self._check_float32(known)
            wrong = (known.is_infinite() | (known != known.round()) | (known.abs() >= _EXACT_FLOAT)).fill_null(False)
            values = known.to_frame("v").select(pl.when(~wrong).then("v")).to_series().cast(pl.Int64, strict=False)
            return self._parsed(values, "an integer", wrong)
        if self.dtype == pl.String:
            return self._parsed(raw.cast(pl.String), "text", no_rows(len(raw)))
        values = raw.cast(pl.Int64, strict=False)
        beyond = values.is_null() & raw.is_not_null()
        if beyond.any():
            raise DataError(
                f"{self.where}: column '{self.column}' (for {self.canonical}) holds {raw.filter(beyond)[0]}, which is "
                f"beyond 64-bit integers with a sign (at most {2**63 - 1}); declare types: {{{self.column}: text}}"
            )
        return self._parsed(values, "an integer", no_rows(len(raw)))

    def _check_float32(self, known: pl.Series) -> None:
        """Refuse 32-bit floats so large that the ids of several were one before the file was written."""
        large = known.filter(known.is_finite() & (known.abs() >= _EXACT_FLOAT32)) if self._float32 else known[:0]
        if len(large):
            raise DataError(
                f"{self.where}: column '{self.column}' (for {self.canonical}) has 32-bit floats and holds {large[0]:.0f}: "
                "beyond 2^24 they skip whole numbers, so that several ids are one; write the column as integers or text"
            )

    def _parsed(self, values: pl.Series, kind: str, wrong: pl.Series) -> Parsed:
        refusals = []
        if wrong.any():
            refusals.append(Refusal(self.not_(kind), wrong))
        if values.dtype == pl.Int64 and values.min() == NUMPY_MISSING:
            missing = (values == NUMPY_MISSING).fill_null(False)
            refusals.append(Refusal(f"{self.column} is {NUMPY_MISSING}, NumPy's missing number", missing))
            wrong = wrong | missing
        if refusals:
            values = values.to_frame("v").select(pl.when(~wrong).then("v")).to_series()
        return Parsed(values.alias(self.canonical), tuple(refusals))

    def warnings(self) -> list[str]:
        """Tell of text ids that nearly all are integers."""
        oddity = self._oddity.describe()
        return [f"{self.where}: {self.column} {oddity}"] if oddity else []


class IntegerLike:
    """Whether text ids are integers but for a few, such as the word "total" of a summary line.

    Follows the distinct values only as long as the column looks like integers.
    """

    def __init__(self) -> None:
        self._following = True
        self._rows = 0
        self._odd_rows = 0
        self._integers = pl.Series([], dtype=pl.Int64)
        self._odd: dict[str, str] = {}

    def see(self, texts: pl.Series, place: Place) -> None:
        """Look at the next batch."""
        if not self._following:
            return
        if len(texts) > _GLANCE and self._is_text(texts.head(len(texts) // 8), len(texts) - texts.null_count()):
            self._following = False
            self._integers, self._odd = self._integers.clear(), {}
            return
        values = texts.cast(pl.Int64, strict=False)
        good = canonical_integers(texts, values)
        odd = (~good & texts.is_not_null()).arg_true()
        self._rows += len(texts) - texts.null_count()
        self._odd_rows += len(odd)
        self._following = self._odd_rows <= max(_MAX_ODD, self._rows // 10)
        if not self._following:
            self._integers, self._odd = self._integers.clear(), {}
            return
        first = texts.gather(odd).to_frame("t").with_columns(place=odd).unique("t", maintain_order=True)
        for text, at in first.iter_rows():
            self._odd.setdefault(text, place.of(at))
        self._integers = pl.concat([self._integers, values.filter(good).unique()]).unique()

    def _is_text(self, texts: pl.Series, known: int) -> bool:
        """Whether the first texts of a batch of so many known ones show alone that the column is not integers."""
        odd = texts.is_not_null() & ~canonical_integers(texts, texts.cast(pl.Int64, strict=False))
        return self._odd_rows + int(odd.sum()) > max(_MAX_ODD, (self._rows + known) // 10)

    def describe(self) -> str | None:
        """Return the words for a warning, or ``None`` where there is nothing to tell."""
        if not self._following or not self._odd or not len(self._integers):
            return None
        distinct = len(self._integers) + len(self._odd)
        by_rows = (self._rows - self._odd_rows) / self._rows
        if max(by_rows, len(self._integers) / distinct) < ODD_SHARE:
            return None
        others = ", ".join(f"{phrase(text)} ({at})" for text, at in list(self._odd.items())[:3])
        more = f" and {len(self._odd) - 3} more" if len(self._odd) > 3 else ""
        return (
            f"reads as an integer in {self._rows - self._odd_rows} of {self._rows} rows and in {len(self._integers)} of "
            f"{distinct} distinct values; others: {others}{more}. Declare 'integer' in source.types to refuse these rows"
        )


def id_type(column: str, raw_type: pl.DataType, where: str, declared: IdType | None) -> pl.DataType:
    """Return Int64 or String: what the ids of a column become.

    Floats are refused unless declared ``integer``, because 7.0 and '7.0' would not be the user's '7'.

    Raises:
        DataError: The column's type can be no id, or not the declared one; names both and the way out.
    """
    texts = raw_type in (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Null)
    whole = raw_type.is_integer() or (isinstance(raw_type, pl.Decimal) and raw_type.scale == 0)
    if texts:
        return pl.Int64() if declared == "integer" else pl.String()
    if whole:
        return pl.String() if declared == "text" else pl.Int64()
    if raw_type.is_float() and declared == "integer":
        return pl.Int64()
    way_out = "convert it in the file"
    if raw_type.is_float():
        way_out = f"declare types: {{{column}: integer}} if all of them are whole numbers"
    raise DataError(f"{where}: id column '{column}' is {raw_type}, expected integers or text; {way_out}")


def canonical_integers(texts: pl.Series, values: pl.Series) -> pl.Series:
    """Return where a text is an integer in its only spelling: no sign +, no leading zero, no -0; false where null.

    Args:
        texts: As written.
        values: The same as Int64, null where that cannot be.

    Example:
        >>> texts = pl.Series(["7", "007", "+7", "-7", "0", "-0", "1e3", None])
        >>> canonical_integers(texts, texts.cast(pl.Int64, strict=False)).to_list()
        [True, False, False, True, True, False, False, False]
    """
    spelled = texts.str.starts_with("0") & (texts.str.len_bytes() > 1)
    return values.is_not_null() & ~spelled.fill_null(False) & ~texts.str.contains(r"^(\+|-0)").fill_null(False)


def id_expression(name: str, dtype: pl.DataType, canonical: str, where: str) -> pl.Expr:
    """Return the ids of a table that is read at once, in the type that :func:`id_type` gives."""
    return pl.col(name).cast(id_type(name, dtype, where, None)).alias(canonical)


def same_id_types(left: pl.Schema, left_name: str, right: pl.Schema, right_name: str) -> None:
    """Refuse two tables whose ids are of different types.

    Raises:
        DataError: Names both files and the way out.
    """
    for column in ("user_id", "item_id"):
        if column in left and column in right and left[column] != right[column]:
            names = {pl.Int64(): "integer", pl.String(): "text"}
            raise DataError(
                f"'{column}' is {names.get(left[column], left[column])} in '{left_name}' and "
                f"{names.get(right[column], right[column])} in '{right_name}'; the ids would never meet: declare "
                f"source.types for the column, such as {column}: integer, or convert one of the files"
            )


def _decoded(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None

"""Reads tables of hit rates and NDCG that somebody printed, whatever they called the columns.

Reads CSV, Parquet, or all Markdown tables of a text file; produces ``{hr@k: value, ndcg@k: value}`` per row with the
precision that was printed, for :func:`~pipelines.reproduction.arithmetic.impossible_cells`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from recsys.contracts.errors import DataError

MOST_PLACES: Final = 10**9
"""A cut-off beyond this is a misprint itself."""
_METRIC: Final = re.compile(
    r"(hr|hit|hits|hitrate|hit[ _]rate|h|recall|rec|r|ndcg|n)(?:[ _]*@[ _]*|[ _]at[ _])(\d+)", re.IGNORECASE
)
_NUMBER: Final = re.compile(
    r"(?P<sign>(?<![\w)\]}])[-\u2212\u2013])?(?P<digits>\d*[.,]?\d+)(?:[eE](?P<power>[-+]?\d+))?(?P<percent>\s*\\?%)?"
)
_RULE: Final = re.compile(r"\|?[-:| ]*-[-:| ]*\|?")
_BAR: Final = re.compile(r"(?<!\\)\|")
_HOW: Final = "columns such as HR@10 and NDCG@10, and a row per method"


@dataclass(frozen=True)
class PrintedRow:
    """One line of a table.

    Attributes:
        name: What the other cells say, joined.
        values: ``hr@k`` and ``ndcg@k``; recall is hit rate where a row asks for one item.
        half_units: By how much each may have been rounded: half a unit of the last digit printed.
    """

    name: str
    values: dict[str, float]
    half_units: dict[str, float] = field(default_factory=dict)


def read_printed(path: Path, *, percent: bool = False) -> list[PrintedRow]:
    """Read all tables of a file that have hit rates and NDCG.

    Args:
        path: ``.csv``, ``.tsv``, ``.parquet``, or text that holds Markdown tables.
        percent: Figures are per cent; one with a sign of per cent always is.

    Raises:
        DataError: It cannot be read, no table has such columns, or a figure is no share.
    """
    tables = list(_tables(path))
    asked = [table for table in tables if {"hr", "ndcg"} <= {kind for kind, _ in table.metrics(path).values()}]
    if not asked:
        seen = "; ".join(", ".join(table.header) for table in tables)
        raise DataError(f"'{path}' has the columns {seen}; expected {_HOW}, hit rates and NDCG both")
    return [row for table in asked for row in table.printed(path, percent)]


@dataclass(frozen=True)
class _Cells:
    header: list[str]
    rows: list[list[Any]]

    def metrics(self, path: Path) -> dict[int, tuple[str, int]]:
        """Place of each column of figures -> ``hr`` or ``ndcg``, and its cut-off."""
        found = {place: metric for place, name in enumerate(self.header) if (metric := _metric(name, path)) is not None}
        if len(set(found.values())) < len(found):
            columns = ", ".join(self.header)
            raise DataError(f"'{path}' has two columns of one metric: {columns}; give one data set per table")
        return found

    def printed(self, path: Path, percent: bool) -> Iterator[PrintedRow]:
        metrics = self.metrics(path)
        for number, row in enumerate(self.rows, start=1):
            named = (cell for place, cell in enumerate(row) if place not in metrics and cell is not None)
            name = " ".join(text for cell in named if (text := str(cell).strip(" *"))) or f"row {number}"
            values, half_units = {}, {}
            for place, (kind, cut) in metrics.items():
                where = f"'{path}', {name}, {self.header[place]}"
                figure = _figure(row[place], percent, where) if place < len(row) else None
                if figure is not None:
                    values[f"{kind}@{cut}"], half_units[f"{kind}@{cut}"] = figure
            yield PrintedRow(name, values, half_units)


def _metric(name: str, path: Path) -> tuple[str, int] | None:
    found = _METRIC.fullmatch(name.strip(" *`"))
    if found is None:
        return None
    cut = int(found[2])
    if not 1 <= cut <= MOST_PLACES:
        raise DataError(f"'{path}' has a column {name}: a list has at least one place, and at most {MOST_PLACES:,}")
    return "ndcg" if found[1].lower() in ("ndcg", "n") else "hr", cut


def _figure(cell: Any, percent: bool, where: str) -> tuple[float, float] | None:
    """The first number in a cell, and half a unit of its last digit; ``None`` where there is none."""
    found = _NUMBER.search(str(cell)) if cell is not None else None
    if found is None:
        return None
    digits = found["digits"]
    if "," in digits:
        raise DataError(f"{where} is {cell}: write decimals with a point")
    exponent = int(found["power"] or 0)
    scale = 100.0 if percent or found["percent"] else 1.0
    value = float(f"{digits}e{exponent}") / scale
    if found["sign"] or value > 1.0:
        way = "no share" if found["sign"] or scale > 1 else "no share; give --percent where figures are per cent"
        raise DataError(f"{where} is {cell}: {way}")
    return value, 0.5 * 10.0 ** (exponent - len(digits.partition(".")[2])) / scale


def _tables(path: Path) -> Iterator[_Cells]:
    import polars as pl

    try:
        if path.suffix.lower() == ".parquet":
            frame = pl.read_parquet(path, glob=False)
            yield _Cells(frame.columns, [list(row) for row in frame.iter_rows()])
        elif path.suffix.lower() in (".csv", ".tsv"):
            yield _separated(path)
        else:
            yield from _markdown(path)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"'{path}' cannot be read: {error}; expected CSV, Parquet or a Markdown table with {_HOW}"
        ) from error


def _separated(path: Path) -> _Cells:
    """A file with commas, semicolons or tabs, whichever its first line has most of; two columns may have one name."""
    import polars as pl

    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
    separator = max(",;\t", key=first.count)
    frame = pl.read_csv(path, separator=separator, has_header=False, infer_schema=False, glob=False)
    rows = [list(row) for row in frame.iter_rows()]
    return _Cells([str(cell or "").strip() for cell in rows[0]], rows[1:])


def _markdown(path: Path) -> Iterator[_Cells]:
    """The tables of a text: header, rule, rows."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    none = True
    for place, line in enumerate(lines[1:], start=1):
        if _RULE.fullmatch(line) and "|" in line and "|" in lines[place - 1]:
            rows = []
            for row in lines[place + 1 :]:
                if "|" not in row:
                    break
                rows.append(_split(row))
            none = False
            yield _Cells(_split(lines[place - 1]), rows)
    if none:
        raise DataError(f"'{path}' holds no Markdown table; expected one with {_HOW}, or a .csv or .parquet file")


def _split(line: str) -> list[str]:
    r"""The cells of a line; a bar behind a backslash is a character.

    Example:
        >>> _split(r"| a \| b | .1 |")
        ['a | b', '.1']
    """
    inner = line.removeprefix("|")
    inner = inner[:-1] if _BAR.search(inner, max(len(inner) - 1, 0)) else inner
    return [cell.strip().replace(r"\|", "|") for cell in _BAR.split(inner)]

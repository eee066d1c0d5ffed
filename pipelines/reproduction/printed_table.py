"""Reads a table of hit rates and NDCG that somebody printed, whatever they called the columns.

Reads CSV, Parquet, or the first Markdown table of a text file; produces ``{hr@k: value, ndcg@k: value}`` per row, for
:func:`~pipelines.reproduction.arithmetic.impossible_cells`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from recsys.contracts.errors import DataError

_METRIC: Final = re.compile(r"(hr|hit|hits|hitrate|h|recall|rec|r|ndcg|n)[ _]?@[ _]?(\d+)", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\d*\.?\d+(?:[eE][-+]?\d+)?")
_HOW: Final = "columns such as HR@10 and NDCG@10, and a row per method"


@dataclass(frozen=True)
class PrintedRow:
    """One line of a table.

    Attributes:
        name: What the other cells say, joined.
        values: ``hr@k`` and ``ndcg@k``; recall is hit rate where a row asks for one item.
    """

    name: str
    values: dict[str, float]


def read_printed(path: Path, *, percent: bool = False) -> list[PrintedRow]:
    """Read a table.

    Args:
        path: ``.csv``, ``.tsv``, ``.parquet``, or text that holds a Markdown table.
        percent: Figures are per cent.

    Raises:
        DataError: It cannot be read, has no such columns, or a figure is no share.
    """
    header, rows = _cells(path)
    metrics = {place: found for place, name in enumerate(header) if (found := _metric(name)) is not None}
    kinds = {name.partition("@")[0] for name in metrics.values()}
    if kinds != {"hr", "ndcg"}:
        raise DataError(f"'{path}' has the columns {', '.join(header)}; expected {_HOW}, hit rates and NDCG both")
    if len(set(metrics.values())) < len(metrics):
        raise DataError(f"'{path}' has two columns of one metric: {', '.join(header)}; give one data set per table")
    printed = []
    for number, row in enumerate(rows, start=1):
        name = " ".join(
            str(cell).strip(" *") for place, cell in enumerate(row) if place not in metrics and cell is not None
        )
        name = name or f"row {number}"
        figures = {
            metrics[place]: _share(cell, percent, f"'{path}', {name}, {header[place]}")
            for place, cell in enumerate(row)
            if place in metrics
        }
        printed.append(PrintedRow(name, {metric: value for metric, value in figures.items() if value is not None}))
    return printed


def _metric(name: str) -> str | None:
    found = _METRIC.fullmatch(name.strip(" *"))
    if found is None:
        return None
    kind = "ndcg" if found[1].lower() in ("ndcg", "n") else "hr"
    return f"{kind}@{int(found[2])}"


def _share(cell: Any, percent: bool, where: str) -> float | None:
    """The number in a cell; ``None`` where there is none."""
    found = _NUMBER.search(str(cell)) if cell is not None else None
    if found is None:
        return None
    value = float(found[0]) / (100.0 if percent else 1.0)
    if value > 1.0:
        way = "no share even so" if percent else "no share; give --percent where figures are per cent"
        raise DataError(f"{where} is {cell}: {way}")
    return value


def _cells(path: Path) -> tuple[list[str], list[list[Any]]]:
    import polars as pl

    try:
        if path.suffix.lower() == ".parquet":
            frame = pl.read_parquet(path, glob=False)
        elif path.suffix.lower() in (".csv", ".tsv"):
            frame = pl.read_csv(
                path, separator="\t" if path.suffix.lower() == ".tsv" else ",", infer_schema=False, glob=False
            )
        else:
            return _markdown(path)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"'{path}' cannot be read: {error}; expected CSV, Parquet or a Markdown table with {_HOW}"
        ) from error
    return frame.columns, [list(row) for row in frame.iter_rows()]


def _markdown(path: Path) -> tuple[list[str], list[list[Any]]]:
    """The first table of a text: header, rule, rows."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    for place, line in enumerate(lines[1:], start=1):
        if re.fullmatch(r"\|?[-:| ]*-[-:| ]*\|?", line) and "|" in lines[place - 1]:
            header = _split(lines[place - 1])
            rows = []
            for row in lines[place + 1 :]:
                if "|" not in row:
                    break
                rows.append(_split(row))
            return header, rows
    raise DataError(f"'{path}' holds no Markdown table; expected one with {_HOW}, or a .csv or .parquet file")


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]

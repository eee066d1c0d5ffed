"""Item metadata: title, text, categories and author out of whatever columns a catalogue has.

Reads an item table; produces ``item_id, title, text, categories, author_id`` and the list of optional columns that were
absent, for the data report.
"""

from __future__ import annotations

import polars as pl

from features.reading.errors import closest
from features.sources.columns.ids import id_expression
from features.sources.columns_map import check_columns
from features.sources.metadata_entries import MetadataColumn, entries
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError


class ItemColumns(FrozenConfig):
    """Names in the user's item table.

    Attributes:
        item_id: The ids; this column has to be there.
        title: The first of these columns that is there and not empty.
        text: All of these that are there, joined: what a text encoder reads beside the title.
        categories: The first that is there and not empty; from general to specific.
        author: The first that is there and not empty: author, brand, channel.
    """

    item_id: str = Columns.ITEM_ID
    title: tuple[MetadataColumn, ...] = ()
    text: tuple[MetadataColumn, ...] = ()
    categories: tuple[MetadataColumn, ...] = ()
    author: tuple[MetadataColumn, ...] = ()


def columns_to_read(columns: ItemColumns, present: list[str], where: str) -> list[str]:
    """Return the columns of an item table that are declared and there; no other can stop a run.

    Raises:
        DataError: The id column, or a metadata column that is not ``optional``, does not exist.
    """
    check_columns({Columns.ITEM_ID: columns.item_id}, present, where)
    wanted = [columns.item_id]
    for declared in metadata_columns(columns):
        if declared.column in present:
            wanted.append(declared.column)
        elif not declared.optional:
            raise DataError(
                f"{where}: missing metadata column '{declared.column}': {closest(declared.column, present)}; "
                "or declare it 'optional: true'"
            )
    return list(dict.fromkeys(wanted))


def canonical_items(
    table: pl.DataFrame, columns: ItemColumns, where: str, item_ids: pl.Series | None = None
) -> tuple[pl.DataFrame, list[str]]:
    """Turn a raw item table into canonical columns.

    Args:
        table: At least the columns that :func:`columns_to_read` names.
        columns: Which is which.
        where: The file, for messages.
        item_ids: The ids of the rows, where they were read already.

    Returns:
        The table (rows in the order of the source, repeats kept) and the optional columns that were absent.

    Raises:
        DataError: The id column, or a metadata column that is not ``optional``, does not exist.
    """
    present = columns_to_read(columns, table.columns, where)
    absent = {declared.column for declared in metadata_columns(columns)} - set(present)
    if item_ids is None:
        raw_type = table.schema[columns.item_id]
        item_ids = table.select(id_expression(columns.item_id, raw_type, Columns.ITEM_ID, where)).to_series()
    ids = item_ids.alias(Columns.ITEM_ID).to_frame()
    texts = [lists.list.join(", ") for lists in _entry_lists(table, columns.text, where)]
    text = pl.select(pl.concat_str(texts, separator=". ", ignore_nulls=True)).to_series() if texts else None
    categories = next(iter(_entry_lists(table, columns.categories, where, names=True)), None)
    title = next(iter(_entry_lists(table, columns.title, where)), None)
    author = next(iter(_entry_lists(table, columns.author, where, names=True)), None)
    rows = len(table)
    empty = pl.Series([None] * rows, dtype=pl.String)
    result = ids.with_columns(
        (title.list.first() if title is not None else empty).alias(Columns.TITLE),
        _null_if_blank(text if text is not None else empty).alias(Columns.TEXT),
        (categories if categories is not None else pl.Series([None] * rows, dtype=pl.List(pl.String))).alias(
            Columns.CATEGORIES
        ),
        (author.list.first() if author is not None else empty).alias(Columns.AUTHOR_ID),
    )
    return result, sorted(absent)


def metadata_columns(columns: ItemColumns) -> tuple[MetadataColumn, ...]:
    """Return all columns of an item table that are declared, the id aside."""
    return (*columns.title, *columns.text, *columns.categories, *columns.author)


def _entry_lists(
    table: pl.DataFrame, declared: tuple[MetadataColumn, ...], where: str, *, names: bool = False
) -> list[pl.Series]:
    """Lists of text entries of each declared column that is there and holds anything; an empty list becomes null."""
    found = []
    for column in declared:
        if column.column in table.columns:
            lists = entries(table[column.column], column, where, names=names)
            if lists.null_count() < len(lists):
                found.append(lists)
    return found


def _null_if_blank(texts: pl.Series) -> pl.Series:
    frame = texts.to_frame("t")
    return frame.select(pl.when(pl.col("t").str.len_chars() > 0).then(pl.col("t"))).to_series()

"""The item table: one row per item_index, with metadata where the source has it.

Reads the event log's item ids and the source's items; produces ``items.parquet``. An item without metadata keeps its
place with ``has_metadata`` false; nothing is dropped silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns


class ItemsConfig(FrozenConfig):
    """Which items the item table holds.

    Attributes:
        category: Which entry of ``categories`` gives category_index; paths usually go from general to specific.
        keep_items_without_events: Keep items of the source that no event mentions, as cold items with ``train_count`` 0.
    """

    category: Literal["first", "last"] = "last"
    keep_items_without_events: bool = False


@dataclass(frozen=True)
class ItemTable:
    """Items, numbered.

    Attributes:
        table: ``items.parquet`` without ``train_count``.
        event_item_index: ``[items with events]`` the item_index of each item of the event log.
        num_authors: Authors, counting 0 for "not known".
        num_categories: Categories, counting 0 for "not known".
        facts: Counts for the data report.
    """

    table: pl.DataFrame
    event_item_index: npt.NDArray[np.int32]
    num_authors: int
    num_categories: int
    facts: dict[str, int]


def build_item_table(event_item_ids: pl.Series, items: pl.DataFrame | None, config: ItemsConfig) -> ItemTable:
    """Join metadata to the items of the event log.

    Args:
        event_item_ids: Distinct ids with events, ascending.
        items: The source's item table in canonical columns, or ``None``.
        config: The category to number, and whether items without events stay.
    """
    known = items if items is not None else _no_items(event_item_ids.dtype)
    without_id = known[Columns.ITEM_ID].null_count()
    distinct, conflicting = one_row_per_id(known, Columns.ITEM_ID)
    ids = event_item_ids.alias(Columns.ITEM_ID)
    if config.keep_items_without_events:
        ids = pl.concat([ids, distinct[Columns.ITEM_ID]]).unique().sort()
    table = ids.to_frame().join(distinct, on=Columns.ITEM_ID, how="left", maintain_order="left")
    category = (
        pl.col(Columns.CATEGORIES).list.last() if config.category == "last" else pl.col(Columns.CATEGORIES).list.first()
    )
    category_index, num_categories = frequency_index(table.select(category).to_series())
    author_index, num_authors = frequency_index(table[Columns.AUTHOR_ID])
    metadata = (Columns.TITLE, Columns.TEXT, Columns.CATEGORIES, Columns.AUTHOR_ID)
    table = table.select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias(Columns.ITEM_INDEX),
        Columns.ITEM_ID,
        Columns.TITLE,
        Columns.TEXT,
        Columns.CATEGORIES,
        pl.Series(Columns.AUTHOR_INDEX, author_index),
        pl.Series(Columns.CATEGORY_INDEX, category_index),
        pl.any_horizontal(pl.col(name).is_not_null() for name in metadata).alias(Columns.HAS_METADATA),
        Columns.AUTHOR_ID,
    )
    if len(table) == len(event_item_ids):  # the same ids, in the same order
        index = np.arange(len(table), dtype=np.int32)
    else:
        index = table[Columns.ITEM_ID].search_sorted(event_item_ids).to_numpy().astype(np.int32)
    facts = {
        "items": len(table),
        "items_without_events": len(table) - len(event_item_ids),
        "items_without_metadata": int((~table[Columns.HAS_METADATA]).sum()),
        "catalogue_rows_without_events_left_out": len(distinct)
        - int(distinct[Columns.ITEM_ID].is_in(ids.implode()).sum()),
        "catalogue_rows_repeated": len(known) - without_id - len(distinct),
        "catalogue_rows_without_id": without_id,
        "catalogue_ids_that_conflict": conflicting,
    }
    return ItemTable(table, index, num_authors, num_categories, facts)


def one_row_per_id(rows: pl.DataFrame, id_column: str) -> tuple[pl.DataFrame, int]:
    """Put the rows of each id together: of every column the first value that is known.

    Returns:
        One row per id in the order of their first rows, those without an id left out; and how many ids have rows of
        different known values.

    Example:
        >>> rows = pl.DataFrame({"item_id": [1, 1, 2, 1], "title": [None, "Lamp", "Desk", "Light"]})
        >>> distinct, conflicting = one_row_per_id(rows, "item_id")
        >>> distinct.rows(), conflicting
        ([(1, 'Lamp'), (2, 'Desk')], 1)
    """
    known = rows.filter(pl.col(id_column).is_not_null())
    distinct = known.unique(id_column, keep="first", maintain_order=True)
    if len(distinct) == len(known):
        return distinct, 0
    repeated = known.filter(pl.col(id_column).is_duplicated())
    first = repeated.group_by(id_column, maintain_order=True).agg(pl.exclude(id_column).drop_nulls().first())
    others = pl.any_horizontal(pl.exclude(id_column).drop_nulls().n_unique() > 1)
    conflicting = repeated.group_by(id_column).agg(others.alias("conflict"))["conflict"].sum()
    return distinct.update(first, on=id_column, how="left"), int(conflicting)


def frequency_index(values: pl.Series) -> tuple[npt.NDArray[np.int32], int]:
    """Number values from 1 by falling frequency (ties by name), 0 for null; so frequent values have small numbers.

    Returns:
        ``[rows]`` numbers, and how many there are including the 0.

    Example:
        >>> index, count = frequency_index(pl.Series(["b", "a", None, "b"]))
        >>> index.tolist(), count
        ([1, 2, 0, 1], 3)
    """
    name = "value"
    column = values.cast(pl.String).alias(name)
    ranked = (
        column.drop_nulls()
        .to_frame()
        .group_by(name)
        .len()
        .sort(["len", name], descending=[True, False])
        .select(name, pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("index"))
    )
    joined = column.to_frame().join(ranked, on=name, how="left", maintain_order="left")
    return joined["index"].fill_null(0).to_numpy().astype(np.int32), len(ranked) + 1


def _no_items(id_type: pl.DataType) -> pl.DataFrame:
    schema = {
        Columns.ITEM_ID: id_type,
        Columns.TITLE: pl.String(),
        Columns.TEXT: pl.String(),
        Columns.CATEGORIES: pl.List(pl.String),
        Columns.AUTHOR_ID: pl.String(),
    }
    return pl.DataFrame(schema=schema)

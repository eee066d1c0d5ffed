"""Which row of an earlier policy's tables belongs to which row of a new one's: by id, never by row number.

Users, items, authors and categories are numbered anew with every prepared data set. Reads the tables of two data sets;
produces one array per feature, ``[rows of the new table]`` with the row of the old one, or -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset

RowMap = npt.NDArray[np.int64]
NEW: Final = -1
"""In a map: the row is new."""


def row_maps(new: Dataset, old: Dataset, features: Collection[str]) -> dict[str, RowMap]:
    """Match the rows of the tables of these features.

    Row 0, "padding or not known", is the same row everywhere. Buckets of time and of watched share mean the same in every
    data set; packed signals do where the signals are the same in the same order, and are new otherwise.

    Args:
        new: Tonight's data set.
        old: The one that the earlier policy was trained on.
        features: Whose tables the new policy has.
    """
    maps = {}
    sizes, before = new.spec.table_rows(features), old.spec.table_rows(features)
    for name, rows in sizes.items():
        if name == "item":
            maps[name] = _after_padding(_matched(new.items[Columns.ITEM_ID], old.items[Columns.ITEM_ID]))
        elif name == "user":
            maps[name] = _after_padding(_matched(new.users[Columns.USER_ID], old.users[Columns.USER_ID]))
        elif name in ("author", "category"):
            maps[name] = _after_padding(_matched(_names(new.items, name, rows), _names(old.items, name, before[name])))
        else:
            same = name != "behaviour" or new.spec.signals == old.spec.signals
            found = np.arange(rows, dtype=np.int64)
            maps[name] = np.where((found < before[name]) & (same | (found == 0)), found, NEW)
    return maps


def _matched(new: pl.Series, old: pl.Series) -> RowMap:
    """Row of each id of ``new`` in ``old``; ids of another type are other ids, and an unknown one is new."""
    if new.dtype != old.dtype:
        return np.full(len(new), NEW, np.int64)
    known = pl.DataFrame({"id": old, "row": np.arange(len(old), dtype=np.int64)}).filter(pl.col("id").is_not_null())
    rows = new.to_frame("id").join(known, on="id", how="left", maintain_order="left")["row"]
    return rows.fill_null(NEW).to_numpy()


def _after_padding(rows: RowMap) -> RowMap:
    return np.concatenate([np.zeros(1, np.int64), np.where(rows == NEW, NEW, rows + 1)])


def _names(items: pl.DataFrame, feature: str, rows: int) -> pl.Series:
    """``[rows - 1]`` what each number from 1 on stands for; null where the table does not say so without a doubt.

    The number of an item's category is that of the first or the last entry of its ``categories``, as the recipe has it; of
    the two that one is taken whose entries are told apart by the numbers.
    """
    index = Columns.AUTHOR_INDEX if feature == "author" else Columns.CATEGORY_INDEX
    entries = (
        [pl.col(Columns.AUTHOR_ID).cast(pl.String)]
        if feature == "author"
        else [pl.col(Columns.CATEGORIES).list.last(), pl.col(Columns.CATEGORIES).list.first()]
    )
    numbered = items.filter(pl.col(index) > 0)
    for entry in entries:
        found = numbered.group_by(pl.col(index).alias("number")).agg(
            entry.first().alias("name"), entry.n_unique().alias("names")
        )
        if (found["names"] == 1).all() and found["name"].n_unique() == len(found):
            every = pl.DataFrame({"number": np.arange(1, rows, dtype=np.int32)})
            return every.join(found.cast({"number": pl.Int32}), on="number", how="left", maintain_order="left")["name"]
    return pl.Series("name", [None] * (rows - 1), dtype=pl.String)

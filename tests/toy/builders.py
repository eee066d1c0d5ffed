"""The one place where tests build a prepared data set by hand: sizes, history arrays, the item table, the folder.

A test gives what it is about; what it leaves out is the least there can be, of the type that `prepare` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, DatasetSpec, HistoryArrays, write_dataset_spec, write_history_arrays

NOT_ON_DISK = Path("not-on-disk")


def dataset_spec(num_users: int, num_items: int, **sizes: Any) -> DatasetSpec:
    """Next item, no feedback signals and no times unless ``sizes`` says otherwise; every table has the one row of "none"."""
    least = {
        "num_authors": 1,
        "num_categories": 1,
        "num_behaviours": 1,
        "num_gap_buckets": 1,
        "num_watch_buckets": 1,
        "task": "session" if sizes.get("session_length", 1) > 1 else "next_item",
        "session_length": 1,
        "signals": (),
        "has_timestamps": False,
    }
    return DatasetSpec.model_validate({"num_users": num_users, "num_items": num_items, **least, **sizes})


def beauty_sized(**sizes: Any) -> DatasetSpec:
    """The sizes of Amazon Beauty 2014, on which published models are compared."""
    counts = {"num_authors": 445, "num_categories": 195, "num_behaviours": 2}
    buckets = {"num_gap_buckets": 32, "num_watch_buckets": 12}
    return dataset_spec(22_363, 12_101, **{**counts, **buckets, **sizes})


def history_arrays(item: npt.ArrayLike, lengths: npt.ArrayLike, *, held_out: int = 0, **arrays: Any) -> HistoryArrays:
    """Histories of ``lengths[u]`` events one after the other.

    Args:
        item: ``[E]`` item_index of every event.
        held_out: Events at the end of each history that are not train: 2 are one for validation and one for test.
        arrays: Any other array of :class:`HistoryArrays`; left out, nothing is known of an event, neither time nor feedback.
    """
    items = np.asarray(item, np.int32)
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
    blank = np.zeros(len(items), np.uint8)
    known = {
        "behaviour": blank,
        "gap": blank,
        "watch": blank,
        "timestamp": np.full(len(items), -1, np.int64),
        "train_end": offsets[1:] - held_out,
        "valid_end": offsets[1:] - held_out // 2,
    }
    return HistoryArrays(**{"item": items, "offsets": offsets, **known, **arrays})


def history_lists(lists: Sequence[Sequence[int]], *, held_out: int = 0, **arrays: Any) -> HistoryArrays:
    """The same from a list of items per user."""
    flat = [item for items in lists for item in items]
    return history_arrays(flat, [len(items) for items in lists], held_out=held_out, **arrays)


def item_table(num_items: int, **columns: Any) -> pl.DataFrame:
    """``items.parquet`` with all its columns; those left out say that nothing is known, ids are ``i0``, ``i1``, …"""
    known: dict[str, Any] = {
        Columns.ITEM_INDEX: np.arange(num_items, dtype=np.int32),
        Columns.ITEM_ID: [f"i{item}" for item in range(num_items)],
        Columns.TITLE: pl.repeat(None, num_items, dtype=pl.String, eager=True),
        Columns.TEXT: pl.repeat(None, num_items, dtype=pl.String, eager=True),
        Columns.CATEGORIES: pl.repeat(None, num_items, dtype=pl.List(pl.String), eager=True),
        Columns.AUTHOR_INDEX: np.zeros(num_items, np.int32),
        Columns.CATEGORY_INDEX: np.zeros(num_items, np.int32),
        Columns.HAS_METADATA: np.zeros(num_items, np.bool_),
        Columns.TRAIN_COUNT: np.zeros(num_items, np.int64),
    }
    given = {name: values for name, values in columns.items() if values is not None}
    authors = given.get(Columns.AUTHOR_INDEX, known[Columns.AUTHOR_INDEX])
    known[Columns.AUTHOR_ID] = [f"a{author}" if author else None for author in authors]
    types = {Columns.TITLE: pl.String, Columns.TEXT: pl.String, Columns.CATEGORIES: pl.List(pl.String)}
    types |= {
        Columns.AUTHOR_ID: pl.String,
        Columns.AUTHOR_INDEX: pl.Int32,
        Columns.CATEGORY_INDEX: pl.Int32,
        Columns.TRAIN_COUNT: pl.Int64,
    }
    return pl.DataFrame({**known, **given}, schema_overrides=types)


def train_counts(history: HistoryArrays, num_items: int) -> npt.NDArray[np.int64]:
    """Train events per item, what `prepare` writes as ``train_count``."""
    place = np.arange(len(history.item)) - np.repeat(history.offsets[:-1], np.diff(history.offsets))
    in_train = place < np.repeat(history.train_end - history.offsets[:-1], np.diff(history.offsets))
    return np.bincount(history.item[in_train], minlength=num_items)


def write_dataset(
    folder: Path,
    spec: DatasetSpec,
    history: HistoryArrays,
    items: pl.DataFrame,
    *,
    user_ids: Sequence[Any] | npt.NDArray[Any] | None = None,
    checked: bool = True,
    **tables: pl.DataFrame,
) -> Dataset:
    """Write the folder that `prepare` would have left, and open it.

    Args:
        items: From :func:`item_table`.
        user_ids: ``u0``, ``u1``, … where they are not given.
        checked: Open it as any reader does; without, the schemas and what they import are not needed.
        tables: ``events`` and ``targets``, where the test reads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_dataset_spec(folder, spec)
    write_history_arrays(folder / "history", history)
    items.write_parquet(folder / "items.parquet")
    users = {
        Columns.USER_INDEX: np.arange(spec.num_users, dtype=np.int32),
        Columns.USER_ID: [f"u{user}" for user in range(spec.num_users)] if user_ids is None else user_ids,
    }
    pl.DataFrame(users).write_parquet(folder / "users.parquet")
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    return Dataset.open(folder, checked=checked)


def in_memory(history: HistoryArrays, num_items: int) -> Dataset:
    """A data set of histories alone, for what reads no file."""
    return Dataset(NOT_ON_DISK, dataset_spec(len(history.train_end), num_items), history)

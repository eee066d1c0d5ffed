"""A prepared data set small enough to see: users walk round a ring of items, so the next item has an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recsys.contracts.columns import TEST, TRAIN, VALID, Columns
from recsys.contracts.dataset import Dataset, HistoryArrays
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.builders import dataset_spec, history_arrays, item_table, train_counts, write_dataset


def ring_prepared(
    folder: Path,
    *,
    users: int = 60,
    items: int = 12,
    events: int = 9,
    task: str = "next_item",
    session_length: int = 1,
    steps: Sequence[float] = (1.0,),
) -> Dataset:
    """User ``u`` starts at item ``u % items`` and steps by one; last event test, last but one valid.

    Args:
        steps: Chances of a step by 1, by 2, and so on.
    """
    counts = events - np.arange(users) // items % 3  # length says nothing about the place on the ring
    user = np.repeat(np.arange(users), counts)
    step = np.concatenate([np.arange(count) for count in counts])
    sizes = 1 + np.random.default_rng(0).choice(len(steps), len(user), p=list(steps))
    walked = np.cumsum(np.where(step == 0, 0, sizes))
    item = (user + walked - walked[step == 0][user]) % items
    history = history_arrays(
        item,
        counts,
        held_out=2,
        behaviour=(1 + item % 2).astype(np.uint8),
        gap=np.where(step == 0, 0, 3).astype(np.uint8),
        timestamp=(step * 1_000_000).astype(np.int64),
    )
    names = [f"item {i}" for i in range(items)]
    table = item_table(
        items,
        title=names,
        text=names,
        categories=[[f"c{i % 3}"] for i in range(items)],
        author_index=1 + np.arange(items) % 2,
        category_index=1 + np.arange(items) % 3,
        has_metadata=[True] * items,
        train_count=train_counts(history, items),
    )
    spec = dataset_spec(
        users,
        items,
        num_authors=3,
        num_categories=4,
        num_behaviours=3,
        num_gap_buckets=32,
        num_watch_buckets=12,
        task=task,
        session_length=session_length,
        signals=("click",),
        has_timestamps=True,
    )
    return write_dataset(folder, spec, history, table, targets=_targets(history, task, session_length))


def _targets(history: HistoryArrays, task: str, session_length: int) -> pl.DataFrame:
    rows = []
    for user in range(len(history.train_end)):
        start, end = int(history.offsets[user]), int(history.offsets[user + 1])
        if task == "session":
            cuts = range(start + 1, end - 2 - session_length + 1)
            rows += [(user, start, cut, history.item[cut : cut + session_length].tolist(), TRAIN) for cut in cuts]
        rows.append((user, start, end - 2, [int(history.item[end - 2])], VALID))
        rows.append((user, start, end - 1, [int(history.item[end - 1])], TEST))
    return pl.DataFrame(
        rows,
        schema={
            Columns.USER_INDEX: pl.Int32,
            Columns.HISTORY_START: pl.Int64,
            Columns.HISTORY_END: pl.Int64,
            Columns.TARGETS: pl.List(pl.Int32),
            Columns.SPLIT: pl.Int8,
        },
        orient="row",
    )


def toy_ids(codes: np.ndarray, level_sizes: tuple[int, ...], width: int = 4) -> SemanticIds:
    """Semantic IDs with given codes; the codebooks are arbitrary."""
    generator = np.random.default_rng(0)
    codebooks = tuple(generator.normal(size=(size, width)).astype(np.float32) for size in level_sizes)
    item_ids = pl.Series(Columns.ITEM_ID, [f"i{i}" for i in range(len(codes))])
    return SemanticIds(codes=codes.astype(np.int32), level_sizes=level_sizes, item_ids=item_ids, codebooks=codebooks)


def ring_ids(items: int = 12) -> SemanticIds:
    """Two levels: item ``i`` is ``(i // 4, i % 4)``."""
    codes = np.stack([np.arange(items) // 4, np.arange(items) % 4], axis=1)
    return toy_ids(codes, (-(-items // 4), 4))

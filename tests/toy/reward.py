"""Prepared data with feedback, small enough to see: users like items of their own colour and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.contracts.columns import TEST, TRAIN, VALID, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.event_features import behaviour_codes
from tests.toy.builders import dataset_spec, history_arrays, item_table, train_counts, write_dataset

SIGNALS = ("long_view", "like")
EVENT_SCHEMA = {
    Columns.USER_INDEX: pl.Int32,
    Columns.ITEM_INDEX: pl.Int32,
    Columns.TIMESTAMP: pl.Int64,
    Columns.SESSION_INDEX: pl.Int32,
    Columns.SPLIT: pl.Int8,
    Columns.WATCH_TIME_MS: pl.Float32,
    "long_view": pl.Boolean,
    "like": pl.Boolean,
}


def prepared_from(
    folder: Path,
    rows: list[dict[str, Any]],
    items: int,
    *,
    session_length: int = 2,
    drop: tuple[str, ...] = (),
    signals: tuple[str, ...] = SIGNALS,
) -> Dataset:
    """Write rows in the order of user and time; ``positive`` is a long view or a like."""
    events = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
    positive = events["long_view"].fill_null(False) | events["like"].fill_null(False)
    flags = np.stack([events[name].fill_null(False).to_numpy() for name in SIGNALS], axis=1)
    behaviour = behaviour_codes(flags)
    events = events.with_columns(
        positive.alias(Columns.POSITIVE),
        pl.Series(Columns.BEHAVIOUR, behaviour),
        pl.lit(None, pl.Float32).alias(Columns.WATCH_RATIO),
    )
    liked = np.flatnonzero(positive.to_numpy())
    user = events[Columns.USER_INDEX].to_numpy()
    users = int(user.max()) + 1
    split = events[Columns.SPLIT].to_numpy()
    counts = [np.bincount(user[liked][split[liked] == code], minlength=users) for code in (TRAIN, VALID, TEST)]
    lengths = np.sum(counts, axis=0)
    starts = np.cumsum(lengths) - lengths
    history = history_arrays(
        events[Columns.ITEM_INDEX].to_numpy()[liked],
        lengths,
        behaviour=behaviour[liked],
        timestamp=events[Columns.TIMESTAMP].fill_null(-1).to_numpy()[liked],
        train_end=starts + counts[0],
        valid_end=starts + counts[0] + counts[1],
    )
    spec = dataset_spec(
        users,
        items,
        num_behaviours=1 + 2 ** len(SIGNALS),
        num_gap_buckets=32,
        num_watch_buckets=12,
        task="session",
        session_length=session_length,
        signals=signals,
        has_timestamps=True,
    )
    table = item_table(items, train_count=train_counts(history, items))
    return write_dataset(folder, spec, history, table, events=events.drop(list(drop)))


def event(
    user: int,
    item: int,
    time: int | None,
    session: int,
    *,
    split: int = TRAIN,
    watch: float | None = 0.0,
    view: bool | None = False,
    like: bool | None = False,
) -> dict[str, Any]:
    """One row of the events table."""
    return {
        Columns.USER_INDEX: user,
        Columns.ITEM_INDEX: item,
        Columns.TIMESTAMP: time,
        Columns.SESSION_INDEX: session,
        Columns.SPLIT: split,
        Columns.WATCH_TIME_MS: watch,
        "long_view": view,
        "like": like,
    }


def colour_prepared(folder: Path, *, users: int = 120, items: int = 24, sessions: int = 8) -> Dataset:
    """Items have one of four colours (``item % 4``); a user watches those of their own colour (``user % 4``), half of which
    they like, and skip the rest. The last session is test, the one before validation."""
    generator = np.random.default_rng(0)
    rows = []
    number = 0
    for user in range(users):
        for session in range(sessions):
            split = TEST if session == sessions - 1 else VALID if session == sessions - 2 else TRAIN
            for place in range(2):
                own = generator.random() < 0.5
                colour = user % 4 if own else (user + 1 + generator.integers(3)) % 4
                item = int(4 * generator.integers(items // 4) + colour)
                like = bool(own and generator.random() < 0.5)
                watch = float(own * 10_000 + generator.integers(100))
                time = 1_000_000 * (100 * session + place)
                rows.append(event(user, item, time, number, split=split, watch=watch, view=own, like=like))
            number += 1
    return prepared_from(folder, rows, items)

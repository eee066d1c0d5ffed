"""Leaks into what is trained on: targets among train events, train events later than targets, the same session twice.

Reads arrays and rows; produces findings.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from features.audit.leakage.asked_rows import Arrays, AskedRows, BoolArray, Int64Array, hit_rate, most_frequent
from features.audit.leakage.findings import Finding, example_ids
from features.audit.sketch import mix
from recsys.contracts.columns import SPLIT_NAMES, TRAIN
from recsys.contracts.dataset import Dataset

K = 10
DAY = 86_400_000_000
SHORTEST_SESSION = 3
"""Shorter sessions are alike by chance."""

SPAN_PARTS = 20
"""The price of later training counts items over a day, or over this part of the whole time where that is shorter."""


def targets_in_training(arrays: Arrays, rows: AskedRows) -> list[Finding]:
    """Find right items whose very event (user, item, time) is a train event too."""
    start, end = arrays.window(SPLIT_NAMES.index(rows.split))
    last_train = arrays.latest_train_time
    users = np.flatnonzero((end > start) & (last_train >= 0))
    users = users[_earliest(arrays, start, end, users) <= last_train[users]]
    if not len(users):
        return []
    mine = np.zeros(len(start), bool)
    mine[users] = True
    place = np.arange(len(arrays.item))
    owner, timed = arrays.owner, arrays.ticks >= 0
    train = np.flatnonzero(mine[owner] & timed & arrays.in_train)
    asked = np.flatnonzero(mine[owner] & timed & (place >= start[owner]) & (place < end[owner]))
    events = [
        pl.DataFrame({"user": owner[part], "item": arrays.item[part], "time": arrays.timestamp[part]})
        for part in (asked, train)
    ]
    both = events[0].unique().join(events[1].unique(), on=["user", "item", "time"], how="semi")
    if not len(both):
        return []
    key = both["user"].to_numpy().astype(np.int64) * arrays.num_items + both["item"].to_numpy()
    right = np.isin(rows.user[rows.row].astype(np.int64) * arrays.num_items + rows.targets.items, key)
    touched = rows.any_of(right)
    return [
        Finding(
            code="targets_in_training",
            title="Targets are train events as well",
            severity="severe",
            **rows.about(touched, arrays.user_ids),
            words=f"{len(both):,} events of {rows.split} (same user, item and instant) are train events too; "
            f"{int(touched.sum()):,} of {len(rows):,} rows ask for one of them",
            advice="drop repeated rows (features.duplicates: merge), or mend the split column",
            hr_bound=float(touched.mean()),
            hr_at_10=float(touched.mean()),
        )
    ]


def _earliest(arrays: Arrays, start: Int64Array, end: Int64Array, users: Int64Array) -> Int64Array:
    time = arrays.timestamp[start[users]].copy()
    backwards = np.isin(users, arrays.backward_users)
    for place in np.flatnonzero(backwards).tolist():
        time[place] = arrays.timestamp[start[users[place]] : end[users[place]]].min()
    return time


def train_rows_too_long(dataset: Dataset, arrays: Arrays, rows: AskedRows) -> list[Finding]:
    """Find train rows (session task) whose targets lie in the window that is asked."""
    if dataset.spec.task != "session":
        return []
    train = dataset.targets(TRAIN)
    lengths = np.diff(train.item_offsets)
    too_far = np.flatnonzero(train.history_end >= arrays.train_end[train.user_index])
    if not len(too_far):
        return []
    row = np.repeat(np.arange(len(train)), lengths)
    inside = np.isin(row, too_far)
    key = train.user_index[row[inside]].astype(np.int64) * arrays.num_items + train.items[inside]
    right = np.isin(rows.user[rows.row].astype(np.int64) * arrays.num_items + rows.targets.items, key)
    touched = rows.any_of(right)
    if not touched.any():
        return []
    return [
        Finding(
            code="train_rows_in_window",
            title="Train rows ask for items of the evaluated window",
            severity="severe",
            **rows.about(touched, arrays.user_ids),
            words=f"{len(too_far):,} train rows begin at or after the end of their user's train events; they hold a right "
            f"item of {int(touched.sum()):,} rows",
            advice="prepare the data again; train rows end where the train events end",
            hr_bound=float(touched.mean()),
            hr_at_10=float(touched.mean()),
        )
    ]


def repeated_targets(arrays: Arrays, rows: AskedRows) -> list[Finding]:
    """Count rows whose right items the user had in training already: no leak, but what a repeat is worth."""
    trained = np.unique(arrays.train_owner.astype(np.int64) * arrays.num_items + arrays.train_item)
    asked = rows.user[rows.row].astype(np.int64) * arrays.num_items + rows.targets.items
    place = np.minimum(np.searchsorted(trained, asked), max(len(trained) - 1, 0))
    right = trained[place] == asked if len(trained) else np.zeros(len(asked), bool)
    touched = rows.any_of(right)
    if not touched.any():
        return []
    return [
        Finding(
            code="repeated_targets",
            title="Targets that the user had before",
            severity="note",
            **rows.about(touched, arrays.user_ids),
            words=f"{int(touched.sum()):,} of {len(rows):,} rows ask for an item that the user took in training as well",
            advice="read the metrics with seen items kept and filtered apart: filtered, these items cannot be hit",
            hr_bound=float(touched.mean()),
        )
    ]


def train_after_target(arrays: Arrays, rows: AskedRows, split_kind: str, *, priced: bool) -> list[Finding]:
    """Find rows whose target is earlier than events that are trained on, of whatever user.

    The price is a recommender that gives the ten most taken items of the train events of the day after; its twin takes
    the day before.
    """
    timed = rows.time >= 0
    latest = int(arrays.latest_train_time.max(initial=-1))
    if split_kind == "leave_last_out" and not timed.any():
        return [_no_times(rows)]
    touched = timed & (rows.time < latest)
    if not touched.any():
        return []
    train_time = arrays.train_time
    later = int((train_time > rows.time[touched].min()).sum())
    last_of_item = _last_train_time(arrays)
    readable = rows.any_of(last_of_item[rows.targets.items] > np.where(touched, rows.time, latest)[rows.row])
    after, before = _day_after_and_before(arrays, rows, touched) if priced else (None, None)
    known = split_kind == "leave_last_out"
    return [
        Finding(
            code="train_after_target",
            title="Trained on events that come later than targets",
            severity="severe" if split_kind == "global_temporal" else "warning",
            **rows.about(touched, arrays.user_ids),
            words=f"{int(touched.sum()):,} of {len(rows):,} targets are earlier than events that are trained on; {later:,} "
            f"of {len(train_time):,} train events are later than the first target"
            + (", as they are with features.split.kind: leave_last_out" if known else ""),
            advice="split all users at the same instants (features.split.kind: global_temporal) before you believe a "
            "number, and keep this split for comparison with published results",
            hr_bound=float(readable.mean()),
            hr_at_10=after,
            hr_without=before,
        )
    ]


def _no_times(rows: AskedRows) -> Finding:
    return Finding(
        code="no_times",
        title="Without times nobody can tell whether training reaches beyond the targets",
        severity="note",
        split=rows.split,
        rows=len(rows),
        of=len(rows),
        words="the data have an order within each user and no times; with leave_last_out some users' train events are "
        "likely later than other users' targets",
        advice="take a log with times and split it in time where a number has to hold in service",
    )


def _last_train_time(arrays: Arrays) -> Int64Array:
    """``[I]`` time of the last train event of every item, -1 without one."""
    time = np.full(arrays.num_items, -1, np.int64)
    np.maximum.at(time, arrays.train_item, arrays.train_time)
    return time


def _day_after_and_before(arrays: Arrays, rows: AskedRows, touched: BoolArray) -> tuple[float, float]:
    """Hit rates of the most taken items of the day after the target's day, and of the day before it."""
    known = arrays.train_time >= 0
    time, item = arrays.train_time[known], arrays.train_item[known]
    order = np.argsort(time, kind="stable")
    time, item = time[order], item[order]
    span = max(int(time[-1]) - int(time[0]), 1)
    width = max(min(DAY, span // SPAN_PARTS), 1)
    cell = np.where(touched, rows.time // width, -1)
    lists = [np.full((len(rows), K), -1, np.int32) for _ in range(2)]
    for one in np.unique(cell[touched]).tolist():
        mine = cell == one
        for found, first in zip(lists, (one + 1, one - 1), strict=True):
            low, high = np.searchsorted(time, (first * width, (first + 1) * width))
            top = most_frequent(np.bincount(item[low:high], minlength=arrays.num_items), K)
            found[mine, : len(top)] = top
    return hit_rate(rows, lists[0]), hit_rate(rows, lists[1])


def repeated_sessions(dataset: Dataset, arrays: Arrays, rows: AskedRows) -> list[Finding]:
    """Find sessions of the window that equal a train session, item by item in order; exported twice, or a robot's."""
    sessions = dataset.sessions
    table = dataset.events.select("item_index", "session_index", "positive")
    positive = table.filter("positive")
    session = positive["session_index"].to_numpy()
    split = sessions["split"].to_numpy()
    lengths = np.bincount(session, minlength=len(sessions))
    digest = _sequence_hashes(positive["item_index"].to_numpy(), session, lengths)
    long = lengths >= SHORTEST_SESSION
    train = long & (split == TRAIN)
    here = long & (split == SPLIT_NAMES.index(rows.split))
    same = np.flatnonzero(here & np.isin(digest, np.unique(digest[train])))
    if not len(same):
        return []
    users = sessions["user_index"].to_numpy()
    touched = np.isin(rows.user, users[same])
    own = pl.DataFrame({"user": users[same], "digest": digest[same]}).join(
        pl.DataFrame({"user": users[train], "digest": digest[train]}).unique(), on=["user", "digest"], how="semi"
    )
    return [
        Finding(
            code="repeated_sessions",
            title="Sessions that were trained on already",
            severity="severe" if len(same) / max(int(here.sum()), 1) >= 0.1 else "warning",
            split=rows.split,
            rows=len(same),
            of=int(here.sum()),
            unit=f"sessions of {SHORTEST_SESSION} or more",
            words=f"{len(same):,} of {int(here.sum()):,} sessions with {SHORTEST_SESSION} or more items equal a train "
            f"session item by item, {len(own):,} of them one of the same user; they belong to {int(touched.sum()):,} rows",
            advice="look for a day that was exported twice (source.path) and for robots; drop them before the split",
            examples=example_ids(arrays.user_ids, users[same]),
            hr_bound=float(touched.mean()) if len(rows) else 0.0,
        )
    ]


def _sequence_hashes(
    item: npt.NDArray[np.int32], session: npt.NDArray[np.int32], lengths: Int64Array
) -> npt.NDArray[np.uint64]:
    """``[sessions]`` a hash of the items of every session, in order."""
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(item)) - starts[session]
    factor = mix(place.astype(np.uint64)) | np.uint64(1)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(item.astype(np.uint64)) * factor, dtype=np.uint64)])
    return mix(sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64))

"""Leaks inside the histories of the rows that are asked: events later than the target, ties, users on both sides.

Reads arrays and rows; produces findings. No loop goes over rows that are sound.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.audit.leakage.asked_rows import Arrays, AskedRows, BoolArray, Int64Array, hit_rate
from features.audit.leakage.findings import Finding, Severity, example_ids

TIES_WORTH_A_WARNING = 0.01
"""Share of the rows from which on the order among equal times is more than a detail."""

HOLDOUT_SHARE = 0.5
"""A given split in which fewer of the asked users than this have train events keeps users apart on purpose."""

K = 10


def future_events(arrays: Arrays, rows: AskedRows) -> list[Finding]:
    """Find histories that hold the target itself, or events later than it.

    An event is later when its place is not before the target's, or when its time is known and larger.
    """
    start, end = rows.targets.history_start, rows.targets.history_end
    known = rows.first >= 0
    beyond = known & (end > rows.first)
    later = _later_by_time(arrays, rows) & known & ~beyond
    leaking = np.flatnonzero(beyond | later)
    if not len(leaking):
        return []
    lists = np.full((len(rows), K), -1, np.int32)
    readable = np.zeros(len(rows), bool)
    events = 0
    for row in leaking.tolist():
        places = np.arange(start[row], end[row])
        ahead = (places >= rows.first[row]) | ((rows.time[row] >= 0) & (arrays.timestamp[places] > rows.time[row]))
        items = arrays.item[places[ahead]]
        events += len(items)
        distinct = items[np.sort(np.unique(items, return_index=True)[1])]
        lists[row, : min(K, len(distinct))] = distinct[:K]
        answer = rows.targets.items[rows.targets.item_offsets[row] : rows.targets.item_offsets[row + 1]]
        readable[row] = np.isin(answer, distinct).any()
    return [
        Finding(
            code="future_events",
            title="Histories hold events that come after their target",
            severity="severe",
            split=rows.split,
            rows=len(leaking),
            of=len(rows),
            words=f"{len(leaking):,} of {len(rows):,} histories hold {events:,} events that are not before their target; "
            f"in {int(readable.sum()):,} of them a right item can be read off",
            advice="prepare the data again; where targets are made elsewhere, end every history before its target",
            examples=example_ids(arrays.user_ids, rows.user[leaking]),
            hr_bound=float(readable.mean()),
            hr_at_10=hit_rate(rows, lists),
        )
    ]


def _later_by_time(arrays: Arrays, rows: AskedRows) -> BoolArray:
    """Rows with an event in front of the target whose time is after it; only users whose events go backwards have any."""
    found = np.zeros(len(rows), bool)
    if not len(arrays.backwards):
        return found
    for row in np.flatnonzero(np.isin(rows.user, arrays.backward_users) & (rows.time >= 0)).tolist():
        times = arrays.timestamp[rows.targets.history_start[row] : rows.targets.history_end[row]]
        found[row] = bool((times > rows.time[row]).any())
    return found


def ties(arrays: Arrays, rows: AskedRows, *, priced: bool) -> list[Finding]:
    """Find rows whose target happened at the instant of the last event of its history: their order is arbitrary.

    The price is that of a recommender that knows only which items stood right behind which in ties of the train events.
    """
    tied = tied_rows(arrays, rows)
    count = int(tied.sum())
    if not count:
        return []
    measured = hit_rate(rows, _next_in_ties(arrays, rows, tied)) if priced else None
    severity: Severity = "warning" if count / len(rows) >= TIES_WORTH_A_WARNING else "note"
    time = arrays.ticks
    same = (time[1:] == time[:-1]) & (time[1:] >= 0) & (arrays.owner[1:] == arrays.owner[:-1])
    return [
        Finding(
            code="ties",
            title="Targets at the same instant as the last event of their history",
            severity=severity,
            split=rows.split,
            rows=count,
            of=len(rows),
            words=f"{count:,} of {len(rows):,} targets have the time of the event before them, as {int(same.sum()):,} of "
            f"all {len(time):,} events do ({same.sum() / max(len(time), 1):.1%}): which is history and which target "
            "is decided by the order of the file",
            advice="give the true order by columns.tie_break if there is one; otherwise compare only results made "
            "with the same order, or ask for the whole window (eval_rows: per_user) of a split in time",
            examples=example_ids(arrays.user_ids, rows.user[np.flatnonzero(tied)]),
            hr_bound=count / len(rows),
            hr_at_10=measured,
        )
    ]


def tied_rows(arrays: Arrays, rows: AskedRows) -> BoolArray:
    """Return which rows have a history that ends at the instant of the target."""
    last = rows.targets.history_end - 1
    usable = (last >= rows.targets.history_start) & (last < rows.first) & (rows.time >= 0)
    tied: BoolArray = usable & (arrays.timestamp[np.maximum(last, 0)] == rows.time)
    return tied


def _next_in_ties(arrays: Arrays, rows: AskedRows, tied: BoolArray) -> npt.NDArray[np.int32]:
    """For every tied row the ten items that most often stood right behind its last item in a tie of the train events."""
    time, item = arrays.ticks, arrays.item
    pair = np.flatnonzero(
        (time[1:] == time[:-1]) & (time[1:] >= 0) & (arrays.owner[1:] == arrays.owner[:-1]) & arrays.in_train[1:]
    )
    return successors(arrays.num_items, item[pair], item[pair + 1], _last_item(arrays, rows), tied)


def _last_item(arrays: Arrays, rows: AskedRows) -> npt.NDArray[np.int32]:
    return arrays.item[np.maximum(rows.targets.history_end - 1, 0)]


def successors(
    num_items: int,
    before: npt.NDArray[np.int32],
    after: npt.NDArray[np.int32],
    asked: npt.NDArray[np.int32],
    usable: BoolArray,
) -> npt.NDArray[np.int32]:
    """Return for every row the ten items that follow its item most often among pairs; ties to the lower index.

    Args:
        before, after: ``[pairs]`` items that follow each other.
        asked: ``[N]`` the item whose followers are wanted.
        usable: ``[N]`` rows that get a list.

    Returns:
        ``[N, 10]``, -1 for no item.
    """
    lists = np.full((len(asked), K), -1, np.int32)
    keys, counts = np.unique(before.astype(np.int64) * num_items + after, return_counts=True)
    order = np.lexsort((keys % num_items, -counts, keys // num_items))
    first, second = (keys // num_items)[order], (keys % num_items)[order].astype(np.int32)
    start = np.searchsorted(first, asked)
    length = np.searchsorted(first, asked, side="right") - start
    for rank in range(K):
        has = usable & (length > rank)
        lists[has, rank] = second[start[has] + rank]
    return lists


def users_on_both_sides(arrays: Arrays, rows: AskedRows, split_kind: str) -> list[Finding]:
    """Find users of a split by users whose events are on both sides.

    In a split by time every user may be on both sides; only a given split can mean to keep users apart, and does where
    fewer than :data:`HOLDOUT_SHARE` of the asked users have train events.
    """
    if split_kind != "given" or not len(rows):
        return []
    asked = np.unique(rows.user)
    trained = asked[arrays.train_end[asked] > arrays.offsets[asked]]
    if not len(trained) or len(trained) / len(asked) >= HOLDOUT_SHARE:
        return []
    touched = np.flatnonzero(np.isin(rows.user, trained))
    seen = _seen_in_train(arrays, rows, touched)
    return [
        Finding(
            code="users_on_both_sides",
            title="Users of a held-out split have train events",
            severity="severe",
            split=rows.split,
            rows=len(touched),
            of=len(rows),
            words=f"{len(trained):,} of the {len(asked):,} users asked in {rows.split} have train events, the other "
            f"{len(asked) - len(trained):,} have none: the split looks made by users",
            advice="put all events of a user on one side, or split by time (features.split.kind: global_temporal)",
            examples=example_ids(arrays.user_ids, trained),
            hr_bound=len(touched) / len(rows),
            hr_at_10=float(seen.mean()),
        )
    ]


def _seen_in_train(arrays: Arrays, rows: AskedRows, touched: Int64Array) -> BoolArray:
    """Rows with a right item among the ten different train items that the user took last."""
    lists = np.full((len(rows), K), -1, np.int32)
    for row in touched.tolist():
        user = rows.user[row]
        items = arrays.item[arrays.offsets[user] : arrays.train_end[user]][::-1]
        distinct = items[np.sort(np.unique(items, return_index=True)[1])][:K]
        lists[row, : len(distinct)] = distinct
    hit = (lists[rows.row] == rows.targets.items[:, None]).any(axis=1)
    return rows.any_of(hit)

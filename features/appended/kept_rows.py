"""Which rows of a saved log are kept, found out some users at a time: repeats, k-core, and where the splits begin.

Reads runs of users of a log that is being merged, and then of the merged one; produces :class:`KeptRows`. Rows that the
k-core kept before the new day are certain to be kept after it, so only the others are counted again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.append import MergedRun
from features.log.arrays import BoolArray, CodeArray, is_constant
from features.log.encoded_log import EncodedLog, StoredLog
from features.log.event_log import Core, repeat_tables, settle
from features.log.k_core import KCoreConfig, k_core
from features.log.repeats import Duplicates, Repeats
from features.log.signal_bits import DEFAULT_RULE, positive_mask
from features.log.stored_columns import Layout
from features.passes.rows import compressed
from features.passes.users import count_open, marked, marked_late
from features.sources.base import MergeRule
from features.splits import cut_ranks

NO_REPEATS = Repeats(np.empty(0, np.int64), np.empty(0, np.int64))


def only_grows(log: EncodedLog, duplicates: Duplicates, rules: Mapping[str, MergeRule]) -> bool:
    """Whether further rows can only add positive events, so that the k-core of more rows holds that of fewer.

    A rule such as ``last`` lets a late row take a like back, and ``drop`` lets it take the place of a row that was liked.
    """
    if duplicates == "keep" or not log.positive:
        return True
    return duplicates == "merge" and all(rules.get(name, DEFAULT_RULE) == "any" for name in log.positive)


@dataclass
class Settling:
    """What is counted of the rows while they are merged.

    Attributes:
        core: Users and items whose common rows are certain to be kept; no marks where nothing is certain.
        limits: Of the k-core.
        duplicates: What becomes of repeats.
        rules: How signals of repeats are merged.
        user_events: ``[U]`` positive events.
        item_events: ``[I]`` likewise, of items that are not certain to be kept.
        open_users: Users of positive events that are not certain to be kept, run by run.
        open_items: Their items.
        repeats: First user of a run -> its repeats, by the rows of the run.
        merged, dropped: Tables of repeats, run by run.
        records: Of the rows in ``merged``.
    """

    core: Core
    limits: KCoreConfig
    duplicates: Duplicates
    rules: Mapping[str, MergeRule]
    user_events: npt.NDArray[np.int64] = field(init=False)
    item_events: npt.NDArray[np.int64] = field(init=False)
    open_users: list[CodeArray] = field(default_factory=list)
    open_items: list[CodeArray] = field(default_factory=list)
    repeats: dict[int, Repeats] = field(default_factory=dict)
    merged: list[pl.DataFrame] = field(default_factory=list)
    dropped: list[pl.DataFrame] = field(default_factory=list)
    records: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.user_events = np.zeros(len(self.core.user), np.int64)
        self.item_events = np.zeros(len(self.core.item), np.int64)

    def see(self, first: int, run: MergedRun) -> None:
        """Count a run of users.

        Args:
            first: Number of the first user.
            run: All their rows.
        """
        repeats = run.repeats() if self.duplicates != "keep" else NO_REPEATS
        if len(repeats):
            counts = self._settle(first, run.log, repeats)
        else:
            counts = positive_mask(run.column("signal_values"), run.head.signals, run.head.positive)
        if not self.limits.user and not self.limits.item:
            return
        users = slice(first, first + len(run.starts) - 1)
        open_users, open_items = count_open(
            run.starts,
            run.column("item"),
            None if is_constant(counts) and bool(counts[:1].all()) else counts,
            (self.core.user[users], self.core.item),
            first,
            (self.user_events[users], self.item_events),
        )
        self.open_users.append(open_users)
        self.open_items.append(open_items)

    def _settle(self, first: int, rows: EncodedLog, repeats: Repeats) -> BoolArray:
        """Keep what becomes of repeats; return ``[rows]`` which rows count as liked once they are dealt with."""
        settled = settle(rows, self.duplicates, self.rules, repeats)
        self.repeats[first] = repeats
        merged, dropped = repeat_tables(rows, repeats, self.duplicates)
        self.merged.append(merged)
        self.dropped.append(dropped)
        self.records.append(np.sort(rows.record[repeats.rows]) if self.duplicates == "merge" else repeats.rows[:0])
        return settled.positive if settled.stays is None else settled.positive & settled.stays

    def k_core(self) -> Core | None:
        """Return which users and items have enough events; ``None`` where no limit is set."""
        if not self.limits.user and not self.limits.item:
            return None
        none = np.empty(0, np.int32)
        users, items = (np.concatenate([none, *found]) for found in (self.open_users, self.open_items))
        # those that are certain to be kept were not counted, and no event that goes may take them off
        item_events = np.where(self.core.item, np.iinfo(np.int64).max, self.item_events)
        return Core(*k_core(users, items, self.user_events.copy(), item_events, self.limits))

    def tables(self, head: EncodedLog) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the rows that others took in, in the order of the files, and those that were dropped, in that of the log.

        Args:
            head: The log without events, for the columns.
        """
        none = repeat_tables(head, NO_REPEATS, self.duplicates)
        merged, dropped = (
            pl.concat([first, *found]) for first, found in zip(none, (self.merged, self.dropped), strict=True)
        )
        records = np.concatenate([np.empty(0, np.int64), *self.records])
        return merged[np.argsort(records, kind="stable")] if len(merged) else merged, dropped


@dataclass(frozen=True)
class KeptRows:
    """The rows of a log that are kept.

    Attributes:
        runs: First and end of the users that are worked on together.
        marks: Per run ``[rows]`` whether each is kept; ``None`` when all are.
        events: How many are kept.
        core: Users and items with kept events.
        timed: Kept events with a time.
        late_times: Times of those that are not before the time that was asked for, in no order, as they are stored.
        time_layout: How times are stored.
    """

    runs: Sequence[tuple[int, int]]
    marks: Sequence[BoolArray | None]
    events: int
    core: Core
    timed: int
    late_times: npt.NDArray[Any]
    time_layout: Layout | None

    def cut_times(self, valid_share: float, test_share: float) -> tuple[int, int] | None:
        """Return what :func:`features.splits.cut_times` does of all kept times; ``None`` where they are earlier."""
        before = self.timed - len(self.late_times)
        ranks = np.asarray(cut_ranks(self.timed, valid_share, test_share)) - before
        if ranks.min() < 0:
            return None
        assert self.time_layout is not None  # there are times
        first, second = self.time_layout.from_disk(np.partition(self.late_times, np.unique(ranks))[ranks])
        return int(first), int(second)


def kept_rows(
    log: StoredLog,
    runs: Sequence[tuple[int, int]],
    repeats: Mapping[int, Repeats],
    stays: Core | None,
    since: int | None,
    *,
    both_limited: bool,
) -> KeptRows:
    """Mark the rows that are kept.

    Args:
        log: The merged log.
        runs: Users that are worked on together.
        repeats: As in :class:`Settling`.
        stays: Users and items that the k-core keeps; ``None``: all.
        since: Collect the times of kept events from this on, UTC microseconds; ``None``: of none.
        both_limited: The k-core asks for at least one event of users and of items, so that all who stay have some.
    """
    used = stays if stays is not None and both_limited else None
    met = Core(np.zeros(len(log.head.user_ids), bool), np.zeros(len(log.head.item_ids), bool))
    item, early = log.columns["item"], log.columns["prehistory"]
    has_early = early.layout.constant != 0
    marks: list[BoolArray | None] = []
    times: list[npt.NDArray[Any]] = []
    events = timed = 0
    for first, end in runs:
        starts = log.starts[first : end + 1]
        rows = slice(int(starts[0]), int(starts[-1]))
        items = item[rows]
        users = starts - rows.start
        if stays is not None and since is not None and first not in repeats and not has_early and used is not None:
            time = log.columns["timestamp"]
            least = time.layout.stored_from(since)
            keep, kept, late = marked_late(users, items, stays.user[first:end], stays.item, time.stored(rows), least)
            marks.append(keep if kept < len(keep) else None)
            events, timed = events + kept, timed + kept
            times.append(late)
            continue
        if stays is not None:
            keep, kept = marked(users, items, stays.user[first:end], stays.item)
        else:
            keep, kept = np.ones(len(items), bool), len(items)
        if first in repeats:
            keep[repeats[first].rows] = False
            kept = int(np.count_nonzero(keep))
        if used is None:
            met.user[first:end] = np.logical_or.reduceat(keep, starts[:-1] - rows.start)  # every user has rows
            met.item[items[keep]] = True
        marks.append(keep if kept < len(keep) else None)
        events += kept
        if since is not None:
            keep = keep & ~early[rows] if has_early else keep
            timed += int(np.count_nonzero(keep))
            time = log.columns["timestamp"]
            stored = time.stored(rows)
            times.append(compressed(stored, keep & (stored >= time.layout.stored_from(since))))
    all_late = np.concatenate(times) if times else np.empty(0, np.int64)
    layout = log.columns["timestamp"].layout if since is not None else None
    return KeptRows(runs, marks, events, met if used is None else used, timed, all_late, layout)

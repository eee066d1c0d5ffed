"""Histories as offsets into one array of positive events, and the predictions to make from them.

Reads the event log, split and sessions; produces :class:`~recsys.contracts.dataset.HistoryArrays` and the rows of
``targets.parquet``. Windows are never materialised: a history is a pair of row numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from features.log.arrays import BoolArray, is_constant
from features.log.event_log import EventLog
from features.passes.events import Labels
from features.passes.rows import seconds_of
from features.passes.users import distinct_targets, first_occurrences, gap_codes, split_counts, window
from features.splits import SplitArray
from recsys.contracts.columns import SPLIT_NAMES, TEST, TRAIN, VALID
from recsys.contracts.dataset import ByteArray, HistoryArrays, IntArray, OffsetArray, Targets
from recsys.contracts.event_features import watch_buckets
from recsys.contracts.event_times import WholeSeconds

Task = Literal["next_item", "session"]
EvalRows = Literal["per_user", "per_event"]
_SLICE_ROWS: Final = 1 << 18


def event_watch_ratio(log: EventLog) -> npt.NDArray[np.float32]:
    """Return watched time / duration of each event; NaN where either is not known, or the ratio is no finite number."""
    if log.watch_time is None or log.duration is None:
        return np.broadcast_to(np.float32(np.nan), (len(log),))
    ratio = np.full(len(log), np.nan, np.float32)
    with np.errstate(over="ignore"):
        np.divide(log.watch_time, log.duration, out=ratio, where=log.duration > 0)
    ratio[np.isinf(ratio)] = np.nan  # a duration that is next to nothing, or a time beyond all measure
    return ratio


def build_histories(
    log: EventLog,
    split: SplitArray,
    behaviour: ByteArray,
    watch_ratio: npt.NDArray[np.float32],
    labels: Labels | None = None,
) -> HistoryArrays:
    """Take the positive events of the log; where all are, the arrays are the log's own.

    Args:
        log: All kept events.
        split: ``[E]``.
        behaviour: ``[E]`` packed signals.
        watch_ratio: ``[E]`` NaN where not known.
        labels: Of the events, where gaps and splits were counted already.
    """
    all_are = bool(log.positive[:1].all() if is_constant(log.positive) else log.positive.all())
    total = len(log) if all_are else int(np.count_nonzero(log.positive))
    if all_are:
        item, timestamp, codes = log.item, log.timestamp, behaviour
    else:
        item, timestamp, codes = np.empty(total, np.int32), np.empty(total, np.int64), np.empty(total, np.uint8)
    one_ratio = total > 0 and is_constant(watch_ratio)
    watch = np.broadcast_to(watch_buckets(watch_ratio[:1]), (total,)) if one_ratio else np.empty(total, np.uint8)
    found: dict[str, npt.NDArray[Any]] = {"item": item, "behaviour": codes, "watch": watch, "timestamp": timestamp}
    if all_are and one_ratio and labels is not None:
        return _with_borders({**found, "gap": labels.gap}, labels.split_counts)
    gap = np.empty(total, np.uint8)
    per_split = np.zeros((len(SPLIT_NAMES), len(log.user_ids)), np.int64)
    done, last_user, last_time = 0, -1, -1
    for start in range(0, len(log), _SLICE_ROWS):  # a slice at a time, so that temporaries stay in the cache
        rows = slice(start, start + _SLICE_ROWS)
        positive = log.positive[rows]
        kept: BoolArray | slice = slice(None) if positive.all() else positive  # no copies where all are
        user, time = log.user[rows][kept], log.timestamp[rows][kept]
        if not len(user):
            continue
        out = slice(done, done + len(user))
        if not all_are:
            item[out], timestamp[out], codes[out] = log.item[rows][kept], time, behaviour[rows][kept]
        if not one_ratio:
            watch[out] = watch_buckets(watch_ratio[rows][kept])
        gap[out] = gap_codes(user, time, last_user, last_time)
        first, users = int(user[0]), int(user[-1]) - int(user[0]) + 1
        own = user - np.int32(first)
        per_split[:, first : first + users] += split_counts(own, split[rows][kept], users, len(SPLIT_NAMES))
        done, last_user, last_time = out.stop, int(user[-1]), int(time[-1])
    return _with_borders({**found, "gap": gap}, per_split)


def _with_borders(arrays: Mapping[str, npt.NDArray[Any]], per_split: npt.NDArray[np.int64]) -> HistoryArrays:
    """Say whose events the arrays hold: ``[splits, U]`` how many of each user."""
    offsets = np.concatenate([[0], np.cumsum(per_split.sum(axis=0))]).astype(np.int64)
    train_end = offsets[:-1] + per_split[TRAIN]
    borders = {"offsets": offsets, "train_end": train_end, "valid_end": train_end + per_split[VALID]}
    return HistoryArrays(**arrays, **borders)


def in_seconds(history: HistoryArrays) -> HistoryArrays:
    """Keep the times as seconds where that loses nothing, as their file does."""
    seconds = None if isinstance(history.timestamp, WholeSeconds) else seconds_of(history.timestamp)
    return history if seconds is None else replace(history, timestamp=WholeSeconds(seconds))


@dataclass(frozen=True)
class TargetRows:
    """Rows of ``targets.parquet`` of one split.

    Attributes:
        split: Its code.
        user: ``[N]`` user_index.
        history_start, history_end: ``[N]`` rows of the history arrays.
        items: The targets of all rows, one row after the other.
        sizes: ``[N]`` how many of them each row has.
    """

    split: int
    user: IntArray
    history_start: OffsetArray
    history_end: OffsetArray
    items: IntArray
    sizes: npt.NDArray[np.integer]

    def behind(self, users: int, events: int) -> TargetRows:
        """Return the same rows where so many users, and events in the history arrays, come before them."""
        moved = (self.history_start + events, self.history_end + events)
        return replace(self, user=self.user + np.int32(users), history_start=moved[0], history_end=moved[1])

    def as_targets(self) -> Targets:
        """Return the same rows as a reader of ``targets.parquet`` gets them."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sizes, dtype=np.int64)])
        return Targets(self.user, self.history_start, self.history_end, self.items, ends)

    @classmethod
    def joined(cls, parts: Sequence[TargetRows]) -> TargetRows:
        """Put rows of one split behind each other."""
        names = [name for name in vars(parts[0]) if name != "split"]
        return cls(parts[0].split, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def __len__(self) -> int:
        return len(self.user)


def build_targets(
    history: HistoryArrays,
    *,
    task: Task,
    session_length: int,
    min_positive: int,
    positive_sessions: npt.NDArray[np.int32],
    eval_rows: EvalRows = "per_user",
    good: npt.NDArray[np.bool_] | None = None,
) -> list[TargetRows]:
    """Return the rows of ``targets.parquet``, split by split.

    Validation and test have one row per user with a positive event in the window: the history is everything before the
    window (for test: train and valid events), the targets are their distinct positive items inside, in order. With
    leave-last-out that is exactly one item. ``per_event`` has one row per positive event of the window instead, whose
    history ends right before it. Training rows exist for the session task only; next-item training supervises every
    position of the arrays and needs none.

    Args:
        history: The arrays.
        task: Shape of the task.
        session_length: Items per training target, ``m``.
        min_positive: Fewest distinct items of a training target.
        positive_sessions: ``[positive events]`` session_index.
        eval_rows: Rows of validation and test.
        good: ``[S]`` sessions that training targets come from; ``None`` for all.
    """
    window_targets = _event_targets if eval_rows == "per_event" else _window_targets
    found = []
    if task == "session":
        found.append(_session_targets(history, session_length, min_positive, positive_sessions, good))
    found.append(window_targets(history, history.train_end, history.valid_end, VALID))
    found.append(window_targets(history, history.valid_end, history.offsets[1:], TEST))
    return found


def _session_targets(
    history: HistoryArrays,
    session_length: int,
    min_positive: int,
    sessions: npt.NDArray[np.int32],
    good: npt.NDArray[np.bool_] | None,
) -> TargetRows:
    """Cut each training session into rows of at most m distinct items; the history ends where the row begins."""
    owner = _owners(history)
    train = np.flatnonzero(np.arange(len(history.item)) < history.train_end[owner])
    if good is not None:
        train = train[good[sessions[train]]]
    rows = train[first_occurrences(sessions[train], history.item[train])]
    place = np.arange(len(rows)) - _run_starts(sessions[rows])
    chunk_starts = np.flatnonzero(place % session_length == 0)
    sizes = np.diff(np.append(chunk_starts, len(rows)))
    kept = sizes >= min_positive
    flat = np.repeat(kept, sizes)
    first = rows[chunk_starts[kept]]
    return TargetRows(
        TRAIN,
        owner[first],
        history.offsets[owner[first]],
        first.astype(np.int64),
        history.item[rows[flat]],
        sizes[kept],
    )


def _window_targets(history: HistoryArrays, start: OffsetArray, end: OffsetArray, split: int) -> TargetRows:
    items, sizes = distinct_targets(start, end, history.item)
    users = np.flatnonzero(sizes)
    return TargetRows(split, users.astype(np.int32), history.offsets[users], start[users], items, sizes[users])


def _event_targets(history: HistoryArrays, start: OffsetArray, end: OffsetArray, split: int) -> TargetRows:
    rows, users = window(start, end)
    ones = np.ones(len(rows), np.int64)
    return TargetRows(split, users, history.offsets[users], rows, history.item[rows], ones)


def _owners(history: HistoryArrays) -> npt.NDArray[np.int32]:
    return np.repeat(np.arange(len(history.train_end), dtype=np.int32), np.diff(history.offsets))


def _run_starts(groups: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Place of the first row of each row's run of equal values."""
    starts: BoolArray = np.ones(len(groups), bool)
    starts[1:] = groups[1:] != groups[:-1]
    return np.maximum.accumulate(np.where(starts, np.arange(len(groups)), 0))

"""Sessions with feedback: what was shown, what the user had done before, and what came of it.

Reads a prepared data set; produces :class:`SessionFeedback`, the training rows of the reward model. Unlike the policy's
targets, sessions hold every exposure, liked or not, because a reward model learns from what was refused.

User 7 with exposures ``a+ b- c+ | d- e+`` (+ positive, | session border) and M = 2 gives the rows
``[] -> a b``, ``[a] -> c``, ``[a c] -> d e``: a row's history is the positive events strictly before its first item.

Legend: N sessions, M items of a session, T towers, E exposures of all sessions.

Source: OneRec (arXiv 2502.18965), section 3.3.1 names the targets swt, vtr, wtr, ltr; their definitions, given in
:class:`~recsys.reward.config.RewardSignal`, are ours, because the paper publishes none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import TRAIN, Columns
from recsys.contracts.dataset import Dataset, HistoryArrays, IntArray, OffsetArray, Targets
from recsys.contracts.errors import ArtifactError, DataError
from recsys.data.histories import Histories
from recsys.reward.config import FeedbackConfig, RewardSignal
from recsys.reward.feedback.labels import (
    FloatArray,
    WatchScale,
    event_values,
    session_labels,
    session_sums,
)

logger = logging.getLogger(__name__)

SESSION_WATCH_TIME: Final = RewardSignal(name="swt", column=Columns.WATCH_TIME_MS, kind="watch_time")
KNOWN_SIGNALS: Final[dict[str, RewardSignal]] = {
    "long_view": RewardSignal(name="vtr", column="long_view", kind="share"),
    "follow": RewardSignal(name="wtr", column="follow", kind="any"),
    "like": RewardSignal(name="ltr", column="like", kind="any"),
    "click": RewardSignal(name="ctr", column="click", kind="share"),
    "dislike": RewardSignal(name="dislike", column="dislike", kind="any", weight=-1.0),
    "hate": RewardSignal(name="hate", column="hate", kind="any", weight=-1.0),
    "report": RewardSignal(name="report", column="report", kind="any", weight=-1.0),
}
"""Towers of the usual signals; another declared signal gets one of kind ``any`` under its own name, weight 1."""


@dataclass(frozen=True)
class SessionFeedback:
    """N sessions; session ``n`` showed ``items[item_offsets[n]:item_offsets[n + 1]]``, in this order.

    Attributes:
        signals: The T towers.
        histories: ``[N]`` what each user had done before.
        split: ``[N]`` code of the split.
        items: ``[E]`` item_index.
        item_offsets: ``[N + 1]``.
        labels: float32 ``[N, T]`` in [0, 1]; NaN where the source does not know a signal of some item.
        event_values: float32 ``[E, T]`` of single exposures: milliseconds for watch time, else 0 or 1; NaN not known.
        watch_scale: How watch times became labels.
        left_out: Reason for every signal of the source that got no tower.
    """

    signals: tuple[RewardSignal, ...]
    histories: Histories
    split: npt.NDArray[np.int8]
    items: IntArray
    item_offsets: OffsetArray
    labels: FloatArray
    event_values: FloatArray
    watch_scale: WatchScale
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.split)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the towers."""
        return tuple(signal.name for signal in self.signals)

    @property
    def user_index(self) -> IntArray:
        """``[N]``."""
        return self.histories.user_index

    @property
    def lengths(self) -> OffsetArray:
        """``[N]`` items per session."""
        return np.diff(self.item_offsets)

    def take(self, rows: npt.NDArray[np.integer]) -> SessionFeedback:
        """Return the sessions given by number, in that order."""
        events, offsets = _gather_ranges(self.item_offsets[:-1][rows], self.item_offsets[1:][rows])
        return replace(
            self,
            histories=self.histories.take(rows),
            split=self.split[rows],
            items=self.items[events],
            item_offsets=offsets,
            labels=self.labels[rows],
            event_values=self.event_values[events],
        )

    def of(self, split: int) -> SessionFeedback:
        """Return the sessions of a split."""
        return self.take(np.flatnonzero(self.split == split))

    def of_users(self, users: npt.NDArray[np.bool_]) -> SessionFeedback:
        """Return the sessions of the users marked in ``[num_users]``."""
        return self.take(np.flatnonzero(users[self.user_index]))

    def on_own_scale(self, config: FeedbackConfig) -> SessionFeedback:
        """Return the same sessions with watch times ranked among their own train sessions alone."""
        scale = _watch_scale(self.signals, self.event_values, self.item_offsets, self.user_index, self.split, config)
        labels = session_labels(self.signals, self.event_values, self.item_offsets, self.user_index, scale)
        return replace(self, watch_scale=scale, labels=labels)

    def padded_items(self, width: int) -> IntArray:
        """Return ``[N, width]`` item_index, -1 after a session's end."""
        index = self.item_offsets[:-1, None] + np.arange(width)
        inside = index < self.item_offsets[1:, None]
        return np.where(inside, self.items[np.where(inside, index, 0)], -1).astype(np.int32)

    def without(self, dropped: Sequence[int], reasons: Sequence[str]) -> SessionFeedback:
        """Return the same sessions with some towers left out."""
        kept = [tower for tower in range(len(self.signals)) if tower not in dropped]
        return replace(
            self,
            signals=tuple(self.signals[tower] for tower in kept),
            labels=self.labels[:, kept],
            event_values=self.event_values[:, kept],
            left_out=(*self.left_out, *reasons),
        )

    def with_unexposed_items(self, seed: int, epoch: int = 0) -> SessionFeedback:
        """Return the same requests with some items of each session replaced by items that the user was not shown then.

        Between one and all items are replaced, by exposures drawn from all sessions here, so that popularity does not give
        them away. A replaced item gets no feedback: not watched, nothing done; labels follow from that.

        A log shows what the logging policy thought worth showing. A model that has met nothing else takes every item for
        worth showing, and a policy that is trained against it finds the items it is wrong about.
        """
        generator = np.random.default_rng([seed, 12, epoch])
        lengths = self.lengths
        number = generator.integers(1, lengths + 1)
        session = np.repeat(np.arange(len(self)), lengths)
        shuffled = np.lexsort((generator.random(len(self.items)), session))
        place = np.empty(len(self.items), np.int64)
        place[shuffled] = np.arange(len(self.items)) - self.item_offsets[:-1][session]
        replaced = place < number[session]
        items, values = self.items.copy(), self.event_values.copy()
        items[replaced] = generator.choice(self.items, int(replaced.sum()))
        values[replaced] = np.where(np.isnan(values[replaced]), np.nan, 0.0)
        labels = session_labels(self.signals, values, self.item_offsets, self.user_index, self.watch_scale)
        return replace(self, items=items, event_values=values, labels=labels)


def session_feedback(prepared: Dataset, config: FeedbackConfig) -> SessionFeedback:
    """Cut the exposures of all splits into sessions and label them.

    Raises:
        DataError: The source has no signal, lacks a column that was asked for, or a tower that was asked for has too few
            train sessions on one side.
        ArtifactError: ``events.parquet`` and the history arrays do not belong together.
    """
    events = prepared.events
    signals = config.signals if config.signals is not None else _available_signals(prepared)
    _check_columns(signals, events)
    longest = config.max_items if config.max_items is not None else prepared.spec.session_length
    starts, ends = _windows(events, longest, config)
    rows, item_offsets = _gather_ranges(starts, ends)
    values = np.stack([event_values(events[signal.column])[rows] for signal in signals], axis=1)
    split = events[Columns.SPLIT].to_numpy()[starts]
    histories = _histories_before(prepared.history, events, starts)
    watch_scale = _watch_scale(signals, values, item_offsets, histories.user_index, split, config)
    labels = session_labels(signals, values, item_offsets, histories.user_index, watch_scale)
    items = events[Columns.ITEM_INDEX].to_numpy()[rows]
    feedback = SessionFeedback(
        signals=signals,
        histories=histories,
        split=split,
        items=items,
        item_offsets=item_offsets,
        labels=labels,
        event_values=values,
        watch_scale=watch_scale,
    )
    return _with_enough_labels(feedback, config)


def _watch_scale(
    signals: Sequence[RewardSignal],
    values: FloatArray,
    offsets: OffsetArray,
    user: IntArray,
    split: npt.NDArray[np.int8],
    config: FeedbackConfig,
) -> WatchScale:
    """Fit the scale of the one tower that reads watch times; an empty one without such a tower."""
    for tower, signal in enumerate(signals):
        if signal.kind == "watch_time":
            return WatchScale.fit(session_sums(values[:, tower], offsets), user, split == TRAIN, config)
    return WatchScale(np.empty(0), {})


def _available_signals(prepared: Dataset) -> tuple[RewardSignal, ...]:
    signals = []
    if Columns.WATCH_TIME_MS in prepared.events.columns:
        signals.append(SESSION_WATCH_TIME)
    signals += [
        KNOWN_SIGNALS.get(name, RewardSignal(name=name, column=name, kind="any")) for name in prepared.spec.signals
    ]
    if not signals:
        raise DataError(
            f"reward model: the source has no feedback (columns: {', '.join(prepared.events.columns)}); it needs "
            f"'{Columns.WATCH_TIME_MS}' or at least one declared signal such as long_view, like, follow: map "
            "source.columns.watch_time or source.signals and run `prepare` again"
        )
    return tuple(signals)


def _check_columns(signals: Sequence[RewardSignal], events: pl.DataFrame) -> None:
    for signal in signals:
        if signal.column not in events.columns:
            raise DataError(
                f"reward model: tower '{signal.name}' reads column '{signal.column}', which events.parquet does not have "
                f"(columns: {', '.join(events.columns)}); declare it in source.signals or source.columns, or leave the "
                "tower out of reward.feedback.signals"
            )
        if signal.kind != "watch_time" and events.schema[signal.column] != pl.Boolean:
            raise DataError(
                f"reward model: tower '{signal.name}' of kind '{signal.kind}' reads column '{signal.column}', which is "
                f"{events.schema[signal.column]}, expected Boolean"
            )
    if sum(signal.kind == "watch_time" for signal in signals) > 1:
        raise DataError("reward model: only one tower can have kind 'watch_time'")


def _windows(events: pl.DataFrame, longest: int, config: FeedbackConfig) -> tuple[OffsetArray, OffsetArray]:
    """Rows ``[start, end)`` of ``events`` of every session of at least ``min_items`` items."""
    if len(events) == 0:
        raise DataError("reward model: events.parquet is empty; check the source and run `prepare` again")
    timeless = events[Columns.TIMESTAMP].is_null().to_numpy()
    border = np.ones(len(events), bool)
    border[1:] = timeless[1:] != timeless[:-1]
    for column in (Columns.USER_INDEX, Columns.SPLIT):
        values = events[column].to_numpy()
        border[1:] |= values[1:] != values[:-1]
    if config.span == "session":
        # sessions without time were cut at positive events: their first item would tell its own label
        session = events[Columns.SESSION_INDEX].to_numpy()
        border[1:] |= (session[1:] != session[:-1]) & ~timeless[1:]
    place = np.arange(len(events))
    place -= np.maximum.accumulate(np.where(border, place, 0))
    starts = np.flatnonzero(place % longest == 0)
    ends = np.append(starts[1:], len(events))
    kept = ends - starts >= config.min_items
    if not kept.any():
        raise DataError(
            f"reward model: no session has min_items {config.min_items} exposures; lower reward.feedback.min_items"
        )
    return starts[kept].astype(np.int64), ends[kept].astype(np.int64)


def _histories_before(history: HistoryArrays, events: pl.DataFrame, starts: OffsetArray) -> Histories:
    """Positive events of the user before each row of ``events``, and earlier than it where both have a time."""
    positive = events[Columns.POSITIVE].to_numpy()
    if int(positive.sum()) != len(history.item):
        raise ArtifactError(
            f"events.parquet has {int(positive.sum())} positive events, the history arrays have {len(history.item)}; "
            "they are not of one data set: run `prepare` again"
        )
    user = events[Columns.USER_INDEX].to_numpy()[starts]
    begin = np.asarray(history.offsets)[user]
    end = (np.cumsum(positive) - positive)[starts].astype(np.int64)
    now = events[Columns.TIMESTAMP].fill_null(-1).to_numpy()[starts]
    while True:  # as often as there are events of one instant
        tied = (end > begin) & (now >= 0) & (history.timestamp[np.maximum(end - 1, 0)] >= now)
        if not tied.any():
            break
        end = end - tied
    whole = Targets(user, begin, end, np.empty(0, np.int32), np.zeros(len(user) + 1, np.int64))
    return Histories.from_targets(history, whole)


def _with_enough_labels(feedback: SessionFeedback, config: FeedbackConfig) -> SessionFeedback:
    """Leave out, or refuse, towers that hardly ever see one of the two outcomes."""
    labels = feedback.labels[feedback.split == TRAIN]
    dropped, reasons = [], []
    for tower, signal in enumerate(feedback.signals):
        known = labels[~np.isnan(labels[:, tower]), tower]
        high = int((known >= 0.5).sum())
        fewer = min(high, len(known) - high)
        if fewer < config.min_positives:
            reason = (
                f"{signal.name} (column '{signal.column}'): {high} of {len(known)} train sessions with a label lie at 0.5 "
                f"or above, expected at least {config.min_positives} on either side"
            )
            dropped.append(tower)
            reasons.append(reason)
    if dropped and (config.signals is not None or len(dropped) == len(feedback.signals)):
        raise DataError(
            f"reward model: too little feedback for {'; '.join(reasons)}; take other signals, more data, or lower "
            "reward.feedback.min_positives"
        )
    for reason in reasons:
        logger.warning("reward model: no tower for %s", reason)
    return feedback.without(dropped, reasons)


def _gather_ranges(starts: OffsetArray, ends: OffsetArray) -> tuple[OffsetArray, OffsetArray]:
    """Row numbers of all ranges, one after the other, and the offsets of the ranges in that list."""
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1]), offsets

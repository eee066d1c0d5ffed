"""Which rows training reads: windows over a user's train events (all-prefix form), or (history, target) pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.contracts.columns import TRAIN
from recsys.contracts.dataset import Dataset, HistoryArrays, Targets
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import Times
from recsys.data.augmentation import Augmentation
from recsys.data.batch import TrainingBatch, collate_all_prefixes, collate_targets
from recsys.data.histories import Histories


@dataclass(frozen=True)
class RecentRows:
    """Rows that training keeps where it goes on from an earlier policy: the recent ones, and some of the others.

    Attributes:
        days: Before the last training row; what ends within them is recent.
        sample: Share of the other rows, so that what they taught is not forgotten.
    """

    days: int
    sample: float

    def rows(self, last_instant: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows that stay, ascending.

        Args:
            last_instant: ``[N]`` UTC microseconds.
            seed: Draws the sample.

        Raises:
            DataError: The rows have no times.

        Example:
            >>> days = np.array([0, 1, 8, 9]) * 86_400_000_000
            >>> RecentRows(days=2, sample=0.0).rows(days, seed=1).tolist()
            [2, 3]
        """
        if last_instant.max(initial=-1) < 0:
            raise DataError(
                "training on recent rows (nights.rows: recent) needs events with times; use nights.rows: all"
            )
        recent = last_instant > last_instant.max() - self.days * 86_400_000_000
        drawn = np.random.default_rng([seed, 2]).random(len(last_instant)) < self.sample
        return np.flatnonzero(recent | drawn)


@dataclass(frozen=True)
class PrefixWindows:
    """Windows ``[start, end)`` into the history arrays; events from ``first_target`` on are predicted.

    A user with more events than a window holds gets overlapping windows. Every train event is a target exactly once, and
    with at least half a window of context where the user has that many earlier events.
    """

    arrays: HistoryArrays
    user_index: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    first_target: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_index)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events per window: what decides its cost."""
        return self.end - self.start

    @property
    def targets_per_row(self) -> npt.NDArray[np.int64]:
        """Supervised items of each window."""
        return self.end - self.first_target

    @property
    def num_targets(self) -> int:
        """Supervised items in one pass."""
        return int(self.targets_per_row.sum())

    @property
    def last_instant(self) -> npt.NDArray[np.int64]:
        """``[N]`` time of the last supervised event of each window, UTC microseconds."""
        return np.asarray(self.arrays.timestamp[self.end - 1])

    def only(self, rows: npt.NDArray[np.int64]) -> PrefixWindows:
        """Return the windows given by number."""
        return PrefixWindows(
            self.arrays, self.user_index[rows], self.start[rows], self.end[rows], self.first_target[rows]
        )

    def collate(self, rows: npt.NDArray[np.int64], augmentation: Augmentation | None = None) -> TrainingBatch:
        """Build the batch of the given windows.

        Args:
            augmentation: Changes of this epoch. What is left of a cropped window begins with an event that is not asked
                for: without it a user's first event would seem to be anything.
        """
        user, start, end = self.user_index[rows], self.start[rows], self.end[rows]
        first_target = self.first_target[rows]
        if augmentation is None:
            return collate_all_prefixes(self.arrays, user, start, end, first_target)
        changed, dropped = augmentation.windows(self.arrays, user, rows, start, end, keep=2)
        asked_from = changed.start + np.maximum(first_target - start - dropped, dropped > 0)
        return augmentation.masked(collate_all_prefixes(changed, user, changed.start, changed.end, asked_from), rows)

    @classmethod
    def from_dataset(cls, prepared: Dataset, max_history: int) -> PrefixWindows:
        """Cut all users' train events into windows of ``max_history + 1`` events.

        Raises:
            DataError: No user has a train event.
        """
        first = np.asarray(prepared.history.offsets[:-1])
        last = np.asarray(prepared.history.train_end)
        window = max_history + 1
        stride = max(window // 2, 1)
        counts = np.where(
            last > first, 1 + np.maximum(0, -(-(last - first - window) // stride)), 0
        )  # the first window and as many strides as it takes to reach the end
        if counts.sum() == 0:
            raise DataError("training: no user has a positive event in the train split; check split dates and signals")
        user = np.repeat(np.arange(len(first)), counts)
        number = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
        start = first[user] + number * stride
        end = np.minimum(start + window, last[user])
        first_target = np.where(number == 0, start, start + window - stride)
        return cls(prepared.history, user.astype(np.int32), start, end, first_target)


@dataclass(frozen=True)
class TargetRows:
    """(history, target session) pairs: the plain form, one prediction point per row.

    Attributes:
        timestamp: ``[E]`` times of the events, UTC microseconds.
    """

    histories: Histories
    targets: Targets
    session_length: int
    max_history: int
    timestamp: Times

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """History events per row, as the model sees them."""
        return np.minimum(self.histories.lengths, self.max_history)

    @property
    def targets_per_row(self) -> npt.NDArray[np.int64]:
        """Supervised items of each pair."""
        return np.diff(self.targets.item_offsets)

    @property
    def num_targets(self) -> int:
        """Supervised items in one pass."""
        return len(self.targets.items)

    @property
    def last_instant(self) -> npt.NDArray[np.int64]:
        """``[N]`` time of the first wanted event of each pair, UTC microseconds; of none where nothing follows, the last."""
        return np.asarray(self.timestamp[np.minimum(self.targets.history_end, len(self.timestamp) - 1)])

    def only(self, rows: npt.NDArray[np.int64]) -> TargetRows:
        """Return the pairs given by number."""
        return replace(self, histories=self.histories.take(rows), targets=self.targets.take(rows))

    def collate(self, rows: npt.NDArray[np.int64], augmentation: Augmentation | None = None) -> TrainingBatch:
        """Build the batch of the given pairs; ``augmentation`` changes their histories, not their targets."""
        targets, histories = self.targets.take(rows), self.histories.take(rows)
        if augmentation is not None:
            start = np.maximum(histories.start, histories.end - self.max_history)
            histories, _ = augmentation.windows(histories, histories.user_index, rows, start, histories.end, keep=1)
        batch = collate_targets(histories, targets.items, targets.item_offsets, self.session_length, self.max_history)
        return batch if augmentation is None else augmentation.masked(batch, rows)

    @classmethod
    def from_dataset(cls, prepared: Dataset, max_history: int) -> TargetRows:
        """Read the session targets of the train split, or expand next-item targets from the arrays.

        Raises:
            DataError: There is no training target.
        """
        session = prepared.spec.task == "session"
        targets = prepared.targets(TRAIN) if session else next_item_targets(prepared.history)
        if len(targets) == 0:
            raise DataError("training: the train split holds no target; check split dates, sessions and signals")
        histories = Histories.from_targets(prepared.history, targets)
        return cls(histories, targets, prepared.spec.session_length, max_history, prepared.history.timestamp)


def next_item_targets(history: HistoryArrays) -> Targets:
    """Every train event as the target of the events before it: the expanded form of all-prefix training."""
    first, last = np.asarray(history.offsets[:-1]), np.asarray(history.train_end)
    counts = last - first
    user = np.repeat(np.arange(len(first)), counts)
    event = first[user] + np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Targets(
        user_index=user.astype(np.int32),
        history_start=first[user],
        history_end=event,
        items=np.asarray(history.item)[event],
        item_offsets=np.arange(len(user) + 1),
    )


Samples = PrefixWindows | TargetRows
TrainingForm = Literal["all_prefixes", "pairs"]

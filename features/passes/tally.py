"""Counts of kept events that add up over runs of users.

Reads an event log; produces :class:`Tally`, of which the data report is made.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from features.log.arrays import is_constant
from features.passes.events import Labels
from recsys.contracts.columns import SPLIT_NAMES

if TYPE_CHECKING:
    from features.log.event_log import EventLog
    from features.splits import SplitArray

_SLICE: Final = 1 << 22


@dataclass(frozen=True)
class Tally:
    """Counts of kept events that add up over runs of users.

    Attributes:
        events: How many there are.
        prehistory: Those without a time.
        first, last: Earliest and latest known time, UTC microseconds; ``None`` where none is known.
        future: Later than now.
        ties: With the instant of their predecessor, and those of them whose order no column decides.
        signals: ``[65536]`` events by their signals: those that are true, times 256, and those that are known; ``[0]``
            where the log has none.
        per_split: Events of each split.
    """

    events: int
    prehistory: int
    first: int | None
    last: int | None
    future: int
    ties: tuple[int, int]
    signals: npt.NDArray[np.int64]
    per_split: tuple[int, ...]

    @classmethod
    def of(cls, log: EventLog, split: SplitArray, ties: tuple[int, int], labels: Labels | None = None) -> Tally:
        """Count the events of a log.

        Args:
            log: The events.
            split: ``[E]``.
            ties: As :func:`~features.log.event_log.count_ties` gives them.
            labels: Of the events, where they were counted already.
        """
        first, last = _first_and_last(log.timestamp) if labels is None else (labels.first, labels.last)
        if labels is None:
            per_split = [int(np.count_nonzero(split == code)) for code in range(len(SPLIT_NAMES))]
        else:
            per_split = labels.split_counts.sum(axis=1).tolist()
        now = time.time_ns() // 1000
        return cls(
            events=len(log),
            prehistory=int(np.count_nonzero(log.prehistory)),
            first=first,
            last=last,
            future=int((log.timestamp > now).sum()) if last is not None and last > now else 0,
            ties=ties,
            signals=_signal_pairs(log),
            per_split=tuple(per_split),
        )

    def __add__(self, other: Tally) -> Tally:
        """Counts of the events of both."""
        firsts = [each.first for each in (self, other) if each.first is not None]
        lasts = [each.last for each in (self, other) if each.last is not None]
        return Tally(
            events=self.events + other.events,
            prehistory=self.prehistory + other.prehistory,
            first=min(firsts, default=None),
            last=max(lasts, default=None),
            future=self.future + other.future,
            ties=(self.ties[0] + other.ties[0], self.ties[1] + other.ties[1]),
            signals=self.signals + other.signals,
            per_split=tuple(one + more for one, more in zip(self.per_split, other.per_split, strict=True)),
        )


def _first_and_last(timestamp: npt.NDArray[np.int64]) -> tuple[int, int] | tuple[None, None]:
    """Return the earliest and the latest known time."""
    last = int(timestamp.max(initial=-1))
    first = int(timestamp.min(initial=last))
    if first < 0 <= last:
        first = int(timestamp[timestamp >= 0].min())
    return (first, last) if last >= 0 else (None, None)


def _signal_pairs(log: EventLog) -> npt.NDArray[np.int64]:
    # a table of 128 combinations instead of a pass over the events per signal
    if not log.signals:
        return np.empty(0, np.int64)
    pairs = np.zeros(1 << 16, np.int64)
    if len(log) and is_constant(log.signal_values) and is_constant(log.signal_known):
        pairs[int(log.signal_values[0]) << 8 | int(log.signal_known[0])] = len(log)
        return pairs
    for start in range(0, len(log), _SLICE):
        rows = slice(start, start + _SLICE)
        both = log.signal_values[rows].astype(np.uint16) << np.uint16(8) | log.signal_known[rows]
        pairs += np.bincount(both, minlength=1 << 16)
    return pairs

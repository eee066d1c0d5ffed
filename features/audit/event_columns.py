"""The events of a prepared data set as columns in memory, with what several facts ask of them.

Reads ``events.parquet``; the rows stand by user and time, which makes most questions a look at neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import DatasetSpec

MOST_EVENTS: Final = 1_000_000
RUNS: Final = 24


@dataclass(frozen=True)
class EventColumns:
    """Columns of all kept events.

    Attributes:
        total: Events of the data set, of which ``E`` are here.
        user, item: ``[E]`` indices, ``user`` ascending.
        time: ``[E]`` UTC microseconds, -1 not known; ascending within a user.
        split: ``[E]`` code.
        positive: ``[E]``.
        signals: By name, Boolean with nulls.
        num_items: Items of the catalogue.
    """

    total: int
    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    time: npt.NDArray[np.int64]
    split: npt.NDArray[np.int8]
    positive: npt.NDArray[np.bool_]
    signals: dict[str, pl.Series]
    num_items: int

    @classmethod
    def read(cls, folder: Path, spec: DatasetSpec, most: int = MOST_EVENTS) -> EventColumns:
        """Read the columns of the data set in ``folder``.

        Args:
            most: Of a larger data set so many events are read, in runs of users that stand evenly in it: what takes a second
                should not take ten, and counts of millions do not get better.
        """
        names = [Columns.USER_INDEX, Columns.ITEM_INDEX, Columns.TIMESTAMP, Columns.SPLIT, Columns.POSITIVE]
        scan = pl.scan_parquet(folder / "events.parquet", glob=False).select(*names, *spec.signals)
        total = int(scan.select(pl.len()).collect().item())
        events = scan.collect() if total <= most else _runs(scan, total, most)
        return cls(
            total=total,
            user=events[Columns.USER_INDEX].to_numpy(),
            item=events[Columns.ITEM_INDEX].to_numpy(),
            time=events[Columns.TIMESTAMP].fill_null(-1).to_numpy(),
            split=events[Columns.SPLIT].to_numpy(),
            positive=events[Columns.POSITIVE].to_numpy(),
            signals={name: events[name] for name in spec.signals},
            num_items=spec.num_items,
        )

    @property
    def share(self) -> float:
        """Events that were read, of all."""
        return len(self) / self.total if self.total else 1.0

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def item_counts(self) -> npt.NDArray[np.int64]:
        """``[I]`` events of every item."""
        return np.bincount(self.item, minlength=self.num_items)

    @cached_property
    def last_time(self) -> int:
        """The latest time, -1 where none is known."""
        return int(self.time.max(initial=-1))

    @cached_property
    def first_time(self) -> int:
        """The earliest known time, -1 where none is known."""
        earliest = int(self.time.min(initial=np.iinfo(np.int64).max))
        if earliest >= 0 or self.last_time < 0:
            return min(earliest, self.last_time)
        return int(self.time[self.time >= 0].min())

    def new_pairs(self, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Places where a user, or the label of its events, is another than at the place before.

        Args:
            labels: ``[E]`` ascending within a user, such as days or splits.
        """
        changes = np.ones(len(labels), bool)
        changes[1:] = (labels[1:] != labels[:-1]) | (self.user[1:] != self.user[:-1])
        return np.flatnonzero(changes)


def _runs(scan: pl.LazyFrame, total: int, most: int) -> pl.DataFrame:
    """Read :data:`RUNS` runs of rows, together ``most``; users at both ends of a run lose some of their events."""
    length = most // RUNS
    starts = [(total - length) * place // (RUNS - 1) for place in range(RUNS)]
    return pl.concat([scan.slice(start, length).collect() for start in starts])

"""What users did with single items, as labels of a session in [0, 1].

Legend: N sessions, T towers, E exposures of all sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.dataset import IntArray, OffsetArray
from recsys.reward.config import FeedbackConfig, RewardSignal

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WatchScale:
    """Summed watch time of a session to a soft label: its rank among train sessions.

    Attributes:
        reference: Sorted watch times of all train sessions, in milliseconds.
        own: Those of single users, who are ranked among themselves.
    """

    reference: npt.NDArray[np.float64]
    own: Mapping[int, npt.NDArray[np.float64]]

    @classmethod
    def fit(
        cls, total: npt.NDArray[np.float64], user: IntArray, train: npt.NDArray[np.bool_], config: FeedbackConfig
    ) -> WatchScale:
        """Read the known watch times of train sessions."""
        rows = np.flatnonzero(train & ~np.isnan(total))
        reference = np.sort(total[rows])
        if config.watch_scale == "global_rank":
            return cls(reference, {})
        rows = rows[np.argsort(user[rows], kind="stable")]
        owners, first, counts = np.unique(user[rows], return_index=True, return_counts=True)
        enough = counts >= config.min_user_sessions
        ranges = zip(owners[enough], first[enough], (first + counts)[enough], strict=True)
        return cls(reference, {int(owner): np.sort(total[rows[begin:end]]) for owner, begin, end in ranges})

    def labels(self, total: npt.NDArray[np.float64], user: IntArray) -> FloatArray:
        """``[N]`` ranks in [0, 1], NaN where the watch time is not known."""
        labels = rank_among(total, self.reference)
        if self.own:
            order = np.argsort(user, kind="stable")
            for rows in np.split(order, np.flatnonzero(np.diff(user[order])) + 1):
                reference = self.own.get(int(user[rows[0]]))
                if reference is not None:
                    labels[rows] = rank_among(total[rows], reference)
        return labels


def event_values(column: pl.Series) -> FloatArray:
    """One signal of every exposure as float32: milliseconds, or 0 and 1; NaN where not known."""
    return column.cast(pl.Float32).fill_null(float("nan")).to_numpy()


def session_labels(
    signals: Sequence[RewardSignal], values: FloatArray, offsets: OffsetArray, user: IntArray, watch_scale: WatchScale
) -> FloatArray:
    """``[N, T]``; NaN unless the signal is known for all items of a session."""
    labels = np.empty((len(user), len(signals)), np.float32)
    for tower, signal in enumerate(signals):
        total = session_sums(values[:, tower], offsets)
        if signal.kind == "watch_time":
            labels[:, tower] = watch_scale.labels(total, user)
        elif signal.kind == "share":
            labels[:, tower] = total / np.diff(offsets)
        else:
            labels[:, tower] = np.where(np.isnan(total), np.nan, total > 0)
    return labels


def rank_among(values: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> FloatArray:
    """Return the share of the sorted ``reference`` below each value, ties counted half; NaN stays NaN.

    Example:
        >>> rank_among(np.array([0.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])).tolist()
        [0.0, 0.375, 1.0]
    """
    if not len(reference):
        return np.full(len(values), np.nan, np.float32)
    below, not_above = np.searchsorted(reference, values), np.searchsorted(reference, values, side="right")
    rank = (below + not_above) / (2 * len(reference))
    return np.where(np.isnan(values), np.nan, rank).astype(np.float32)


def session_sums(values: FloatArray, offsets: OffsetArray) -> npt.NDArray[np.float64]:
    """Sum of each range; NaN if it holds one."""
    return np.add.reduceat(values.astype(np.float64), offsets[:-1])


def smoothed_means(
    owner: npt.NDArray[np.integer], values: FloatArray, count: int, smoothing: float
) -> npt.NDArray[np.float64]:
    """Mean of the known values of each owner, ``[count]``, with ``smoothing`` values of the global mean mixed in.

    Example:
        >>> smoothed_means(np.array([0, 0, 1]), np.array([1.0, 1.0, np.nan], np.float32), 2, 5.0).tolist()
        [1.0, 1.0]
    """
    known = ~np.isnan(values)
    total = np.bincount(owner[known], values[known].astype(np.float64), count)
    number = np.bincount(owner[known], minlength=count)
    overall = float(values[known].mean()) if known.any() else 0.0
    return (total + smoothing * overall) / (number + smoothing)


def relative_rates(
    signals: Sequence[RewardSignal],
    items: IntArray,
    values: FloatArray,
    num_items: int,
    smoothing: float,
) -> FloatArray:
    """How much more feedback than the average each item gets, ``[num_items, T]``; 0 for one that was never shown.

    The difference of log-odds for yes/no signals, of logarithms for watch time; rates are smoothed first.

    Example:
        >>> like = RewardSignal(name="ltr", column="like", kind="any")
        >>> values = np.array([[1.0], [1.0], [0.0], [0.0]], np.float32)  # item 0: (2 + 1) / (2 + 2) = 3/4, mean 1/2
        >>> rates = relative_rates([like], np.array([0, 0, 1, 1]), values, 3, 2.0)
        >>> [round(rate, 3) for rate in rates[:, 0].tolist()]  # ln 3, -ln 3, 0
        [1.099, -1.099, 0.0]
    """
    rates = np.zeros((num_items, len(signals)), np.float32)
    for tower, signal in enumerate(signals):
        column = values[:, tower]
        overall = 0.0 if np.isnan(column).all() else float(np.nanmean(column))
        if overall <= 0.0 or (signal.kind != "watch_time" and overall >= 1.0):
            continue  # all alike
        mean = smoothed_means(items, column, num_items, smoothing)
        if signal.kind == "watch_time":
            rates[:, tower] = np.log(mean / overall)
        else:
            rates[:, tower] = np.log(mean / (1 - mean)) - np.log(overall / (1 - overall))
    return rates

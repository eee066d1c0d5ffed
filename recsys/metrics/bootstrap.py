"""Bootstrap over users: draws, intervals, p-values and paired differences, for many metrics and slices at once.

Reads values per row (``[N, M]``), which rows belong to which slice, and whose rows they are; produces resampled means. A
metric that is no mean, such as AUC, takes its draws from :func:`user_draws` and becomes a :class:`MetricEstimate`.

Users are drawn with replacement, with all their rows, because rows of one user are not independent. The draws depend only
on the seed and the number of users, so two systems on the same rows are compared on the same draws.

Shape legend: N rows, U users, M metrics, S slices, R resamples.

Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 (percentile interval) and 16 (tests).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import DataError
from recsys.metrics.row_store import RowStore

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int32]


DRAWN_ENTRIES: Final = 1 << 25
"""How often so many users came up in a draw is held at once: 128 MB, 32 draws of a million users."""


@dataclass(frozen=True)
class Estimate:
    """A mean over users and its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def sign(self) -> int:
        """1 when the whole interval is above 0, -1 when it is below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class MetricEstimate:
    """One metric of one system: observed, and on every resample.

    Attributes:
        samples: ``[R]``; NaN where the metric is not defined on a resample.
    """

    value: float
    samples: Values

    def minus(self, other: MetricEstimate) -> MetricEstimate:
        """The paired difference."""
        return MetricEstimate(self.value - other.value, self.samples - other.samples)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Percentile interval; NaN if no resample has a value."""
        low, high = percentile_interval(self.samples, confidence)
        return float(low), float(high)


@dataclass(frozen=True)
class ResampledMeans:
    """Means of every slice and metric, observed and resampled.

    Attributes:
        mean: ``[S, M]``; NaN for a slice without rows.
        samples: ``[R, S, M]``; NaN where a resample drew nobody of a slice.
    """

    mean: Values
    samples: Values

    def interval(self, confidence: float) -> tuple[Values, Values]:
        """Return the percentile interval ``(low, high)``, each ``[S, M]``.

        Args:
            confidence: Such as 0.95, which gives the 2.5 % and 97.5 % quantiles.
        """
        return percentile_interval(self.samples, confidence)

    def estimates(self, confidence: float) -> list[Estimate]:
        """Return means and intervals, slice by slice."""
        low, high = self.interval(confidence)
        return [Estimate(*map(float, cell)) for cell in zip(self.mean.flat, low.flat, high.flat, strict=True)]

    def against(self, reference: int) -> tuple[ResampledMeans, ResampledMeans]:
        """Compare all slices with one of them, on the same draws.

        Args:
            reference: Number of the slice.

        Returns:
            The differences, and the differences as a share of the reference's mean: NaN where that is 0, without interval
            where any draw has 0.
        """
        base, base_samples = self.mean[reference], self.samples[:, [reference]]
        gap, gap_samples = self.mean - base, self.samples - base_samples
        share = gap / np.where(base == 0, np.nan, base)
        share_samples = gap_samples / np.where((base_samples == 0).any(axis=0), np.nan, base_samples)
        return ResampledMeans(gap, gap_samples), ResampledMeans(share, share_samples)

    def p_value(self) -> Values:
        """Return the two-sided p-value ``[S, M]`` of "the mean is 0"; its smallest value is ``2 / (R + 1)``.

        Twice the smaller share of resamples on either side of 0, with one added so that it is never exactly 0. Resamples
        that drew nobody of a slice say nothing about it and do not count. No correction is made for the number of
        comparisons.
        """
        counted = np.sum(~np.isnan(self.samples), axis=0)
        not_above = (np.sum(self.samples <= 0, axis=0) + 1) / (counted + 1)
        not_below = (np.sum(self.samples >= 0, axis=0) + 1) / (counted + 1)
        p = np.minimum(1.0, 2 * np.minimum(not_above, not_below))
        return np.where(np.isnan(self.mean), np.nan, p)


def percentile_interval(samples: Values, confidence: float) -> tuple[Values, Values]:
    """Return the percentile interval ``(low, high)`` over the first axis; resamples that are NaN do not count.

    Args:
        samples: ``[R, …]``; NaN throughout gives NaN.
        confidence: Such as 0.95, which gives the 2.5 % and 97.5 % quantiles.
    """
    tail = (1.0 - confidence) / 2
    empty = np.isnan(samples)
    if not empty.any():
        low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0)
        return low, high
    low, high = np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
    some = ~empty.all(axis=0)
    if some.any():
        low[some], high[some] = np.nanquantile(samples[:, some], [tail, 1.0 - tail], axis=0)
    return low, high


def resample_means(
    values: Values,
    masks: npt.NDArray[np.bool_],
    users: npt.NDArray[np.integer],
    *,
    resamples: int,
    seed: int,
) -> ResampledMeans:
    """Resample the means of all metrics in all slices.

    Args:
        values: ``[N, M]``; for a paired comparison the differences of two systems on the same rows.
        masks: ``[N, S]``, which rows count in which slice.
        users: ``[N]``, whose row it is; any integers.

    Raises:
        DataError: There are no rows, or the numbers of rows differ.

    Example:
        >>> everybody = np.ones((4, 1), dtype=bool)
        >>> always_one = resample_means(np.ones((4, 1)), everybody, np.arange(4), resamples=50, seed=0)
        >>> [float(bound[0, 0]) for bound in always_one.interval(0.95)]
        [1.0, 1.0]
    """
    if not len(values) == len(masks) == len(users):
        raise DataError(
            f"{len(values)} rows of values, {len(masks)} of slices, {len(users)} of users; they must be equal"
        )
    sums = UserSums()
    sums.add(values, masks, users)
    return sums.resample(resamples, seed)


class UserSums:
    """Sums per user of all metrics in all slices, added block by block, and the resampled means they give.

    As many users as fit one block give the numbers of :func:`resample_means` to the last digit; with several blocks the
    draws are the same, and the sums differ in the order they are added in.

    Args:
        scratch: Folder of the temporary file that holds them beyond a few; ``None`` takes the system's.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._columns = RowStore(scratch)
        self._observed: Values | None = None
        self._rows: Values | None = None
        self._last: int | None = None

    def add(
        self, values: npt.NDArray[np.floating], masks: npt.NDArray[np.bool_], users: npt.NDArray[np.integer]
    ) -> None:
        """Add the rows of some users.

        Args:
            values: ``[b, M]``.
            masks: ``[b, S]``, which rows count in which slice.
            users: ``[b]``, whose row it is: all rows of these users, who come after those of earlier blocks.

        Raises:
            ValueError: A user was in an earlier block, or should have been.
        """
        if not len(values):
            return
        distinct, owner = np.unique(users, return_inverse=True)
        if self._last is not None and int(distinct[0]) <= self._last:
            raise ValueError(f"user {distinct[0]} comes after user {self._last}; give whole users in ascending order")
        self._last = int(distinct[-1])
        counts = _sum_by_user(masks.astype(np.float32), owner, len(distinct))
        columns = [
            _sum_by_user((values * masks[:, [s]]).astype(np.float32), owner, len(distinct))
            for s in range(masks.shape[1])
        ]
        self._columns.add(np.concatenate([counts, *columns], axis=1))
        observed, rows = masks.T.astype(np.float64) @ values, masks.sum(axis=0)
        self._observed = observed if self._observed is None else self._observed + observed
        self._rows = rows if self._rows is None else self._rows + rows

    def resample(self, resamples: int, seed: int) -> ResampledMeans:
        """Draw users and take the means of every draw.

        Raises:
            DataError: There are no rows.
        """
        if self._observed is None or self._rows is None:
            raise DataError(
                "no rows to evaluate: the split is empty; check the dates or shares of the split in `prepare`"
            )
        num_slices, num_metrics = self._observed.shape
        sums = bootstrap_sums(self._columns, resamples=resamples, seed=seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = sums[:, num_slices:].reshape(resamples, num_slices, num_metrics) / sums[:, :num_slices, None]
            observed = self._observed / self._rows[:, None]
        return ResampledMeans(mean=observed, samples=samples)


def estimate_means(
    values: npt.NDArray[np.floating],
    users: npt.NDArray[np.integer] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Estimate]:
    """Estimate the mean of each column over all rows, from the same draws of users.

    Args:
        values: ``[N, M]``, or ``[N]`` for one column.
        users: ``[N]`` whose row it is; ``None``: every row is a user of its own.

    Example:
        >>> str(estimate_means(np.ones(5))[0])
        '1.000 [1.000, 1.000]'
    """
    columns = np.asarray(values, np.float64)
    if columns.ndim == 1:
        columns = columns[:, None]
    everybody = np.ones((len(columns), 1), bool)
    owners = np.arange(len(columns)) if users is None else users
    return resample_means(columns, everybody, owners, resamples=resamples, seed=seed).estimates(confidence)


def estimate_over_seeds(per_seed: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Estimate what the next seed would give, from one figure per seed: their mean and its t interval.

    An interval over users says how much a figure depends on who was asked. A claim about a *method* depends on the seed of
    the policy as well, and no number of users makes up for few seeds.

    Args:
        per_seed: One figure per seed, such as the relative change of a metric; at least two.

    Raises:
        DataError: Fewer than two seeds, or a figure that is not finite.

    Example:
        Three seeds 13.1, -0.2 and 5.3: mean 6.07, standard error 3.86, t(2) at 97.5 % is 4.30.

        >>> print(estimate_over_seeds([13.1, -0.2, 5.3]))
        6.067 [-10.535, 22.668]

    Source: Student 1908; with so few values a bootstrap over seeds is too narrow.
    """
    from scipy.stats import t  # a configuration may import this module, and scipy takes half a second

    figures = np.asarray(per_seed, np.float64)
    if len(figures) < 2 or not np.isfinite(figures).all():
        raise DataError(
            f"an interval over seeds needs two finite figures at least, got {list(per_seed)}; run more seeds, or give the "
            "interval over users alone and say so"
        )
    mean, error = float(figures.mean()), float(figures.std(ddof=1)) / len(figures) ** 0.5
    half = float(t.ppf((1 + confidence) / 2, len(figures) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def bootstrap_sums(columns: npt.NDArray[np.float32] | RowStore, *, resamples: int, seed: int) -> Values:
    """Sum the rows ``[U, C]`` of ``resamples`` draws of U users with replacement; returns ``[R, C]``.

    A draw is a vector of how often each user came up, so a block of draws is one matrix product: 22,000 users, 1000
    resamples and 140 columns take less than a second. A store of several blocks is read once for every few draws, so that
    neither all draws nor all columns are held at once.
    """
    generator = np.random.default_rng(seed)
    num_users = len(columns)
    blocks = columns if isinstance(columns, RowStore) else (columns,)
    one_block = not isinstance(columns, RowStore) or columns.num_blocks == 1
    block = max(1, min(resamples, (1 << 22 if one_block else DRAWN_ENTRIES) // num_users))
    sums: Values | None = None
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        drawn, first = _draws(generator, num_users, size), 0
        for part in blocks:
            if sums is None:
                sums = np.zeros((resamples, part.shape[1]), np.float64)
            sums[begin : begin + size] += drawn[:, first : first + len(part)].astype(np.float32) @ part
            first += len(part)
    assert sums is not None
    return sums


def user_draws(num_users: int, resamples: int, seed: int) -> Counts:
    """How often each user comes up in each of ``resamples`` draws of U users, ``[R + 1, U]``; row 0 is everybody once.

    The draws are those of :func:`bootstrap_sums` with the same seed.
    """
    drawn = _draws(np.random.default_rng(seed), num_users, resamples)
    return np.concatenate([np.ones((1, num_users), np.int32), drawn])


def draw_blocks(num_users: int, resamples: int, seed: int, entries: int = DRAWN_ENTRIES) -> Iterator[Counts]:
    """The rows of :func:`user_draws`, several at a time, ``[b, U]``: of a million users all of them would take 4 GB."""
    if (resamples + 1) * num_users <= entries:
        yield user_draws(num_users, resamples, seed)
        return
    generator, block = np.random.default_rng(seed), max(1, entries // num_users)
    yield np.ones((1, num_users), np.int32)
    for begin in range(0, resamples, block):
        yield _draws(generator, num_users, min(block, resamples - begin))


def means_of_draws(draws: Counts, sums: Values, counts: Values) -> Values:
    """Mean of every draw, ``[R]``; NaN where it drew nobody.

    Args:
        draws: ``[R, U]`` of :func:`user_draws`.
        sums: ``[U]`` sum of each user's values.
        counts: ``[U]`` number of them.
    """
    total = draws @ counts
    return np.divide(draws @ sums, total, out=np.full(len(draws), np.nan), where=total > 0)


def _draws(generator: np.random.Generator, num_users: int, count: int) -> Counts:
    """The next draws: how often each user comes up, ``[count, U]``."""
    times = np.empty((count, num_users), np.int32)
    for row in range(count):
        times[row] = np.bincount(generator.integers(num_users, size=num_users), minlength=num_users)
    return times


def _sum_by_user(
    values: npt.NDArray[np.float32], owner: npt.NDArray[np.intp], num_users: int
) -> npt.NDArray[np.float32]:
    if len(owner) == num_users and bool((owner == np.arange(num_users)).all()):
        return values  # one row per user, in order: the usual case
    sums = np.zeros((num_users, values.shape[1]), np.float32)
    np.add.at(sums, owner, values)
    return sums

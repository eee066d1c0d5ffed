"""Nights on rows of an evaluation, real or made up: models that differ and lose as wanted, decided on by the gate.

Two systems whose lists are good in a similar way are the material: a *model* takes each row's metric from either, by a coin
of its own, so that two models have the same expected quality and differ on as many rows as is wanted. A loss of a per cent
either takes every hundredth hit away (``hits``, the hardest kind to see), or lowers every hit by a hundredth (``ranks``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.release.gate.config import PromoteConfig
from pipelines.release.gate.shares import Mask, Values
from pipelines.release.gate.verdict import Evidence, Findings, decide

SEGMENT_SHARES = (0.5, 0.4, 0.2, 0.1, 0.1, 0.05)
"""Sizes of the slices that are compared beside the planted one."""
NIGHTS = 60
SLICE_QUALITY = 0.8
RESTLESS = 4.0
"""On a restless slice any two models differ on so many times the rows, as far as the two systems of the pool allow."""
Loss = Literal["hits", "ranks"]


@dataclass(frozen=True)
class Pool:
    """Rows of two systems that differ in which rows they hit.

    Attributes:
        first, second: ``[N]`` metric per row; on every row the two are swapped at random, so that neither is better.
        spread: Standard deviation of their difference, as a share of the mean.
    """

    first: Values
    second: Values

    @property
    def spread(self) -> float:
        """Of two models that take every row from different systems."""
        mean = (self.first.mean() + self.second.mean()) / 2
        return float(np.sqrt(np.mean((self.first - self.second) ** 2)) / mean)


class Night:
    """Users drawn from a pool, and models that answer them.

    Args:
        rows: Drawn with replacement.
        spread: Wanted standard deviation of the difference of two models, as a share of the mean.
    """

    def __init__(self, pool: Pool, rows: int, spread: float, generator: np.random.Generator) -> None:
        drawn = generator.integers(len(pool.first), size=rows)
        swap = generator.random(rows) < 0.5
        self._two = (
            np.where(swap, pool.second[drawn], pool.first[drawn]),
            np.where(swap, pool.first[drawn], pool.second[drawn]),
        )
        differ = self._differ = (spread / pool.spread) ** 2
        if differ > 0.5:
            raise ValueError(
                f"two models of this pool differ by at most {pool.spread * math.sqrt(0.5):.2f}, not {spread}"
            )
        self._flip = np.full(rows, _flip(differ))
        self._keep = generator.random(rows)
        self._generator = generator
        self.users = np.arange(rows)

    def unsettle(self, mask: Mask) -> None:
        """Let any two models differ on :data:`RESTLESS` times the rows of a slice, or on as many as the pool has."""
        self._flip[mask] = _flip(min(RESTLESS * self._differ, 0.5))

    def model(self, quality: float = 1.0, planted: Mask | None = None, lose: Loss = "hits") -> Values:
        """Rows of a model.

        Args:
            quality: Share of the metric that is kept.
            planted: Rows that keep :data:`SLICE_QUALITY` of that.
        """
        flipped = self._generator.random(len(self._keep)) < self._flip
        values = np.where(flipped, self._two[1], self._two[0])
        share = np.full(len(values), quality)
        if planted is not None:
            share[planted] *= SLICE_QUALITY
        return values * share if lose == "ranks" else np.where(self._keep < share, values, 0.0)

    def slices(self) -> dict[str, Mask]:
        """Random groups of users, of the sizes of :data:`SEGMENT_SHARES`."""
        return {
            f"segment {number}": self._generator.random(len(self._keep)) < share
            for number, share in enumerate(SEGMENT_SHARES)
        }


def _flip(differ: float) -> float:
    """Chance of a row to be taken from the other system, so that two models take a share ``differ`` of rows differently."""
    return (1 - math.sqrt(1 - 2 * differ)) / 2


def one_night(
    pool: Pool, rows: int, spread: float, generator: np.random.Generator, config: PromoteConfig, kind: str, lose: Loss
) -> Findings:
    """Decide on one challenger.

    Args:
        kind: ``equal``, ``restless`` (equal, but on one slice models differ more), ``loss 3%``, ``gain 5%``, ``slice 20%``
            or ``gain and slice`` (both).
    """
    night = Night(pool, rows, spread, generator)
    slices = night.slices()
    before = 1 / 1.05 if kind in ("gain 5%", "gain and slice") else 1.0
    quality = 0.97 if kind == "loss 3%" else 1.0
    planted = slices["segment 5"] if kind in ("slice 20%", "gain and slice") else None
    if kind == "restless":
        night.unsettle(slices["segment 5"])
    evidence = Evidence(
        users=night.users,
        challenger=night.model(quality, planted, lose),
        champion=night.model(before, lose=lose),
        anchor=night.model(before, lose=lose),
        baselines={"markov": night.model(0.8)},
        slices=slices,
    )
    return decide(evidence, config)


def attainable(pool: Pool, rows: int, spread: float, config: PromoteConfig, count: int) -> tuple[float, float]:
    """How often a loss of hits on one slice could be seen at the risk that one slice of :data:`SEGMENT_SHARES` has.

    Two statistics on the slice, refused where they are beyond the quantile that equal models have over the resamplings:

    - the *difference* of the sums: a test that knows how much equal models differ there, and bears no loss at all;
    - the *likelihood ratio* of "every fifth hit is gone" and "none is": nothing can see more. It also knows the size of the
      loss and how often an equal model misses what the champion hits, so that it need not look at gains.

    Returns:
        Shares of resamplings that are refused, by difference and by likelihood ratio.
    """
    sample = Night(pool, 200_000, spread, np.random.default_rng(99))
    hits, other = sample.model() > 0, sample.model() > 0
    hit_again = np.array([other[~hits].mean(), other[hits].mean()])  # of an equal model, by whether the champion hits
    missed = np.log1p((1 - SLICE_QUALITY) * hit_again / (1 - hit_again))
    found = np.empty((count, 2, 2))  # resampling, equal or planted, statistic
    for number in range(count):
        night = Night(pool, rows, spread, np.random.default_rng([3, number]))
        planted = night.slices()["segment 5"]
        champion = night.model()[planted]
        for kind, challenger in enumerate((night.model(), night.model(planted=planted))):
            hit = challenger[planted] > 0
            ratio = np.where(hit, math.log(SLICE_QUALITY), missed[(champion > 0).astype(int)]).sum()
            found[number, kind] = (challenger[planted] - champion).sum() / math.sqrt(champion.sum()), -ratio
    limits = np.quantile(found[:, 0], config.slice_risk / len(SEGMENT_SHARES), axis=0)
    difference, likelihood = (found[:, 1] < limits).mean(axis=0).tolist()
    return difference, likelihood


def many_nights(
    pool: Pool, rows: int, spread: float, generator: np.random.Generator, config: PromoteConfig
) -> tuple[float, int]:
    """Let every challenger be one per cent worse than the champion it meets.

    Returns:
        True quality of the last champion as a share of the first one's, and how many nights promoted.
    """
    champion = anchor = 1.0
    promoted = 0
    for _ in range(NIGHTS):
        night = Night(pool, rows, spread, generator)
        worse = champion * 0.99
        verdict = decide(
            Evidence(
                users=night.users,
                challenger=night.model(worse),
                champion=night.model(champion),
                anchor=None if anchor == champion else night.model(anchor),
                slices=night.slices(),
            ),
            config,
        )
        if verdict.promoted:
            champion, promoted = worse, promoted + 1
            anchor = worse if verdict.anchor_moves else anchor
    return champion, promoted

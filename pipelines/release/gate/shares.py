"""By what share one system's mean differs from another's on the same rows, and how sure that is.

Reads a metric per row of two systems and whose rows they are; produces a :class:`Share`: pure arithmetic, without draws, so
that the same rows always give the same verdict.

Rows of one user are not independent, so users are the unit: with ``D`` the difference and ``R`` the reference summed over
each of U users, the share is ``r = sum D / sum R``, and its error follows from ``e = D - r R`` as that of any ratio of
sums, ``sqrt(U / (U - 1) sum e^2) / sum R``.

A slice is asked another way (:func:`loss_on_slice`): with few hits, most of that error would be the loss's own.

Source: Cochran 1977, "Sampling Techniques", eq. 6.13 (ratio estimator), with Student's quantiles for U - 1 degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Owners = npt.NDArray[np.integer]

WANTED_POWER = 0.9
"""With which an equal challenger is to pass, where the number of rows is named that this takes."""
FEWEST_FALLS = 4
"""Users of a slice who have to fall: of three the coin falls the same way once in eight times."""
OWN_RISK = 0.05
"""Of the test by the slice's own gains that a loss has to pass too, however the other rows differ."""
LIKENESS = 12.0
"""How alike slices are taken to be, as so many steps of chance that were seen on the slice and fitted the other rows: two
models then differ on a slice by the others' rate, give or take 1 / sqrt(12) of it, before the slice's own gains are seen."""


@dataclass(frozen=True)
class Share:
    """The difference of two means as a share of the second.

    Attributes:
        value: Such as -0.03; NaN where the reference's mean is 0.
        error: Its standard error; infinite for fewer than two users.
        base: Mean of the reference.
        rows, users: Counted.
    """

    value: float
    error: float
    base: float
    rows: int
    users: int

    def low(self, risk: float) -> float:
        """One-sided lower bound, which is above the truth with probability ``risk``."""
        return self.value - self._quantile(risk) * self.error if self.error else self.value

    def high(self, risk: float) -> float:
        """One-sided upper bound, which is below the truth with probability ``risk``."""
        return self.value + self._quantile(risk) * self.error if self.error else self.value

    def rows_needed(self, margin: float, risk: float) -> int:
        """About so many rows as different as these rule out ``margin`` for nine in ten equal challengers."""
        if not math.isfinite(self.error):
            return 0
        wanted = margin / (self._quantile(risk) + self._quantile(1 - WANTED_POWER))
        return math.ceil(self.rows * (self.error / wanted) ** 2)

    def _quantile(self, risk: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(max(self.users - 1, 1), 1 - risk))


def share_of(challenger: Values, reference: Values, users: Owners, mask: Mask | None = None) -> Share:
    """Compare two systems.

    Args:
        challenger: ``[N]`` metric per row; ``reference`` likewise, same rows in the same order.
        users: ``[N]`` whose row it is.
        mask: ``[N]`` rows that count; ``None`` means all.

    Example:
        >>> found = share_of(np.array([0.0, 0.5, 1.0]), np.array([0.5, 0.5, 1.0]), np.arange(3))
        >>> found.value, found.base  # -0.5 of 2.0
        (-0.25, 0.6666666666666666)
    """
    differences, bases, rows = _by_user(challenger, reference, users, mask)
    count, total = len(bases), float(bases.sum())
    if total == 0:
        return Share(math.nan, math.inf, 0.0, rows, count)
    value = float(differences.sum()) / total
    if count < 2:
        return Share(value, math.inf, total / rows, rows, count)
    residuals = differences - value * bases
    error = math.sqrt(count / (count - 1) * float(residuals @ residuals)) / total
    return Share(value, error if error > 1e-12 else 0.0, total / rows, rows, count)


def _by_user(challenger: Values, reference: Values, users: Owners, mask: Mask | None) -> tuple[Values, Values, int]:
    """Differences and references summed over each user's rows, and the number of rows."""
    if mask is not None:
        challenger, reference, users = challenger[mask], reference[mask], users[mask]
    differences, bases = challenger - reference, reference
    if not bool((users[1:] > users[:-1]).all()):  # usually each user has one row, in order
        distinct, owner = np.unique(users, return_inverse=True)
        differences = np.bincount(owner, differences, minlength=len(distinct)).astype(np.float64)
        bases = np.bincount(owner, bases, minlength=len(distinct)).astype(np.float64)
    return differences, bases, len(reference)


def loss_on_slice(challenger: Values, reference: Values, users: Owners, mask: Mask, margin: float) -> float:
    """One-sided p-value of "the loss on the slice is at most ``margin``", by what two equal models differ there.

    What fell, ``lost``, and what rose, ``won``, are sums over users. Two equal models lose and win alike, each in *steps* of
    about the same size, such as a hit that moved out of the list. The other rows say how large a step is and how many there
    are per unit of the reference's metric (:func:`_chance`), so how many the slice has by chance: ``m``. A slice may be more
    restless than the rest, by a factor ``c``. Before anything is seen, c has a gamma distribution of mean 1 with the weight
    of ``A =`` :data:`LIKENESS` steps; the slice's gains, which a loss on it cannot raise, then say the rest. With
    ``x = lost / step``, ``w = won / step`` and ``b`` steps of the borne margin, ``x`` given ``w`` is negative binomial and

        p = P(X >= x) = I(x, A + w; (m + b) / (A + 2 m + b)),

    I being the regularised incomplete beta function. Its mean is ``(A + w) / (A + m) * (m + b)``: the other rows' rate on a
    small slice, the slice's own gains on a large one.

    Nothing is said (1.0) of a loss within the margin, of fewer than :data:`FEWEST_FALLS` users who fell, and where
    ``lost - won`` is within what the slice's gains alone allow, ``z sqrt(2 sum won^2 + step^2)`` at :data:`OWN_RISK`. The
    last bounds the risk on slices that are much more restless than the rest. The p-value never rises when rows of the slice
    fall.

    Args:
        challenger, reference, users, mask: As of :func:`share_of`.

    Example:
        >>> users, before = np.arange(200), np.tile([1.0, 0.0], 100)
        >>> after = np.where(np.isin(users, [0, 2, 4, 6, 8, 10, 100]), 0.0, before)  # 7 of 100 hits are gone, 6 of 20 here
        >>> after[101] = 1.0  # and one has come
        >>> round(loss_on_slice(after, before, users, users < 40, margin=0.0), 6)  # I(6, 12; .25 / 12.5): 1 of 80 is chance
        1e-06
        >>> loss_on_slice(before, before, users, users < 40, margin=0.0)
        1.0

    Source: the exact test of two Poisson rates (Przyborowski and Wilenski 1940) with a gamma prior of the common factor, as
    in Greenwood and Yule 1920.
    """
    from scipy.special import betainc, ndtri

    inside, bases, _ = _by_user(challenger, reference, users, mask)
    outside, others, _ = _by_user(challenger, reference, users, ~mask)
    gains, base = np.maximum(inside, 0), float(bases.sum())
    lost, won = float(np.maximum(-inside, 0).sum()), float(gains.sum())
    if lost - won <= margin * base or int((inside < 0).sum()) < FEWEST_FALLS:
        return 1.0
    rate, step = _chance(outside, others)
    step = step or float(bases @ bases) / base
    if lost - won <= -ndtri(OWN_RISK) * math.sqrt(2 * float(gains @ gains) + step**2):
        return 1.0
    chance, borne = rate * base / step, margin * base / step
    return float(betainc(lost / step, LIKENESS + won / step, (chance + borne) / (LIKENESS + 2 * chance + borne)))


def _chance(differences: Values, bases: Values) -> tuple[float, float]:
    """What chance takes per unit of the reference, and the size of its steps: sum of squares by sum.

    Chance takes as much as it gives, and a change for all adds to one of the two; so the lesser of what fell and what rose
    is taken. Both are 0 where nothing fell or nothing rose.
    """
    fell, rose = np.maximum(-differences, 0), np.maximum(differences, 0)
    lesser = fell if fell.sum() < rose.sum() else rose
    total = float(lesser.sum())
    return (total / float(bases.sum()), float(lesser @ lesser) / total) if total and bases.sum() else (0.0, 0.0)


def holm(p_values: list[float], risk: float) -> list[bool]:
    """Which hypotheses are rejected when the chance of one false rejection among all of them is at most ``risk``.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Example:
        >>> holm([0.01, 0.04, 0.03], 0.05)  # 0.01 <= .05 / 3, then 0.03 > .05 / 2
        [True, False, False]
    """
    rejected = [False] * len(p_values)
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > risk / (len(p_values) - place):
            break
        rejected[index] = True
    return rejected

"""Does a learned reward speak the truth? Asked inside a user's candidates, and of a change of policy.

Reads rewards and true utilities of the same sessions (:mod:`pipelines.simulation.users` has the truth); produces rank
correlations and an agreement with bootstrap intervals over users.

Legend: N users, S sessions per user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.contracts.errors import DataError
from recsys.metrics.bootstrap import Estimate, estimate_means

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RewardAgreement:
    """Does a learned reward order a user's candidate sessions as the truth does?

    Attributes:
        users: Users whose candidates differ in reward and in truth; only they can be evaluated.
        spearman: Rank correlation inside a user's candidates, mean over users.
        picked_by_reward: True utility of the candidate that the reward likes best, minus the mean of the candidates.
        picked_by_truth: The same for the truly best candidate: all that a reward could gain by picking.
        worst_by_reward: The same for the candidate that the reward likes least.
    """

    users: int
    spearman: Estimate
    picked_by_reward: Estimate
    picked_by_truth: Estimate
    worst_by_reward: Estimate

    def __str__(self) -> str:
        return (
            f"reward against truth, {self.users} users: Spearman {self.spearman}; utility above the candidates' mean: "
            f"reward's best {self.picked_by_reward}, truly best {self.picked_by_truth}, "
            f"reward's worst {self.worst_by_reward}"
        )


def reward_agreement(
    reward: npt.NDArray[np.floating],
    utility: npt.NDArray[np.floating],
    exists: npt.NDArray[np.bool_],
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> RewardAgreement:
    """Compare reward and truth of the same candidates, user by user.

    Args:
        reward: ``[N, S]``; any scale, only the order inside a row counts.
        utility: ``[N, S]`` true utility.
        exists: ``[N, S]`` false for a candidate without items.

    Raises:
        DataError: No user has candidates that differ in reward and in truth.

    Example:
        >>> reward = np.array([[1.0, 2.0, 3.0]])
        >>> result = reward_agreement(reward, np.array([[0.1, 0.5, 0.9]]), np.ones((1, 3), bool), resamples=10)
        >>> result.spearman.mean, round(result.picked_by_reward.mean, 3)
        (1.0, 0.4)
    """
    rows = []
    for mine, true, real in zip(reward, utility, exists, strict=True):
        mine, true = mine[real].astype(np.float64), true[real].astype(np.float64)
        if len(mine) < 2 or np.ptp(mine) == 0 or np.ptp(true) == 0:
            continue
        rho = np.corrcoef(stats.rankdata(mine), stats.rankdata(true))[0, 1]
        mean = true.mean()
        rows.append((rho, true[mine.argmax()] - mean, true.max() - mean, true[mine.argmin()] - mean))
    if not rows:
        raise DataError(
            "no user has two candidate sessions that differ in reward and in truth; roll out more sessions per user"
        )
    estimates = estimate_means(np.array(rows), resamples=resamples, seed=seed, confidence=confidence)
    return RewardAgreement(len(rows), *estimates)


Agreement = Literal["agrees", "gamed", "no gain", "undecided"]


@dataclass(frozen=True)
class Gaming:
    """What a change of policy did to the learned reward and to the truth, on the same users.

    Attributes:
        reward: After minus before.
        truth: After minus before.
    """

    reward: Estimate
    truth: Estimate

    @property
    def agreement(self) -> Agreement:
        """Say what happened, by whether the intervals hold 0.

        ``agrees``: both rose; ``gamed``: the reward rose and the truth fell; ``undecided``: the reward rose, and of the
        truth one cannot tell; ``no gain``: the reward did not rise.
        """
        if self.reward.sign <= 0:
            return "no gain"
        return {1: "agrees", -1: "gamed", 0: "undecided"}[self.truth.sign]  # type: ignore[return-value]

    def __str__(self) -> str:
        return f"{self.agreement}: reward {self.reward}, truth {self.truth}"


def is_gamed(
    reward_before: npt.NDArray[np.floating],
    reward_after: npt.NDArray[np.floating],
    truth_before: npt.NDArray[np.floating],
    truth_after: npt.NDArray[np.floating],
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Gaming:
    """Compare two policies by a learned reward and by the truth; all arguments are ``[N]``, one number per user.

    The reward must be on one scale for both policies; a reward standardised inside a candidate group is not.

    Raises:
        ValueError: The arguments have different lengths.
    """
    values = [np.asarray(value, np.float64) for value in (reward_before, reward_after, truth_before, truth_after)]
    if len({value.shape for value in values}) != 1 or values[0].ndim != 1:
        raise ValueError(f"expected four arrays [N], got shapes {[value.shape for value in values]}")
    gains = np.stack([values[1] - values[0], values[3] - values[2]], axis=1)
    return Gaming(*estimate_means(gains, resamples=resamples, seed=seed, confidence=confidence))

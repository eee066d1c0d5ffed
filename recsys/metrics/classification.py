"""How good predicted session labels are: AUC, AUC inside a user, cross-entropy, calibration; with bootstrap intervals.

Pure NumPy. Users are drawn with replacement, with all their sessions, because sessions of one user are not independent; all
systems are evaluated on the same draws, so differences are paired.

Legend: N sessions, U users, R resamples, G groups of equal score.

Source: the AUC is the Mann-Whitney statistic, ties counted half; its average over users is the GAUC of Zhu et al. 2017
(arXiv 1703.02091), with the number of sessions as weight.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.metrics.bootstrap import MetricEstimate, draw_blocks, means_of_draws

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

BLOCK_ENTRIES = 1 << 22


def auc(scores: npt.NDArray[np.floating], positive: Flags) -> float:
    """Probability that a positive scores above a negative, ties counted half; NaN with one kind only.

    Example:
        >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))  # (1 + 1 + 0.5 + 1) / 4
        0.875
    """
    order = np.argsort(scores, kind="stable")
    return float(_weighted_auc(scores[order], positive[order], np.ones((1, len(scores)), np.float32))[0])


def auc_samples(
    scores: npt.NDArray[np.floating], positive: Flags, owner: npt.NDArray[np.integer], draws: npt.NDArray[np.integer]
) -> Values:
    """AUC of every resample, ``[R]``.

    Args:
        owner: ``[N]`` user of each session, from 0.
        draws: ``[R, U]`` how often each user came up, from :func:`~recsys.metrics.bootstrap.user_draws`.
    """
    step = max(1, BLOCK_ENTRIES // max(1, len(scores)))
    order = np.argsort(scores, kind="stable")
    ordered, hit, times = scores[order], positive[order], draws.astype(np.float32)
    blocks = [times[begin : begin + step][:, owner[order]] for begin in range(0, len(draws), step)]
    return np.concatenate([_weighted_auc(ordered, hit, block) for block in blocks])


def _weighted_auc(ordered: npt.NDArray[np.floating], positive: Flags, weights: npt.NDArray[np.float32]) -> Values:
    """AUC of every row of weights ``[R, N]``; scores ascend."""
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.empty(0, np.int64)
    if not len(starts):
        return np.full(len(weights), np.nan)
    # whole numbers below 2**24 are exact in float32; running sums may be larger
    positive_RG = np.add.reduceat(weights * positive, starts, axis=1)
    negative_RG = np.add.reduceat(weights * ~positive, starts, axis=1)
    below_RG = np.cumsum(negative_RG, axis=1, dtype=np.float64) - negative_RG
    wins = (positive_RG * (below_RG + 0.5 * negative_RG)).sum(1)
    pairs = positive_RG.sum(1, dtype=np.float64) * negative_RG.sum(1, dtype=np.float64)
    return np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)


def user_aucs(
    scores: npt.NDArray[np.floating], positive: Flags, owner: npt.NDArray[np.integer], num_users: int
) -> tuple[Values, Values]:
    """AUC inside each user, ``[U]`` (NaN for a user with one kind of session only), and the user's number of sessions."""
    order = np.lexsort((scores, owner))
    user, ordered, hit = owner[order], scores[order], positive[order].astype(np.float64)
    new_group = np.append(True, (user[1:] != user[:-1]) | (ordered[1:] != ordered[:-1]))
    starts = np.flatnonzero(new_group)
    positive_G, all_G = np.add.reduceat(hit, starts), np.diff(np.append(starts, len(user)))
    negative_G = all_G - positive_G
    group_user = user[starts]
    total_negative = np.bincount(group_user, negative_G, num_users)
    total_positive = np.bincount(group_user, positive_G, num_users)
    earlier_users = np.cumsum(total_negative) - total_negative
    below_G = np.cumsum(negative_G) - negative_G - earlier_users[group_user]
    wins = np.bincount(group_user, positive_G * (below_G + 0.5 * negative_G), num_users)
    pairs = total_positive * total_negative
    aucs = np.divide(wins, pairs, out=np.full(num_users, np.nan), where=pairs > 0)
    return aucs, np.bincount(owner, minlength=num_users).astype(np.float64)


def metric_estimates(
    predicted: npt.NDArray[np.floating],
    labels: npt.NDArray[np.floating],
    users: npt.NDArray[np.integer],
    *,
    resamples: int,
    seed: int,
) -> dict[str, MetricEstimate]:
    """Evaluate predictions of one tower.

    Args:
        predicted: ``[N]`` probabilities.
        labels: ``[N]`` in [0, 1], all known; 0.5 and above is the positive class of both AUCs.
        users: ``[N]`` whose session it is; any integers.

    Returns:
        ``auc``, ``user_auc`` (inside a user, averaged with the user's number of sessions as weight), ``bce`` (nats; the
        entropy of soft labels is part of it).
    """
    owner = np.unique(users, return_inverse=True)[1]
    num_users = int(owner.max()) + 1
    positive = labels >= 0.5
    aucs, sessions = user_aucs(predicted, positive, owner, num_users)
    losses: Values = np.bincount(owner, cross_entropy(predicted, labels), num_users).astype(np.float64)
    known = ~np.isnan(aucs)
    parts: dict[str, list[Values]] = {"auc": [], "user_auc": [], "bce": []}
    for draws in draw_blocks(num_users, resamples, seed):
        parts["auc"].append(auc_samples(predicted, positive, owner, draws))
        parts["user_auc"].append(means_of_draws(draws[:, known], (aucs * sessions)[known], sessions[known]))
        parts["bce"].append(means_of_draws(draws, losses, sessions))
    whole = {name: np.concatenate(samples) for name, samples in parts.items()}
    return {name: MetricEstimate(float(samples[0]), samples[1:]) for name, samples in whole.items()}


def cross_entropy(predicted: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> Values:
    """``[N]`` binary cross-entropy in nats; probabilities are kept a millionth away from 0 and 1.

    Example:
        >>> cross_entropy(np.array([0.5, 0.25]), np.array([1.0, 0.0])).round(4).tolist()  # ln 2, -ln 0.75
        [0.6931, 0.2877]
    """
    p = np.clip(predicted.astype(np.float64), 1e-6, 1 - 1e-6)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def reliability(
    predicted: npt.NDArray[np.floating], labels: npt.NDArray[np.floating], bins: int
) -> tuple[pl.DataFrame, float]:
    """Compare mean prediction and mean label in bins of equal size, and return the expected calibration error.

    Returns:
        Table ``bin, sessions, predicted, observed`` and the mean of ``|predicted - observed|`` weighted by sessions.

    Example:
        >>> table, error = reliability(np.array([0.1, 0.3, 0.6, 0.8]), np.array([0.0, 0.0, 1.0, 1.0]), 2)
        >>> table["observed"].to_list(), round(error, 3)  # (|0.2 - 0| + |0.7 - 1|) / 2
        ([0.0, 1.0], 0.25)
    """
    chunks = [part for part in np.array_split(np.argsort(predicted, kind="stable"), bins) if len(part)]
    table = pl.DataFrame(
        {
            "bin": np.arange(len(chunks)),
            "sessions": [len(part) for part in chunks],
            "predicted": [float(predicted[part].mean()) for part in chunks],
            "observed": [float(labels[part].mean()) for part in chunks],
        }
    )
    gaps = (table["predicted"] - table["observed"]).abs() * table["sessions"]
    return table, float(gaps.sum()) / len(predicted)

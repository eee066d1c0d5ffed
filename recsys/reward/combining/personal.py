"""Weights of the towers that are a user's own: what somebody does often counts more for that user, what never, less.

A user's reactions are read off the request's own history: the share of its events with each signal, and the mean watched
share. Held against everybody's, and pulled towards them by as many events of an average user as ``shrinkage`` says, they
give a factor on each tower's weight. Nothing is kept per user, so a new user is served as well, nobody's later reactions
are known earlier, and no user's labels reach a reward model that was not trained on them.

Source: the idea of CoPL (arXiv 2503.01658), one reward per user out of sparse feedback of their own and everybody's; its
model, a graph of users and answers, is not built here. The estimate is the mean of a gamma-Poisson posterior.

Legend: B requests, T towers, E events of a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.columns import Columns
from recsys.data.histories import Histories

FloatArray = npt.NDArray[np.float32]

_WATCHED_SHARE: Final = np.array([np.nan, 0.025, 0.075, 0.15, 0.275, 0.425, 0.6, 0.8, 1.0, 1.3, 1.75, 2.0])
"""Middle of each bucket of watched share (:func:`recsys.contracts.event_features.watch_buckets`); 0 is not known."""


def reactions(
    histories: Histories, columns: Sequence[str], signals: Sequence[str], max_history: int
) -> tuple[FloatArray, FloatArray]:
    """Sum a user's reactions over the last events of the history.

    Args:
        columns: ``[T]`` what each tower is about: a signal, or ``watch_time_ms``, for which watched shares are summed.
        signals: In the order of the behaviour code.
        max_history: Events that are read.

    Returns:
        Sums and numbers of events in which the reaction is known, ``[B, T]`` each; 0 of 0 for a column that histories do
        not have.

    Example:
        >>> events = {name: np.zeros(3, np.uint8) for name in ("gap", "watch")}
        >>> likes = np.array([2, 1, 0], np.uint8)  # liked, not liked, not known
        >>> one = Histories(np.array([7]), np.array([0]), np.array([3]), np.zeros(3, np.int32), likes, **events)
        >>> [part.tolist() for part in reactions(one, ["like"], ["like"], 50)]
        [[[1.0]], [[2.0]]]
    """
    start = np.maximum(histories.start, histories.end - max_history)
    lengths = histories.end - start
    first = np.cumsum(lengths) - lengths
    rows = np.repeat(start - first, lengths) + np.arange(int(lengths.sum()))
    owner = np.repeat(np.arange(len(histories)), lengths)
    behaviour = histories.behaviour[rows].astype(np.int64)
    sums = np.zeros((len(histories), len(columns)), np.float32)
    counts = np.zeros_like(sums)
    for tower, column in enumerate(columns):
        if column == Columns.WATCH_TIME_MS:
            values = _WATCHED_SHARE[histories.watch[rows]]
        elif column in signals:
            bit = (behaviour - 1) >> list(signals).index(column) & 1
            values = np.where(behaviour > 0, bit, np.nan)
        else:
            continue
        known = ~np.isnan(values)
        sums[:, tower] = np.bincount(owner[known], values[known], len(histories))
        counts[:, tower] = np.bincount(owner[known], minlength=len(histories))
    return sums, counts


def personal_weights(
    weights_T: torch.Tensor,
    sums_BT: FloatArray,
    counts_BT: FloatArray,
    average_T: torch.Tensor,
    *,
    shrinkage: float,
    largest: float,
) -> torch.Tensor:
    """Weights of each request, ``[B, T]``, whose sizes add up to those of ``weights_T``.

    Args:
        average_T: Everybody's mean reaction per event; a tower with 0 keeps its weight.
        shrinkage: Events of an average user that are added to everybody's own.
        largest: The factor on a weight lies between its inverse and itself, before weights are scaled to their sum.

    Example:
        >>> sums, counts = np.array([[6.0, 0.0]]), np.array([[10.0, 10.0]])  # likes 6 of 10 where others do 2
        >>> average = torch.tensor([0.2, 0.2])  # (6 / .2 + 10) / 20 = 2 and (0 + 10) / 20 = 1/2; of 2.5 in all
        >>> personal_weights(torch.ones(2), sums, counts, average, shrinkage=10, largest=4).tolist()
        [[1.600000023841858, 0.4000000059604645]]
    """
    sums, counts = (torch.from_numpy(np.asarray(part, np.float32)) for part in (sums_BT, counts_BT))
    weights, average = weights_T.cpu(), average_T.cpu()
    known = average > 0
    own = sums / average.where(known, 1.0)
    factor = ((own + shrinkage) / (counts + shrinkage)).where(known, 1.0).clamp(1 / largest, largest)
    changed = weights * factor
    return changed * (weights.abs().sum() / changed.abs().sum(1, keepdim=True).clamp(min=1e-12))

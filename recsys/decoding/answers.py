"""What an answer must be before it leaves: a number of items that can be asked for, and scores that are numbers.

A policy whose weights are damaged, or whose training diverged, gives NaN. Such a score is never served: lists put it behind
every number, and a list that would still hold one is refused by :func:`refuse_non_finite`, for all entrances alike.

Legend: N users, k places, B users of a batch, C candidates of a user.
"""

from __future__ import annotations

from numbers import Integral
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.data.histories import Histories
from recsys.decoding.rules.item_rules import Quotas

NO_ITEM: Final = -1

LONGEST_LIST: Final = 10_000
"""The search holds a beam for every place of a list."""


def check_count(count: object, name: str) -> None:
    """Refuse a number of answers that is none.

    Raises:
        ConfigError: It is no whole number from 1 to :data:`LONGEST_LIST`.
    """
    if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= int(count) <= LONGEST_LIST:
        raise ConfigError(f"{name} is {count!r}, expected a whole number from 1 to {LONGEST_LIST:,}")


def sort_key(score_BC: torch.Tensor) -> torch.Tensor:
    """Scores as torch is to sort them, highest first: numbers, then NaN, which torch puts first, then ``-inf``.

    Example:
        >>> sort_key(torch.tensor([torch.nan, -torch.inf, 2.0])).argsort(descending=True).tolist()
        [2, 0, 1]
    """
    lowest = torch.finfo(score_BC.dtype).min
    return score_BC.nan_to_num(nan=lowest, posinf=torch.inf, neginf=-torch.inf)


def within_quotas(
    item_BC: torch.Tensor, score_BC: torch.Tensor, quotas: Quotas | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take out of ordered lists what a list of ``k`` cannot hold; the places at the end become -1 and ``-inf``."""
    if quotas is None:
        return item_BC, score_BC
    out_BC = ~quotas.admitted(item_BC, k)
    back = out_BC.sort(dim=1, stable=True).indices
    item_BC, score_BC = item_BC.masked_fill(out_BC, NO_ITEM), score_BC.masked_fill(out_BC, -torch.inf)
    return item_BC.gather(1, back), score_BC.gather(1, back)


def refuse_non_finite(scores: npt.NDArray[np.floating], exists: npt.NDArray[np.bool_], histories: Histories) -> None:
    """Refuse an answer with a score that is no finite number.

    Args:
        scores: ``[N, k]``.
        exists: bool ``[N, k]``, where there is an item or a session; what stands elsewhere is not looked at.
        histories: The N users.

    Raises:
        ArtifactError: As said; it names the first such user and how many there are.

    Example:
        >>> nobody = np.zeros(1, np.int64)
        >>> one = Histories(np.array([7], np.int32), nobody, nobody, *[np.empty(0, np.uint8)] * 4)
        >>> refuse_non_finite(np.array([[np.nan, 1.0]]), np.array([[False, True]]), one)
        >>> refuse_non_finite(np.array([[np.nan, 1.0]]), np.array([[True, True]]), one)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        recsys.contracts.errors.ArtifactError: the model gives 1 of 1 users a score that is no finite number, first row 0 ...
    """
    bad = np.flatnonzero((exists & ~np.isfinite(scores)).any(1))
    if not len(bad):
        return
    row = int(bad[0])
    place = int(np.flatnonzero(exists[row] & ~np.isfinite(scores[row]))[0])
    user = int(histories.user_index[row])
    named = f"row {row}" + (f" (user_index {user})" if user >= 0 else "")
    raise ArtifactError(
        f"the model gives {len(bad)} of {len(scores)} users a score that is no finite number, first {named} at rank "
        f"{place + 1}: {scores[row, place]}; nothing is served. Its weights are damaged, or the training that made them "
        "diverged: look at the losses in its curves, train again with a lower train.learning_rate, or go back to an "
        "earlier version"
    )

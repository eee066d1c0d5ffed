"""Worst-group weighting: groups of users, and weights of their losses that grow where the loss is large.

Minimising the mean loss serves the many. Group DRO minimises the largest of the groups' losses instead: after every step the
weight of a group is multiplied by ``exp(step size * its loss)`` and all are scaled to sum 1; the loss is the weighted sum.

Source: Sagawa et al., "Distributionally Robust Neural Networks" (arXiv 1911.08731), Algorithm 1, for batches that hold
several groups: a group without a row in the batch has loss 0 in it, as in the authors' code.

Legend: B sessions of a batch, N candidates of each, T towers, U users, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.nn.functional as F

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.reward.loss import reward_loss
from recsys.reward.model import RewardScores

MOST_GROUPS: Final = 64
"""More are no groups but identities, and a batch would hold hardly a row of each."""
NOT_KNOWN: Final = "not known"


@dataclass(frozen=True)
class UserGroups:
    """Which group each user is in.

    Attributes:
        names: Of the G groups, ascending.
        of_user_U: int64 ``[U]`` group of each user_index.
    """

    names: tuple[str, ...]
    of_user_U: npt.NDArray[np.int64]

    @classmethod
    def of(cls, prepared: Dataset, column: str) -> UserGroups:
        """Read the groups off a column of ``users.parquet``.

        Raises:
            DataError: There is no such column, or it makes one group or more than 64.
        """
        users = prepared.users
        if column not in users.columns:
            raise DataError(
                f"reward model: reward.train.worst_group reads column '{column}', which users.parquet does not have "
                f"(columns: {', '.join(users.columns)}); carry it there by source.user_columns, or leave the option out"
            )
        values = users[column].cast(pl.String).fill_null(NOT_KNOWN)
        names = tuple(values.unique().sort().to_list())
        if not 2 <= len(names) <= MOST_GROUPS:
            raise DataError(
                f"reward model: column '{column}' of users.parquet makes {len(names)} group(s), expected 2 to "
                f"{MOST_GROUPS}; name another in reward.train.worst_group.column"
            )
        place = {name: number for number, name in enumerate(names)}
        return cls(names, values.replace_strict(place, return_dtype=pl.Int64).to_numpy())


def group_losses(
    scores: RewardScores, labels_BNT: torch.Tensor, weights_T: torch.Tensor, group_B: torch.Tensor, num_groups: int
) -> torch.Tensor:
    """``[G]`` the reward loss over the rows of each group alone; 0 for a group without rows."""
    losses = []
    for group in range(num_groups):
        rows = torch.nonzero(group_B == group)[:, 0]
        if len(rows):
            fused = None if scores.fused is None else scores.fused[rows]
            losses.append(reward_loss(RewardScores(scores.logits[rows], fused), labels_BNT[rows], weights_T))
        else:
            losses.append(scores.logits.new_zeros(()))
    return torch.stack(losses)


def next_weights(weights_G: torch.Tensor, losses_G: torch.Tensor, step_size: float) -> torch.Tensor:
    """The exponentiated-gradient step on the weights of the groups.

    Example:
        >>> weights = next_weights(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), 0.6931472)  # times 1 and 2
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.3333, 0.6667]
    """
    return (weights_G.log() + step_size * losses_G.detach()).softmax(0)


def sums_by_group(
    logits_BNT: torch.Tensor, labels_BNT: torch.Tensor, group_B: torch.Tensor, num_groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of cross-entropies and numbers of known labels, ``[G, T]`` each."""
    known = ~labels_BNT.isnan()
    losses = F.binary_cross_entropy_with_logits(logits_BNT, labels_BNT.nan_to_num(0.0), reduction="none") * known
    towers = logits_BNT.shape[-1]
    sums, counts = (logits_BNT.new_zeros(num_groups, towers) for _ in range(2))
    return sums.index_add(0, group_B, losses.sum(1)), counts.index_add(0, group_B, known.sum(1).to(counts))

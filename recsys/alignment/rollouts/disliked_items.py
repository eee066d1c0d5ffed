"""What users said they do not want: explicit dislikes of a log, beside what they took.

Reads the raw feedback of a prepared data set; produces, per user, the items that got a negative signal and were never taken.
A session that differs from the user's own in its last item alone, which is one of these, is the plainest rejected
candidate there is: no model had to evaluate it.

Legend: U users, E disliked items of all users, N requests, M items of a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError

NOTHING = -1


@dataclass(frozen=True)
class DislikedItems:
    """Disliked items of every user.

    Attributes:
        items: ``[E]`` item_index, user by user.
        offsets: ``[U + 1]``; user ``u`` owns ``items[offsets[u]:offsets[u + 1]]``.
    """

    items: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def from_events(cls, dataset: Dataset, signals: Sequence[str], split: int) -> DislikedItems:
        """Read one split; an item that the user also took, in it or an earlier one, is not disliked.

        What is taken later is not known yet: it would tell which of a user's dislikes are wanted in held-out rows.

        Raises:
            DataError: None of the signals is in the data set, one is no yes/no signal, or nobody in the split gave any.
        """
        events = dataset.events
        known = [name for name in signals if name in events.columns]
        if not known:
            raise DataError(
                f"dislikes: the data set has none of the signals {', '.join(signals)} (it has "
                f"{', '.join(dataset.spec.signals) or 'none'}); declare them in source.signals and run `prepare` again, or "
                "name others in align.ipa.dislikes.signals"
            )
        for name in known:
            if events.schema[name] != pl.Boolean:
                raise DataError(
                    f"dislikes: signal '{name}' is {events.schema[name]}, expected Boolean; name yes/no signals"
                )
        pair = [Columns.USER_INDEX, Columns.ITEM_INDEX]
        said = pl.any_horizontal(pl.col(name).fill_null(False) for name in known)
        found = (
            events.filter(said & (pl.col(Columns.SPLIT) == split) & ~pl.col(Columns.POSITIVE))
            .select(pair)
            .unique()
            .join(
                events.filter(pl.col(Columns.POSITIVE) & (pl.col(Columns.SPLIT) <= split)).select(pair),
                on=pair,
                how="anti",
            )
            .sort(pair)
        )
        if not len(found):
            raise DataError(
                f"dislikes: no {SPLIT_NAMES[split]} event has {' or '.join(known)} without being taken as well; leave "
                "align.ipa.dislikes out"
            )
        users = found[Columns.USER_INDEX].to_numpy()
        offsets = np.searchsorted(users, np.arange(dataset.spec.num_users + 1))
        return cls(found[Columns.ITEM_INDEX].to_numpy().astype(np.int64), offsets.astype(np.int64))

    def draw(self, users_N: npt.NDArray[np.integer], generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """One disliked item per request, at random; :data:`NOTHING` for a user who disliked none.

        Example:
            >>> disliked = DislikedItems(np.array([7, 8]), np.array([0, 0, 2]))
            >>> drawn = disliked.draw(np.array([0, 1, 1]), np.random.default_rng(0))
            >>> int(drawn[0]), set(drawn[1:].tolist()) <= {7, 8}
            (-1, True)
        """
        first, count = self.offsets[users_N], self.offsets[users_N + 1] - self.offsets[users_N]
        place = first + (generator.random(len(users_N)) * count).astype(np.int64)
        return np.where(count > 0, self.items[np.minimum(place, len(self.items) - 1)], NOTHING)


def with_last_item(sessions_NM: torch.Tensor, item_N: torch.Tensor) -> torch.Tensor:
    """The sessions with another last item, ``[N, M]``.

    Example:
        >>> with_last_item(torch.tensor([[3, 4, -1]]), torch.tensor([9])).tolist()
        [[3, 9, -1]]
    """
    last_N1 = (sessions_NM >= 0).sum(1, keepdim=True) - 1
    return sessions_NM.scatter(1, last_N1.clamp(min=0), item_N[:, None])

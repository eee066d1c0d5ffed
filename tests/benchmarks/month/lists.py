"""What a model recommends on a night, and what that is truly worth to the users of that night.

Reads candidates and bundles; produces utilities per user under the world's own preferences. A list of ten is worth what its
items bring when they are shown in order: views, likes, follows and shares, weighted as in the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.sources.simulated.catalogue import FIRST_ITEM_ID
from features.sources.simulated.days import GrowingWorld
from features.sources.simulated.visits import FIRST_USER_ID
from recsys.contracts.manifest import open_artifact
from serving.answers.frame import answer_frame
from serving.answers.scorer import Scorer
from serving.inputs.user_histories import PreparedUsers

LENGTH = 10
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Worth:
    """Utility per user.

    Attributes:
        users: ``[N]`` user_id, ascending.
        values: ``[N]``.
    """

    users: npt.NDArray[np.int64]
    values: Values

    @property
    def mean(self) -> float:
        """Over users."""
        return float(self.values.mean())


def worth(world: GrowingWorld, lists: pl.DataFrame) -> Worth:
    """Ask the world for the truth about lists.

    Args:
        lists: ``user_id``, ``item_id``, ``rank`` from 1; a user without a list has no row.
    """
    shown = lists.filter(pl.col("rank") <= LENGTH).sort("user_id", "rank")
    users = shown["user_id"].unique(maintain_order=True).to_numpy().astype(np.int64)
    sessions = np.full((len(users), LENGTH), -1, np.int64)
    row = np.searchsorted(users, shown["user_id"].to_numpy())
    sessions[row, shown["rank"].to_numpy() - 1] = shown["item_id"].to_numpy() - FIRST_ITEM_ID
    return Worth(users, world.true_utility(users - FIRST_USER_ID, sessions).astype(np.float64))


def attainable(world: GrowingWorld, users: npt.NDArray[np.int64]) -> Worth:
    """What lists of the greatest worth would bring these users."""
    return Worth(users, world.attainable(users - FIRST_USER_ID, LENGTH).astype(np.float64))


def candidates(folder: Path) -> pl.DataFrame:
    """The lists that a batch job wrote."""
    return pl.read_parquet(folder / "part-*.parquet", columns=["user_id", "item_id", "rank"])


def answers(bundle: Path, prepared: Path) -> pl.DataFrame:
    """The lists that a bundle would give all users of a prepared data set, unseen items only."""
    scorer = Scorer.open(bundle)
    users = PreparedUsers(prepared, open_artifact(prepared, verify=False).digest)
    found = scorer.answer(scorer.request(users, LENGTH))
    return answer_frame(found, scorer.catalogue.item_ids).select("user_id", "item_id", "rank")


def paired(pairs: list[tuple[Worth, Worth]], seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """The mean difference of two arms over nights, as a share of the second, with a bootstrap interval over users.

    Args:
        pairs: Both arms, night by night; users who are in both count. A user's nights are drawn together.

    Returns:
        Difference and the ends of its 95 % interval.
    """
    rows: list[Any] = []
    for ours, theirs in pairs:
        both, left, right = np.intersect1d(ours.users, theirs.users, return_indices=True)
        rows.append(np.stack([both, ours.values[left], theirs.values[right]]))
    user, mine, other = np.concatenate(rows, axis=1)
    _, place = np.unique(user, return_inverse=True)
    sums = np.stack([np.bincount(place, mine), np.bincount(place, other)])
    rng = np.random.default_rng(seed)
    drawn = np.stack(
        [rng.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1])) for _ in range(resamples)]
    )
    ours_of, theirs_of = drawn @ sums[0], drawn @ sums[1]
    low, high = np.quantile(ours_of / theirs_of - 1, [0.025, 0.975])
    return float(sums[0].sum() / sums[1].sum() - 1), float(low), float(high)

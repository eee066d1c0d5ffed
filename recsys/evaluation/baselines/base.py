"""What all baselines share: the interface, the events they may count, weighted histories, ranking in blocks.

Reads a prepared data set and :class:`~recsys.data.histories.Histories`; produces
:class:`~recsys.contracts.ranking.RankedItems`. A baseline is a function from a history to one score per item;
everything else (blocks of bounded memory, the seen filter, the order of ties) happens here, once.

Shape legend: N rows (histories), I items, E events, k places of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.contracts.dataset import Dataset, IntArray, OffsetArray
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems, concatenate, top_k
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import Until

FloatArray = npt.NDArray[np.float32]
State = TypeVar("State")

BLOCK_SCORES: Final = 1 << 24
"""Scores held at once (64 MB of float32); a block has at most 1024 rows and fewer when the catalogue is large."""

NEGLIGIBLE_WEIGHT: Final = 1e-6
"""Events of a history that weigh less than this are left out; they cannot change an order that anybody would defend."""


class Ranker(Protocol):
    """A recommender that needs no semantic IDs; every implementation passes ``tests/suites/test_baselines.py``."""

    @property
    def name(self) -> str:
        """Name in tables and in ``EvaluateConfig.baselines``."""
        ...

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count or train.

        Args:
            seed: Same data and seed give the same rankings.
            until: Which events may be looked at: ``"train"`` is the rule of our tables, for baselines and generative
                models alike; ``"valid"`` adds the validation events, for use after all settings are fixed.
        """
        ...

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank the whole catalogue for each history and return the first ``k`` places.

        Args:
            histories: May be empty or hold users that were not seen in ``fit``; items of -1 are skipped.
            exclude_seen: Leave out the items of the history given (not of the user's other events).
        """
        ...


@dataclass(frozen=True)
class CountedEvents:
    """The positive events that a baseline may look at, sorted by user, then time.

    Attributes:
        user: ``[E]`` user_index.
        item: ``[E]`` item_index.
        timestamp: ``[E]`` UTC microseconds, -1 not known.
        age: ``[E]`` how many later events the user has among the counted ones; 0 is the user's last.
    """

    user: IntArray
    item: IntArray
    timestamp: OffsetArray
    age: OffsetArray

    @classmethod
    def from_dataset(cls, prepared: Dataset, until: Until) -> CountedEvents:
        """Collect the events.

        Raises:
            DataError: There is none.
        """
        history = prepared.history
        ends = history.train_end if until == "train" else history.valid_end
        row, flat = ragged_rows(np.asarray(history.offsets[:-1]), np.asarray(ends))
        if not len(flat):
            raise DataError(f"no positive event lies before the end of the {until} split; check the dates of the split")
        return cls(
            user=row.astype(np.int32),
            item=np.asarray(history.item)[flat],
            timestamp=np.asarray(history.timestamp)[flat],
            age=np.asarray(ends)[row] - 1 - flat,
        )

    def user_item_matrix(self, num_users: int, num_items: int) -> sparse.csr_array:
        """Return the binary float32 matrix ``[U, I]``: 1 where the user has at least one counted event on the item."""
        ones = np.ones(len(self.item), np.float32)
        matrix = sparse.csr_array((ones, (self.user, self.item)), shape=(num_users, num_items))
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix


def ragged_rows(start: OffsetArray, end: OffsetArray) -> tuple[OffsetArray, OffsetArray]:
    """Enumerate the ranges ``[start, end)``: for every element its range number and its position.

    Example:
        >>> row, flat = ragged_rows(np.array([0, 5]), np.array([2, 6]))
        >>> row.tolist(), flat.tolist()
        ([0, 0, 1], [0, 1, 5])
    """
    lengths = (end - start).astype(np.int64)
    before = np.cumsum(lengths) - lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row, np.repeat(start - before, lengths) + np.arange(len(row))


def history_weights(histories: Histories, num_items: int, decay: float) -> sparse.csr_array:
    """Weigh each history's items by recency: ``decay ** (number of later events)``; repeats add up.

    Args:
        decay: In (0, 1]; 1 counts all events alike.

    Returns:
        ``[N, I]`` float32, sparse.
    """
    reach = len(histories.item) if decay >= 1.0 else int(np.ceil(np.log(NEGLIGIBLE_WEIGHT) / np.log(decay)))
    row, flat = ragged_rows(np.maximum(histories.start, histories.end - reach), histories.end)
    item = np.asarray(histories.item)[flat]
    weight = np.power(decay, histories.end[row] - 1 - flat)
    known = _known_items(item, num_items)
    triplets = (weight[known].astype(np.float32), (row[known], item[known]))
    return sparse.csr_array(triplets, shape=(len(histories), num_items))


def hide_seen(scores: FloatArray, histories: Histories) -> None:
    """Set the scores ``[N, I]`` of the items in each history to ``-inf``, in place."""
    row, flat = ragged_rows(histories.start, histories.end)
    item = np.asarray(histories.item)[flat]
    known = _known_items(item, scores.shape[1])
    scores[row[known], item[known]] = -np.inf


def rank_in_blocks(
    score: Callable[[Histories], FloatArray], histories: Histories, num_items: int, k: int, exclude_seen: bool
) -> RankedItems:
    """Rank by dense scores with bounded memory.

    Args:
        score: Returns fresh float32 scores ``[n, I]`` for a block of histories; they may be overwritten.
    """
    block = max(1, min(1024, BLOCK_SCORES // max(num_items, 1)))
    parts = [RankedItems(np.empty((0, k), np.int32), np.empty((0, k), np.float32))]
    for begin in range(0, len(histories), block):
        rows = histories.take(np.arange(begin, min(begin + block, len(histories))))
        scores = score(rows)
        if exclude_seen:
            hide_seen(scores, rows)
        parts.append(top_k(scores, k))
    return concatenate(parts)


def fitted(state: State | None, name: str) -> State:
    """Return what ``fit`` learned.

    Raises:
        ValueError: ``rank`` was called first.
    """
    if state is None:
        raise ValueError(f"baseline '{name}': rank was called before fit; call fit(prepared, seed, until) first")
    return state


def _known_items(item: IntArray, num_items: int) -> npt.NDArray[np.bool_]:
    if len(item) and int(item.max()) >= num_items:
        raise DataError(
            f"a history holds item_index {int(item.max())}, the baseline was fitted on {num_items} items; "
            "fit and rank with the same prepared data"
        )
    return item >= 0

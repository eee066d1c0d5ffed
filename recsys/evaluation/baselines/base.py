"""What all baselines share: the interface, and ranking in blocks; what they count stands in :mod:`recsys.scorers`.

Reads a prepared data set and :class:`~recsys.data.histories.Histories`; produces
:class:`~recsys.contracts.ranking.RankedItems`. A baseline is a function from a history to one score per item;
everything else (blocks of bounded memory, the seen filter, the order of ties) happens here, once.

Shape legend: N rows (histories), I items, k places of a ranking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, Protocol, Self, TypeVar

import numpy as np
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.contracts.ranking import RankedItems, concatenate, top_k
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import Scale
from recsys.scorers.config import Until
from recsys.scorers.events import FloatArray, history_weights, known_items, ragged_rows

State = TypeVar("State")

BLOCK_SCORES: Final = 1 << 24
"""Scores held at once (64 MB of float32); a block has at most 1024 rows and fewer when the catalogue is large."""


class FittedRanker(Protocol):
    """What has learned already and ranks."""

    @property
    def name(self) -> str:
        """Name in tables and in ``EvaluateConfig.baselines``."""
        ...

    @property
    def num_items(self) -> int:
        """Size of the catalogue it was fitted on."""
        ...

    def scores(self, histories: Histories) -> FloatArray:
        """Score the whole catalogue, ``[n, I]`` float32, higher is better; for blocks of rows that fit into memory."""
        ...

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank the whole catalogue for each history and return the first ``k`` places.

        Args:
            histories: May be empty or hold users that were not seen in ``fit``; items of -1 are skipped.
            exclude_seen: Leave out the items of the history given (not of the user's other events).
        """
        ...


class Ranker(FittedRanker, Protocol):
    """A recommender that needs no semantic IDs; every implementation passes ``tests/suites/test_baselines.py``."""

    @property
    def scale(self) -> Scale:
        """What its scores are; decides how they are made comparable with another's."""
        ...

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count or train.

        Args:
            seed: Same data and seed give the same rankings.
            until: Which events may be looked at: ``"train"`` is the rule of our tables, for baselines and generative
                models alike; ``"valid"`` adds the validation events, for use after all settings are fixed.
        """
        ...


class DenseRanker(ABC):
    """A baseline that says a score for every item, and ranks by it."""

    name: ClassVar[str]
    scale: ClassVar[Scale]

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Size of the catalogue it was fitted on."""

    @abstractmethod
    def scores(self, histories: Histories) -> FloatArray:
        """Fresh scores ``[n, I]``, float32; the caller may overwrite them."""

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank by the scores, in blocks of bounded memory; ties go to the lower item_index."""
        return rank_in_blocks(self.scores, histories, self.num_items, k, exclude_seen)


class DecayedHistory(Protocol):
    """Settings of a baseline that weighs the events of a history by recency."""

    @property
    def history_decay(self) -> float:
        """Weight of an event per later event, in (0, 1]."""
        ...


Config = TypeVar("Config", bound=DecayedHistory)


@dataclass(frozen=True)
class ItemPairs:
    """What a baseline learned about pairs of items.

    Attributes:
        weights: ``[I, I]``, row = item of the history; sparse, or dense float32.
        backoff: ``[I]`` added to every score; decides where the history says nothing.
    """

    weights: sparse.csr_array | FloatArray
    backoff: FloatArray


class PairRanker(DenseRanker, Generic[Config]):
    """Rank by the summed weights between the decayed history's items and every item."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._pairs: ItemPairs | None = None

    @classmethod
    @abstractmethod
    def fit_each(cls, prepared: Dataset, configs: Sequence[Config], until: Until) -> Iterator[Self]:
        """Fit several settings; neighbours in the sequence share what they count alike."""

    @classmethod
    def from_pairs(cls, config: Config, weights: sparse.csr_array | FloatArray, backoff: FloatArray) -> Self:
        """A fitted baseline."""
        ranker = cls(config)
        ranker._pairs = ItemPairs(weights, backoff.astype(np.float32))
        return ranker

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count or solve, as :meth:`fit_each` does; nothing is drawn, so the seed has no influence."""
        self._pairs = next(iter(self.fit_each(prepared, [self.config], until)))._pairs

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(fitted(self._pairs, self.name).backoff)

    def scores(self, histories: Histories) -> FloatArray:
        """Score by the weighted sum of the history's rows of weights."""
        pairs = fitted(self._pairs, self.name)
        summed = history_weights(histories, len(pairs.backoff), self.config.history_decay) @ pairs.weights
        dense = summed.toarray() if sparse.issparse(summed) else summed
        return np.asarray(dense + pairs.backoff, dtype=np.float32)


def hide_seen(scores: FloatArray, histories: Histories) -> None:
    """Set the scores ``[N, I]`` of the items in each history to ``-inf``, in place."""
    row, flat = ragged_rows(histories.start, histories.end)
    item = np.asarray(histories.item)[flat]
    known = known_items(item, scores.shape[1])
    scores[row[known], item[known]] = -np.inf


def rank_in_blocks(
    score: Callable[[Histories], FloatArray], histories: Histories, num_items: int, k: int, exclude_seen: bool
) -> RankedItems:
    """Rank by dense scores with bounded memory.

    Args:
        score: Returns fresh float32 scores ``[n, I]`` for a block of histories; they may be overwritten.
    """
    parts = [RankedItems(np.empty((0, k), np.int32), np.empty((0, k), np.float32))]
    for begin, end in blocks_of_rows(len(histories), num_items):
        rows = histories.take(np.arange(begin, end))
        scores = score(rows)
        if exclude_seen:
            hide_seen(scores, rows)
        parts.append(top_k(scores, k))
    return concatenate(parts)


def blocks_of_rows(num_rows: int, num_items: int) -> list[tuple[int, int]]:
    """Cut rows into blocks whose scores fit into memory, as ``(begin, end)``."""
    block = max(1, min(1024, BLOCK_SCORES // max(num_items, 1)))
    return [(begin, min(begin + block, num_rows)) for begin in range(0, num_rows, block)]


def fitted(state: State | None, name: str) -> State:
    """Return what ``fit`` learned.

    Raises:
        ValueError: ``rank`` was called first.
    """
    if state is None:
        raise ValueError(f"baseline '{name}': rank was called before fit; call fit(prepared, seed, until) first")
    return state

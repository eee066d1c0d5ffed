"""Item-based nearest neighbours as a baseline: :mod:`recsys.scorers.neighbours` counts, here they rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import DenseRanker, fitted
from recsys.evaluation.baselines.config import ItemKNNConfig, Scale
from recsys.scorers.config import Until
from recsys.scorers.events import CountedEvents, FloatArray, history_weights
from recsys.scorers.neighbours import cosine_similarity, keep_largest
from recsys.scorers.popularity import popularity_shares


@dataclass(frozen=True)
class _Fitted:
    similarity: sparse.csr_array
    backoff: FloatArray


class ItemKNN(DenseRanker):
    """Rank by the summed similarity to the history's items."""

    name: ClassVar[str] = "item_knn"
    scale: ClassVar[Scale] = "counts"

    def __init__(self, config: ItemKNNConfig | None = None) -> None:
        self.config = config or ItemKNNConfig()
        self._fitted: _Fitted | None = None

    @classmethod
    def fit_each(cls, prepared: Dataset, configs: Sequence[ItemKNNConfig], until: Until) -> Iterator[ItemKNN]:
        """Fit several settings; neighbours in the sequence that count alike share the similarities."""
        spec = prepared.spec
        events = CountedEvents.from_dataset(prepared, until)
        matrix = events.user_item_matrix(spec.num_users, spec.num_items)
        every: tuple[object, sparse.csr_array] = (None, None)
        kept: tuple[object, sparse.csr_array] = (None, None)
        for config in configs:
            if every[0] != config.shrinkage:
                every = config.shrinkage, cosine_similarity(matrix, config.shrinkage)
            if kept[0] != (key := (config.shrinkage, config.num_neighbours)):
                # row = candidate, so that every candidate listens to its own nearest neighbours only
                largest = every[1] if config.num_neighbours is None else keep_largest(every[1], config.num_neighbours)
                kept = key, sparse.csr_array(largest.T)
            shares = popularity_shares(events, spec.num_items, config.popularity)
            ranker = cls(config)
            ranker._fitted = _Fitted(kept[1], (1e-6 * shares).astype(np.float32))
            yield ranker

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count; nothing is drawn, so the seed has no influence."""
        self._fitted = next(self.fit_each(prepared, [self.config], until))._fitted

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(fitted(self._fitted, self.name).backoff)

    def scores(self, histories: Histories) -> FloatArray:
        """Score by the weighted sum of the history's similarity rows."""
        state = fitted(self._fitted, self.name)
        weights = history_weights(histories, len(state.backoff), self.config.history_decay)
        return np.asarray((weights @ state.similarity).toarray() + state.backoff, dtype=np.float32)

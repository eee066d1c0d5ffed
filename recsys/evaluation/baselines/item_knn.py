"""Item-based nearest neighbours as a baseline: :mod:`recsys.scorers.neighbours` counts, here they rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import fitted, rank_in_blocks
from recsys.evaluation.baselines.config import ItemKNNConfig
from recsys.scorers.config import Until
from recsys.scorers.events import CountedEvents, FloatArray, history_weights
from recsys.scorers.neighbours import cosine_similarity, keep_largest
from recsys.scorers.popularity import popularity_shares


@dataclass(frozen=True)
class _Fitted:
    similarity: sparse.csr_array
    backoff: FloatArray


class ItemKNN:
    """Rank by the summed similarity to the history's items."""

    name = "item_knn"

    def __init__(self, config: ItemKNNConfig | None = None) -> None:
        self.config = config or ItemKNNConfig()
        self._fitted: _Fitted | None = None

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count; nothing is drawn, so the seed has no influence."""
        spec = prepared.spec
        events = CountedEvents.from_dataset(prepared, until)
        matrix = events.user_item_matrix(spec.num_users, spec.num_items)
        similarity = cosine_similarity(matrix, self.config.shrinkage)
        if self.config.num_neighbours is not None:
            # row = candidate, so that every candidate listens to its own nearest neighbours only
            similarity = keep_largest(similarity, self.config.num_neighbours)
        shares = popularity_shares(events, spec.num_items, self.config.popularity)
        self._fitted = _Fitted(sparse.csr_array(similarity.T), (1e-6 * shares).astype(np.float32))

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank by the weighted sum of the history's similarity rows."""
        state = fitted(self._fitted, self.name)
        num_items = len(state.backoff)

        def score(rows: Histories) -> FloatArray:
            weights = history_weights(rows, num_items, self.config.history_decay)
            return np.asarray((weights @ state.similarity).toarray() + state.backoff, dtype=np.float32)

        return rank_in_blocks(score, histories, num_items, k, exclude_seen)

"""Item-based nearest neighbours: items whose users overlap, by cosine.

Reads the counted events; produces a sparse similarity matrix. ``cos(i, j) = |users of both| / sqrt(|users of i| |users
of j|)``.

Source: Sarwar et al. 2001, "Item-based collaborative filtering"; the history decay is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import CountedEvents, FloatArray, fitted, history_weights, rank_in_blocks
from recsys.evaluation.baselines.config import ItemKNNConfig, Until
from recsys.evaluation.baselines.popularity import popularity_shares


def cosine_similarity(matrix: sparse.csr_array, shrinkage: float) -> sparse.csr_array:
    """Return the cosine between the columns of a binary ``[U, I]`` matrix, ``[I, I]`` float32, zero on the diagonal."""
    pairs = sparse.coo_array(matrix.T @ matrix)
    users = np.asarray(matrix.sum(axis=0))
    off_diagonal = pairs.row != pairs.col
    row, col = pairs.row[off_diagonal], pairs.col[off_diagonal]
    values = pairs.data[off_diagonal] / (np.sqrt(users[row] * users[col]) + shrinkage)
    return sparse.csr_array((values.astype(np.float32), (row, col)), shape=pairs.shape)


def keep_largest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """Keep the ``count`` largest entries of every row; ties go to the lower column.

    Example:
        >>> keep_largest(sparse.csr_array(np.array([[0.0, 0.5, 0.2, 0.5]])), 2).toarray().tolist()
        [[0.0, 0.5, 0.0, 0.5]]
    """
    entries = sparse.coo_array(matrix)
    order = np.lexsort((entries.col, -entries.data, entries.row))
    row = entries.row[order]
    place = np.arange(len(row)) - np.searchsorted(row, row, side="left")
    kept = order[place < count]
    return sparse.csr_array((entries.data[kept], (entries.row[kept], entries.col[kept])), shape=matrix.shape)


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

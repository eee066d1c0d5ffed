"""Scorers that are a sparse matrix of item pairs: transitions, neighbours, EASE.

A row of the matrix says what an item of the history gives to every other item; a history's score is the sum of its items'
rows, each weighed by recency. Reads a matrix cut to the largest entries of a row; produces scores.

Legend: N rows (histories), I items, C candidates of a row, E entries of a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.scorers.events import FloatArray
from recsys.scorers.item_scorer import ItemArray, Scale, WeighedHistories


@dataclass(frozen=True)
class ItemPairScorer:
    """Scores by the decayed history's rows of a matrix.

    Attributes:
        matrix: ``[I, I]`` float32, row = item of the history.
        history_decay: Weight of a history event per later event.
    """

    name: str
    scale: Scale
    matrix: sparse.csr_array
    history_decay: float

    def scores(self, rows: WeighedHistories) -> FloatArray:
        """Return raw scores ``[N, I]``: 0 where no item of the history says anything."""
        return np.asarray(self._product(rows).toarray(), dtype=np.float32)

    def add_scaled(self, rows: WeighedHistories, weight: float, out: FloatArray) -> None:
        """Add at the items that the history's rows reach; all others have 0 on either scale."""
        product = self._product(rows)
        summands = self.scale.apply(product.data)
        summands *= np.float32(weight)
        out.reshape(-1)[_flat_places(product)] += summands

    def scaled_at(self, rows: WeighedHistories, items: ItemArray) -> FloatArray:
        """Look the items up among those that the history's rows reach."""
        product = self._product(rows)
        if not product.nnz:
            return np.zeros(items.shape, np.float32)
        product.sort_indices()
        places = _flat_places(product)
        wanted = items.astype(np.int64) + product.shape[1] * np.arange(len(items), dtype=np.int64)[:, None]
        found = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
        return np.where(places[found] == wanted, self.scale.apply(product.data)[found], np.float32(0.0))

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The three arrays of the matrix."""
        return {"data": self.matrix.data, "indices": self.matrix.indices, "indptr": self.matrix.indptr}

    def _product(self, rows: WeighedHistories) -> sparse.csr_array:
        return sparse.csr_array(rows.weights(self.history_decay) @ self.matrix)


def _flat_places(product: sparse.csr_array) -> npt.NDArray[np.int64]:
    """Places of the entries in the flattened ``[N * I]``."""
    first = np.arange(product.shape[0], dtype=np.int64) * product.shape[1]
    return np.repeat(first, np.diff(product.indptr)) + product.indices

"""EASE: a linear auto-encoder over items with a closed form, one inverse of an item x item matrix.

Reads the counted events; produces dense item weights. With ``P = (X^T X + lambda I)^-1`` the weights are
``B_ij = -P_ij / P_jj`` off the diagonal and 0 on it.

Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", equation 8. Departures: float32 (lambda keeps
the matrix well conditioned), and a history decay when ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import CountedEvents, FloatArray, fitted, history_weights, rank_in_blocks
from recsys.evaluation.baselines.config import EASEConfig, Until
from recsys.evaluation.baselines.popularity import popularity_shares


def ease_weights(matrix: sparse.csr_array, regularisation: float) -> FloatArray:
    """Solve EASE for a ``[U, I]`` matrix; returns ``B``, ``[I, I]`` float32, row = item of the history.

    Raises:
        DataError: The regularised matrix is not positive definite in float32.
    """
    # Column order, so that LAPACK factors and inverts in place: one matrix of memory instead of three
    gram = np.asfortranarray((matrix.T @ matrix).toarray(), dtype=np.float32)
    diagonal = np.arange(len(gram))
    gram[diagonal, diagonal] += np.float32(regularisation)
    factor, failed = linalg.lapack.spotrf(gram, lower=1, clean=0, overwrite_a=1)
    if failed:
        raise DataError(
            f"EASE: X^T X + {regularisation} I is singular in float32 (LAPACK {failed}); raise regularisation"
        )
    inverse, failed = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    assert not failed, "a positive definite factor has an inverse"
    _mirror_lower(inverse)
    inverse /= -inverse[diagonal, diagonal].copy()  # divides column j by -P_jj
    inverse[diagonal, diagonal] = 0.0
    return np.ascontiguousarray(inverse)


def _mirror_lower(matrix: FloatArray, block: int = 1024) -> None:
    """Copy the lower triangle onto the upper one, in place; LAPACK computes the lower one only."""
    size = len(matrix)
    for begin in range(0, size, block):
        end = min(begin + block, size)
        square = matrix[begin:end, begin:end]
        square[:] = np.tril(square) + np.tril(square, -1).T
        matrix[begin:end, end:] = matrix[end:, begin:end].T


@dataclass(frozen=True)
class _Fitted:
    weights: FloatArray
    backoff: FloatArray


class EASE:
    """Rank by the reconstruction of the decayed history."""

    name = "ease"

    def __init__(self, config: EASEConfig | None = None) -> None:
        self.config = config or EASEConfig()
        self._fitted: _Fitted | None = None

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Solve; nothing is drawn, so the seed has no influence.

        Raises:
            ConfigError: The catalogue is larger than ``max_items``.
        """
        spec, limit = prepared.spec, self.config.max_items
        if spec.num_items > limit:
            raise ConfigError(
                f"EASE: the catalogue has {spec.num_items} items, ease.max_items allows {limit} (the inverse "
                f"needs {4 * spec.num_items**2 / 1e9:.1f} GB); raise ease.max_items or leave 'ease' out of "
                "the baselines"
            )
        events = CountedEvents.from_dataset(prepared, until)
        matrix = events.user_item_matrix(spec.num_users, spec.num_items)
        shares = popularity_shares(events, spec.num_items, self.config.popularity)
        self._fitted = _Fitted(ease_weights(matrix, self.config.regularisation), (1e-6 * shares).astype(np.float32))

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank by the weighted sum of the history's weight rows."""
        state = fitted(self._fitted, self.name)
        num_items = len(state.backoff)

        def score(rows: Histories) -> FloatArray:
            weights = history_weights(rows, num_items, self.config.history_decay)
            return np.asarray(weights @ state.weights + state.backoff, dtype=np.float32)

        return rank_in_blocks(score, histories, num_items, k, exclude_seen)

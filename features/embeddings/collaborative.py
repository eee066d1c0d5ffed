"""Collaborative embeddings: items that users take one soon after another lie close together.

Reads the train events of every user's history and nothing later; produces ``[I, dim]`` by factorising the positive
pointwise mutual information (PPMI) of co-occurrences.

Source: Levy and Goldberg, "Neural word embedding as implicit matrix factorization" (NIPS 2014), eq. 9-11; the smoothed
context distribution and the square root of the singular values are those of Levy, Goldberg and Dagan (TACL 2015), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from features.embeddings.factorise import NOTHING, FloatArray, truncated_svd
from recsys.config import FrozenConfig
from recsys.contracts.dataset import HistoryArrays
from recsys.contracts.errors import DataError

if TYPE_CHECKING:  # scipy is imported when a matrix is built, not when a configuration is read
    from scipy import sparse


class CollaborativeConfig(FrozenConfig):
    """Settings of the collaborative embedding.

    Attributes:
        method: PPMI + truncated SVD.
        dim: Width of the embedding.
        window: Two events of a user co-occur when at most this many steps lie between them.
        gap_decay: A co-occurrence ``g`` steps apart counts ``gap_decay ** (g - 1)``.
        shift: ``log(shift)`` is subtracted from the mutual information, as ``shift`` negative samples would; 1 for none.
        context_smoothing: Exponent of the context counts; below 1 it tames the score of rare items.
    """

    method: Literal["ppmi_svd"] = "ppmi_svd"
    dim: int = Field(default=64, ge=1)
    window: int = Field(default=5, ge=1)
    gap_decay: float = Field(default=0.7, gt=0.0, le=1.0)
    shift: float = Field(default=1.0, ge=1.0)
    context_smoothing: float = Field(default=0.75, gt=0.0, le=1.0)


@dataclass(frozen=True)
class CollaborativeSpace:
    """Where an item that came later lies, by the items of the fit that it co-occurs with; nothing else moves.

    Attributes:
        context_share: ``[I]`` share of each context, smoothed, at the time of the fit.
        directions: ``[I, dim]`` right singular vectors over the square roots of the singular values: the association of an
            item of the fit times these is its own vector.
    """

    context_share: FloatArray
    directions: FloatArray

    def fold_in(self, counts: sparse.csr_matrix, shift: float) -> FloatArray:
        """Return ``[n, dim]``; an item that co-occurs with none of the fit has a zero row.

        Args:
            counts: ``[n, I]`` co-occurrences with the items of the fit.
            shift: Of the configuration.
        """
        return np.ascontiguousarray(
            associations(counts, self.context_share.astype(np.float64), shift) @ self.directions, dtype=np.float32
        )


def collaborative_embedding(
    history: HistoryArrays, num_items: int, config: CollaborativeConfig, seed: int
) -> tuple[FloatArray, CollaborativeSpace]:
    """Return ``[I, dim]`` and the space; an item that co-occurs with no other in the train period has a zero row.

    Raises:
        DataError: ``dim`` exceeds the number of items.
    """
    if config.dim > num_items:
        raise DataError(
            f"embed: collaborative.dim={config.dim} exceeds the {num_items} items of the catalogue; "
            f"set embed.collaborative.dim to at most {num_items}"
        )
    counts = cooccurrence(history, num_items, config.window, config.gap_decay)
    context_share = smoothed_shares(counts, config.context_smoothing)
    association = associations(counts, context_share, config.shift)
    nothing = np.zeros((num_items, config.dim), np.float32)
    if association.nnz == 0:
        return nothing, CollaborativeSpace(context_share.astype(np.float32), nothing)
    u, sigma = truncated_svd(association, config.dim, seed)
    # rows without any entry are exactly zero in theory; ARPACK leaves them at 1e-17
    u[np.diff(association.indptr) == 0] = 0.0
    # a direction without variance says nothing, and dividing by it would make noise loud
    inverse = np.where(sigma > NOTHING * sigma[0], sigma, np.inf) ** -1.5
    directions = np.ascontiguousarray((association.T @ u) * inverse, dtype=np.float32)
    vectors = np.ascontiguousarray(u * np.sqrt(sigma), dtype=np.float32)
    return vectors, CollaborativeSpace(context_share.astype(np.float32), directions)


def cooccurrence(history: HistoryArrays, num_items: int, window: int, gap_decay: float) -> sparse.csr_matrix:
    """Count, symmetrically, how often two different items stand at most ``window`` steps apart in a user's train events.

    Returns:
        ``[I, I]`` float64. For one user with items 0, 1, 2 and ``gap_decay = 0.5``: 1 for the pairs (0, 1) and (1, 2), and
        0.5 for (0, 2).
    """
    from scipy import sparse

    item, user = train_events(history)
    total = sparse.csr_matrix((num_items, num_items), dtype=np.float64)
    for gap in range(1, window + 1):
        together = np.flatnonzero((user[:-gap] == user[gap:]) & (item[:-gap] != item[gap:]))
        left, right = item[together], item[together + gap]
        weight = np.full(len(together), gap_decay ** (gap - 1))
        total = total + sparse.coo_matrix((weight, (left, right)), shape=total.shape).tocsr()
    return sparse.csr_matrix(total + total.T)


def train_events(history: HistoryArrays) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return item and user of every train event, users one after the other; events after ``train_end`` are never read."""
    starts = np.asarray(history.offsets[:-1])
    lengths = np.asarray(history.train_end) - starts
    user = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(len(user))
    return np.asarray(history.item)[rows].astype(np.int64), user


def smoothed_shares(counts: sparse.csr_matrix, context_smoothing: float) -> npt.NDArray[np.float64]:
    """Return ``[I]`` shares of the contexts, proportional to their counts to the power ``context_smoothing``."""
    context = np.asarray(counts.sum(axis=0), np.float64).ravel() ** context_smoothing
    return np.asarray(context / (context.sum() or 1.0), np.float64)


def associations(counts: sparse.csr_matrix, context_share: npt.NDArray[np.float64], shift: float) -> sparse.csr_matrix:
    """Return ``max(0, log(P(j | i) / P(j)) - log(shift))`` where ``counts`` ``[n, I]`` has entries.

    Args:
        context_share: ``[I]`` P(j), above 0 for every context that counts; entries of other contexts are left out.

    Example:
        >>> from scipy import sparse
        >>> counts = sparse.csr_matrix(np.array([[0.0, 3.0], [3.0, 0.0]]))
        >>> float(np.exp(associations(counts, np.array([0.5, 0.5]), 1.0)[0, 1]).round(6))  # P(1 | 0) = 1, P(1) = 1/2
        2.0
    """
    from scipy import sparse

    known = sparse.csr_matrix(counts @ sparse.diags((context_share > 0.0).astype(np.float64)))
    known.eliminate_zeros()
    entries = known.tocoo()
    row_sum = np.asarray(known.sum(axis=1)).ravel()
    score = np.log(entries.data / (row_sum[entries.row] * context_share[entries.col])) - np.log(shift)
    kept = score > 0.0
    return sparse.csr_matrix((score[kept], (entries.row[kept], entries.col[kept])), shape=counts.shape)

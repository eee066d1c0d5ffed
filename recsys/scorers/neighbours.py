"""Item neighbours: items whose users overlap, by cosine; and sparse matrices cut to the largest entries of a row.

``cos(i, j) = |users of both| / sqrt(|users of i| |users of j|)``.

Source: Sarwar et al. 2001, "Item-based collaborative filtering".
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


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

"""EASE: a linear auto-encoder over items with a closed form, one inverse of an item x item matrix.

With ``P = (X^T X + lambda I)^-1`` the weights are ``B_ij = -P_ij / P_jj`` off the diagonal and 0 on it.

Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", equation 8. Departure: float32 (lambda keeps
the matrix well conditioned).
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse

from recsys.contracts.errors import DataError
from recsys.scorers.events import FloatArray


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

"""Truncated singular value decomposition with one possible answer: fixed start vector, fixed signs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # scipy is imported when a matrix is built, not when a configuration is read
    from scipy import sparse

FloatArray = npt.NDArray[np.float32]

NOTHING: Final = 1e-7
"""Singular values below this share of the largest are rounding."""


def truncated_svd(
    matrix: sparse.csr_matrix, dim: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the ``dim`` largest left singular vectors and values.

    ARPACK starts from a vector drawn with ``seed``; each singular vector is turned so that its largest entry is positive.
    Small or nearly square-rank problems, which ARPACK cannot take, are solved densely.

    Args:
        matrix: ``[rows, columns]``.
        dim: At least 1; at most ``min(rows, columns)``.

    Returns:
        ``U [rows, dim]`` and ``sigma [dim]``, largest first.

    Example:
        >>> from scipy import sparse
        >>> u, sigma = truncated_svd(sparse.csr_matrix(np.diag([1.0, 5.0, 3.0])), 2, seed=0)
        >>> sigma.round(6).tolist(), u.round(6).T.tolist()
        ([5.0, 3.0], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    """
    from scipy.sparse.linalg import svds

    smaller = min(matrix.shape)
    assert 1 <= dim <= smaller, f"dim {dim} of a matrix of shape {matrix.shape}"
    if smaller <= max(2 * dim, 32):
        u, sigma, _ = np.linalg.svd(matrix.toarray().astype(np.float64), full_matrices=False)
        u, sigma = u[:, :dim], sigma[:dim]
    else:
        start = np.random.default_rng(seed).standard_normal(smaller)
        u, sigma, _ = svds(matrix.astype(np.float64), k=dim, v0=start, solver="arpack")
        order = np.argsort(-sigma, kind="stable")
        u, sigma = u[:, order], sigma[order]
    peak = np.abs(u).argmax(axis=0)
    signs = np.sign(u[peak, np.arange(u.shape[1])])
    return u * np.where(signs == 0.0, 1.0, signs) + 0.0, sigma

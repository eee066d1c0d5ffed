"""What every residual quantizer offers, and the arithmetic they share.

A quantizer reads item embeddings and produces L codebooks; an item's codes follow from them level by level:

    r_1 = x,   s_l = argmin_k ||r_l - c_l[k]||^2,   r_{l+1} = r_l - c_l[s_l]

Legend: N points, D width, K codes per level, L levels.

Source: OneRec (arXiv 2502.18965), section 3.1; OneRec Technical Report (arXiv 2506.13695), section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import DataError

FloatArray = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.int32]

ROWS_PER_CHUNK: Final = 16_384
"""Rows per matrix product: 16k x 256 distances are 16 MB, which stays near the cache (spec/perf: one addmm per 16k rows)."""


class Quantizer(Protocol):
    """Embeddings ``[N, D]`` to codes ``[N, L]``."""

    def fit(self, x: FloatArray, seed: int) -> None:
        """Learn the codebooks; equal input and seed give equal codebooks."""
        ...

    def encode(self, x: FloatArray) -> CodeArray:
        """Return the nearest codes ``[N, L]``, each row independent of the others: the way of items that come later."""
        ...

    def encode_catalogue(self, x: FloatArray) -> CodeArray:
        """Return the codes ``[N, L]`` of the catalogue; rows may depend on each other, as balanced assignment does."""
        ...

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """L arrays ``[K, D]``."""
        ...


def squared_distances(x_ND: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
    """Return ``[N, K]`` squared Euclidean distances, never below zero.

    Example:
        >>> squared_distances(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 3.0]])).tolist()
        [[25.0, 1.0]]
    """
    norms_K = centroids_KD.square().sum(dim=1)
    products_NK = torch.addmm(norms_K, x_ND, centroids_KD.T, alpha=-2.0)
    return products_NK.add_(x_ND.square().sum(dim=1, keepdim=True)).clamp_(min=0.0)


def nearest_codes(x_ND: torch.Tensor, centroids_KD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest centroid ``[N]`` of each point (the lower number on a tie) and the squared distance ``[N]``."""
    codes_N = torch.empty(len(x_ND), dtype=torch.int64)
    best_N = torch.empty(len(x_ND), dtype=torch.float32)
    norms_K = centroids_KD.square().sum(dim=1)
    for rows in row_chunks(len(x_ND)):
        x = x_ND[rows]
        # ||x||^2 does not change the argmin, so it joins only the winner
        smallest, codes = torch.addmm(norms_K, x, centroids_KD.T, alpha=-2.0).min(dim=1)
        codes_N[rows] = codes
        best_N[rows] = (smallest + x.square().sum(dim=1)).clamp_(min=0.0)
    return codes_N, best_N


def row_chunks(num_rows: int, size: int = ROWS_PER_CHUNK) -> Iterator[slice]:
    """Yield slices that cover ``num_rows`` rows, ``size`` at a time."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def as_tensor(x: FloatArray) -> torch.Tensor:
    """Return a float32 tensor of a (possibly memory-mapped, read-only) array; copies."""
    return torch.from_numpy(np.array(x, dtype=np.float32, order="C", copy=True))


def encode_nearest(x: FloatArray, codebooks: Sequence[FloatArray]) -> CodeArray:
    """Return the nearest codes ``[N, L]``, int32; memory beyond the result is one chunk of rows.

    Example:
        >>> books = [np.array([[0.0], [10.0]], np.float32), np.array([[-1.0], [2.0]], np.float32)]
        >>> encode_nearest(np.array([[-1.5], [11.8]], np.float32), books).tolist()
        [[0, 0], [1, 1]]
    """
    tables = [torch.from_numpy(book) for book in codebooks]
    codes = np.empty((len(x), len(tables)), np.int32)
    for rows in row_chunks(len(x)):
        residual_ND = as_tensor(x[rows])
        for level, table_KD in enumerate(tables):
            found_N, _ = nearest_codes(residual_ND, table_KD)
            codes[rows, level] = found_N.numpy()
            residual_ND -= table_KD[found_N]
    return codes


def relative_residual_errors(x: FloatArray, codes: CodeArray, codebooks: Sequence[FloatArray]) -> list[float]:
    """Return, per level, the squared error left after it, divided by the variance of ``x`` around its mean.

    1 is what a single centroid at the mean would reach. A catalogue without variance has error 0 at every level.
    """
    mean_D = _chunked_mean(x)
    total = 0.0
    left = np.zeros(len(codebooks))
    for rows in row_chunks(len(x)):
        residual_ND = np.array(x[rows], dtype=np.float32)
        total += float(np.square(residual_ND - mean_D).sum(dtype=np.float64))
        for level, book_KD in enumerate(codebooks):
            residual_ND -= book_KD[codes[rows, level]]
            left[level] += float(np.square(residual_ND).sum(dtype=np.float64))
    return [float(error / total) if total > 0.0 else 0.0 for error in left]


def squared_errors(x: FloatArray, codes: CodeArray, codebooks: Sequence[FloatArray]) -> npt.NDArray[np.float64]:
    """Return ``[N]`` the squared distance of each point from the sum of its codes' centroids.

    Example:
        >>> books = [np.array([[0.0], [10.0]], np.float32), np.array([[-1.0], [2.0]], np.float32)]
        >>> squared_errors(np.array([[-1.5], [11.0]], np.float32), np.array([[0, 0], [1, 1]], np.int32), books).tolist()
        [0.25, 1.0]
    """
    found = np.empty(len(x), np.float64)
    for rows in row_chunks(len(x)):
        residual_ND = np.array(x[rows], dtype=np.float32)
        for level, book_KD in enumerate(codebooks):
            residual_ND -= book_KD[codes[rows, level]]
        found[rows] = np.square(residual_ND).sum(axis=1, dtype=np.float64)
    return found


def _chunked_mean(x: FloatArray) -> npt.NDArray[np.float64]:
    return np.sum([x[rows].sum(axis=0, dtype=np.float64) for rows in row_chunks(len(x))], axis=0) / len(x)


def check_embeddings(x: FloatArray, where: str) -> None:
    """Refuse embeddings that no quantizer can use.

    Raises:
        DataError: Not two-dimensional, of width 0, or holding NaN or infinity.
    """
    if x.ndim != 2 or x.shape[1] == 0:
        raise DataError(f"{where}: embeddings have shape {x.shape}, expected [items, width]; run `embed` again")
    for rows in row_chunks(len(x)):
        bad = ~np.isfinite(x[rows]).all(axis=1)
        if bad.any():
            first = rows.start + int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{where}: the embedding of item_index {first} holds NaN or infinity, expected finite numbers; "
                "mend the embedding source and run `embed` again"
            )

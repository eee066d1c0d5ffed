"""Plain residual k-means: Lloyd's algorithm per level, on the residuals the level above left.

Reads item embeddings ``[N, D]``, produces L codebooks ``[K, D]``. Codebooks are fitted on a sample; all items are encoded.

Legend: N points, D width, K codes per level, L levels.

Source: RQ-Kmeans of the OneRec Technical Report (arXiv 2506.13695), section 2.1. Departures: a code that loses all its
points moves to the point with the largest error (the report is silent); the error's relative improvement ends a level.
"""

from __future__ import annotations

from typing import Final, Literal

import torch

from recsys.contracts.errors import DataError
from recsys.semantic_ids.quantizer import (
    CodeArray,
    FloatArray,
    as_tensor,
    encode_nearest,
    nearest_codes,
)

Init = Literal["kmeans++", "random"]

_PLUS_PLUS_POINTS: Final = 8
"""k-means++ looks at no more than this many points per code: its K passes over all points would cost more than Lloyd."""


class ResidualKMeans:
    """L levels of plain k-means.

    Args:
        num_levels: L.
        codebook_size: K.
        max_iterations: Lloyd passes per level, at most.
        tolerance: A level ends when the squared error improves by less than this share.
        sample_size: Points that the codebooks are fitted on, at most.
        init: First centroids of every level.
    """

    def __init__(
        self,
        num_levels: int,
        codebook_size: int,
        *,
        max_iterations: int = 25,
        tolerance: float = 1e-4,
        sample_size: int = 65_536,
        init: Init = "kmeans++",
    ) -> None:
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.sample_size = sample_size
        self.init: Init = init
        self._codebooks: tuple[FloatArray, ...] = ()

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """L arrays ``[K, D]``; empty before :meth:`fit`."""
        return self._codebooks

    def fit(self, x: FloatArray, seed: int) -> None:
        """Learn one codebook per level from at most ``sample_size`` rows of ``x``.

        Raises:
            DataError: Fewer points than codes.
        """
        generator = torch.Generator().manual_seed(seed)
        residual_ND = self._sample(x, generator)
        if len(residual_ND) < self.codebook_size:
            raise DataError(
                f"residual k-means: {len(residual_ND)} points cannot fill a codebook of {self.codebook_size} codes; "
                "lower tokenize.codebook_size"
            )
        books = []
        for _ in range(self.num_levels):
            centroids_KD = self._fit_level(residual_ND, generator)
            residual_ND -= centroids_KD[self._fit_codes(residual_ND, centroids_KD)]
            books.append(centroids_KD.numpy())
        self._codebooks = tuple(books)

    def encode(self, x: FloatArray) -> CodeArray:
        """Return the nearest codes ``[N, L]``, each row independent of the others."""
        assert self._codebooks, "encode before fit"
        return encode_nearest(x, self._codebooks)

    def encode_catalogue(self, x: FloatArray) -> CodeArray:
        """Return the codes of the catalogue; for this kind the nearest ones."""
        return self.encode(x)

    def _sample(self, x: FloatArray, generator: torch.Generator) -> torch.Tensor:
        if len(x) <= self.sample_size:
            return as_tensor(x)
        rows = torch.randperm(len(x), generator=generator)[: self.sample_size].sort().values
        return as_tensor(x[rows.numpy()])

    def _fit_level(self, points_ND: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        first_KD = first_centroids(points_ND, self.codebook_size, self.init, generator)
        return lloyd(points_ND, first_KD, self.max_iterations, self.tolerance)

    def _fit_codes(self, points_ND: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
        """Codes that decide the residuals the next level is fitted on."""
        return nearest_codes(points_ND, centroids_KD)[0]


def first_centroids(points_ND: torch.Tensor, num_codes: int, init: Init, generator: torch.Generator) -> torch.Tensor:
    """Draw ``[K, D]`` first centroids among the points.

    ``kmeans++`` draws each next one with probability proportional to the squared distance from those drawn so far
    (Arthur and Vassilvitskii, 2007); when all remaining distances are zero it draws uniformly.
    """
    order = torch.randperm(len(points_ND), generator=generator)
    if init == "random":
        return points_ND[order[:num_codes]].clone()
    pool_ND = points_ND[order[: max(_PLUS_PLUS_POINTS * num_codes, 8192)]]
    norms_N = pool_ND.square().sum(dim=1)
    draws_K = torch.rand(num_codes, generator=generator, dtype=torch.float64)
    centroids_KD = torch.empty(num_codes, pool_ND.shape[1])
    nearest_N = torch.full((len(pool_ND),), torch.inf)
    chosen = 0
    for k in range(num_codes):
        centroids_KD[k] = pool_ND[chosen]
        if k + 1 == num_codes:
            break
        distance_N = (norms_N - 2.0 * (pool_ND @ pool_ND[chosen]) + norms_N[chosen]).clamp_(min=0.0)
        nearest_N = torch.minimum(nearest_N, distance_N)
        nearest_N[chosen] = 0.0
        weights_N = nearest_N.to(torch.float64).cumsum(dim=0)
        total = float(weights_N[-1])
        if total > 0.0:
            chosen = int(torch.searchsorted(weights_N, draws_K[k] * total, right=True).clamp_(max=len(pool_ND) - 1))
        else:
            chosen = int(draws_K[k] * len(pool_ND))
    return centroids_KD


def lloyd(points_ND: torch.Tensor, centroids_KD: torch.Tensor, max_iterations: int, tolerance: float) -> torch.Tensor:
    """Improve centroids until assignments stand still, the error hardly falls, or the passes are used up.

    Returns:
        ``[K, D]`` centroids.

    Example:
        >>> points = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> lloyd(points, torch.tensor([[0.0], [2.0]]), max_iterations=10, tolerance=0.0).flatten().tolist()
        [1.0, 11.0]
    """
    previous_N: torch.Tensor | None = None
    previous_error = float("inf")
    for _ in range(max_iterations):
        codes_N, distances_N = nearest_codes(points_ND, centroids_KD)
        error = float(distances_N.sum(dtype=torch.float64))
        if previous_N is not None and torch.equal(codes_N, previous_N):
            break
        centroids_KD = cluster_means(points_ND, codes_N, distances_N, centroids_KD)
        if previous_error - error < tolerance * previous_error and previous_error < float("inf"):
            break
        previous_N, previous_error = codes_N, error
    return centroids_KD


def cluster_means(
    points_ND: torch.Tensor, codes_N: torch.Tensor, distances_N: torch.Tensor, centroids_KD: torch.Tensor
) -> torch.Tensor:
    """Return the mean of each cluster; an empty one takes the point with the largest distance to its own centroid.

    An empty cluster stays where it is when every point already lies on a centroid: there is nothing left to split.
    """
    counts_K = torch.bincount(codes_N, minlength=len(centroids_KD))
    sums_KD = torch.zeros_like(centroids_KD).index_add_(0, codes_N, points_ND)
    means_KD = sums_KD / counts_K.clamp(min=1).unsqueeze(1)
    empty = torch.nonzero(counts_K == 0).flatten()
    if len(empty):
        farthest = distances_N.topk(min(len(empty), len(points_ND)))
        spare = farthest.indices[farthest.values > 0.0]
        means_KD[empty] = centroids_KD[empty]
        means_KD[empty[: len(spare)]] = points_ND[spare]
    return means_KD

"""Balanced residual k-means: while the codebooks are fitted, every code owns equally many points.

Reads item embeddings ``[N, D]``, produces L codebooks ``[K, D]``. RQ-VAE and plain k-means crowd many items on few codes;
clusters of exactly N/K points spread them out. Two ways of forming such clusters are here:

    sequential      Alg. 1: the codes take turns, each takes the nearest points that are still free
    capacity_aware  all codes at once: pairs (point, code) in ascending distance, a full code turns points away

Legend: N points, D width, K codes per level, L levels.

Source: OneRec (arXiv 2502.18965), Algorithm 1. Departures: ``topk`` in place of a full sort (same set, less work); the order
of the codes is shuffled in every pass, because late codes get what is left; passes are capped and the pass with the
smallest error is kept, because the published loop need not converge. N need not be a multiple of K: the remainder is
spread, sizes differ by at most one.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from recsys.semantic_ids.quantizer import CodeArray, FloatArray, as_tensor, nearest_codes, row_chunks, squared_distances
from recsys.semantic_ids.residual_kmeans import Init, ResidualKMeans, first_centroids

Assign = Literal["nearest", "balanced"]
Balancing = Literal["sequential", "capacity_aware"]

_BLOCK_ENTRIES: Final = 16_777_216
"""Distances kept at once in a sequential pass, 64 MB."""

_FEW_ROUNDS: Final = 32
"""Rounds of proposals after which the codes of every point are ranked. Points that lie alike are turned away by one code
after the other, and distances to all codes in each of these rounds would take K times as long as they do once."""

_PATIENCE: Final = 3
"""Passes without a better error before a level ends; shuffled passes are noisy, one bad pass says little."""


class BalancedResidualKMeans(ResidualKMeans):
    """L levels of balanced k-means; see :class:`~recsys.semantic_ids.residual_kmeans.ResidualKMeans` for the sizes.

    Args:
        assign: ``nearest`` gives the catalogue the nearest codes, as the paper does, so that published IDs are only roughly
            balanced; ``balanced`` fills every code of every level equally, with sizes that differ by at most one.
        balancing: How a pass forms the clusters.
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
        assign: Assign = "nearest",
        balancing: Balancing = "sequential",
    ) -> None:
        super().__init__(
            num_levels,
            codebook_size,
            max_iterations=max_iterations,
            tolerance=tolerance,
            sample_size=sample_size,
            init=init,
        )
        self.assign: Assign = assign
        self.balancing: Balancing = balancing

    def encode_catalogue(self, x: FloatArray) -> CodeArray:
        """Return codes ``[N, L]`` by the configured assignment; a balanced row depends on all the others."""
        if self.assign == "nearest":
            return self.encode(x)
        assert self.codebooks, "encode before fit"
        residual_ND = as_tensor(x)
        codes = np.empty((len(x), self.num_levels), np.int32)
        for level, book in enumerate(self.codebooks):
            centroids_KD = torch.from_numpy(book)
            codes_N = balanced_codes(residual_ND, centroids_KD)
            codes[:, level] = codes_N.numpy()
            residual_ND -= centroids_KD[codes_N]
        return codes

    def _fit_level(self, points_ND: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        centroids_KD = first_centroids(points_ND, self.codebook_size, self.init, generator)
        best_KD, best_error, stale = centroids_KD, float("inf"), 0
        for _ in range(self.max_iterations):
            if self.balancing == "sequential":
                order_K = torch.randperm(self.codebook_size, generator=generator)
                codes_N = sequential_pass(points_ND, centroids_KD, order_K)
            else:
                codes_N = balanced_codes(points_ND, centroids_KD)
            centroids_KD = _means(points_ND, codes_N, self.codebook_size)
            error = float((points_ND - centroids_KD[codes_N]).square().sum(dtype=torch.float64))
            stale = 0 if error < (1.0 - self.tolerance) * best_error else stale + 1
            if error < best_error:
                best_KD, best_error = centroids_KD, error
            if stale == _PATIENCE:
                break
        return best_KD

    def _fit_codes(self, points_ND: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
        if self.assign == "balanced":
            return balanced_codes(points_ND, centroids_KD)
        return nearest_codes(points_ND, centroids_KD)[0]


def sequential_pass(points_ND: torch.Tensor, centroids_KD: torch.Tensor, order_K: torch.Tensor) -> torch.Tensor:
    """Let the codes, in the given order, take their nearest free points: one pass of Alg. 1.

    The first N mod K codes of the order take one point more than the others.

    Returns:
        Codes ``[N]``.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> sequential_pass(points, torch.tensor([[1.4], [9.0]]), torch.tensor([0, 1])).tolist()
        [1, 0, 0, 1]
    """
    num_points, num_codes = len(points_ND), len(centroids_KD)
    floor, extra = divmod(num_points, num_codes)
    codes_N = torch.full((num_points,), -1, dtype=torch.int64)
    taken_N = torch.zeros(num_points, dtype=torch.bool)
    # all codes keep last pass's centroids until the pass is over, so their distances can be had in blocks
    for block in row_chunks(num_codes, max(1, _BLOCK_ENTRIES // max(1, num_points))):
        distances_BN = squared_distances(points_ND, centroids_KD[order_K[block]]).T.contiguous()
        for row, distances_N in enumerate(distances_BN):
            position = block.start + row
            width = floor + 1 if position < extra else floor
            distances_N.masked_fill_(taken_N, torch.inf)
            mine = distances_N.topk(width, largest=False).indices
            codes_N[mine] = order_K[position]
            taken_N[mine] = True
    return codes_N


def balanced_codes(points_ND: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
    """Assign points to codes in ascending order of distance, each code up to its capacity; sizes differ by at most one.

    Sorting all N x K pairs would need N x K memory. Deferred acceptance gives the same answer: each free point proposes to
    the nearest code that would still take it, a code keeps its nearest proposers and frees the rest. As both sides rank by
    the same distance, the stable outcome is the one of the sorted pairs. It ends, since a full code's distances only fall.

    Returns:
        Codes ``[N]``.

    Example:
        >>> balanced_codes(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[1.4], [9.0]])).tolist()
        [1, 0, 0, 1]
    """
    num_points, num_codes = len(points_ND), len(centroids_KD)
    capacity_K = _capacities(nearest_codes(points_ND, centroids_KD)[0], num_codes)
    codes_N = np.full(num_points, -1, np.int64)
    held_N = np.full(num_points, np.inf, np.float32)
    limit_K = np.full(num_codes, np.inf, np.float32)
    limit_K[capacity_K == 0] = -np.inf
    free, rounds, ranked = np.arange(num_points), 0, None
    while len(free):
        rounds += 1
        if rounds == _FEW_ROUNDS and num_points * num_codes <= _BLOCK_ENTRIES:
            ranked = _RankedCodes(points_ND, centroids_KD)
        if ranked is not None:
            codes_N[free], held_N[free] = ranked.proposals(free, limit_K)
        else:
            codes_N[free], held_N[free] = _proposals(points_ND, centroids_KD, free, limit_K)
        free = _keep_nearest(codes_N, held_N, np.unique(codes_N[free]), capacity_K, limit_K)
    return torch.from_numpy(codes_N)


def _capacities(nearest_N: torch.Tensor, num_codes: int) -> npt.NDArray[np.int64]:
    """Give each code N // K places, and the N mod K codes that most points are nearest to one place more."""
    floor, extra = divmod(len(nearest_N), num_codes)
    demand_K = torch.bincount(nearest_N, minlength=num_codes).numpy()
    capacity_K = np.full(num_codes, floor, np.int64)
    capacity_K[np.argsort(-demand_K, kind="stable")[:extra]] += 1
    return capacity_K


def _proposals(
    points_ND: torch.Tensor, centroids_KD: torch.Tensor, free: npt.NDArray[np.int64], limit_K: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Nearest code that would take each free point (nearer than the code's limit), and the squared distance to it."""
    codes = np.empty(len(free), np.int64)
    distances = np.empty(len(free), np.float32)
    limits = torch.from_numpy(limit_K)
    for rows in row_chunks(len(free)):
        grid = squared_distances(points_ND[torch.from_numpy(free[rows])], centroids_KD)
        smallest, best = grid.masked_fill_(grid >= limits, torch.inf).min(dim=1)
        codes[rows], distances[rows] = best.numpy(), smallest.numpy()
    return codes, distances


class _RankedCodes:
    """All codes of every point by distance, and how far each point has come: limits only fall, so nobody turns back."""

    def __init__(self, points_ND: torch.Tensor, centroids_KD: torch.Tensor) -> None:
        sorted_NK, order_NK = squared_distances(points_ND, centroids_KD).sort(dim=1, stable=True)
        self.distance_NK, self.code_NK = sorted_NK.numpy(), order_NK.to(torch.int32).numpy()
        self.place_N = np.zeros(len(points_ND), np.int64)

    def proposals(
        self, free: npt.NDArray[np.int64], limit_K: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """See :func:`_proposals`."""
        waiting = free
        while len(waiting):
            place = self.place_N[waiting]
            refused = self.distance_NK[waiting, place] >= limit_K[self.code_NK[waiting, place]]
            waiting = waiting[refused]
            self.place_N[waiting] += 1
        place = self.place_N[free]
        return self.code_NK[free, place].astype(np.int64), self.distance_NK[free, place]


def _keep_nearest(
    codes_N: npt.NDArray[np.int64],
    held_N: npt.NDArray[np.float32],
    touched: npt.NDArray[np.int64],
    capacity_K: npt.NDArray[np.int64],
    limit_K: npt.NDArray[np.float32],
) -> npt.NDArray[np.int64]:
    """Let each touched code keep its nearest points and update its limit; return the points that were turned away."""
    is_touched = np.zeros(len(capacity_K), bool)
    is_touched[touched] = True
    members = np.flatnonzero(is_touched[codes_N])
    members = members[np.lexsort((members, held_N[members], codes_N[members]))]
    owner = codes_N[members]
    rank = np.arange(len(members)) - np.searchsorted(owner, owner)
    kept = rank < capacity_K[owner]
    last = kept & (rank == capacity_K[owner] - 1)
    limit_K[owner[last]] = held_N[members[last]]
    return members[~kept]


def _means(points_ND: torch.Tensor, codes_N: torch.Tensor, num_codes: int) -> torch.Tensor:
    counts_K = torch.bincount(codes_N, minlength=num_codes)
    sums_KD = torch.zeros(num_codes, points_ND.shape[1]).index_add_(0, codes_N, points_ND)
    return sums_KD / counts_K.unsqueeze(1)

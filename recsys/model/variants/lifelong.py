"""Representatives of a very long history: the offline half of the lifelong pathway, once per user.

Reads the content vectors of the items of one history, finds groups of similar ones by hierarchical k-means, and lets the
most central item of each group stand for it. A history of 100,000 events becomes a few thousand, without losing the
interests that are met rarely. Pure NumPy, no model needed.

Legend: N events of a history, C clusters, D width of a content vector, K clusters that one node is split into.

Source: OneRec Technical Report (arXiv 2506.13695), section 2.2.1: split a node of n items into floor(n^(1/3)) clusters, stop
at M items or fewer, represent a cluster by the item nearest to its centre, average what is continuous. Departures: at least
two clusters per split, or nodes of less than eight items would never end; equal vectors stay one cluster even if they
are more than M, because one item represents them exactly; M is not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import DataError

_LLOYD_PASSES: Final = 10
"""Passes per split, at most; a split only has to separate, its centres are thrown away."""

_PLUS_PLUS_POINTS: Final = 32
"""First centres are drawn among this many points per cluster: a pass over all points for each would cost more than Lloyd."""

_CHUNK_ROWS: Final = 16_384
"""Rows whose distances are held at once: at most 46 clusters per split at 100,000 events."""


@dataclass(frozen=True)
class Representatives:
    """A clustering of one history.

    Attributes:
        event_C: int64 places in the history of the representatives, in ascending order, which is order of time.
        cluster_N: int64 cluster of every event, a row of ``event_C``.
    """

    event_C: npt.NDArray[np.int64]
    cluster_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.event_C)

    @property
    def counts_C(self) -> npt.NDArray[np.int64]:
        """Events per cluster."""
        return np.bincount(self.cluster_N, minlength=len(self))

    def take(self, values_N: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What cannot be averaged (item, author, behaviour): the representative's own value, ``[N] -> [C]``."""
        return values_N[self.event_C]

    def average(self, values_N: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """What can be averaged (watched share, time): the mean over the cluster, ``[N] -> [C]``."""
        return np.bincount(self.cluster_N, weights=values_N, minlength=len(self)) / self.counts_C


def lifelong_representatives(
    vectors_ND: npt.NDArray[np.floating], max_cluster_items: int, seed: int = 0
) -> Representatives:
    """Cluster a history by content and name one event per cluster.

    Args:
        vectors_ND: Content vector of every event's item, oldest event first.
        max_cluster_items: M, the size at which a node is no longer split.
        seed: First centres; the same seed gives the same clusters.

    Raises:
        DataError: The vectors are no finite matrix.
        ValueError: M is below 1.

    Example:
        >>> found = lifelong_representatives(np.array([[0.0], [0.2], [9.0], [0.1]]), max_cluster_items=3)
        >>> found.event_C.tolist(), found.cluster_N.tolist()
        ([2, 3], [1, 1, 0, 1])
    """
    if max_cluster_items < 1:
        raise ValueError(f"max_cluster_items is {max_cluster_items}, expected at least 1")
    vectors_ND = np.asarray(vectors_ND, dtype=np.float32)
    if vectors_ND.ndim != 2 or not np.isfinite(vectors_ND).all():
        raise DataError(
            f"lifelong history: content vectors of shape {vectors_ND.shape}, expected a finite matrix with one row per "
            "event; leave out events whose items have no vector"
        )
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    members: list[npt.NDArray[np.int64]] = []
    nodes = [np.arange(len(vectors_ND))] if len(vectors_ND) else []
    while nodes:
        node = nodes.pop()
        parts = [node] if len(node) <= max_cluster_items else _split(vectors_ND, node, generator)
        if len(parts) > 1:
            nodes += parts
        else:
            chosen.append(_nearest_to_centre(vectors_ND, node))
            members.append(node)
    order = np.argsort(np.array(chosen, dtype=np.int64))
    cluster_N = np.empty(len(vectors_ND), np.int64)
    for cluster, place in enumerate(order):
        cluster_N[members[place]] = cluster
    return Representatives(np.array(chosen, dtype=np.int64)[order], cluster_N)


def _split(
    vectors_ND: npt.NDArray[np.float32], node: npt.NDArray[np.int64], generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Split the events of a node into about ``floor(n^(1/3))`` groups; a single one if all their vectors are equal."""
    points_ND = vectors_ND[node]
    points_ND = points_ND - points_ND.mean(0)  # far from the origin, float32 distances between near points are noise
    num_clusters = max(2, num_splits(len(node)))
    centres_KD = _first_centres(points_ND, num_clusters, generator)
    if len(centres_KD) == 1:
        return [node]
    codes_N = _nearest(points_ND, centres_KD)
    for _ in range(_LLOYD_PASSES):
        order = np.argsort(codes_N, kind="stable")
        _, first, counts = np.unique(codes_N[order], return_index=True, return_counts=True)
        codes_N[order] = np.repeat(np.arange(len(first)), counts)
        centres_KD = (np.add.reduceat(points_ND[order], first, axis=0) / counts[:, None]).astype(np.float32)
        moved_N = _nearest(points_ND, centres_KD)
        if np.array_equal(moved_N, codes_N) or len(np.unique(moved_N)) == 1:
            break
        codes_N = moved_N
    return [node[codes_N == code] for code in np.unique(codes_N)]


def num_splits(num_items: int) -> int:
    """``floor(num_items ** (1/3))`` in whole numbers: 1000 ** (1/3) is 9.999… in floating point.

    Example:
        >>> [num_splits(n) for n in (7, 8, 999, 1000, 100_000)]
        [1, 2, 9, 10, 46]
    """
    root = round(num_items ** (1 / 3))
    return root if root**3 <= num_items else root - 1


def _first_centres(
    points_ND: npt.NDArray[np.float32], num_clusters: int, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Draw different centres, far ones more likely (k-means++); fewer where there are not so many different points."""
    if len(points_ND) > _PLUS_PLUS_POINTS * num_clusters:
        sample = generator.choice(len(points_ND), _PLUS_PLUS_POINTS * num_clusters, replace=False)
        if np.ptp(points_ND[sample], axis=0).any():
            points_ND = points_ND[sample]
    centres = [points_ND[generator.integers(len(points_ND))]]
    distance_N = np.full(len(points_ND), np.inf, dtype=np.float64)
    while len(centres) < num_clusters:
        distance_N = np.minimum(distance_N, np.square(points_ND - centres[-1]).sum(1, dtype=np.float64))
        if not distance_N.any():
            break
        centres.append(points_ND[generator.choice(len(points_ND), p=distance_N / distance_N.sum())])
    return np.stack(centres)


def _nearest(points_ND: npt.NDArray[np.float32], centres_KD: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Nearest centre of every point; the lower one where two are equally near."""
    half_norms_K = np.square(centres_KD).sum(1) / 2
    chunks = [points_ND[start : start + _CHUNK_ROWS] for start in range(0, len(points_ND), _CHUNK_ROWS)]
    return np.concatenate([(half_norms_K - chunk @ centres_KD.T).argmin(1) for chunk in chunks])


def _nearest_to_centre(vectors_ND: npt.NDArray[np.float32], node: npt.NDArray[np.int64]) -> int:
    """The event nearest to the mean of its cluster, the latest where several are equally near."""
    points_ND = vectors_ND[node].astype(np.float64)
    distance_N = np.square(points_ND - points_ND.mean(0)).sum(1)
    return int(node[np.flatnonzero(distance_N == distance_N.min())[-1]])

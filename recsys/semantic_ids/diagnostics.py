"""How good are the semantic IDs? Reads codes, embeddings and traffic; produces plain dictionaries for the tokenizer report.

Entropies are in nats, as in table 11 of the OneRec Technical Report (arXiv 2506.13695); the perplexity exp(entropy) reads as
"codes in effective use". "Colliding" items share their codes with at least one other item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.semantic_ids.collisions import group_numbers
from recsys.semantic_ids.quantizer import CodeArray

Counts = npt.NDArray[np.int64]


def level_statistics(codes: npt.NDArray[np.integer], size: int) -> dict[str, Any]:
    """Describe how one level's codes are used.

    Args:
        codes: ``[I]`` codes of one level.
        size: Codes that the level has.

    Returns:
        ``utilisation`` (share of codes used), ``entropy`` and its upper bound ``entropy_max`` (nats), ``perplexity``, and
        ``cluster_sizes``: smallest, median, largest, and a histogram whose bins are powers of two.

    Example:
        >>> found = level_statistics(np.array([0, 0, 1, 1]), size=4)
        >>> found["utilisation"], round(found["perplexity"], 6), found["cluster_sizes"]["histogram"]
        (0.5, 2.0, {'0': 2, '2-3': 2})
    """
    counts = np.bincount(codes, minlength=size)
    share = counts[counts > 0] / max(1, len(codes))
    entropy = float(-(share * np.log(share)).sum()) + 0.0
    return {
        "utilisation": float((counts > 0).mean()),
        "entropy": entropy,
        "entropy_max": float(np.log(size)),
        "perplexity": float(np.exp(entropy)),
        "cluster_sizes": {
            "smallest": int(counts.min()),
            "median": float(np.median(counts)),
            "largest": int(counts.max()),
            "histogram": _power_of_two_bins(counts),
        },
    }


def _power_of_two_bins(counts: Counts) -> dict[str, int]:
    bins = np.where(counts > 0, np.frexp(counts.astype(np.float64))[1], 0)
    labels = {0: "0", 1: "1"}
    numbers, sizes = np.unique(bins, return_counts=True)
    return {
        labels.get(int(number), f"{2 ** (int(number) - 1)}-{2 ** int(number) - 1}"): int(size)
        for number, size in zip(numbers, sizes, strict=True)
    }


def collision_statistics(codes: CodeArray, level_sizes: Sequence[int], traffic: Counts) -> dict[str, Any]:
    """Describe how many items share an ID, weighted by items and by traffic.

    Returns:
        ``unique_share`` (items alone on their ID), ``distinct_share`` (distinct IDs per item, the "independent coding
        rate"), ``colliding_item_share``, ``colliding_traffic_share`` (0 without traffic) and ``largest_bucket``.

    Example:
        >>> codes = np.array([[0, 1], [0, 1], [1, 1], [1, 0]], np.int32)
        >>> found = collision_statistics(codes, (2, 2), np.array([8, 0, 1, 1]))
        >>> found["unique_share"], found["distinct_share"], found["colliding_traffic_share"], found["largest_bucket"]
        (0.5, 0.75, 0.8, 2)
    """
    group = group_numbers(codes, level_sizes)
    bucket_sizes = np.bincount(group)
    colliding = bucket_sizes[group] > 1
    total = int(traffic.sum())
    return {
        "unique_share": float(1.0 - colliding.mean()),
        "distinct_share": len(bucket_sizes) / len(codes),
        "colliding_item_share": float(colliding.mean()),
        "colliding_traffic_share": float(traffic[colliding].sum() / total) if total else 0.0,
        "largest_bucket": int(bucket_sizes.max()),
    }

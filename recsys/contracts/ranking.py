"""The answer of every recommender, generative or baseline: ranked items with scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RankedItems:
    """Ranked lists of N rows.

    Attributes:
        items: ``[N, k]`` int32 item_index, best first, no item twice in a row; -1 where fewer than ``k`` were possible.
        scores: ``[N, k]`` float32, not increasing along a row; ``-inf`` where ``items`` is -1.
    """

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.items)


def concatenate(parts: list[RankedItems]) -> RankedItems:
    """Stack the rows of several rankings of equal width."""
    return RankedItems(np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))


def top_k(scores: npt.NDArray[np.float32], k: int) -> RankedItems:
    """Rank dense scores ``[N, I]``; ``-inf`` marks items that must not be recommended, ties go to the lower item_index.

    Example:
        >>> top_k(np.array([[0.1, 0.9, -np.inf]], dtype=np.float32), 3).items.tolist()
        [[1, 0, -1]]
    """
    rows, width = scores.shape
    k_found = min(k, width)
    # argpartition is linear; the order inside the head is then made exact, with ties broken by item_index
    head = (
        np.argpartition(-scores, k_found - 1, axis=1)[:, :k_found]
        if k_found < width
        else np.tile(np.arange(width), (rows, 1))
    )
    head.sort(axis=1)
    head_scores = np.take_along_axis(scores, head, axis=1)
    order = np.argsort(-head_scores, axis=1, kind="stable")
    items = np.full((rows, k), -1, np.int32)
    values = np.full((rows, k), -np.inf, np.float32)
    values[:, :k_found] = np.take_along_axis(head_scores, order, axis=1)
    items[:, :k_found] = np.take_along_axis(head, order, axis=1)
    items[np.isneginf(values)] = -1
    return RankedItems(items, values)

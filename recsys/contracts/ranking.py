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

    def take(self, rows: npt.NDArray[np.integer]) -> RankedItems:
        """Items and scores of some rows."""
        return RankedItems(self.items[rows], self.scores[rows])


@dataclass(frozen=True)
class SourcedItems(RankedItems):
    """Ranked lists that say where their items come from.

    Attributes:
        sources: uint8 ``[N, k]``, bit ``s`` set where source number ``s`` of the candidates brought the item.
    """

    sources: npt.NDArray[np.uint8]


def concatenate(parts: list[RankedItems]) -> RankedItems:
    """Stack the rows of several rankings of equal width."""
    return RankedItems(np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))


def top_k(scores: npt.NDArray[np.float32], k: int) -> RankedItems:
    """Rank dense scores ``[N, I]``: higher scores first, equal scores by the lower item_index.

    The rule holds at every place, the last one included, so the first ``k`` places do not depend on how many are asked
    for. ``-inf`` marks items that must not be recommended; an item whose score is NaN comes after all that have a number.

    Example:
        >>> top_k(np.array([[0.1, 0.9, -np.inf]], dtype=np.float32), 3).items.tolist()
        [[1, 0, -1]]
        >>> top_k(np.array([[0.5, 0.5, 0.9, 0.5]], dtype=np.float32), 2).items.tolist()
        [[2, 0]]
    """
    rows, width = scores.shape
    found = min(k, width)
    items = np.full((rows, k), -1, np.int32)
    values = np.full((rows, k), -np.inf, np.float32)
    if found:
        cost = _costs(scores)
        # in the order of item_index, so that the stable sort leaves ties in it
        head = _cheapest(cost, found) if found < width else np.tile(np.arange(width), (rows, 1))
        order = np.argsort(np.take_along_axis(cost, head, axis=1), axis=1, kind="stable")
        items[:, :found] = np.take_along_axis(head, order, axis=1)
        values[:, :found] = np.take_along_axis(scores, items[:, :found].astype(np.intp), axis=1)
        items[np.isneginf(values)] = -1
    return RankedItems(items, values)


def _costs(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what NumPy's ascending order, in which NaN is last, ranks as we do: numbers, then unknown, then forbidden."""
    cost = np.negative(scores)
    forbidden = np.isposinf(cost)
    cost[np.isnan(cost)] = np.inf
    cost[forbidden] = np.nan
    return cost


def _cheapest(cost: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Find the ``count`` smallest of every row ``[N, I]``, of equal ones those of the lower index; in order of index.

    ``argpartition`` is linear and right about all that are below the border value. Among those that equal it, it takes
    any; rows where it had a choice are repaired.
    """
    head = np.argpartition(cost, count - 1, axis=1)[:, :count]
    border = np.take_along_axis(cost, head[:, count - 1 :], axis=1)  # argpartition puts the count-th smallest there
    at_border = np.take_along_axis(cost, head, axis=1) == border
    for row in np.flatnonzero(np.count_nonzero(cost == border, axis=1) > np.count_nonzero(at_border, axis=1)):
        tied = np.flatnonzero(cost[row] == border[row])
        head[row, at_border[row]] = tied[: np.count_nonzero(at_border[row])]
    head.sort(axis=1)
    return head

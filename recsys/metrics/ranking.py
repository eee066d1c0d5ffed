"""Item-level ranking metrics over the full catalogue: pure functions from rankings and targets to numbers per row.

Reads :class:`~recsys.contracts.ranking.RankedItems` and :class:`~recsys.contracts.dataset.Targets` of the same rows;
produces one float64 per row and metric, named ``hr@10``, ``recall@10``, ``ndcg@10``, ``mrr@10``, and two numbers per
system about the catalogue. Gain is binary. An item asked for twice by one row is one target.

Shape legend: N rows, k places, I items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recsys.contracts.dataset import Targets
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems

Values = npt.NDArray[np.float64]

ROW_METRICS = ("hr", "recall", "ndcg", "mrr")


def row_metrics(ranked: RankedItems, targets: Targets, ks: Sequence[int], *, first_row: int = 0) -> dict[str, Values]:
    """Evaluate every row.

    Args:
        ranked: ``[N, width]`` with ``width >= max(ks)``; short rankings are padded with -1, which never hits. Nor does an
            item whose score is NaN: a model full of NaN hits nothing, though its items stand in some order.
        targets: N rows of at least one target each.
        ks: Cut-offs, each at least 1.
        first_row: Number of the first row, for messages, where a block of rows is given.

    Returns:
        ``{metric@k: [N]}``, all in [0, 1]: ``hr`` is 1 if any target is among the first k; ``recall`` is the share of
        the targets found; ``ndcg`` discounts a hit at rank r by ``1 / log2(r + 1)`` and divides by the best that
        ``min(k, number of targets)`` hits could give; ``mrr`` is 1 / (rank of the first hit), 0 if none is within k.

    Raises:
        DataError: The numbers of rows differ, a row has no target, the ranking is too narrow or repeats an item.

    Example:
        >>> asked = Targets(np.array([7]), np.array([0]), np.array([5]), np.array([42]), np.array([0, 1]))
        >>> answer = RankedItems(np.array([[9, 42, -1]], np.int32), np.array([[2.0, 1.0, -np.inf]], np.float32))
        >>> {name: round(float(value[0]), 3) for name, value in row_metrics(answer, asked, [3]).items()}
        {'hr@3': 1.0, 'recall@3': 1.0, 'ndcg@3': 0.631, 'mrr@3': 0.5}
    """
    widest = max(ks)
    hits, num_targets = hit_matrix(ranked, targets, widest, first_row)
    ranks = np.arange(1, widest + 1)
    discount = 1.0 / np.log2(ranks + 1.0)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    found = np.cumsum(hits, axis=1)
    gain = np.cumsum(hits * discount, axis=1)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, np.iinfo(np.int64).max)
    result: dict[str, Values] = {}
    for k in ks:
        result[f"hr@{k}"] = (found[:, k - 1] > 0).astype(np.float64)
        result[f"recall@{k}"] = found[:, k - 1] / num_targets
        result[f"ndcg@{k}"] = gain[:, k - 1] / ideal[np.minimum(k, num_targets)]
        result[f"mrr@{k}"] = np.where(first <= k, 1.0 / first, 0.0)
    return result


def hit_matrix(
    ranked: RankedItems, targets: Targets, width: int, first_row: int = 0
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Mark the places ``[N, width]`` that hold a target, and count each row's distinct targets ``[N]``."""
    rows = len(targets)
    if len(ranked) != rows:
        raise DataError(f"the ranking has {len(ranked)} rows, the targets {rows}; rank the histories of these targets")
    if ranked.items.shape[1] < width:
        raise DataError(
            f"the ranking has {ranked.items.shape[1]} places, {width} are evaluated; rank more or pad with -1"
        )
    # a score that is not a number ranks its item last, wherever it stands in the list: it is no recommendation
    items = np.where(np.isnan(ranked.scores[:, :width]), -1, ranked.items[:, :width].astype(np.int64))
    _refuse_repeats(items, first_row)
    span = int(max(items.max(initial=0), targets.items.max(initial=0))) + 1
    target_row = np.repeat(np.arange(rows), np.diff(targets.item_offsets))
    wanted = np.unique(target_row * span + targets.items)
    num_targets = np.bincount(wanted // span, minlength=rows)
    if rows and not num_targets.all():
        raise DataError(
            f"target row {first_row + int(num_targets.argmin())} asks for no item; only rows with targets can be evaluated"
        )
    keys = np.where(items >= 0, np.arange(rows)[:, None] * span + items, -1)
    return np.isin(keys, wanted, kind="sort"), num_targets


def coverage(ranked: RankedItems, k: int, num_items: int) -> float:
    """Return the share of the catalogue that somebody gets among the first ``k``.

    Example:
        >>> coverage(RankedItems(np.array([[0, 1], [0, -1]], np.int32), np.zeros((2, 2), np.float32)), 2, 4)
        0.5
    """
    return coverage_of(exposures(ranked, k, num_items))


def coverage_by_row(ranked: RankedItems, k: int, num_items: int) -> Values:
    """Split :func:`coverage` among the rows, ``[N]``; their mean is the coverage.

    An item that c rows hold among their first ``k`` counts 1 / c in each of them, so that rows can be compared in pairs.

    Example:
        Item 0 is shared by two rows, item 1 belongs to the first: (1/2 + 1) and 1/2, times 2 rows / 4 items.

        >>> coverage_by_row(RankedItems(np.array([[0, 1], [0, -1]], np.int32), np.zeros((2, 2), np.float32)), 2, 4).tolist()
        [0.75, 0.25]
    """
    shown = ranked.items[:, :k]
    share = 1.0 / np.maximum(exposures(ranked, k, num_items), 1)
    return np.where(shown >= 0, share[np.maximum(shown, 0)], 0.0).sum(1) * len(shown) / num_items


def gini(ranked: RankedItems, k: int, num_items: int) -> float:
    """Return how unequally the first ``k`` places are spread over the catalogue: 0 evenly, towards 1 all on one item.

    With exposures sorted upwards ``x_1 <= ... <= x_I``: ``sum((2 i - I - 1) x_i) / (I sum(x))``.

    Example:
        >>> gini(RankedItems(np.array([[0], [1]], np.int32), np.zeros((2, 1), np.float32)), 1, 4)
        0.5
    """
    return gini_of(exposures(ranked, k, num_items))


def exposures(ranked: RankedItems, k: int, num_items: int) -> npt.NDArray[np.int64]:
    """Count how often each item stands among the first ``k``, ``[I]``; counts of blocks of rows add up."""
    shown = ranked.items[:, :k]
    return np.bincount(shown[shown >= 0], minlength=num_items)


def coverage_of(shown: npt.NDArray[np.int64]) -> float:
    """:func:`coverage` of counts ``[I]``."""
    return float((shown > 0).mean())


def gini_of(shown: npt.NDArray[np.int64]) -> float:
    """:func:`gini` of counts ``[I]``."""
    ordered = np.sort(shown).astype(np.float64)
    total = ordered.sum()
    if total == 0:
        return 0.0
    num_items = len(ordered)
    place = np.arange(1, num_items + 1)
    return float(((2 * place - num_items - 1) * ordered).sum() / (num_items * total))


def _refuse_repeats(items: npt.NDArray[np.int64], first_row: int) -> None:
    ordered = np.sort(items, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        row, place = np.argwhere(repeated)[0]
        raise DataError(
            f"ranking row {first_row + row} holds item_index {ordered[row, place]} twice; an item has one rank"
        )

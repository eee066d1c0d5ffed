"""Name the codes of a new generation after the old one, so that items keep as much of their ID as they can.

Codebooks that are fitted anew number their codes at random: a policy of the old generation would find every item under
another name. Within a level the numbers mean nothing, so they can be permuted; this is done level by level, so that the
items with the most traffic keep their codes (Hungarian assignment).

Legend: I items that both generations know, L levels, K codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.semantic_ids.quantizer import CodeArray, FloatArray, as_tensor, nearest_codes, row_chunks

Counts = npt.NDArray[np.int64]
Permutation = npt.NDArray[np.int64]

MAX_EXACT: Final = 4096
"""Codes per level up to which the assignment is exact; beyond, K x K weights would need gigabytes, and pairs are taken by
falling weight."""


def names_after(old: CodeArray, new: CodeArray, traffic: Counts, level_sizes: Sequence[int]) -> list[Permutation]:
    """Return one permutation per level, ``name[level][code of new] = code of old``.

    What counts first is the traffic (each item counts one more than its train events) of items whose codes up to this level
    agree; what other items would gain at this level alone breaks ties.

    Args:
        old, new: ``[I, L]`` codes of the same items.
        traffic: ``[I]`` train events.
        level_sizes: Codes per level, of both.

    Example:
        >>> old = np.array([[0, 1], [0, 0], [1, 1]], np.int32)
        >>> new = np.array([[1, 0], [1, 1], [0, 0]], np.int32)
        >>> [name.tolist() for name in names_after(old, new, np.array([5, 2, 2]), (2, 2))]
        [[1, 0], [1, 0]]
    """
    weight = traffic.astype(np.float64) + 1.0
    agree = np.ones(len(old), bool)
    names = []
    for level, size in enumerate(level_sizes):
        everyone = _table(new[:, level], old[:, level], weight, size)
        kept = _table(new[agree, level], old[agree, level], weight[agree], size)
        name = _assignment(kept + everyone / (1.0 + weight.sum()))
        names.append(name)
        agree &= name[new[:, level]] == old[:, level]
    return names


def near_enough(x: FloatArray, codebooks: Sequence[FloatArray], old: CodeArray, tolerance: float) -> CodeArray:
    """Return codes ``[N, L]``: the old ones of an item, level by level, as long as they are nearly as good as the nearest.

    Refits of the same catalogue differ most in items that lie between two centroids, and these hardly care which one it is.

    Args:
        x: ``[N, D]``.
        codebooks: L arrays ``[K, D]``, under their final names.
        old: ``[N, L]`` codes that items had, -1 for items that had none.
        tolerance: How much further than the nearest centroid, in squared distance, that of the old code may lie.

    Example:
        >>> books = [np.array([[0.0], [10.0]], np.float32), np.array([[-1.0], [1.0]], np.float32)]
        >>> x, old = np.array([[5.2], [5.2]], np.float32), np.array([[0, 0], [-1, -1]], np.int32)
        >>> near_enough(x, books, old, 0.2).tolist()  # 27.04 is within 1.2 x 23.04; at level 2, 38.44 is not of 17.64
        [[0, 1], [1, 0]]
    """
    tables = [torch.from_numpy(book) for book in codebooks]
    codes = np.empty((len(x), len(tables)), np.int32)
    for rows in row_chunks(len(x)):
        residual_ND, old_NL = as_tensor(x[rows]), torch.from_numpy(old[rows].astype(np.int64))
        keeps_N = (old_NL >= 0).all(dim=1)
        for level, table_KD in enumerate(tables):
            nearest_N, best_N = nearest_codes(residual_ND, table_KD)
            old_N = old_NL[:, level].clamp(min=0)
            distance_N = (residual_ND - table_KD[old_N]).square().sum(dim=1)
            keeps_N &= (old_N == nearest_N) | (distance_N <= (1.0 + tolerance) * best_N)
            chosen_N = torch.where(keeps_N, old_N, nearest_N)
            codes[rows, level] = chosen_N.numpy()
            residual_ND -= table_KD[chosen_N]
    return codes


def renamed(codes: CodeArray, names: Sequence[Permutation]) -> CodeArray:
    """Return codes ``[n, L]`` under their new names."""
    return np.column_stack([name[codes[:, level]] for level, name in enumerate(names)]).astype(np.int32)


def _table(new: CodeArray, old: CodeArray, weight: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """``[new code, old code]`` sum of the weights."""
    flat = np.bincount(new.astype(np.int64) * size + old, weights=weight, minlength=size * size)
    return np.asarray(flat, np.float64).reshape(size, size)


def _assignment(weight: npt.NDArray[np.float64]) -> Permutation:
    """Give every row its own column, with the largest sum of weights."""
    from scipy.optimize import linear_sum_assignment

    size = len(weight)
    if size <= MAX_EXACT:
        return np.asarray(linear_sum_assignment(weight, maximize=True)[1], np.int64)
    rows, columns = np.nonzero(weight)
    order = np.argsort(-weight[rows, columns], kind="stable")
    name, taken = np.full(size, -1, np.int64), np.zeros(size, bool)
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if name[row] < 0 and not taken[column]:
            name[row], taken[column] = column, True
    name[name < 0] = np.flatnonzero(~taken)
    return name

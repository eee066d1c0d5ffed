"""Make semantic IDs unique: reads the quantizer's codes ``[I, L]`` and traffic, produces codes in which no two items agree.

In each group of items with equal codes the one with the most traffic keeps them (the lower item_index on a tie); all
other items of the group move. Items that collide with nobody never move. Two ways:

    reassign     movers take free last codes under the same first L - 1 codes, by an assignment of least total distance;
                 when a prefix has no room left, the least-trafficked movers go to the nearest prefix that has
    extra_level  one more code counts the items of a group from 0, the most-trafficked first; nothing else changes

Legend: I items, L levels, K codes per level, M movers, F free codes, D width.

Source: our own, since OneRec is silent on collisions; the extra level is the one of TIGER (arXiv 2305.05065), section 3.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import DataError
from recsys.semantic_ids.quantizer import CodeArray, FloatArray

Counts = npt.NDArray[np.int64]
Method = Literal["reassign", "extra_level", "none"]


@dataclass(frozen=True)
class Repair:
    """Codes after the repair.

    Attributes:
        codes: ``[I, L]`` or, with an extra level, ``[I, L + 1]``.
        level_sizes: Codes per level.
        moved: ``[I]`` True where the item's ID is not the quantizer's (followed by 0, with an extra level).
    """

    codes: CodeArray
    level_sizes: tuple[int, ...]
    moved: npt.NDArray[np.bool_]


def make_unique(
    codes: CodeArray, embeddings: FloatArray, codebooks: Sequence[FloatArray], traffic: Counts, method: Method
) -> Repair:
    """Tell items with equal codes apart.

    Args:
        codes: ``[I, L]`` from the quantizer.
        embeddings: ``[I, D]``.
        codebooks: L arrays ``[K, D]``.
        traffic: ``[I]`` train events per item; it decides who keeps a contested ID.
        method: See the module's head; ``none`` returns the codes as they are.

    Raises:
        DataError: More items than IDs.
    """
    level_sizes = tuple(len(book) for book in codebooks)
    if method == "none":
        return Repair(codes.copy(), level_sizes, np.zeros(len(codes), bool))
    group = group_numbers(codes, level_sizes)
    rank = ranks_within(group, traffic)
    if method == "extra_level":
        extended = np.column_stack([codes, rank]).astype(np.int32)
        return Repair(extended, (*level_sizes, int(rank.max(initial=0)) + 1), rank > 0)
    if len(codes) > prod(level_sizes):
        raise DataError(
            f"semantic IDs: {len(codes)} items, but only {prod(level_sizes)} IDs from level sizes {level_sizes}; "
            "raise tokenize.num_levels or tokenize.codebook_size"
        )
    return _reassign(codes, embeddings, codebooks, traffic, rank > 0)


def group_numbers(codes: CodeArray, level_sizes: Sequence[int]) -> Counts:
    """Number the distinct rows of ``codes``; equal rows have equal numbers.

    Example:
        >>> group_numbers(np.array([[1, 0], [0, 1], [1, 0]]), (2, 2)).tolist()
        [1, 0, 1]
    """
    number = np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1]):
        # numbering again after each level keeps the product below I * K, whatever the number of levels
        number = np.unique(number * level_sizes[level] + codes[:, level], return_inverse=True)[1].astype(np.int64)
    return number


def ranks_within(group: Counts, traffic: Counts) -> Counts:
    """Return each item's place in its group, 0 for the most traffic; ties go to the lower item_index.

    Example:
        >>> ranks_within(np.array([0, 0, 1, 0]), np.array([5, 9, 1, 5])).tolist()
        [1, 0, 0, 2]
    """
    order = np.lexsort((np.arange(len(group)), -traffic, group))
    ordered = group[order]
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return rank


class NoFreeId(DataError):
    """Every ID is taken."""


class CodeTree:
    """How many items sit under every prefix; finds the nearest ID that is still free.

    Args:
        codes: IDs that are taken, ``[n, L]``.
        level_sizes: Codes per level.
        codebooks: Centroids of the first levels; a level beyond them is a running number and is filled from 0.
    """

    def __init__(self, codes: CodeArray, level_sizes: Sequence[int], codebooks: Sequence[FloatArray]) -> None:
        self._sizes = tuple(level_sizes)
        self._books = codebooks
        self._counts: Counter[tuple[int, ...]] = Counter()
        for depth in range(1, len(self._sizes) + 1):
            self._counts.update(map(tuple, codes[:, :depth].tolist()))

    def add(self, code: tuple[int, ...]) -> None:
        """Mark an ID as taken."""
        for depth in range(1, len(code) + 1):
            self._counts[code[:depth]] += 1

    def nearest_free(self, embedding: FloatArray) -> tuple[int, ...]:
        """Return a free ID: at each level the nearest code under which there is still room.

        So an item keeps its nearest codes from the front as long as it can, and only the codes at the end give way.

        Raises:
            NoFreeId: Every ID is taken.
        """
        prefix: tuple[int, ...] = ()
        residual = np.array(embedding, dtype=np.float32)
        for level in range(len(self._sizes)):
            room = prod(self._sizes[level + 1 :])
            for code in self._by_distance(level, residual):
                if self._counts[(*prefix, code)] < room:
                    break
            else:
                raise NoFreeId(
                    f"semantic IDs: all {prod(self._sizes)} IDs of level sizes {self._sizes} are taken; "
                    "tokenize anew with more levels or larger codebooks"
                )
            prefix = (*prefix, code)
            if level < len(self._books):
                residual -= self._books[level][code]
        return prefix

    def _by_distance(self, level: int, residual: FloatArray) -> Iterator[int]:
        if level >= len(self._books):
            return iter(range(self._sizes[level]))
        distances = np.square(self._books[level] - residual).sum(axis=1)
        return iter(np.argsort(distances, kind="stable").tolist())


def _reassign(
    codes: CodeArray,
    embeddings: FloatArray,
    codebooks: Sequence[FloatArray],
    traffic: Counts,
    moved: npt.NDArray[np.bool_],
) -> Repair:
    level_sizes = tuple(len(book) for book in codebooks)
    result = codes.copy()
    homeless: list[int] = []
    for members in _prefix_groups(codes, level_sizes, moved):
        movers = members[moved[members]]
        movers = movers[np.lexsort((movers, -traffic[movers]))]
        is_free = np.ones(level_sizes[-1], bool)
        is_free[codes[members[~moved[members]], -1]] = False
        free = np.flatnonzero(is_free)
        homeless.extend(movers[len(free) :].tolist())
        movers = movers[: len(free)]
        if len(movers):
            residual_MD = _residuals(embeddings[movers], codes[movers[0], :-1], codebooks)
            result[movers, -1] = free[_least_distance(residual_MD, codebooks[-1][free])]
    if homeless:
        settled = np.ones(len(codes), bool)
        settled[homeless] = False
        tree = CodeTree(result[settled], level_sizes, codebooks)
        order = np.array(homeless)
        for item in order[np.lexsort((order, -traffic[order]))]:
            code = tree.nearest_free(embeddings[item])
            tree.add(code)
            result[item] = code
    return Repair(result, level_sizes, moved)


def _prefix_groups(codes: CodeArray, level_sizes: Sequence[int], moved: npt.NDArray[np.bool_]) -> Iterator[Counts]:
    """Yield the item numbers under each prefix of L - 1 codes that holds a mover."""
    prefix = group_numbers(codes[:, :-1], level_sizes)
    contested = np.flatnonzero(np.isin(prefix, prefix[moved]))
    contested = contested[np.argsort(prefix[contested], kind="stable")]
    if len(contested):
        borders = np.flatnonzero(np.diff(prefix[contested])) + 1
        yield from np.split(contested, borders)


def _residuals(x_MD: FloatArray, prefix: CodeArray, codebooks: Sequence[FloatArray]) -> FloatArray:
    residual_MD = np.array(x_MD, dtype=np.float32)
    for book, code in zip(codebooks, prefix, strict=False):
        residual_MD -= book[code]
    return residual_MD


def _least_distance(residual_MD: FloatArray, centroids_FD: FloatArray) -> Counts:
    """Assign M residuals to M distinct of the F >= M centroids with the least total squared distance."""
    from scipy.optimize import (
        linear_sum_assignment,
    )  # a quarter of a second to import, and few readers of IDs assign any

    cost_MF = (
        np.square(residual_MD).sum(axis=1, keepdims=True, dtype=np.float64)
        - 2.0 * (residual_MD @ centroids_FD.T)
        + np.square(centroids_FD).sum(axis=1, dtype=np.float64)
    )
    rows, columns = linear_sum_assignment(cost_MF)
    assert np.array_equal(rows, np.arange(len(residual_MD))), "fewer free codes than movers"
    return columns.astype(np.int64)

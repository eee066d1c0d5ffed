"""Candidates of many rows with their features and targets: what the second stage is fitted on, and how it is measured.

Reads arrays that whoever searches has gathered; produces the rows that may be fitted on, the rows that are held out, and
NDCG@10 and HR@10 of any order of the candidates. A row whose targets are not among its candidates counts as a miss.

Shape legend: N rows, C candidates (padded), F features, M candidates of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.columns import SPLIT_NAMES, VALID
from recsys.contracts.dataset import Targets
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems
from recsys.metrics.ranking import row_metrics

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

NO_ITEM: Final = -1
DENSE: Final = "dense_score"
"""The feature that every candidate has: where it is NaN, there is no candidate."""
TOP: Final = 10
"""Places that the second stage is chosen by: NDCG@10."""


@dataclass(frozen=True)
class CandidateTable:
    """Candidates of N rows.

    Attributes:
        items: int32 ``[N, C]`` item_index, no item twice in a row; -1 fills up rows with fewer candidates.
        features: float32 ``[N, C, F]``; NaN where a feature is not known. Whatever stands at item -1 is ignored, and taken
            for NaN by :meth:`take`.
        feature_names: F names, each once.
        targets: N rows with at least one target each; any of a row's targets is relevant.
        split: ``[N]`` code of each row's split, of :data:`~recsys.contracts.columns.SPLIT_NAMES`.
    """

    items: npt.NDArray[np.int32]
    features: FloatArray
    feature_names: tuple[str, ...]
    targets: Targets
    split: npt.NDArray[np.integer]

    def __post_init__(self) -> None:
        rows, names = len(self.targets), self.feature_names
        if len(set(names)) != len(names):
            raise DataError(f"candidate table: feature names {list(names)} hold one twice; give each feature one name")
        expected = (*self.items.shape, len(names))
        if self.items.ndim != 2 or len(self.items) != rows or self.features.shape != expected:
            raise DataError(
                f"candidate table: items have shape {self.items.shape}, features {self.features.shape}, expected "
                f"[{rows} rows, candidates] and [{rows} rows, candidates, {len(names)} features]"
            )
        if self.split.shape != (rows,):
            raise DataError(f"candidate table: split has shape {self.split.shape}, expected one code per row, [{rows}]")

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def present(self) -> Mask:
        """Which places hold a candidate, ``[N, C]``."""
        return self.items >= 0

    @cached_property
    def relevant(self) -> Mask:
        """Which candidates are a target of their row, ``[N, C]``."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.targets.item_offsets))
        span = int(max(self.items.max(initial=0), self.targets.items.max(initial=0))) + 1
        keys = np.where(self.present, np.arange(len(self))[:, None] * span + self.items, -1)
        return np.isin(keys, rows * span + self.targets.items)

    def column(self, name: str) -> FloatArray:
        """One feature, ``[N, C]``.

        Raises:
            DataError: The table has no such feature.
        """
        if name not in self.feature_names:
            raise DataError(
                f"candidate table has no feature '{name}'; it has {', '.join(self.feature_names) or 'none'}"
            )
        return self.features[..., self.feature_names.index(name)]

    def take(self, rows: npt.NDArray[np.integer]) -> CandidateTable:
        """Return the rows given by number; NaN stands where there is no candidate."""
        features = self.features[rows]
        features[~self.present[rows]] = np.nan
        return CandidateTable(self.items[rows], features, self.feature_names, self.targets.take(rows), self.split[rows])

    def select(self, names: Sequence[str]) -> CandidateTable:
        """Return the table with these features alone, in this order."""
        columns = np.stack([self.column(name) for name in names], axis=-1)
        return replace(self, features=columns, feature_names=tuple(names))


def check_validation(split: npt.NDArray[np.integer], what: str) -> None:
    """Refuse rows that are not of the validation split: what is fitted on test rows says nothing about test rows.

    Args:
        what: What would be fitted, for the message.

    Raises:
        DataError: There are no rows, or one is of another split.
    """
    if not len(split):
        raise DataError(
            f"{what} needs validation rows and got none; check the split in `prepare`, or set rank.method: none"
        )
    wrong = np.flatnonzero(split != VALID)
    if len(wrong):
        code = int(split[wrong[0]])
        name = SPLIT_NAMES[code] if 0 <= code < len(SPLIT_NAMES) else str(code)
        raise DataError(
            f"{what} is fitted on validation rows alone, and row {int(wrong[0])} is of split '{name}' "
            f"({len(wrong)} such rows); pass the targets of split 'valid'"
        )


def held_out_users(user_index: npt.NDArray[np.integer], share: float, seed: int) -> Mask:
    """Mark the rows ``[N]`` of held-out users.

    A user's side depends on its number and the seed alone, so the fusion, the ranker and the guard hold out the same ones
    whatever rows they are given.

    Example:
        >>> held_out_users(np.array([7, 3, 7]), 0.5, seed=1)[[0, 2]].tolist() in ([True, True], [False, False])
        True
    """
    return _uniform(user_index, seed) < share


def held_out_parts(user_index: npt.NDArray[np.integer], share: float, seed: int) -> npt.NDArray[np.int64]:
    """Number of the part ``[N]`` in which each row is held out: 0 is :func:`held_out_users`, the others share the rest.

    Example:
        >>> np.bincount(held_out_parts(np.arange(9000), 1 / 3, seed=0), minlength=3).round(-3).tolist()
        [3000, 3000, 3000]
    """
    place, others = _uniform(user_index, seed), max(2, round(1 / share)) - 1
    return np.where(place < share, 0, 1 + np.floor((place - share) / (1 - share) * others)).astype(np.int64)


def sample_rows(user_index: npt.NDArray[np.integer], max_rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Return at most ``max_rows`` row numbers, ascending: all rows of a seeded sample of the users."""
    if len(user_index) <= max_rows:
        return np.arange(len(user_index))
    order = np.lexsort((user_index, _uniform(user_index, seed + 1)))
    users = user_index[order]
    ends = np.flatnonzero(np.append(users[1:] != users[:-1], True)) + 1
    fitting = ends[ends <= max_rows]
    return np.sort(order[: fitting[-1] if len(fitting) else max_rows])


def _uniform(user_index: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) per user.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators" (the finaliser of SplitMix64).
    """
    start = np.random.default_rng(seed).integers(1 << 63, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = user_index.astype(np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def ranked_candidates(items: npt.NDArray[np.int32], scores: npt.NDArray[np.floating], k: int) -> RankedItems:
    """Order candidates by score, best first; ties go to the lower item_index, NaN and item -1 to the end.

    Args:
        items: ``[N, C]``, -1 where there is no candidate.
        scores: ``[N, C]``.

    Example:
        >>> ranked_candidates(np.array([[5, 3, -1]], np.int32), np.array([[1.0, 1.0, 9.0]]), 2).items.tolist()
        [[3, 5]]
    """
    values = np.where((items >= 0) & ~np.isnan(scores), scores, -np.inf)
    behind = np.where(items >= 0, items, np.iinfo(np.int32).max)
    order = np.lexsort((behind, -values), axis=1)[:, :k]
    found = np.full((len(items), k), NO_ITEM, np.int32)
    kept = np.full((len(items), k), -np.inf, np.float32)
    found[:, : order.shape[1]] = np.take_along_axis(items, order, axis=1)
    kept[:, : order.shape[1]] = np.take_along_axis(values, order, axis=1)
    kept[found < 0] = -np.inf
    return RankedItems(found, kept)


def quality(table: CandidateTable, scores: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.float64]]:
    """NDCG@10 and HR@10 of every row, ``[N]``, where the candidates stand in the order of ``scores``."""
    values = row_metrics(ranked_candidates(table.items, scores, TOP), table.targets, [TOP])
    return {name: values[name] for name in (f"ndcg@{TOP}", f"hr@{TOP}")}

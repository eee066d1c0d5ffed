"""The linear second stage: standardised features times weights, fitted as a choice among a row's candidates.

Reads a :class:`~recsys.ranker.table.CandidateTable`; produces a :class:`LinearRanker`. Rows none of whose targets are among
their candidates teach nothing about the order of these and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.contracts.errors import ArtifactError, DataError
from recsys.ranker.logit import Choices, fit_softmax
from recsys.ranker.table import DENSE, CandidateTable, FloatArray, held_out_users, quality

LINEAR_FILE: Final = "linear.safetensors"
_SMALLEST_SCALE: Final = 1e-6
"""A feature that varies less than this is constant, and gets the weight 0."""
_INNER_SHARE: Final = 0.25
"""Share of the fit part's users that choose the ridge; the weights are then fitted on the whole fit part."""


@dataclass(frozen=True, eq=False)
class LinearRanker:
    """Weights of standardised features.

    Attributes:
        feature_names: F names.
        weight: float32 ``[F]``, of standardised features: comparable with one another.
        mean, scale: float32 ``[F]``, of the candidates it was fitted on.
        imputed: float32 ``[F]`` what stands for NaN.
        l2: The ridge it was fitted with.
    """

    kind: ClassVar[str] = "linear"

    feature_names: tuple[str, ...]
    weight: FloatArray
    mean: FloatArray
    scale: FloatArray
    imputed: FloatArray
    l2: float

    def score(self, features: FloatArray) -> FloatArray:
        """Score candidates ``[..., F]``; returns float32 ``[...]``, ``-inf`` where there is no candidate."""
        slope = self.weight / self.scale
        known = np.where(np.isnan(features), self.imputed, features)
        # a sum per candidate: a product would round by how many candidates there are
        score = np.asarray((known * slope).sum(-1) - np.float32(self.mean @ slope), np.float32)
        score[np.isnan(features[..., self._dense])] = -np.inf
        return score

    @cached_property
    def _dense(self) -> int:
        """Place of the feature that every candidate has."""
        return self.feature_names.index(DENSE)

    def terms(self, features: FloatArray) -> FloatArray:
        """What each feature adds to the score, float32 ``[..., F]``; the terms of a candidate sum to its score."""
        known = np.where(np.isnan(features), self.imputed, features)
        return np.asarray((known - self.mean) * (self.weight / self.scale), np.float32)

    def explain(self) -> list[tuple[str, float]]:
        """Weight of every feature, the heaviest first."""
        pairs = zip(self.feature_names, self.weight.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-abs(pair[1]), pair[0]))

    def save(self, folder: Path) -> dict[str, object]:
        """Write ``linear.safetensors``; returns what belongs into the JSON file beside it."""
        arrays = {"weight": self.weight, "mean": self.mean, "scale": self.scale, "imputed": self.imputed}
        save_file(
            {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, folder / LINEAR_FILE
        )
        return {"l2": self.l2}

    @classmethod
    def load(cls, folder: Path, feature_names: Sequence[str], head: dict[str, object]) -> LinearRanker:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: The file is damaged or has another number of features.
        """
        path = folder / LINEAR_FILE
        try:
            arrays = load_file(path)
            parts = [np.asarray(arrays[name], np.float32) for name in ("weight", "mean", "scale", "imputed")]
            l2 = float(str(head["l2"]))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"ranker '{path}' cannot be read: {error}; run `rank` again") from error
        expected = (len(feature_names),)
        if any(part.shape != expected or not np.isfinite(part).all() for part in parts) or (parts[2] <= 0).any():
            raise ArtifactError(
                f"ranker '{path}' holds arrays of shapes {[part.shape for part in parts]}, expected finite numbers of shape "
                f"{expected} and positive scales; run `rank` again"
            )
        weight, mean, scale, imputed = parts
        return cls(tuple(feature_names), weight, mean, scale, imputed, l2)


def fit_linear(table: CandidateTable, imputed: FloatArray, l2_grid: Sequence[float], seed: int) -> LinearRanker:
    """Fit on all rows of ``table`` that hold a target.

    Args:
        table: The fit part of the validation rows.
        imputed: float32 ``[F]`` what stands for NaN.
        l2_grid: Ridges; the one of best NDCG@10 on a quarter of the users, fitted on the others, is taken.

    Raises:
        DataError: No row holds a target.
    """
    known = _impute(table.features, imputed)
    mean, scale = _moments(known[table.present])
    features = (known - mean) / scale
    best = l2_grid[0]
    if len(l2_grid) > 1:
        inner = held_out_users(table.targets.user_index, _INNER_SHARE, seed + 2)
        best = _best_ridge(table, features, inner, l2_grid)
    weight = fit_softmax(_choices(table, features, np.ones(len(table), bool)), best)
    return LinearRanker(table.feature_names, weight.astype(np.float32), mean, scale, imputed, float(best))


def _best_ridge(
    table: CandidateTable, features: FloatArray, inner: npt.NDArray[np.bool_], l2_grid: Sequence[float]
) -> float:
    """The ridge of best NDCG@10 on the inner rows; the smallest where one part holds no target."""
    hits = table.relevant.any(axis=1)
    if not (hits & inner).any() or not (hits & ~inner).any():
        return l2_grid[0]
    choices, measured, held = _choices(table, features, ~inner), table.take(np.flatnonzero(inner)), features[inner]
    found, weight = [], None
    for l2 in sorted(l2_grid, reverse=True):  # the strongest ridge first: each answer is the next one's first guess
        weight = fit_softmax(choices, l2, weight)
        value = float(quality(measured, held @ weight.astype(np.float32))["ndcg@10"].mean())
        found.append((value, l2))
    return max(found)[1]


def _choices(table: CandidateTable, features: FloatArray, rows: npt.NDArray[np.bool_]) -> Choices:
    """The candidates of those of ``rows`` that hold a target."""
    hits = table.relevant.sum(axis=1)
    used = np.flatnonzero((hits > 0) & rows)
    if not len(used):
        raise DataError(
            f"no target is among the candidates of {int(rows.sum())} validation rows, so there is nothing to learn an order "
            "from: raise rank.candidates or decode.beam_width, or set rank.method: none"
        )
    present = table.present[used]
    starts = np.cumsum(present.sum(axis=1)) - present.sum(axis=1)
    chosen = table.relevant[used] / hits[used, None]
    return Choices(features[used][present], starts, chosen[present].astype(np.float32))


def _impute(features: FloatArray, imputed: FloatArray) -> FloatArray:
    return np.where(np.isnan(features), imputed, features)


def _moments(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation ``[F]``; 1 stands for the deviation of a constant feature, whose weight stays 0."""
    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    scale[scale < _SMALLEST_SCALE * np.maximum(1.0, np.abs(mean))] = 1.0
    return mean.astype(np.float32), scale.astype(np.float32)

"""Listwise softmax, also called the conditional or multinomial logit: weights under which targets are likely choices.

Reads candidates of all rows, one row after the other, with their features; produces one weight per feature. The loss is
convex, so that the same data give the same weights wherever the search starts.

A row's loss is the mean over its targets of ``-log(exp(x_t w) / sum_c exp(x_c w))``; the fit minimises the mean over the
rows plus ``l2 / 2 * |w|^2``.

Shape legend: R rows, M candidates of all rows, F features.

Source: McFadden 1974, "Conditional logit analysis of qualitative choice behavior"; Cao et al. 2007, "Learning to rank: from
pairwise approach to listwise approach" (ListNet with one list).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """What was chosen from among what, rows one after the other.

    Attributes:
        features: float32 ``[M, F]``.
        starts: ``[R]`` first candidate of each row; every row has one at least.
        chosen: float32 ``[M]`` share of the row's choices, summing to 1 in each row; 0 for what was not chosen.
    """

    features: FloatArray
    starts: npt.NDArray[np.int64]
    chosen: FloatArray

    def loss(self, weights: Weights) -> tuple[float, Weights]:
        """Mean loss of the rows and its gradient, without the ridge."""
        score_M = (self.features @ weights.astype(np.float32)).astype(np.float64)
        lengths_R = np.diff(np.append(self.starts, len(score_M)))
        best_R = np.maximum.reduceat(score_M, self.starts)
        mass_M = np.exp(score_M - np.repeat(best_R, lengths_R))
        total_R = np.add.reduceat(mass_M, self.starts)
        rows = len(self.starts)
        value = float((best_R + np.log(total_R)).sum() - self.chosen.astype(np.float64) @ score_M) / rows
        surplus_M = mass_M / np.repeat(total_R, lengths_R) - self.chosen
        return value, (surplus_M.astype(np.float32) @ self.features).astype(np.float64) / rows


def fit_softmax(
    choices: Choices,
    l2: float | npt.NDArray[np.float64] = 0.0,
    start: Weights | None = None,
    *,
    lowest: Weights | None = None,
    steps: int = 200,
) -> Weights:
    """Return the weights ``[F]`` of least loss, by L-BFGS.

    Args:
        l2: Ridge, one number or one per feature.
        start: First guess; ``None`` starts at 0.
        lowest: ``[F]`` lower bounds; ``None``: none.

    Example:
        Two items, one of which is chosen three times in four; its feature is 1, the other's 0. Then
        ``sigmoid(w) = 3/4``, so ``w = log 3``:

        >>> features = np.tile(np.array([[1.0], [0.0]], np.float32), (4, 1))
        >>> chosen = np.array([1, 0, 1, 0, 1, 0, 0, 1], np.float32)
        >>> round(float(fit_softmax(Choices(features, np.arange(0, 8, 2), chosen))[0]), 3)
        1.099
    """
    from scipy.optimize import minimize

    num_features = choices.features.shape[1]
    ridge = np.broadcast_to(np.asarray(l2, np.float64), (num_features,))

    def value(weights: Weights) -> tuple[float, Weights]:
        loss, slope = choices.loss(weights)
        return loss + 0.5 * float(ridge @ weights**2), slope + ridge * weights

    first = np.zeros(num_features) if start is None else np.asarray(start, np.float64)
    bounds = None if lowest is None else [(float(low), None) for low in lowest]
    found = minimize(
        value,
        first,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": steps, "ftol": 1e-10, "gtol": 1e-7},
    )
    return np.asarray(found.x, np.float64)

"""Calibrate a trained reward model: one scale and one shift per tower.

Training stops early and sees sessions with unexposed items beside real ones, so its probabilities are off as a whole though
their order is good. On the validation sessions ``sigmoid(scale * logit + shift)`` is fitted to the labels.

Source: Platt 1999, "Probabilistic outputs for support vector machines", with soft labels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from recsys.reward.feedback.dataset import SessionFeedback
from recsys.reward.model import SessionRewardModel
from recsys.reward.scoring import score_sessions

RIDGE = 1e-5
"""Keeps the fit finite where all labels are alike or the logits separate them; far below what data of any size say."""
_MOST_STEPS: Final = 200
_SMALLEST_STEP: Final = 1e-9
_ARMIJO: Final = 1e-4
"""Part of the descent that the slope promises which a step has to bring."""


def calibrate(model: SessionRewardModel, sessions: SessionFeedback) -> None:
    """Set the model's scales and shifts, in place, from sessions with known labels."""
    scored = score_sessions(model, sessions.histories, sessions.padded_items(model.spec.max_items)[:, None])
    for tower in range(len(sessions.signals)):
        known = ~np.isnan(sessions.labels[:, tower])
        scale, shift = platt_scaling(scored.logits[known, 0, tower], sessions.labels[known, tower])
        model.scale_T[tower] *= scale  # the logits came through what was set before
        model.shift_T[tower] = scale * model.shift_T[tower] + shift


def platt_scaling(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return scale and shift of least cross-entropy.

    Where the logits do not vary, or the best scale is not positive, which would turn the order round, the scale is 1 and
    only the mean is matched; without labels nothing is changed.

    Args:
        labels: In [0, 1].

    Example:
        >>> scale, shift = platt_scaling(np.array([-2.0, 0.0, 2.0]), 1 / (1 + np.exp([1.0, 0.0, -1.0])))
        >>> round(scale, 3), round(abs(shift), 3)  # the labels are sigmoid(logit / 2)
        (0.5, 0.0)
    """
    if not len(labels):
        return 1.0, 0.0
    x, y = (torch.from_numpy(np.asarray(values, np.float64)) for values in (logits, labels))
    scale, shift = _fit(x, y, free_scale=bool(x.max() > x.min()))
    return (scale, shift) if scale > 0 else _fit(x, y, free_scale=False)


def _fit(x: torch.Tensor, y: torch.Tensor, *, free_scale: bool) -> tuple[float, float]:
    """Newton's method on a convex loss, a ridge pulling to scale 1 and shift 0.

    A step is halved until it makes the loss smaller: far from the labels the curvature is nearly 0, and whole steps would
    jump from one end to the other.
    """
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    features = torch.stack([x, torch.ones_like(x)], dim=1)
    free = torch.tensor([free_scale, True])

    def loss(theta: torch.Tensor) -> float:
        logits = features @ theta
        return float((F.softplus(logits) - y * logits).mean() + RIDGE / 2 * (theta - start).square().sum())

    theta, here = start.clone(), loss(start)
    for _ in range(_MOST_STEPS):
        p = (features @ theta).sigmoid()
        gradient = (features.T @ (p - y) / len(x) + RIDGE * (theta - start)) * free
        curvature = (features * (p * (1 - p))[:, None]).T @ features / len(x) + RIDGE * torch.eye(2).double()
        if not free_scale:
            curvature[0, 1] = curvature[1, 0] = 0.0
        step = torch.linalg.solve(curvature, gradient)
        descent = float(gradient @ step)
        while float(step.abs().max()) >= _SMALLEST_STEP and loss(theta - step) > here - _ARMIJO * descent:
            step, descent = step / 2, descent / 2
        if float(step.abs().max()) < _SMALLEST_STEP:
            break
        theta = theta - step
        here = loss(theta)
    return float(theta[0]), float(theta[1])

"""One reward per candidate out of one value per tower; pure functions on tensors.

Legend: B users, N candidates of a user, T towers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from recsys.contracts.errors import ConfigError

EQUAL = 1e-6
"""A tower whose values spread less than this share of their size cannot rank a group: float32 noise."""


def combine_rewards(
    values_BNT: torch.Tensor,
    weights: torch.Tensor,
    mode: Literal["zscore", "raw", "rank"] = "zscore",
    valid_BN: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weigh the towers of every candidate.

    Args:
        values_BNT: Probabilities or logits; a candidate with any value that is not finite does not exist.
        weights: ``[T]``, or ``[B, T]`` for weights of each request.
        mode: ``zscore``: (value - mean) / standard deviation inside the user's group (population form), 0 for a tower that
            does not vary there; ``raw``: the values; ``rank``: places from -0.5 (least) to 0.5, ties share theirs, so a
            tower that does not vary is 0 as well.
        valid_BN: False for candidates that do not exist.

    Returns:
        float32 ``[B, N]``; ``-inf`` for candidates that do not exist, so whoever looks for the *worst* must mask them.

    Raises:
        ValueError: Shapes do not fit.

    Example:
        >>> values = torch.tensor([[[0.2, 0.001], [0.6, 0.003]]])
        >>> combine_rewards(values, torch.tensor([1.0, 0.5])).tolist()
        [[-1.5, 1.5]]
    """
    if values_BNT.dim() != 3 or weights.shape not in (values_BNT.shape[2:], values_BNT.shape[::2]):
        raise ValueError(
            f"values {tuple(values_BNT.shape)} and weights {tuple(weights.shape)} do not fit; "
            "expected [B, N, T] and [T] or [B, T]"
        )
    exists_BN = torch.isfinite(values_BNT).all(-1)
    if valid_BN is not None:
        exists_BN = exists_BN & valid_BN
    values_BNT = values_BNT.float().masked_fill(~exists_BN[..., None], 0.0)
    if mode == "zscore":
        values_BNT = _standardise(values_BNT, exists_BN)
    elif mode == "rank":
        values_BNT = _centred_ranks(values_BNT, exists_BN)
    elif mode != "raw":
        raise ValueError(f"mode is {mode!r}, expected 'zscore', 'raw' or 'rank'")
    weights_B1T = weights.to(values_BNT).view(-1, 1, values_BNT.shape[2])
    return (values_BNT * weights_B1T).sum(-1).masked_fill(~exists_BN, -torch.inf)


def tower_weights(
    defaults: Mapping[str, float], changes: Mapping[str, float], where: str = "combination.weights"
) -> torch.Tensor:
    """Return ``[T]`` weights in the order of ``defaults``, with some of them replaced by name.

    Raises:
        ConfigError: A name that is no tower.

    Example:
        >>> tower_weights({"swt": 1.0, "ltr": 1.0}, {"ltr": 0.25}).tolist()
        [1.0, 0.25]
    """
    check_tower_names(list(changes), list(defaults), where)
    return torch.tensor([{**defaults, **changes}[name] for name in defaults], dtype=torch.float32)


def check_tower_names(given: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse names that are no tower of the model."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{where}: {', '.join(unknown)} is no tower; this reward model has {', '.join(known)}")


def _standardise(values_BNT: torch.Tensor, exists_BN: torch.Tensor) -> torch.Tensor:
    """Z-scores over the candidates that exist; exactly 0 where they are all alike."""
    exists_BN1 = exists_BN[..., None]
    count = exists_BN1.sum(1, keepdim=True).clamp(min=1)
    mean = values_BNT.sum(1, keepdim=True) / count
    centred = (values_BNT - mean).masked_fill(~exists_BN1, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    alike = deviation <= EQUAL * mean.abs() + torch.finfo(torch.float32).tiny
    return torch.where(alike, 0.0, centred / deviation.masked_fill(alike, 1.0))


def _centred_ranks(values_BNT: torch.Tensor, exists_BN: torch.Tensor) -> torch.Tensor:
    """(candidates below - candidates above) / (2 (n - 1)), between -0.5 and 0.5."""
    below = torch.zeros_like(values_BNT)
    for tower in range(values_BNT.shape[2]):  # [B, N, N] at a time
        column_BN = values_BNT[..., tower]
        sign_BNN = torch.sign(column_BN[:, :, None] - column_BN[:, None, :]) * exists_BN[:, None, :]
        below[..., tower] = sign_BNN.sum(-1)
    others = (exists_BN.sum(1) - 1).clamp(min=1)
    return below / (2 * others[:, None, None])

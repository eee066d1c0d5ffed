"""Small inputs of the policy-gradient losses: rows of one code, and a random step with codes and rows that do not exist."""

from __future__ import annotations

from typing import get_args

import torch

from recsys.alignment.losses.advantages import group_advantages
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.losses.policy_gradient import PolicyGradientResult, policy_gradient_loss

LOSS_TYPES: tuple[str, ...] = get_args(PolicyGradientConfig.model_fields["loss_type"].annotation)
BOUNDED = ("ecpo", "gbpo")
"""Types that may have one ratio per row, and that hold a part of the ratio still."""
CLIPPED = tuple(name for name in LOSS_TYPES if name not in BOUNDED)
EVERY_FORM = [*[(name, "token") for name in LOSS_TYPES], *[(name, "sequence") for name in BOUNDED]]


def config_of(loss_type: str, ratio_level: str = "token", **options: float | None) -> PolicyGradientConfig:
    return PolicyGradientConfig(loss_type=loss_type, ratio_level=ratio_level, **{"beta": 0.0, **options})


def logs(*probabilities: float) -> torch.Tensor:
    """One group; every argument is a row of one code."""
    return torch.tensor(probabilities).log()[None, :, None]


def exist(values: torch.Tensor) -> torch.Tensor:
    return torch.ones(values.shape, dtype=torch.bool)


def result_of(
    config: PolicyGradientConfig, new: torch.Tensor, advantages: list[float], old: torch.Tensor | None = None
) -> PolicyGradientResult:
    return policy_gradient_loss(config, new, torch.tensor([advantages]), exist(new), old_log_probs_BGC=old)


def random_step(seed: int, spread: float = 0.5, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Policy, old and reference log-probabilities ``[3, 5, 4]``, advantages ``[3, 5]``, mask with one row gone."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn(3, 5, 4, generator=generator, dtype=torch.float64).to(dtype)

    new = (-0.05 - noise().abs()).requires_grad_()
    old, reference = (torch.minimum(new.detach() + spread * noise(), torch.tensor(-0.01)) for _ in range(2))
    advantages = group_advantages(noise()[..., 0])
    mask = torch.ones(3, 5, 4, dtype=torch.bool)
    mask[1, 4] = False
    mask[0, 0, 2:] = False
    return new, old, reference, advantages, mask

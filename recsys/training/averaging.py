"""Weight averaging: a moving average of the weights is validated and kept, while the optimiser goes on from its own."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from recsys.training.callbacks import ends_a_step
from recsys.training.module import PolicyModule


def effective_decay(decay: float, step: int) -> float:
    """Share of the old average at an optimiser step: less than ``decay`` at first, so that the random start is forgotten.

    Example:
        >>> [round(effective_decay(0.99, step), 3) for step in (1, 10, 5000)]
        [0.182, 0.55, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage(lightning.Callback):
    """Exponential moving average of all parameters, ``average = d · average + (1 - d) · weight`` after every step.

    1. after each optimiser step the average takes the new weights in;
    2. while a validation runs, the policy holds the averages; it gives the weights back when the validation is over;
    3. the averages travel with the resume checkpoint, so a killed run ends with the same ones.

    It must stand before whatever saves checkpoints, which keep the averages of the step just done, and behind whatever
    keeps the validated policy, which is to keep the averages. Buffers (the experts' balance) are not averaged. Every
    process of a run with plain tables keeps the same averages; sharded tables are refused by
    :class:`~recsys.training.config.TrainConfig`.

    Args:
        decay: d; the first steps use less (:func:`effective_decay`).

    Source: Polyak and Juditsky 1992 average uniformly; the exponential form with a warm-up of the decay is that of
    TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.averages: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The averages by the names of the policy's parameters."""
        return {"averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from saved averages."""
        self.averages = dict(state_dict["averages"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin with the weights as they are, or bring the saved averages to their device."""
        for name, weight in _parameters(pl_module).items():
            start = self.averages.get(name, weight)
            self.averages[name] = start.detach().to(weight.device, copy=True)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Take the new weights in."""
        if ends_a_step(trainer):
            self.update(_parameters(pl_module), trainer.global_step)

    @torch.no_grad()
    def update(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """Move the averages towards the weights after optimiser step ``step``, counted from 1."""
        averages = [self.averages[name] for name in weights]
        torch._foreach_lerp_(averages, list(weights.values()), 1 - effective_decay(self.decay, step))

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Let the policy hold the averages."""
        self._weights = {name: weight.detach().clone() for name, weight in _parameters(pl_module).items()}
        _put(pl_module, self.averages)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the weights back to the optimiser."""
        _put(pl_module, self._weights)
        self._weights = {}


def _parameters(module: lightning.LightningModule) -> dict[str, torch.Tensor]:
    assert isinstance(module, PolicyModule)
    return dict(module.policy.named_parameters())


@torch.no_grad()
def _put(module: lightning.LightningModule, values: dict[str, torch.Tensor]) -> None:
    for name, weight in _parameters(module).items():
        weight.copy_(values[name])

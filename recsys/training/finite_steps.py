"""Optimiser steps that are clipped, and that leave the weights alone once a loss or a gradient is not finite.

Both are done on the device: a training step on a GPU waits for nothing. What was noted there is read after every step on a
CPU, where reading is free, every :data:`READ_EVERY` steps elsewhere, before every validation and before every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import lightning
import torch
from torch import nn

from recsys.contracts.errors import DataError

READ_EVERY: Final = 20
"""Optimiser steps between two looks at a GPU, which the host must wait for; those between are empty after a fault."""

NORM_EPS: Final = 1e-6
"""Added to the norm before it divides the limit, as ``torch.nn.utils.clip_grad_norm_`` does."""


class FiniteSteps:
    """Clips the steps of a fused AdamW and makes them empty from the first one that is not finite.

    Fused AdamW divides gradients by its attribute ``grad_scale`` and skips the step where ``found_inf`` is 1, both read on
    the device by the kernel that updates the weights. So clipping costs the norm and no pass over the gradients of its own,
    and nothing has to be read back to keep a broken step out.

    1. :meth:`note_loss` for every batch; 2. :meth:`clip` once before the optimiser's step; 3. :meth:`fault` now and then.
    """

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None
        self._found: torch.Tensor | None = None
        self._step: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def note_loss(self, loss: torch.Tensor) -> None:
        """Take the loss of one batch; of several batches of one step a broken one counts."""
        loss = loss.detach()
        self._loss = loss if self._loss is None else torch.where(self._loss.isfinite(), loss, self._loss)

    def clip(self, optimizer: torch.optim.Optimizer, limit: float | None, step: int) -> torch.Tensor:
        """Prepare the optimiser's next step; return the norm of the gradient, on its device.

        Args:
            optimizer: Fused AdamW. Groups that carry ``"table_rule"`` neither count nor are scaled.
            limit: Largest norm; ``None`` or 0 does not clip.
            step: Number of the step, for :meth:`fault`.
        """
        groups = [group["params"] for group in optimizer.param_groups if "table_rule" not in group]
        grads = [parameter.grad for group in groups for parameter in group if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        loss = norm if self._loss is None else self._loss
        values = torch.stack([loss.to(norm.dtype), norm])
        self._loss = None
        if self._found is None or self._step is None or self._values is None:
            self._found, self._step = norm.new_zeros(()), norm.new_zeros((), dtype=torch.int64)
            self._values = torch.zeros_like(values)
        is_first = ~values.isfinite().all() & (self._found == 0)
        self._step.masked_fill_(is_first, step)
        self._values = torch.where(is_first, values, self._values)
        self._found.masked_fill_(is_first, 1.0)
        optimizer.grad_scale = ((norm + NORM_EPS) / limit).clamp(min=1) if limit else None  # type: ignore[attr-defined]
        optimizer.found_inf = self._found  # type: ignore[attr-defined]
        return norm

    def fault(self) -> tuple[int, float, float] | None:
        """Number, loss and gradient norm of the first step that was not finite; waits for the device."""
        if self._found is None or self._step is None or self._values is None or not self._found.item():
            return None
        loss, norm = self._values.tolist()
        return int(self._step.item()), loss, norm


class FiniteModule(lightning.LightningModule):
    """A LightningModule with one fused AdamW that stops before a loss, gradient or weight that is not finite does harm.

    Its ``training_step`` hands each loss, the same in all processes, to ``finite.note_loss``.

    Attributes:
        config_key: Where its configuration stands in a recipe, for messages.
        peak_rate: Learning rate of the configuration.
    """

    config_key: str
    peak_rate: float

    def __init__(self) -> None:
        super().__init__()
        self.finite = FiniteSteps()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip in place of Lightning's precision plugins, of which that for mixed precision refuses fused optimisers."""
        self.finite.clip(optimizer, gradient_clip_val, self.trainer.global_step + 1)

    def on_train_batch_end(self, *_: Any) -> None:
        """Look every few steps."""
        if self.device.type == "cpu" or self.trainer.global_step % READ_EVERY == 0:
            self.check_steps()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep no state that has gone on after a fault."""
        self.check_steps()

    def on_validation_start(self) -> None:
        """Look before anything is evaluated, at the weights as well."""
        self.check_steps()
        self.check_weights()

    def check_steps(self) -> None:
        """Stop at a step that was not finite.

        Raises:
            DataError: There was one; says which, what was found and what to try.
        """
        fault = self.finite.fault()
        if fault is None:
            return
        step, loss, norm = fault
        raise DataError(
            f"{self.config_key}: step {step} has loss {loss:.4g} and gradient norm {norm:.4g} at learning rate "
            f"{self.rate_at(step):.4g}, expected finite numbers; {self._weights_in_words()}. The weights "
            f"were left as they were before that step, and no model is written. Lower {self.config_key}.learning_rate "
            f"(now {self.peak_rate:g}), or where weights began like that look for numbers that are not finite in the item "
            "embeddings"
        )

    def check_weights(self) -> None:
        """Stop where a weight is not finite, though every step was: a row that no step has read, or tables' own steps.

        Raises:
            DataError: Names the parameters.
        """
        finite = torch.stack([weight.detach().isfinite().all() for weight in self.parameters()]).all()
        if self.trainer.strategy.reduce_boolean_decision(not bool(finite), all=False):  # shards differ by process
            raise DataError(
                f"{self.config_key}: after step {self.trainer.global_step} {self._weights_in_words()}; no "
                f"model is written. Lower {self.config_key}.learning_rate (now {self.peak_rate:g}), or where weights began "
                "like that look for numbers that are not finite in the item embeddings"
            )

    def _weights_in_words(self) -> str:
        return describe_weights((name.partition(".")[2], weight) for name, weight in self.named_parameters())

    def rate_at(self, step: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 1."""
        raise NotImplementedError


@torch.no_grad()
def describe_weights(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Say which parameters are not finite, or how large the largest weight is.

    Example:
        >>> fine, broken = (nn.Parameter(torch.tensor([1.0, value])) for value in (-3.0, float("nan")))
        >>> describe_weights([("a", fine)])
        'all weights are finite, the largest is 3'
        >>> describe_weights([("a", fine), ("b", broken)])
        "1 of the 2 numbers of weight 'b' are not finite"
    """
    largest, broken = 0.0, []
    for name, weight in parameters:
        count = int((~weight.isfinite()).sum())
        if count:
            broken.append(f"{count} of the {weight.numel()} numbers of weight '{name}'")
        elif weight.numel():
            largest = max(largest, float(weight.abs().max()))
    if not broken:
        return f"all weights are finite, the largest is {largest:.3g}"
    more = f" and of {len(broken) - 3} more weights" if len(broken) > 3 else ""
    return f"{', '.join(broken[:3])}{more} are not finite"

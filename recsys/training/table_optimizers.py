"""One optimiser for the whole policy: AdamW for dense parameters, Adagrad for id tables if so configured.

The Adagrad forms are those that FBGEMM fuses into the backward pass of sharded tables, so that one process with plain
tables and N processes with sharded ones train alike.

Legend: R rows of a table, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import torch

ADAGRAD_EPS: Final = 1e-8
"""Added to the root of the state, here and in the fused kernels (FBGEMM's default)."""

TableRule = Literal["rowwise_adagrad", "adagrad"]


def adagrad_update(weight_RD: torch.Tensor, grad_RD: torch.Tensor, state: torch.Tensor, learning_rate: float) -> None:
    """Take one Adagrad step in place; rows without gradient stay as they are.

    Args:
        state: Sum of squared gradients so far. ``[R]``: row-wise, the mean over the row's D entries is accumulated and the
            whole row has one step size; ``[R, D]``: every entry has its own.

    Source: Duchi et al. 2011 (Adagrad), diagonal form, eps outside the root; the row-wise form is FBGEMM's
    ``EXACT_ROWWISE_ADAGRAD``.
    """
    squared = grad_RD.square()
    if state.dim() == 1:
        state += squared.mean(1)
        weight_RD.addcdiv_(grad_RD, (state.sqrt() + ADAGRAD_EPS)[:, None], value=-learning_rate)
    else:
        state += squared
        weight_RD.addcdiv_(grad_RD, state.sqrt() + ADAGRAD_EPS, value=-learning_rate)


class AdamWWithTables(torch.optim.AdamW):
    """AdamW, except for parameter groups that carry ``"table_rule"``, which take Adagrad steps.

    One object rather than two, because Lightning's automatic optimisation and a learning-rate schedule take one. The state
    of a table is ``state[parameter]["sum"]``.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the tables' gradients are used up by it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: torch.Tensor | None = getattr(self, "found_inf", None)  # as AdamW reads it
        for group in self.param_groups:
            rule: TableRule | None = group.get("table_rule")
            if rule is None:
                continue
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    shape = weight.shape[:1] if rule == "rowwise_adagrad" else weight.shape
                    state["step"] = torch.zeros(())  # Adam's loading code asks every state for it
                    state["sum"] = torch.zeros(shape, device=weight.device)
                state["step"] += 1
                with torch.no_grad():
                    if found_inf is not None:
                        weight.grad.masked_fill_(found_inf > 0, 0.0)
                    adagrad_update(weight, weight.grad, state["sum"], group["lr"])
                weight.grad = None  # AdamW passes over parameters without a gradient
        super().step()
        return loss

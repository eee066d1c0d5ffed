"""Learning rate over steps, which parameters decay, and what trains the id tables."""

from __future__ import annotations

import math

import torch
from torch import nn
from torchrec.optim.optimizers import in_backward_optimizer_filter

from recsys.training.config import TrainConfig
from recsys.training.table_optimizers import AdamWWithTables


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, final_share: float) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to ``final_share``.

    Example:
        >>> [round(warmup_cosine(s, 10, 2, 0.1), 3) for s in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def is_id_table(name: str) -> bool:
    """Whether a parameter of a policy is one of the TorchRec tables, sharded or not."""
    return ".embeddings.table_" in name


def parameter_groups(policy: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Split parameters: matrices decay; norms, biases and start vectors do not; id tables have a decay of their own.

    Id tables are left out when they are sharded, because their optimiser is part of the backward pass.
    """
    tables, codes, matrices, rest = [], [], [], []
    for name, parameter in in_backward_optimizer_filter(policy.named_parameters()):
        if is_id_table(name):
            tables.append(parameter)
        elif name == "codes.weight":
            codes.append(parameter)
        elif parameter.dim() >= 2 and "position" not in name:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    table_group: dict[str, object] = {
        "params": tables,
        "weight_decay": config.table_weight_decay,
        "lr": config.effective_table_learning_rate,
    }
    if config.table_optimizer != "adamw":
        table_group["table_rule"] = config.table_optimizer
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        table_group,
        {"params": codes, "weight_decay": config.table_weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(policy: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in its fused form, which is several times faster on tables; Adagrad for the tables if configured."""
    return AdamWWithTables(parameter_groups(policy, config), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)

"""The policy in training: optimiser, schedule, gradient clip, and the next-token loss that both methods can join.

Legend: B users, P prediction points, M items per session.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from recsys.alignment.config import OptimiserConfig, SupervisedConfig
from recsys.contracts.errors import DataError
from recsys.data.batch import TrainingBatch
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.weights import load_moving_state, moving_state
from recsys.training.config import TrainConfig
from recsys.training.losses import dense_loss, next_token_loss
from recsys.training.schedule import adamw, warmup_cosine


class Learner:
    """Updates one policy; everything that an interrupted run has to find again is in :meth:`state_dict`.

    Args:
        policy: Put into evaluation mode and kept there: see :class:`~recsys.alignment.config.OptimiserConfig`.
        total_steps: Of all rounds; the schedule's length.
        precision: Of the forward passes in :meth:`mixed`, as ``align.precision`` has it.

    Attributes:
        step: Updates so far.
        learning_rate_scale: Of the guard's back-offs.
    """

    def __init__(
        self, policy: GenerativeRecommender, config: OptimiserConfig, total_steps: int, precision: str = "32-true"
    ) -> None:
        self.policy, self.config, self.total_steps = policy.eval(), config, total_steps
        self.precision = precision
        settings = TrainConfig(
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            table_weight_decay=config.table_weight_decay,
        )
        self._optimiser = adamw(policy, settings)
        if policy.objective is not None:
            _set_apart(self._optimiser, policy.objective.projection.weight, config.objective_rate)
        self._parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        self.step, self.learning_rate_scale = 0, 1.0

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return self.policy.codes.weight.device

    def mixed(self) -> torch.autocast:
        """Where log-probabilities are computed: matrix products in bfloat16 if so configured, what they end in in float32.

        Policy, snapshot and reference are all scored inside, or their log-ratio would be rounding at the start.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        warmup = int(self.config.warmup_share * self.total_steps)
        factor = warmup_cosine(self.step, self.total_steps, warmup, self.config.final_learning_rate_share)
        return self.config.learning_rate * factor * self.learning_rate_scale

    def update(self, loss: torch.Tensor) -> float:
        """Make one step; return the norm of the gradient before clipping.

        Raises:
            DataError: Loss or gradient are not finite.
        """
        loss.backward()
        limit = self.config.gradient_clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        if not math.isfinite(norm) or not math.isfinite(loss.item()):
            raise DataError(
                f"alignment diverged at step {self.step}: loss {loss.item():.4g}, gradient norm {norm:.4g}; lower "
                f"optimiser.learning_rate (now {self.config.learning_rate:g}) or raise loss.beta"
            )
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate * group.get("rate_factor", 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return norm

    def state_dict(self) -> dict[str, Any]:
        """What moves of the policy, optimiser, step."""
        return {"policy": moving_state(self.policy), "optimiser": self._optimiser.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        load_moving_state(self.policy, state["policy"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])


@dataclass(frozen=True)
class TargetPass:
    """One pass of the policy over what users took next, for every loss that reads it.

    Attributes:
        batch: The requests with their targets.
        code_losses_NL: float32 minus the log-probability of each code, for the N items that are asked for.
        query_BPD: Queries of the dense head.
    """

    batch: TrainingBatch
    code_losses_NL: torch.Tensor
    query_BPD: torch.Tensor

    @classmethod
    def of(cls, policy: GenerativeRecommender, batch: TrainingBatch) -> TargetPass:
        """Encode every history once, and predict its targets."""
        hidden, query_BPD = policy(batch)
        asked = batch.asked
        return cls(batch, policy.code_losses(asked.items(hidden), asked.items(batch.target_BPM)), query_BPD)


def supervised_loss(policy: GenerativeRecommender, targets: TargetPass, config: SupervisedConfig) -> torch.Tensor:
    """Next-token loss of the targets, plus the dense head's, as in training; unweighted.

    It is a mean over items, or over sessions whose items' losses are summed, as ``session_reduction`` says.
    """
    asked, target_BPM = targets.batch.asked, targets.batch.target_BPM
    loss = next_token_loss(targets.code_losses_NL, config.loss_reduction)
    if config.session_reduction == "sum":
        is_item_BPM = target_BPM > 0
        loss = loss * (is_item_BPM.sum() / is_item_BPM.any(-1).sum())
    if config.dense_weight > 0:
        query_ND, target_N = asked.points_of_items(targets.query_BPD), asked.items(target_BPM)
        loss = loss + config.dense_weight * dense_loss(query_ND, policy.item_vectors(), target_N)
    return loss


@dataclass
class RoundCurve:
    """Figures of the updates of one round, in order.

    Attributes:
        points: ``(step, name, value)``; plain values, so that they travel with a checkpoint.
        counts: Running totals, such as groups without signal.
    """

    points: list[tuple[int, str, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, step: int, **values: float) -> None:
        """Note the figures of one update."""
        self.points += [(step, name, float(value)) for name, value in values.items()]

    def count(self, **increments: int) -> None:
        """Add to the totals."""
        for name, increment in increments.items():
            self.counts[name] = self.counts.get(name, 0) + int(increment)

    def means(self) -> dict[str, float]:
        """Mean of every figure over the round; for ``*_max`` the largest."""
        values: dict[str, list[float]] = {}
        for _, name, value in self.points:
            values.setdefault(name, []).append(value)
        return {name: max(v) if name.endswith("_max") else sum(v) / len(v) for name, v in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything noted."""
        return {"points": self.points, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the curve."""
        self.points = [(int(step), str(name), float(value)) for step, name, value in state["points"]]
        self.counts = dict(state["counts"])


def _set_apart(optimiser: torch.optim.Optimizer, parameter: torch.Tensor, rate_factor: float) -> None:
    """Give one parameter a group of its own, with a factor on the learning rate and no weight decay."""
    for group in optimiser.param_groups:
        group["params"] = [other for other in group["params"] if other is not parameter]
    optimiser.add_param_group({"params": [parameter], "weight_decay": 0.0, "rate_factor": rate_factor})

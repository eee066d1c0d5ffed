"""A constraint on what users really took: its log-probability may fall by so much against the start, and no more.

Recall at depth has no gradient; the log-probability of the targets has one, and a beam loses what has lost probability.
The constraint is ``mean of max(0, log p_start - log p) <= allowed`` over the requests of a step. Its price is a dual
variable that grows while the constraint is broken and falls to 0 while it holds, so a run that keeps it pays nothing.

Source: primal-dual training of constrained policies (for example Safe RLHF, arXiv 2310.12773); the constraint is ours.

Legend: N targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys.alignment.recall.config import RecallConstraintConfig
from recsys.contracts.errors import DataError


@dataclass
class RecallConstraint:
    """The dual variable.

    Attributes:
        dual: Weight of the violation in the loss; carried from step to step and from round to round.
    """

    config: RecallConstraintConfig
    dual: float = 0.0

    def loss(self, log_probs_N: torch.Tensor, start_N: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Price of this step's loss of probability, and that loss in nats; then move the dual variable.

        Args:
            log_probs_N: Of the targets under the policy.
            start_N: Under the policy that alignment began with.

        Raises:
            DataError: There is no target, or the two do not belong together.

        Example:
            Targets lost .5 nats and gained some: .25 on average, .15 more than allowed; the dual variable was 2.

            >>> constraint = RecallConstraint(RecallConstraintConfig(allowed=0.1, rate=4.0), dual=2.0)
            >>> price, lost = constraint.loss(torch.tensor([-1.5, -2.0]), torch.tensor([-1.0, -3.0]))
            >>> price.item(), lost, round(constraint.dual, 4)
            (0.5, 0.25, 2.6)
        """
        if log_probs_N.shape != start_N.shape or not len(log_probs_N):
            raise DataError(
                f"recall constraint: {tuple(log_probs_N.shape)} log-probabilities of targets and {tuple(start_N.shape)} of "
                "the start, expected as many, and at least one"
            )
        lost = (start_N.detach() - log_probs_N).clamp(min=0).mean()
        price = self.dual * lost
        broken_by = float(lost.detach()) - self.config.allowed
        self.dual = min(max(self.dual + self.config.rate * broken_by, 0.0), self.config.largest)
        return price, float(lost.detach())

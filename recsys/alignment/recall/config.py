"""Options of ReRe that keep recall at depth; each is off by default."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from recsys.config import FrozenConfig


class NarrowingConfig(FrozenConfig):
    """Search wide, update narrow (:func:`recsys.alignment.rollouts.narrowing.narrow`).

    Attributes:
        negatives: Candidates that are kept beside the strongest positive, the most probable ones first.
    """

    negatives: int = Field(default=1, ge=1)


class RepairConfig(FrozenConfig):
    """Groups without their target get it (:func:`recsys.alignment.rollouts.narrowing.repaired`).

    Attributes:
        weight: Of a repaired group in the loss, beside 1 of one that found its target.
        reach: Nats that the target may be less probable than the group's last candidate; ``None``: any number. What is far
            out of reach is lifted only by pushing down the many that stand before it.
    """

    weight: float = Field(default=1.0, gt=0, le=1)
    reach: float | None = Field(default=2.0, gt=0)


class PrefixAnchorConfig(FrozenConfig):
    """A next-token loss of the targets that looks at prefixes (:func:`recsys.alignment.recall.prefix_anchor.prefix_anchor`).

    Attributes:
        weight: Beside the policy gradient; beta of the authors.
        eta: How much more the prefix with the largest loss counts; 0: in proportion to its loss.
    """

    weight: float = Field(default=0.1, gt=0)
    eta: float = Field(default=0.0, ge=0)


class RecallConstraintConfig(FrozenConfig):
    """Targets may not lose probability (:mod:`recsys.alignment.recall.constraint`).

    Attributes:
        allowed: Mean loss of log-probability of the targets against the start, in nats, that costs nothing.
        rate: Step of the dual variable per update and nat of violation.
        largest: The dual variable's upper bound.
    """

    allowed: float = Field(default=0.02, ge=0)
    rate: float = Field(default=1.0, gt=0)
    largest: float = Field(default=10.0, gt=0)


class LambdaLossConfig(FrozenConfig):
    """A ranking loss on the whole beam (:func:`recsys.alignment.recall.lambda_loss.lambda_loss`).

    Attributes:
        weight: Beside the policy gradient.
        sigma: Steepness of the pairwise logistic loss, per nat.
    """

    weight: float = Field(default=1.0, gt=0)
    sigma: float = Field(default=1.0, gt=0)


class RecallConfig(FrozenConfig):
    """What is done for recall at depth.

    Attributes:
        sibling_share: Share of the advantage that compares every prefix with those of the same parent, and not a candidate
            with its group (:func:`recsys.alignment.recall.sibling_advantages.sibling_advantages`).
        policy_gradient_weight: 0 leaves the other losses alone.
        narrowing, repair, anchor, constraint, lambda_loss: ``None``: off.
    """

    sibling_share: float = Field(default=0.0, ge=0, le=1)
    policy_gradient_weight: float = Field(default=1.0, ge=0)
    narrowing: NarrowingConfig | None = None
    repair: RepairConfig | None = None
    anchor: PrefixAnchorConfig | None = None
    constraint: RecallConstraintConfig | None = None
    lambda_loss: LambdaLossConfig | None = None

    @property
    def reads_one_reward(self) -> str | None:
        """Option that compares candidates by one reward each, where there is one."""
        asked = {
            "recall.sibling_share": self.sibling_share > 0,
            "recall.narrowing": self.narrowing is not None,
            "recall.lambda_loss": self.lambda_loss is not None,
        }
        return next((name for name, on in asked.items() if on), None)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.sibling_share > 0 and self.narrowing is not None:
            raise ValueError(
                f"sibling_share is {self.sibling_share:g}: it compares all prefixes of a group, of which narrowing leaves "
                "few; give one of them"
            )
        if self.policy_gradient_weight == 0 and self.lambda_loss is None:
            raise ValueError("policy_gradient_weight is 0 and there is no lambda_loss: groups would teach nothing")
        return self

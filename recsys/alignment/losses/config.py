"""Which loss, its options, and which pairs count when: the choices of the modules beside this one."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from recsys.config import FrozenConfig

PreferenceLossType = Literal["dpo", "ipo", "cdpo", "rdpo", "cpo", "simpo", "sdpo", "plackett_luce", "listwise"]
PairRule = Literal["best_worst", "best_random", "rank_spaced", "best_all", "target_rest"]

_PREFERENCE_OPTIONS: Final[dict[str, frozenset[str]]] = {
    "cdpo": frozenset({"label_smoothing"}),
    "rdpo": frozenset({"label_smoothing"}),
    "cpo": frozenset({"cpo_alpha"}),
    "simpo": frozenset({"simpo_gamma"}),
    "listwise": frozenset({"temperature"}),
}
"""Options that not every preference loss reads, by type."""

_GRADIENT_OPTIONS: Final[dict[str, frozenset[str]]] = {
    "grpo": frozenset({"epsilon", "epsilon_high"}),
    "dapo": frozenset({"epsilon", "epsilon_high"}),
    "gspo": frozenset({"epsilon", "epsilon_high"}),
    "dr_grpo": frozenset({"epsilon", "epsilon_high", "max_length"}),
    "tawin": frozenset({"epsilon", "epsilon_high", "tawin_rank", "tawin_temperature", "tawin_threshold"}),
    "ecpo": frozenset({"epsilon", "epsilon_high", "early_clip_delta", "ratio_level"}),
    "gbpo": frozenset({"ratio_level"}),
}
"""Options that not every policy-gradient loss reads, by type."""


class PreferenceLossConfig(FrozenConfig):
    """Which preference loss, and its options; an option that the type does not read must keep its default.

    Attributes:
        loss_type: The loss; :mod:`recsys.alignment.losses.preference` writes each out.
    """

    loss_type: PreferenceLossType = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference; OneRec does not publish its value."""
    label_smoothing: float = Field(default=0.1, gt=0, lt=0.5)
    """cdpo, rdpo: probability that a pair is the wrong way round."""
    cpo_alpha: float = Field(default=1.0, ge=0)
    """cpo: weight of the chosen session's negative log-likelihood."""
    simpo_gamma: float = Field(default=0.5, ge=0)
    """simpo: margin between the two mean log-probabilities, after ``beta``."""
    temperature: float = Field(default=1.0, gt=0)
    """listwise: reward difference that makes a candidate e times as wanted."""

    @model_validator(mode="after")
    def _refuse_unread_options(self) -> PreferenceLossConfig:
        own = _PREFERENCE_OPTIONS.get(self.loss_type, frozenset())
        for name, field in type(self).model_fields.items():
            if name not in own | {"loss_type", "beta"} and getattr(self, name) != field.default:
                raise ValueError(
                    f"loss_type '{self.loss_type}' does not read {name} (given: {getattr(self, name)}); remove it, or "
                    f"choose one of {', '.join(kind for kind, names in _PREFERENCE_OPTIONS.items() if name in names)}"
                )
        return self

    def gentler(self, factor: float) -> PreferenceLossConfig:
        """Turn the setting that makes this loss gentler at the reference, where its type has one.

        ipo wants a margin of ``1 / (2 beta)``, simpo one of ``simpo_gamma``: both want less. listwise takes rewards for more
        alike. The others have none: their gradient at the reference grows with ``beta``, and a smaller one lets the
        policy go farther; the learning rate and the weight of the loss serve them.

        Args:
            factor: At least 1; 1 changes nothing.
        """
        turned = {
            "ipo": {"beta": self.beta * factor},
            "simpo": {"simpo_gamma": self.simpo_gamma / factor},
            "listwise": {"temperature": self.temperature * factor},
        }
        return self.model_copy(update=turned.get(self.loss_type, {}))


class PolicyGradientConfig(FrozenConfig):
    """Which policy-gradient loss, and its options; an option that the type does not read must keep its default.

    Attributes:
        loss_type: The loss; :mod:`recsys.alignment.losses.policy_gradient` writes each out.
        advantage_eps: Added to the standard deviation that advantages are divided by.
        kl_estimator: Of the divergence from the reference, as in Schulman's note.
        tawin_rank: tawin: rank, from 1, at which negatives weigh most.
        tawin_temperature: tawin: how fast the weight falls with the distance from that rank.
        tawin_threshold: tawin: ranks nearer than its negative all weigh 1; 0 leaves a single peak.
    """

    loss_type: Literal["grpo", "dapo", "gspo", "dr_grpo", "tawin", "ecpo", "gbpo"] = "grpo"
    advantage_scale: Literal["group_std", "none"] | None = None
    """Divide advantages by the group's standard deviation; ``None``: as the type does, which is not for dr_grpo."""
    advantage_eps: float = Field(default=1e-4, gt=0)
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Ratios are clipped to ``[1 - epsilon, 1 + epsilon_high]``."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """``None``: like ``epsilon``."""
    early_clip_delta: float = Field(default=0.1, gt=0)
    """ecpo: no ratio exceeds ``1 + epsilon_high + early_clip_delta``; 0.1 in OneRec's report."""
    ratio_level: Literal["token", "sequence"] = "token"
    """ecpo, gbpo: one ratio per code, or one per row from the product of its codes. OneRec writes rows, analyses codes."""
    beta: float = Field(default=1e-3, ge=0)
    """Weight of the divergence from the reference; 0 needs no reference (OneRec has none)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_clamp: float | None = Field(default=5.0, gt=0)
    """Log-ratio to the reference beyond which k2 and k3 go on as straight lines; ``None``: never."""
    max_length: int | None = Field(default=None, ge=1)
    """dr_grpo: codes to divide a row's sum by; ``None``: the width C of the batch."""
    tawin_rank: int = Field(default=2, ge=1)
    tawin_temperature: float = Field(default=1.0, gt=0)
    tawin_threshold: float = Field(default=0.0, le=0)

    @model_validator(mode="after")
    def _refuse_unread_options(self) -> PolicyGradientConfig:
        special = frozenset().union(*_GRADIENT_OPTIONS.values())
        for name in sorted(special - _GRADIENT_OPTIONS[self.loss_type]):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"loss_type '{self.loss_type}' does not read {name} (given: {getattr(self, name)}); remove it, or "
                    f"choose one of {', '.join(kind for kind, names in _GRADIENT_OPTIONS.items() if name in names)}"
                )
        if self.loss_type == "dr_grpo" and self.advantage_scale == "group_std":
            raise ValueError("loss_type 'dr_grpo' does not divide by the standard deviation; remove advantage_scale")
        return self

    def gentler(self, factor: float) -> PolicyGradientConfig:
        """Pull harder to the reference: every type here adds ``beta`` times the divergence from it.

        Args:
            factor: At least 1; 1 changes nothing.
        """
        return self.model_copy(update={"beta": self.beta * factor})

    @property
    def scale(self) -> Literal["group_std", "none"]:
        """What advantages are divided by: as configured, or as the type does."""
        return self.advantage_scale or ("none" if self.loss_type == "dr_grpo" else "group_std")

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """Lower and upper bound of a ratio."""
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    @property
    def reads_one_reward(self) -> str | None:
        """Option that values candidates as a whole, where there is one: by rank, or by one ratio each."""
        if self.loss_type in ("tawin", "gspo"):
            return f"loss_type '{self.loss_type}'"
        return "ratio_level 'sequence'" if self.ratio_level == "sequence" else None

    @property
    def is_sequence_level(self) -> bool:
        """One ratio per row."""
        return self.loss_type == "gspo" or self.ratio_level == "sequence"


class CurriculumConfig(FrozenConfig):
    """Easy pairs first: see :func:`~recsys.alignment.losses.curriculum.curriculum_weights`.

    Attributes:
        by: What makes a pair easy: a large gap of rewards, or of the reference's log-probabilities; ``none``: no curriculum.
        start_share: Share of the pairs, the easiest, that count at the start; at the end all do.
        softness: Width of the ramp between admitted and not, as a share of all pairs; 0 cuts sharply.
    """

    by: Literal["none", "reward", "reference"] = "none"
    start_share: float = Field(default=0.3, gt=0, le=1)
    softness: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _is_read(self) -> CurriculumConfig:
        if self.by == "none" and (self.start_share, self.softness) != (0.3, 0.0):
            raise ValueError(
                f"start_share {self.start_share:g} and softness {self.softness:g} are of a curriculum, and by is 'none'; "
                "set by: reward or reference, or leave them out"
            )
        return self

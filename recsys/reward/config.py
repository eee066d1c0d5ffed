"""What a session reward model predicts, how large it is, how it is trained, and how its towers become one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from recsys.config import FrozenConfig
from recsys.model.config import Feature, ModelConfig

SignalKind = Literal["watch_time", "share", "any"]
CombinationMode = Literal["zscore", "raw", "rank", "fused"]
TransformName = Literal["identity", "standard", "rank", "log_sigmoid"]


class RewardSignal(FrozenConfig):
    """One tower: what it predicts of a session.

    Attributes:
        name: Of the tower; OneRec's own names are swt, vtr, wtr (follow) and ltr (like).
        column: Column of ``events.parquet``.
        kind: ``watch_time``: the session's summed watch time as its rank among train sessions, a soft label in (0, 1);
            ``share``: share of the session's items for which the column is true; ``any``: 1 if it is true for any.
        weight: Default weight in the combined reward.
    """

    name: str
    column: str
    kind: SignalKind
    weight: float = Field(default=1.0, allow_inf_nan=False)


class FeedbackConfig(FrozenConfig):
    """Which sessions, with which labels. OneRec publishes none of it (arXiv 2502.18965); these are our definitions.

    Attributes:
        signals: Towers; ``None`` takes watch time and every declared signal the source has.
        max_items: Longest session, M; longer ones are cut into windows of M. ``None``: the task's ``session_length``.
        min_items: Shortest session that is used.
        span: ``session`` keeps the source's sessions; ``timeline`` cuts M consecutive exposures of a user whatever their
            sessions, for logs whose sessions are shorter than what will be generated. Events without a time have no
            sessions that were cut independently of their labels, so they are always taken as a timeline.
        watch_scale: Rank of the watch time among all train sessions, or among the user's own.
        min_user_sessions: With ``user_rank``, users with fewer train sessions are ranked among all.
        min_positives: A signal needs so many train sessions on either side of 0.5. One that has fewer is left out and
            named in the report if ``signals`` is ``None``, and refused if it was asked for.
    """

    signals: tuple[RewardSignal, ...] | None = None
    max_items: int | None = Field(default=None, ge=1)
    min_items: int = Field(default=1, ge=1)
    span: Literal["session", "timeline"] = "session"
    watch_scale: Literal["global_rank", "user_rank"] = "global_rank"
    min_user_sessions: int = Field(default=5, ge=1)
    min_positives: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [signal.name for signal in self.signals or ()]
        if self.signals is not None and not names:
            raise ValueError("signals is empty; name at least one tower, or leave it out to take what the source has")
        if len(set(names)) != len(names):
            raise ValueError(f"signals {names} name a tower twice")
        return self


class RewardModelConfig(FrozenConfig):
    """Widths and depths; OneRec's are unpublished.

    Attributes:
        features: Inputs, as in the policy. ``item`` is left out by default: labels are few, and a vector per item
            memorises them; codes, frozen embeddings and feedback rates tell items apart as well, new ones too.
        item_embeddings: Add a projection of the frozen embeddings of the `embed` stage to every item vector.
        fused_tower: Add a head that reads the towers' hidden states, the user and the session, and is trained against
            all labels at once (P-Score, arXiv 2506.13695, section 2.4.1).
        width: Of every hidden state.
        num_heads: Attention heads; they divide ``width``.
        num_history_layers, num_session_layers: Blocks over the history and over the session.
        ffn_width: Hidden channels of feed-forward layers.
        tower_width: Hidden channels of a signal's tower.
        max_history: Events of a history that are read, the last ones.
        dropout: Share of channels dropped in training.
        init_std: Standard deviation of initial weights.
    """

    width: int = Field(default=64, gt=0)
    num_heads: int = Field(default=4, gt=0)
    num_history_layers: int = Field(default=0, ge=0)
    num_session_layers: int = Field(default=1, ge=1)
    ffn_width: int = Field(default=128, gt=0)
    tower_width: int = Field(default=32, gt=0)
    max_history: int = Field(default=50, gt=0)
    features: tuple[Feature, ...] = ("codes", "author", "category", "behaviour", "gap", "watch")
    item_embeddings: bool = True
    fused_tower: bool = False
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    init_std: float = Field(default=0.02, gt=0.0)

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if "item" not in self.features and "codes" not in self.features:
            raise ValueError("features must name 'item' or 'codes': without both the model cannot tell items apart")
        if "user" in self.features:
            raise ValueError("feature 'user' is not offered: a reward model must score users it was not trained on")
        return self

    def shared_parts(self) -> ModelConfig:
        """The same shape in the words of the policy's modules, which the reward model reuses."""
        return ModelConfig(
            width=self.width,
            num_heads=self.num_heads,
            num_encoder_layers=max(self.num_history_layers, 1),
            num_decoder_layers=1,
            ffn_width=self.ffn_width,
            num_experts=1,
            experts_per_token=1,
            expert_width=1,
            max_history=self.max_history,
            encoder_attention="bidirectional",
            features=self.features,
            dropout=self.dropout,
            embedding_dropout=self.dropout,
            init_std=self.init_std,
        )


class WorstGroupConfig(FrozenConfig):
    """Train for the group of users that the model serves worst: see :mod:`recsys.reward.groups`.

    Attributes:
        column: Of ``users.parquet``, one that the source carries there (``source.user_columns``); users without a value are
            a group of their own.
        step_size: How fast the weights of groups follow their losses; 0 would keep them equal.
    """

    column: str
    step_size: float = Field(default=0.01, gt=0, allow_inf_nan=False)


class RewardTrainConfig(FrozenConfig):
    """Optimisation of a reward model.

    Attributes:
        max_epochs: Passes over the sessions, at most.
        batch_size: Sessions per batch.
        learning_rate: Peak, after the warm-up.
        final_learning_rate_share: Share of the peak that the cosine ends at.
        warmup_share: Share of all steps in which the rate rises.
        weight_decay: Of everything but tables.
        table_weight_decay: Of the tables of ids and codes.
        gradient_clip: Largest norm of the gradient.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accelerator": "device, at the top of the recipe"}

    max_epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    final_learning_rate_share: float = Field(default=0.05, ge=0, le=1)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
    table_weight_decay: float = Field(default=0.05, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)
    unexposed_weight: float = Field(default=0.5, ge=0)
    """Weight of the loss on sessions with unexposed items beside the loss on real ones; 0 switches them off. Less of it
    predicts shown sessions better, more of it scores generated ones better."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a better validation BCE before training stops."""
    worst_group: WorstGroupConfig | None = None
    """Groups of users whose losses are weighted, the worst most, and by the worst of which the best epoch is chosen;
    ``None``: every session counts the same."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    """Seconds between mid-epoch checkpoints; what a kill can cost."""


class PersonalWeightsConfig(FrozenConfig):
    """Weights of the towers that are each user's own: see :mod:`recsys.reward.combining.personal`.

    Attributes:
        shrinkage: Events of an average user that are added to a user's own history; a new user has the common weights.
        largest: Bound on the factor that a weight is changed by, and of its inverse.
    """

    shrinkage: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    largest: float = Field(default=4.0, gt=1, allow_inf_nan=False)


class CombinationConfig(FrozenConfig):
    """From one number per tower to one number per candidate.

    Attributes:
        mode: ``zscore`` standardises each tower inside the candidate group, because raw scales differ by a factor of a
            hundred; ``raw`` and ``rank`` see :func:`~recsys.reward.combining.combination.combine_rewards`; ``fused`` takes
            the fused tower and needs no weights.
        weights: Tower name -> weight; towers left out keep the weight of their signal.
        transform: What is done to every tower's answer before ``mode``, with constants fitted on train sessions; see
            :mod:`recsys.reward.combining.transforms`. Only for modes that it changes anything for.
        reference_quantile: Of a tower's train answers, for ``log_sigmoid``: better answers gain little more.
        personal: Change the weights by what a user reacts with more often than others; a request that names weights of its
            own keeps them. ``None``: the same weights for everybody.
    """

    mode: CombinationMode = "zscore"
    weights: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    transform: TransformName = "identity"
    reference_quantile: float = Field(default=0.5, gt=0, lt=1)
    personal: PersonalWeightsConfig | None = None

    @model_validator(mode="after")
    def _personal_weights_are_read(self) -> Self:
        if self.personal is not None and self.mode == "fused":
            raise ValueError("personal changes weights, and mode 'fused' has none; leave it out, or set mode to zscore")
        return self

    @model_validator(mode="after")
    def _transform_changes_something(self) -> Self:
        undone = {"fused": "reads no tower's answer", "rank": "sees the order alone, which no transform changes"}
        if self.transform == "standard":
            undone["zscore"] = "standardises again, inside the group"
        if self.transform != "identity" and self.mode in undone:
            raise ValueError(
                f"transform '{self.transform}' has no effect with mode '{self.mode}', which {undone[self.mode]}; set mode "
                "to raw" + ("" if self.transform == "standard" else " or zscore") + ", or leave transform out"
            )
        if self.reference_quantile != 0.5 and self.transform != "log_sigmoid":
            raise ValueError(
                f"reference_quantile {self.reference_quantile:g} is read by transform 'log_sigmoid' alone, not by "
                f"'{self.transform}'; leave it out"
            )
        return self


class RewardConfig(FrozenConfig):
    """The `reward` stage.

    Attributes:
        held_out_model: Shape of the held-out reward model; another width than the reward model's, so that the two do not
            err alike, and none of the frozen embeddings that the other reads.
        reward_share: Share of the users that the reward model is trained on.
        held_out_share: Share of the users that the held-out reward model is trained on; nobody is in both, and the rest
            trains neither.
        rate_share: Share of a model's own users whose feedback gives its item rates instead of training it.
        resamples: Bootstrap draws of users for the report's 95 % intervals.
        calibration_bins: Bins of the calibration curve in the report.
        precision: Of training, as Lightning has it; the run's ``precision`` decides where it is not set.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"judge": "held_out_model", "judge_share": "held_out_share"}

    feedback: FeedbackConfig = FeedbackConfig()
    model: RewardModelConfig = RewardModelConfig()
    held_out_model: RewardModelConfig = RewardModelConfig(width=48, ffn_width=96, tower_width=24, item_embeddings=False)
    train: RewardTrainConfig = RewardTrainConfig()
    combination: CombinationConfig = CombinationConfig()
    reward_share: float = Field(default=0.5, gt=0, lt=1)
    held_out_share: float = Field(default=0.5, gt=0, lt=1)
    rate_share: float = Field(default=0.25, gt=0, lt=1)
    resamples: int = Field(default=200, ge=1)
    calibration_bins: int = Field(default=10, ge=2)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.reward_share + self.held_out_share > 1.0:
            raise ValueError(
                f"reward_share {self.reward_share} and held_out_share {self.held_out_share} exceed 1; no user may train both"
            )
        if self.model.item_embeddings and self.held_out_model.item_embeddings:
            raise ValueError(
                "item_embeddings is true of model and of held_out_model: embeddings are made of all users' events, and a "
                "check that reads what it checks is none; set one of them to false"
            )
        if self.combination.mode == "fused" and not (self.model.fused_tower and self.held_out_model.fused_tower):
            raise ValueError(
                "combination.mode 'fused' needs a fused tower in both models; set model: {fused_tower: true} and "
                "held_out_model: {fused_tower: true} beside it"
            )
        return self

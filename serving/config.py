"""What can be set about the bundle and about the batch job; light to import, so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, field_validator, model_validator

from recsys.config import FrozenConfig
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.event_times import NumberUnit
from recsys.paths import ConfigPath

RULE_FILES: Final = ("allow", "deny", "available", "personal_deny", "segments", "segment_rules", "item_categories")
"""Fields of :class:`RecommendConfig` that name a file of business rules; a job depends on what is in them, not on where."""

MOST_GUIDANCE: Final = 1e6
"""Largest ``reward_guidance``: far above it the sums of log-probabilities and rewards lose the digits of the former."""

NOT_ASKED: Final = ("engine", "delta", "ray_workers")
"""Fields of :class:`RecommendConfig` that change how a job is done and no row of it."""

AnswerKind = Literal["items", "sessions"]
SecondStage = Literal["none", "reward"]


class Engine(StrEnum):
    """Who answers the shards of a job: this process, or workers of a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


class ServingLimits(FrozenConfig):
    """What one request may ask for at most; kept in the bundle, so that whoever serves it cannot be asked for more.

    Attributes:
        max_k: Items or sessions per user. The beam is as wide as k, so memory and time of a request grow with it.
        max_history_items: Events of one user that are read; the model looks at its own window of the newest, so a longer
            list is a mistake or an attack. It is refused rather than cut.
        max_rows: Users in one call of the registered model; the batch job has no such limit.
        max_rule_items: Ids in one of the lists ``allow`` and ``deny`` of a call; the batch job reads such lists from files.
    """

    max_k: int = Field(default=1000, ge=1)
    max_history_items: int = Field(default=10_000, ge=1)
    max_rows: int = Field(default=100_000, ge=1)
    max_rule_items: int = Field(default=1_000_000, ge=1)

    def check_k(self, k: int, name: str) -> None:
        """Refuse a number of answers above the limit.

        Raises:
            ConfigError: It is.
        """
        if k > self.max_k:
            raise ConfigError(
                f"k is {k}, the bundle of '{name}' answers with at most {self.max_k} per user; ask for fewer, or "
                "export it with a "
                "larger export.limits.max_k"
            )

    def check_rows(self, rows: int, name: str) -> None:
        """Refuse a call with too many users.

        Raises:
            DataError: It has.
        """
        if rows > self.max_rows:
            raise DataError(
                f"the call has {rows} users, the bundle of '{name}' answers at most {self.max_rows} at once; send "
                "them in parts, use "
                "the batch job (`recsys recommend`), or export with a larger export.limits.max_rows"
            )


@dataclass(frozen=True)
class AnswerOptions:
    """How a request is answered, beside its rules.

    Attributes:
        answer: Ranked items, or whole sessions.
        second_stage: Who orders what was generated: ``none`` the policy, ``reward`` the bundle's reward model.
        objective: Weights by tower for rows that name none themselves; ``None`` asks for nothing in particular.
        rescore: ``True``: the beam's items in the order of the dense head; ``False``: in that of path probabilities; both
            without the bundle's ranker. ``None``: the ranker's order, or without one as the bundle's decode configuration
            says; and the search's own order where a request is steered by objective weights or guided by the reward, which
            no other order knows.
        reward_guidance: How much the bundle's reward model guides the search: what one standard deviation of an item's
            reward, over the catalogue, counts beside the log-probability of its path. 0: not at all.
    """

    answer: AnswerKind = "items"
    second_stage: SecondStage = "none"
    objective: Mapping[str, float] | None = None
    rescore: bool | None = None
    reward_guidance: float = 0.0

    def check(self, k: int, *, steered: bool | None = None) -> None:
        """Refuse options that contradict each other, whatever the model.

        Args:
            k: Items or sessions that are asked for.
            steered: Rows name objective weights of their own, or the options do; ``None`` looks at the options alone.

        Raises:
            ConfigError: An unknown value, ``k`` below 1, or an order by the dense head that nothing would show or that would
                undo what was asked for.
        """
        for name, value, choices in (
            ("answer", self.answer, get_args(AnswerKind)),
            ("second_stage", self.second_stage, get_args(SecondStage)),
        ):
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise ConfigError(f"k is {k!r}, expected at least 1: the number of {self.answer} per user")
        if self.rescore is not None and (self.answer == "sessions" or self.second_stage != "none"):
            raise ConfigError(
                f"rescore is {self.rescore}, but the dense head decides no order with answer: {self.answer} and "
                f"second_stage: {self.second_stage}; leave rescore out"
            )
        if not 0 <= self.reward_guidance <= MOST_GUIDANCE:
            raise ConfigError(
                f"reward_guidance is {self.reward_guidance!r}, expected a number from 0 to {MOST_GUIDANCE:g}"
            )
        if self.rescore and self.reward_guidance:
            raise ConfigError(
                f"rescore is true, but reward_guidance is {self.reward_guidance:g}: the dense head would undo the order "
                "that the reward gave; leave one of them out"
            )
        if self.rescore and (self.objective is not None if steered is None else steered):
            raise ConfigError(
                "rescore is true, but objective weights are asked for: the dense head takes none and would put items back "
                "into the order that nobody asked for; leave rescore out"
            )


class ExportConfig(FrozenConfig):
    """How the trained policy leaves the pipeline.

    Attributes:
        registered_name: Name in the MLflow registry; ``None`` takes the name of the run.
        parity_users: Users whose recommendations from the bundle are compared with those of the trained policy; a
            difference refuses the export.
        reward_model: Put the reward model into the bundle, for the second stage: ``true`` (the stage `reward` then runs,
            whatever alignment asks for), ``false``, or ``None``: where alignment needs it, or the recipe's own
            ``recommend.second_stage`` or ``recommend.reward_guidance``.
        limits: What one request may ask of the bundle at most.
    """

    registered_name: str | None = None
    reward_model: bool | None = None
    parity_users: int = Field(default=64, ge=1)
    limits: ServingLimits = ServingLimits()


class RecommendConfig(FrozenConfig):
    """The batch job that writes candidates for all users.

    Rules are files and numbers beside the model: tonight's job may have others than yesterday's with the same bundle. An
    item is possible for a user when the model knows it, ``allow`` and ``available`` list it, ``deny`` does not, the rules
    of the user's segment permit it, and the user has not seen it.

    Attributes:
        model: ``models:/name@alias``, ``models:/name/version`` or a bundle folder; ``None`` takes the champion of the
            run's registered model.
        k: Items, or with ``answer: sessions`` sessions, per user, at least 1 and at most what the bundle's limits say;
            fewer only where rules leave fewer possible ones, and then ``shortfalls-*.parquet`` says why.
        answer: ``items``: a ranked list of single items; ``sessions``: whole sessions of the policy's session length, for
            models of a session task. Limits per category then hold for each session.
        second_stage: ``reward``: the bundle's reward model orders the whole beam, of which the best ``k`` are kept; single
            items are evaluated as sessions of one. ``none``: the first stage's order.
        objective: Weights of the towers that a steerable policy was aligned with, for users whose row names none; they
            steer the policy and the second stage. Only their proportions count; ``None`` asks for nothing in particular.
            (A session of one item is always diverse, so ``diversity`` changes no second stage over items.)
        reward_guidance: How much the bundle's reward model guides the search itself, before any second stage: what one
            standard deviation of an item's reward, over the catalogue, counts beside the log-probability of its path. It
            evaluates every item for every user, so that it is for catalogues of some thousand; 0: not at all.
        exclude_seen: Leave out what the user's history holds.
        rescore: ``true``: the beam's items in the order of the dense head; ``false``: in that of path probabilities; both
            without the bundle's ranker. ``None`` takes the ranker's order, or without one what the bundle's decode
            configuration says, and the policy's own order for users with objective weights, which no other order knows.
        users_per_shard: Users in one output file, which is also the unit of restart and the bound on memory.
        allow: File with the only items that may be recommended, Parquet or CSV with a column ``item_id``, or plain text
            with one id per line; ``None`` allows the catalogue.
        deny: File with items that must not be recommended, same forms.
        available: File with the items that can be had today, same forms; like ``allow``, for a list with another owner.
        personal_deny: File ``user_id, item_id`` (Parquet or CSV): items that single users must not be shown, such as those
            they disliked; users of other jobs and items that the model does not know are passed over.
        exclude_disliked: Yes/no signals of the data set by which users say that they do not want an item; what got one is
            not shown to that user. ``None`` takes ``dislike``, ``hate`` and ``report`` where the data set has them, an empty
            list none. Users of a file have no signals; there the column ``deny_item_ids`` lists such items.
        segments: File ``user_id, segment`` (Parquet or CSV): the tenant, region or age group of each user.
        segment_rules: File ``segment, item_id, rule``, with the rules ``allow`` (the segment has only its allowed items),
            ``deny``, and ``none`` (one row without item_id, for a segment without a list of its own).
        default_segment: Segment of users that ``segments`` does not list; ``None`` refuses such users.
        max_per_category: Items of one category in a user's list; ``None`` sets no limit.
        category_limits: Limits of single categories, which go before ``max_per_category``; 0 bans a category. The names
            are those of ``item_categories``, or without that file the model's category_index as text.
        item_categories: File ``item_id, category``; items that it does not list are in no category and have no limit.
            ``None`` takes the categories that the model was trained with.
        timestamp_unit: What numbers in the column ``timestamps`` of a file of histories count: ``us``, ``ms``, ``s`` or
            ``ns``.
        delta: Answer only users with new events or other rules than in the newest earlier candidates of the run; the others
            keep their rows. With another model, options or code everybody is answered, and the log says why.
        engine: ``local``: this process answers shard after shard. ``ray``: workers of a Ray cluster do, which needs
            ``recsys-gen[ray]`` and paths that every node sees.
        ray_workers: Workers of the cluster, each with one CPU, or one GPU where the job is on one; ``None``: as many as the
            cluster has.
    """

    model: str | None = None
    k: int = Field(default=20, strict=True)
    answer: AnswerKind = "items"
    second_stage: SecondStage = "none"
    reward_guidance: float = Field(default=0.0, ge=0, le=MOST_GUIDANCE, allow_inf_nan=False)
    objective: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    exclude_seen: bool = True
    rescore: bool | None = None
    users_per_shard: int = Field(default=8192, ge=1)
    allow: ConfigPath | None = None
    deny: ConfigPath | None = None
    available: ConfigPath | None = None
    personal_deny: ConfigPath | None = None
    exclude_disliked: tuple[str, ...] | None = None
    segments: ConfigPath | None = None
    segment_rules: ConfigPath | None = None
    default_segment: str | None = None
    max_per_category: int | None = Field(default=None, ge=1)
    category_limits: dict[str, Annotated[int, Field(ge=0)]] = Field(default={})
    item_categories: ConfigPath | None = None
    timestamp_unit: NumberUnit = "us"
    delta: bool = False
    engine: Engine = Engine.LOCAL
    ray_workers: int | None = Field(default=None, ge=1)

    @field_validator("exclude_disliked", mode="before")
    @classmethod
    def _is_a_list(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f"exclude_disliked is '{value}', expected a list of signals, such as [{value}]")
        return value

    @property
    def options(self) -> AnswerOptions:
        """How the job's request is answered."""
        return AnswerOptions(self.answer, self.second_stage, self.objective, self.rescore, self.reward_guidance)

    @property
    def limits_categories(self) -> bool:
        """Whether any category has a limit."""
        return self.max_per_category is not None or bool(self.category_limits)

    @model_validator(mode="after")
    def _belong_together(self) -> RecommendConfig:
        if (self.segments is None) != (self.segment_rules is None):
            raise ValueError(
                "segments (whose user) and segment_rules (which items) need each other; give both files, or neither"
            )
        if self.default_segment is not None and self.segments is None:
            raise ValueError(f"default_segment is '{self.default_segment}', but there is no file of segments")
        if self.item_categories is not None and not self.limits_categories:
            raise ValueError("item_categories has no effect without a limit; set max_per_category or category_limits")
        try:
            self.options.check(self.k)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

"""Configuration of the `evaluate` stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from recsys.config import FrozenConfig
from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.evaluation.baselines.config import BASELINE_NAMES, BaselineName, BaselinesConfig, SASRecConfig
from recsys.evaluation.tuning.config import TuningConfig
from recsys.paths import ConfigPath
from recsys.scorers.config import Until

FilterSeen = Literal["both", "filtered", "unfiltered"]
ListMetric = Literal["novelty", "diversity", "vendi", "calibration"]

LIST_METRICS: Final[tuple[ListMetric, ...]] = ("novelty", "diversity", "vendi", "calibration")
"""What lists are measured by beside their hits, at the cut-off of the short table."""

BY_ID: Final = "_by_id"
"""What the names of metrics by semantic ID have before their cut-off: ``hr_by_id@10``."""


class SlicesConfig(FrozenConfig):
    """Borders of the slices.

    Attributes:
        head_share: Head items are the most popular ones that together make up this share of train traffic, the item
            that crosses the border included; all others are tail.
        cold_max_count: Items with at most so many train events are cold; 0 means never seen in training.
        new_user_max: Users with at most so many events of history are new.
        long_history_min: Users with at least so many events of history are long known.
    """

    head_share: float = Field(default=0.5, gt=0, lt=1)
    cold_max_count: int = Field(default=0, ge=0)
    new_user_max: int = Field(default=5, ge=0)
    long_history_min: int = Field(default=20, ge=1)


class ByIdConfig(FrozenConfig):
    """Where the semantic IDs that came with the data are.

    Attributes:
        file: Parquet file with a row per item; a relative path starts at ``source.path``. Its content enters the digest.
        item_id: Column of the item ids.
        columns: Columns that make up the ID together, such as ``[sid]`` or ``[sid_a, sid_b, sid_c]``.
    """

    file: ConfigPath
    item_id: str = Columns.ITEM_ID
    columns: tuple[str, ...] = Field(default=("sid",), min_length=1)


class EvaluateConfig(FrozenConfig):
    """What is evaluated, and against what.

    Attributes:
        split: Rows to evaluate.
        ks: Cut-offs of all metrics.
        by_id: Semantic IDs that came with the data: every metric is given by ID too, a hit being an item that shares the
            target's. Published figures of systems whose items share IDs are of that kind.
        list_metrics: What lists are measured by beside their hits, at 10 places, or the largest of ``ks`` without a 10:
            novelty (mean self-information, bits), diversity (mean cosine distance of pairs), vendi (effective number of
            different items), calibration (distance of the list's categories from the history's, nats; less is better).
        rankings: Somebody else's lists by name, evaluated on the same rows: a Parquet file, or a folder of them, with the
            columns user_id, item_id, rank. Their content enters the digest.
        models: Other models by name, which answer the same rows: ``models:/name/3``, ``models:/name@alias`` or a bundle
            folder.
        filter_seen: Evaluate rankings without the history's items, with them, or both side by side.
        baselines: Systems printed beside the model.
        baseline_settings: Their settings; where the search for better ones begins, or, without tuning, what they have.
        tuning: Settings that are tried for them on validation rows.
        count_until: Events that baselines may count or train on. ``"train"`` is the rule for the generative model too:
            the validation events are in the *histories* at test time, but nothing is fitted on them.
        reference: System that all others are compared with, pair by pair; ``None``: in a run the served list.
        resamples: Bootstrap draws.
        confidence: Of the intervals.
        slices: Borders of the slices.
    """

    split: Literal["valid", "test"] = "test"
    ks: tuple[int, ...] = (1, 5, 10, 20, 50)
    list_metrics: tuple[ListMetric, ...] = LIST_METRICS
    filter_seen: FilterSeen = "both"
    by_id: ByIdConfig | None = None
    rankings: Mapping[str, ConfigPath] = Field(default_factory=dict)
    models: Mapping[str, str] = Field(default_factory=dict)
    baselines: tuple[BaselineName, ...] = BASELINE_NAMES
    baseline_settings: BaselinesConfig = BaselinesConfig()
    tuning: TuningConfig = TuningConfig()
    count_until: Until = "train"
    reference: str | None = None
    resamples: int = Field(default=1000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    slices: SlicesConfig = SlicesConfig()

    @field_validator("ks")
    @classmethod
    def _ascending(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or list(ks) != sorted(set(ks)) or ks[0] < 1:
            raise ValueError(f"ks must be positive and ascending, such as [1, 5, 10]; got {list(ks)}")
        return ks

    @field_validator("list_metrics", "baselines")
    @classmethod
    def _named_once(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{info.field_name} names one twice: {', '.join(names)}")
        return names

    @model_validator(mode="after")
    def _names_are_distinct(self) -> EvaluateConfig:
        taken: set[str] = {*BASELINE_NAMES}
        for key in ("rankings", "models"):
            for name in getattr(self, key):
                if name in taken or not name.strip():
                    raise ValueError(
                        f"{key} has the name '{name}', which another system of the table has; choose another"
                    )
                taken.add(name)
        return self

    @model_validator(mode="after")
    def _reference_is_ranked(self) -> EvaluateConfig:
        if self.reference in BASELINE_NAMES and self.reference not in self.baselines:
            raise ValueError(
                f"reference '{self.reference}' is not among the baselines {list(self.baselines)}; add it to them"
            )
        return self

    @model_validator(mode="after")
    def _changes_fit_the_settings(self) -> EvaluateConfig:
        """A change of `tuning.sasrec` that is sound alone may not go with the configured settings."""
        for change in self.tuning.sasrec.changes if self.tuning.enabled else ():
            try:
                SASRecConfig.model_validate(self.baseline_settings.sasrec.model_dump() | change)
            except ValidationError as error:
                raise ValueError(
                    f"tuning.sasrec.changes: {change} beside baseline_settings.sasrec: {error.errors()[0]['msg']}"
                ) from error
        return self

    @property
    def filters(self) -> tuple[bool, ...]:
        """The values of ``exclude_seen`` to evaluate, filtered first."""
        return {"both": (True, False), "filtered": (True,), "unfiltered": (False,)}[self.filter_seen]

    @property
    def split_code(self) -> int:
        """Code of the split in the targets table."""
        return SPLIT_NAMES.index(self.split)

    @property
    def headline(self) -> tuple[str, str]:
        """The two metrics of the short table: hit rate and NDCG."""
        return f"hr@{self.headline_k}", f"ndcg@{self.headline_k}"

    @property
    def headline_k(self) -> int:
        """Cut-off of the short table: 10, or the largest when 10 is not evaluated."""
        return 10 if 10 in self.ks else self.ks[-1]

    @property
    def headline_by_id(self) -> tuple[str, ...]:
        """The same two by semantic ID, or none where no IDs are given."""
        return tuple(metric.replace("@", f"{BY_ID}@") for metric in self.headline) if self.by_id else ()

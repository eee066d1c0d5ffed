"""Names and settings of all baselines; without scipy and torch, so that a recipe is read at once.

The settings are those that the validation split of Amazon Beauty chose; they are where the search of
:mod:`recsys.evaluation.tuning` begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

from pydantic import Field, model_validator

from recsys.config import FrozenConfig
from recsys.scorers.config import PopularityConfig

BaselineName = Literal["popularity", "repeat_last", "markov", "item_knn", "ease", "sasrec"]

Scale = Literal["counts", "linear", "logits"]
"""What scores are: counts and sums of similarities, at least 0; weights of a linear model; logits of a softmax."""

BASELINE_NAMES: Final[tuple[BaselineName, ...]] = get_args(BaselineName)


class RepeatLastConfig(FrozenConfig):
    """How popularity is counted below the repeated items."""

    popularity: PopularityConfig = PopularityConfig()


class MarkovConfig(FrozenConfig):
    """How transitions are counted and applied.

    Attributes:
        gap_decay: Weight of a pair per further step between its events, in (0, 1].
        max_gap: Largest number of steps between the events of a pair.
        history_decay: Weight of a history event per later event, in (0, 1].
        row_power: Counts are divided by (their row's sum) ** this: 0 keeps counts, 1 makes probabilities. Half-way was
            best on the validation split of Amazon Beauty (ndcg@10 .0669, against .0663 and .0635).
        backoff: Weight of an item's share of the traffic, added to every score.
        popularity: How that share is counted.
    """

    gap_decay: float = Field(default=0.5, gt=0, le=1)
    max_gap: int = Field(default=7, ge=1)
    history_decay: float = Field(default=0.5, gt=0, le=1)
    row_power: float = Field(default=0.5, ge=0, le=1)
    backoff: float = Field(default=1e-3, gt=0)
    popularity: PopularityConfig = PopularityConfig(half_life_days=None)


class ItemKNNConfig(FrozenConfig):
    """How similarity is counted and applied.

    Attributes:
        history_decay: Weight of a history event per later event, in (0, 1].
        num_neighbours: Keep so many neighbours per item; ``None`` keeps all.
        shrinkage: Added to the denominator, so that items with few users get smaller similarities; 3 was
            better than 0 on the validation split of Amazon Beauty (ndcg@10 .0514, against .0477).
        popularity: How the back-off is counted; it decides only between items without any similarity.
    """

    history_decay: float = Field(default=0.7, gt=0, le=1)
    num_neighbours: int | None = Field(default=None, ge=1)
    shrinkage: float = Field(default=3.0, ge=0)
    popularity: PopularityConfig = PopularityConfig(half_life_days=None)


class EASEConfig(FrozenConfig):
    """Regularisation, decay, and the largest catalogue.

    Attributes:
        regularisation: Lambda, added to the diagonal of the co-occurrence counts.
        history_decay: Weight of a history event per later event, in (0, 1].
        max_items: It is left out of larger catalogues, with a note: memory is ``4 * I**2`` bytes, time grows with ``I**3``
            (12,000 items: 0.6 GB, half a minute on a core).
        popularity: How the back-off is counted; it decides only where the history says nothing.
    """

    regularisation: float = Field(default=50.0, gt=0)
    history_decay: float = Field(default=0.7, gt=0, le=1)
    max_items: int = Field(default=20_000, ge=1)
    popularity: PopularityConfig = PopularityConfig(half_life_days=None)


class SASRecConfig(FrozenConfig):
    """Size, regularisation, and budget.

    Attributes:
        max_len: Events of a history that the model sees.
        learning_rate: Peak; reached after ``warmup_share`` of all steps, then a cosine down to 0.
        max_epochs: The cosine ends here. One epoch on Amazon Beauty takes about 20 s on an idle core.
        max_minutes: Stop after the epoch in which so much time has passed. ``None``, the default, keeps the result
            independent of the machine's speed; with a limit it is not.
        patience: Stop after so many epochs without a better validation ndcg@10.
        valid_rows: Evaluate so many validation rows per epoch (the first of a seeded shuffle).
        width: Of every hidden state.
        num_blocks, num_heads: Blocks, and attention heads of each.
        dropout: Share of channels dropped in training.
        batch_size: Users per batch.
        weight_decay: Of all weights.
        warmup_share: Share of all steps in which the rate rises.
        crop: Share of the sequences of which an epoch shows a random part only; 0 shows all of every one.
        crop_least: Smallest part of a cropped sequence.
        reorder: Share of the sequences in which an epoch shuffles a random window.
        reorder_window: Length of that window, as a share of the sequence.
        max_items: It is left out of larger catalogues, with a note: every event is held against every item, hours per
            epoch on a CPU beyond this.
    """

    width: int = Field(default=64, ge=1)
    num_blocks: int = Field(default=2, ge=1)
    num_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.4, ge=0, lt=1)
    max_len: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1.5e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    max_epochs: int = Field(default=20, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    patience: int = Field(default=4, ge=1)
    valid_rows: int = Field(default=8000, ge=1)
    crop: float = Field(default=0.0, ge=0, le=1)
    crop_least: float = Field(default=0.5, gt=0, le=1)
    reorder: float = Field(default=0.0, ge=0, le=1)
    reorder_window: float = Field(default=0.3, gt=0, le=1)
    max_items: int = Field(default=200_000, ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SASRecConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} cannot be split into {self.num_heads} heads; make it a multiple")
        return self


class BaselinesConfig(FrozenConfig):
    """Settings of each baseline; those of baselines that are not asked for are not used."""

    popularity: PopularityConfig = PopularityConfig()
    repeat_last: RepeatLastConfig = RepeatLastConfig()
    markov: MarkovConfig = MarkovConfig()
    item_knn: ItemKNNConfig = ItemKNNConfig()
    ease: EASEConfig = EASEConfig()
    sasrec: SASRecConfig = SASRecConfig()


def left_out(names: Sequence[str], config: BaselinesConfig, num_items: int) -> dict[str, str]:
    """Say which of the named baselines a catalogue does not allow, and why; known before anything is fitted.

    Example:
        >>> list(left_out(["markov", "ease"], BaselinesConfig(), 50_000))
        ['ease']
    """
    costs = {
        "ease": (config.ease.max_items, f"the inverse needs {4 * num_items**2 / 1e9:.1f} GB"),
        "sasrec": (config.sasrec.max_items, "every event is held against every item in training"),
    }
    return {
        name: f"{name} is left out: the catalogue has {num_items:,} items, its limit is {costs[name][0]:,} "
        f"(evaluate.baseline_settings.{name}.max_items; {costs[name][1]})"
        for name in names
        if name in costs and num_items > costs[name][0]
    }

"""What is counted and how; without scipy and torch, so that a recipe is read at once.

Defaults are by NDCG@10 of the dense head's log-softmax plus one scorer, on 3,000 validation rows of Amazon Beauty and of
Toys each. ``num_neighbours``: 200 loses nothing against all (.0767 and .0767 on Beauty), 50 loses .0003.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from pydantic import Field, field_validator

from recsys.config import FrozenConfig

Until = Literal["train", "valid"]
"""Up to the end of which split events may be looked at."""


class PopularityConfig(FrozenConfig):
    """How popularity is counted.

    Attributes:
        half_life_days: Age at which an event counts half; ``None`` counts all alike. Data without timestamps have no
            age, so there it has no effect, and ``fit`` says so in the log.
        last_events: Count only so many last events of each user; ``None`` counts all.
    """

    half_life_days: float | None = Field(default=30.0, gt=0)
    last_events: int | None = Field(default=None, ge=1)


ScorerName = Literal[
    "transitions", "slow_transitions", "preceding", "item_knn", "ease", "similar", "similar_text", "popularity"
]

SCORER_NAMES: Final[tuple[ScorerName, ...]] = get_args(ScorerName)

VECTOR_SCORERS: Final[Mapping[str, str]] = {"similar": "fused", "similar_text": "text"}
"""Which item vectors a scorer compares: its name and the key of the vectors."""


class TransitionsConfig(FrozenConfig):
    """How transitions are counted and applied.

    Attributes:
        gap_decay: Weight of a pair per further step between its events, in (0, 1].
        max_gap: Largest number of steps between the events of a pair.
        history_decay: Weight of a history event per later event, in (0, 1].
        row_power: Counts are divided by (their row's sum) ** this: 0 keeps counts, 1 makes probabilities.
        floor: The scale is ``log(1 + score / floor)``: an item never seen after the history has 0.
    """

    gap_decay: float = Field(default=0.5, gt=0, le=1)
    max_gap: int = Field(default=7, ge=1)
    history_decay: float = Field(default=0.5, gt=0, le=1)
    row_power: float = Field(default=0.5, ge=0, le=1)
    floor: float = Field(default=1e-6, gt=0)


SLOW: Final = TransitionsConfig(gap_decay=0.8, max_gap=20, history_decay=0.8)
"""Pairs far apart and events long past count almost as much as the latest ones."""

PRECEDING: Final = SLOW.model_copy(update={"floor": 1e-2})
"""What once came before says little by itself: with a low floor, where any count at all is worth a lot, it did harm."""


class ItemKNNScorerConfig(FrozenConfig):
    """How the overlap of items' users is counted and applied.

    Attributes:
        history_decay: Weight of a history event per later event, in (0, 1].
        shrinkage: Added to the denominator, so that items with few users get smaller similarities.
        floor: The scale is ``log(1 + score / floor)``.
    """

    history_decay: float = Field(default=0.7, gt=0, le=1)
    shrinkage: float = Field(default=3.0, ge=0)
    floor: float = Field(default=1e-6, gt=0)


class EASEScorerConfig(FrozenConfig):
    """How EASE is solved and applied.

    Attributes:
        regularisation: Lambda, added to the diagonal of the co-occurrence counts.
        history_decay: Weight of a history event per later event, in (0, 1].
        max_items: In larger catalogues EASE is left out, with a note: memory is ``4 * I**2`` bytes, time grows with
            ``I**3`` (12,000 items: 0.6 GB, half a minute on a core).
        scale: The scale is ``scale * score``.
    """

    regularisation: float = Field(default=50.0, gt=0)
    history_decay: float = Field(default=0.7, gt=0, le=1)
    max_items: int = Field(default=20_000, ge=1)
    scale: float = Field(default=10.0, gt=0)


class SimilarityConfig(FrozenConfig):
    """How item vectors are compared with a history.

    Attributes:
        history_decay: Weight of a history event per later event, in (0, 1].
        width: Wider vectors are projected onto so many principal directions; ``None`` keeps them.
        scale: The scale is ``scale * cosine``.
    """

    history_decay: float = Field(default=0.5, gt=0, le=1)
    width: int | None = Field(default=128, ge=1)
    scale: float = Field(default=5.0, gt=0)


class PopularityScorerConfig(FrozenConfig):
    """How traffic is counted and scaled.

    Attributes:
        counting: How shares of the traffic are counted.
        floor: The scale is ``log(1 + share / floor)``.
    """

    counting: PopularityConfig = PopularityConfig()
    floor: float = Field(default=1e-6, gt=0)


class ScorersConfig(FrozenConfig):
    """Which item scorers are fitted, and how; settings of those that are not named are not used.

    Attributes:
        names: Scorers to fit. One that the catalogue or the data do not allow is left out, with a note.
        num_neighbours: Every matrix of item pairs keeps so many of the largest entries of an item; ``None`` keeps all.
        transitions: What came soon after an item; ``slow_transitions`` looks further; ``preceding`` looks at what came
            before the history's items.
        item_knn: Items whose users overlap.
        ease: A linear auto-encoder over items.
        similar: Cosine of the fused item embeddings to the history; ``similar_text`` of the text embeddings alone.
        popularity: The same for everybody.
    """

    names: tuple[ScorerName, ...] = SCORER_NAMES
    num_neighbours: int | None = Field(default=200, ge=1)
    transitions: TransitionsConfig = TransitionsConfig()
    slow_transitions: TransitionsConfig = SLOW
    preceding: TransitionsConfig = PRECEDING
    item_knn: ItemKNNScorerConfig = ItemKNNScorerConfig()
    ease: EASEScorerConfig = EASEScorerConfig()
    similar: SimilarityConfig = SimilarityConfig()
    similar_text: SimilarityConfig = SimilarityConfig()
    popularity: PopularityScorerConfig = PopularityScorerConfig()

    @field_validator("names")
    @classmethod
    def _each_once(cls, names: tuple[ScorerName, ...]) -> tuple[ScorerName, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{list(names)} name a scorer twice; name each once")
        return names

"""Configuration of the second stage: which candidates it sees, how it is fitted, and what it must beat to be served."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from recsys.config import FrozenConfig

Method = Literal["auto", "linear", "lightgbm", "none"]


class CandidateCounts(FrozenConfig):
    """Candidates that every source gives beside the beam, which gives ``decode.beam_width``; 0 switches a source off.

    Attributes:
        dense: Best items of the dense head over the whole catalogue.
        fused: Best items of the fused score over the whole catalogue.
        transitions: Best items by what usually follows the history's last items.
    """

    dense: int = Field(default=50, ge=0)
    fused: int = Field(default=100, ge=0)
    transitions: int = Field(default=50, ge=0)


class LightGBMConfig(FrozenConfig):
    """Settings of LightGBM's ranker; the defaults keep it fast enough to answer beside a beam search.

    Attributes:
        num_leaves: Of each tree.
        learning_rate: Weight of each tree.
        depth: Candidates of a row that the trees re-order, the first ones by the linear order.
        rounds: Trees, at most.
        patience: Rounds without a better NDCG@10 on the early-stopping part after which no further tree is grown.
        stop_share: Share of the users of the fit part that decide when to stop; never the held-out ones.
        min_leaf_rows: Candidates in a leaf, at least.
        feature_share: Share of the features that each tree may look at.
        l2: Ridge on the values of leaves.
        num_threads: Of LightGBM; the same number gives the same trees.
    """

    num_leaves: int = Field(default=15, ge=2, le=1024)
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    depth: int = Field(default=100, ge=1)
    rounds: int = Field(default=100, ge=1, le=5000)
    patience: int = Field(default=20, ge=1)
    stop_share: float = Field(default=0.2, gt=0, lt=1)
    min_leaf_rows: int = Field(default=200, ge=1)
    feature_share: float = Field(default=0.8, gt=0, le=1)
    l2: float = Field(default=10.0, ge=0)
    num_threads: int = Field(default=1, ge=1)


class RankConfig(FrozenConfig):
    """The `rank` stage: item scorers, candidates, the learned order and its guard.

    Attributes:
        method: ``linear`` and ``lightgbm`` fit that one, ``auto`` fits both and keeps the better one on held-out rows;
            ``none`` fits nothing and serves the order that ``decode.rescore`` names.
        scorers: Names of item scorers that are summed with the dense head; ``auto`` takes all that the catalogue allows.
        candidates: How many each source gives.
        guidance: Weight of the item scores in the search; ``auto`` chooses from the grid.
        guidance_grid: What ``auto`` tries; 0 is the policy alone.
        held_out_share: Share of the users whose validation rows fit neither the weights of the scorers nor the ranker that
            is compared on them; the other users are held out from the ranker in turn, in parts of about this share.
        max_rows: Validation rows used, at most; a seeded sample of users where there are more.
        refit: Fit the method that was chosen once more on all rows used, the held-out ones too.
        lightgbm: Settings of LightGBM.
        l2_grid: Ridges that the linear ranker tries on a part of the fit rows.
        confidence: Of the guard's paired intervals.
        resamples: Bootstrap draws of the guard.
    """

    method: Method = "auto"
    scorers: Literal["auto"] | tuple[str, ...] = "auto"
    candidates: CandidateCounts = CandidateCounts()
    guidance: Literal["auto"] | float = "auto"
    guidance_grid: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    held_out_share: float = Field(default=0.3, gt=0, lt=1)
    max_rows: int = Field(default=20_000, ge=10)
    refit: bool = True
    lightgbm: LightGBMConfig = LightGBMConfig()
    l2_grid: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: int = Field(default=1000, ge=100)

    @field_validator("scorers")
    @classmethod
    def _distinct(cls, scorers: Literal["auto"] | tuple[str, ...]) -> Literal["auto"] | tuple[str, ...]:
        if scorers != "auto" and len(set(scorers)) != len(scorers):
            raise ValueError(f"scorers {list(scorers)} name one twice; name each once, or write auto")
        return scorers

    @field_validator("guidance")
    @classmethod
    def _not_negative(cls, guidance: Literal["auto"] | float) -> Literal["auto"] | float:
        if guidance != "auto" and not 0 <= guidance < float("inf"):
            raise ValueError(f"guidance is {guidance}, expected auto or a number from 0 on")
        return guidance

    @field_validator("guidance_grid", "l2_grid")
    @classmethod
    def _ascending(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not grid or list(grid) != sorted(set(grid)) or not 0 <= grid[0] <= grid[-1] < float("inf"):
            raise ValueError(f"the grid must be ascending numbers from 0 on, such as [0.5, 1, 2]; got {list(grid)}")
        return grid

    @model_validator(mode="after")
    def _some_candidates(self) -> Self:
        if self.method != "none" and not self.candidates.dense:
            raise ValueError(
                "candidates.dense is 0, and the guard needs the order of the dense head: give at least 1, "
                "or method: none"
            )
        return self

"""The settings that are tried for every baseline; without scipy and torch, so that a recipe is read at once."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import Field, ValidationError, field_validator, model_validator

from recsys.config import FrozenConfig
from recsys.evaluation.baselines.config import EASEConfig, ItemKNNConfig, MarkovConfig, SASRecConfig


class Grid(FrozenConfig):
    """Lists of values by setting; the configured value of a setting is tried as well, an empty list keeps it."""

    settings: ClassVar[type[FrozenConfig]]

    @model_validator(mode="after")
    def _values_are_settings(self) -> Grid:
        """Refuse at once what would be refused after minutes of fitting."""
        for name, values in self.lists().items():
            for value in values:
                try:
                    self.settings.model_validate({name: value})
                except ValidationError as error:
                    raise ValueError(f"{name}: {value} cannot be tried: {error.errors()[0]['msg']}") from error
        return self

    def lists(self) -> dict[str, tuple[Any, ...]]:
        """The lists, in the order in which they are nested; the last one changes fastest."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class MarkovGrid(Grid):
    """What is tried for the Markov chain; see :class:`~recsys.evaluation.baselines.config.MarkovConfig`.

    Attributes:
        gap_decay, row_power, history_decay: Values to try.
    """

    settings: ClassVar[type[FrozenConfig]] = MarkovConfig

    gap_decay: tuple[float, ...] = (0.3, 0.5, 0.8)
    row_power: tuple[float, ...] = (0.0, 0.5, 1.0)
    history_decay: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85)


class ItemKNNGrid(Grid):
    """What is tried for item neighbours; see :class:`~recsys.evaluation.baselines.config.ItemKNNConfig`.

    Attributes:
        shrinkage, num_neighbours, history_decay: Values to try.
    """

    settings: ClassVar[type[FrozenConfig]] = ItemKNNConfig

    shrinkage: tuple[float, ...] = (0.0, 3.0, 10.0, 30.0, 100.0)
    num_neighbours: tuple[int | None, ...] = (50, 200, None)
    history_decay: tuple[float, ...] = (0.5, 0.7, 0.85, 0.95, 1.0)


class EASEGrid(Grid):
    """What is tried for EASE; see :class:`~recsys.evaluation.baselines.config.EASEConfig`.

    Attributes:
        regularisation: Values to try. From the configured one the search walks up as long as that helps, else down:
            each value costs an inverse, and quality has one maximum in it.
        history_decay: Values to try with each; they cost only a ranking.
    """

    settings: ClassVar[type[FrozenConfig]] = EASEConfig

    regularisation: tuple[float, ...] = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
    history_decay: tuple[float, ...] = (0.7, 0.8, 0.9, 1.0)


class SASRecGrid(FrozenConfig):
    """What is tried for SASRec, besides the configured settings.

    Attributes:
        changes: Settings that differ from the configured ones, one trial per entry; empty trains the configured ones.
        epochs_share: Epochs of a trial, as a share of ``max_epochs``; each has its own whole schedule of the rate. The
            best setting is trained in full.
    """

    changes: tuple[dict[str, float | int], ...] = (
        {"width": 128, "dropout": 0.5},
        {"width": 128, "dropout": 0.5, "crop": 0.5},
        {"max_len": 50, "dropout": 0.2, "batch_size": 32},
    )
    epochs_share: float = Field(default=0.2, gt=0, le=1)

    @field_validator("changes")
    @classmethod
    def _are_settings(cls, changes: tuple[dict[str, float | int], ...]) -> tuple[dict[str, float | int], ...]:
        for change in changes:
            if not change:
                raise ValueError("an empty change is the configured setting, which is tried anyway; leave it out")
            try:
                SASRecConfig.model_validate(change)
            except ValidationError as error:
                problem = error.errors()[0]
                place = ".".join(str(part) for part in problem["loc"])
                raise ValueError(f"{change} cannot be tried: {place}: {problem['msg']}") from error
        return changes


FUSION_WEIGHTS: Final = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


class TuningConfig(FrozenConfig):
    """How baselines get their settings.

    A baseline is as strong as its settings, and those that suit one data set can cost a third of the quality on another. So
    every baseline tries a small grid: fitted on train events, measured by NDCG@10 on validation rows. Of the settings that
    these rows cannot tell from the best, the one is taken that departs least from ``baseline_settings``.

    Attributes:
        enabled: Whether a grid is tried; without it, baselines have the settings of ``baseline_settings``.
        rows: Validation rows that decide; a seeded sample where there are more.
        markov, item_knn, ease, sasrec: What is tried.
        fusion: Whether the best two baselines, by the same rows, are summed into a system of its own.
        fusion_weights: Weights of the second of them to try.
    """

    enabled: bool = True
    rows: int = Field(default=4000, ge=1)
    markov: MarkovGrid = MarkovGrid()
    item_knn: ItemKNNGrid = ItemKNNGrid()
    ease: EASEGrid = EASEGrid()
    sasrec: SASRecGrid = SASRecGrid()
    fusion: bool = True
    fusion_weights: tuple[float, ...] = FUSION_WEIGHTS

    @field_validator("fusion_weights")
    @classmethod
    def _positive(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not weights or not all(0 < weight < float("inf") for weight in weights) or len(set(weights)) < len(weights):
            raise ValueError(
                f"fusion_weights must be positive numbers, each once, such as [0.5, 1, 2]; got {list(weights)}"
            )
        return weights

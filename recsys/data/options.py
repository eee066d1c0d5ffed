"""Choices that a training configuration offers and the loader carries out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from recsys.config import FrozenConfig

BatchBy = Literal["rows", "targets"]


class AugmentConfig(FrozenConfig):
    """How training changes histories before the model reads them (:mod:`recsys.data.augmentation`); all off by default.

    Attributes:
        crop_share: Share of the rows that lose some of their oldest events.
        reorder_share: Share of the rows whose events change places with near ones.
        reorder_span: Places that an event may move, and one more.
        mask_share: Share of the history's items that the model is not told; they stay targets.
    """

    crop_share: float = Field(default=0.0, ge=0, le=1)
    reorder_share: float = Field(default=0.0, ge=0, le=1)
    reorder_span: int = Field(default=3, ge=2)
    mask_share: float = Field(default=0.0, ge=0, lt=1)

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return max(self.crop_share, self.reorder_share, self.mask_share) > 0


class WordsConfig(FrozenConfig):
    """Requests that may say in words what is wanted (:mod:`recsys.data.words`).

    Attributes:
        fields: What sentences name: ``category`` any of an item's categories, ``author`` its author or brand.
        templates: Sentences that training makes; each holds ``{value}``.
        absent_share: Share of the training rows that say nothing.
        longest: Known words of a sentence that are read.
    """

    fields: tuple[Literal["category", "author"], ...] = Field(default=("category", "author"), min_length=1)
    templates: tuple[str, ...] = Field(
        default=("{value}", "something in {value}", "I am looking for {value}", "show me {value}"), min_length=1
    )
    absent_share: float = Field(default=0.5, gt=0, lt=1)
    longest: int = Field(default=16, ge=1)

    @field_validator("templates")
    @classmethod
    def _hold_a_value(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{value}") != 1:
                raise ValueError(f"template '{template}' must hold {{value}} once, as in 'something in {{value}}'")
        return templates

"""Choices that a training configuration offers and the loader carries out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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

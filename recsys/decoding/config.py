"""How candidates are generated and ordered."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config import FrozenConfig


class DecodeConfig(FrozenConfig):
    """Beam search and second stage."""

    beam_width: int = Field(default=64, ge=1)
    rescore: Literal["dense", "none"] = "dense"
    generative_weight: float = Field(default=0.0, ge=0.0)
    """Served score = dense log-score + generative_weight * beam log-probability."""
    exclude_seen: bool = True
    rows_per_batch: int = Field(default=3200, ge=1)
    """Users times beams decoded together; bounds memory whatever the number of users (perf.md, design 7)."""

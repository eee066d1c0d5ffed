"""Settings of the `embed` stage: one section per source, and their fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import model_validator

from features.embeddings.attributes import AttributesConfig
from features.embeddings.collaborative import CollaborativeConfig
from features.embeddings.fusion import FusionConfig
from features.embeddings.precomputed import PrecomputedConfig
from features.embeddings.text import TextConfig
from recsys.config import FrozenConfig


class EmbedConfig(FrozenConfig):
    """Settings of the `embed` stage; a source set to ``None`` (``text.model`` for text) is switched off.

    Attributes:
        precomputed: Vectors from a file, such as those of an encoder of pictures or of your own language model.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"device": "device, at the top of the recipe"}

    precomputed: PrecomputedConfig | None = None
    text: TextConfig = TextConfig()
    collaborative: CollaborativeConfig | None = CollaborativeConfig()
    attributes: AttributesConfig | None = AttributesConfig()
    fusion: FusionConfig = FusionConfig()

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if self.precomputed is not None and self.precomputed.missing == "text" and self.text.model is None:
            raise ValueError(
                "precomputed.missing is 'text', but text.model is null: there is no text to tell vectors from"
            )
        if self.precomputed is not None and self.precomputed.missing == "text" and self.text.optional:
            raise ValueError(
                "precomputed.missing is 'text', but text.optional is true: without the model no vector could be told from "
                "its text; set text.optional to false, or precomputed.missing to zeros"
            )
        return self

"""Which language model takes the place of encoder and decoder, and how it is trained; no more than a recipe's keys."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from recsys.config import FrozenConfig


class LoraConfig(FrozenConfig):
    """Low-rank adapters of a language model (arXiv 2106.09685).

    Attributes:
        rank, alpha: The adapter's product is scaled by ``alpha / rank``.
        dropout: Share of an adapter's input channels that training drops.
        targets: Names of the linear layers that get one.
    """

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )


class AuxiliaryConfig(FrozenConfig):
    """Weights of the losses that bind semantic IDs to titles (MiniOneRec, arXiv 2510.24431); 0 leaves a task out.

    Attributes:
        title_to_id: Title in, codes out.
        id_to_title: Codes in, title out.
        titles_to_id: A history told by titles in, codes of the next item out.
        items_per_step: Items that each of the first two tasks draws per step.
    """

    title_to_id: float = Field(default=0.0, ge=0)
    id_to_title: float = Field(default=0.0, ge=0)
    titles_to_id: float = Field(default=0.0, ge=0)
    items_per_step: int = Field(default=16, ge=1)

    @property
    def is_asked(self) -> bool:
        """Whether any task has a weight."""
        return self.title_to_id + self.id_to_title + self.titles_to_id > 0


class LanguageModelConfig(FrozenConfig):
    """A causal language model as the policy (``model.backbone: llm``, needs the extra ``recsys-gen[llm]``).

    Attributes:
        source: Folder of a transformers model, a GGUF file, or an installed package that carries either.
        shape: Instead of ``source``: a configuration of transformers, with ``model_type``; weights are drawn at random.
        tune: Train all weights, or low-rank adapters beside the new tokens and the dense head.
        lora: Of ``tune: lora``.
        softmax: Over the codes of the level, or over the whole extended vocabulary, as transformers, ReRe and MiniOneRec
            have it; constrained search masks either, and renormalises neither.
        instruction: Text before every history; ``None``: none.
        titles: Let every event carry the item's title behind its codes.
        title_tokens: Tokens that are read of a title.
        gradient_checkpointing: Compute a block's activations again in the backward pass instead of holding them.
        keep_base: ``inside`` writes all weights beside the policy; ``reference`` leaves out the frozen ones of ``source``,
            which is named with its digest. Only with ``tune: lora``.
        auxiliary: Tasks between titles and codes.
    """

    source: str | None = None
    shape: dict[str, Any] | None = None
    tune: Literal["all", "lora"] = "all"
    lora: LoraConfig = LoraConfig()
    softmax: Literal["level", "vocabulary"] = "level"
    instruction: str | None = None
    titles: bool = False
    title_tokens: int = Field(default=16, ge=1)
    gradient_checkpointing: bool = False
    keep_base: Literal["inside", "reference"] = "inside"
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()

    @model_validator(mode="after")
    def _check(self) -> LanguageModelConfig:
        if (self.source is None) == (self.shape is None):
            raise ValueError(
                "name either source (folder, GGUF file or package) or shape (a configuration), one of them"
            )
        if self.shape is not None and not isinstance(self.shape.get("model_type"), str):
            raise ValueError(f"shape is {self.shape}, expected a mapping with model_type, such as llama or qwen3")
        if self.keep_base == "reference" and (self.tune == "all" or self.source is None):
            raise ValueError(
                "keep_base: reference leaves out the weights of `source`, which are trained with tune: all and random "
                "without a source; set tune: lora with a source, or keep_base: inside"
            )
        return self

    @property
    def reads_titles(self) -> bool:
        """Whether titles are read or written."""
        return self.titles or self.auxiliary.is_asked

    @property
    def reads_text(self) -> bool:
        """Whether anything but codes and marks is read or written."""
        return self.reads_titles or self.instruction is not None

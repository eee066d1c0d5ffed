"""Shape of the model. A preset fills what the configuration leaves out."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from recsys.config import FrozenConfig

Feature = Literal["item", "codes", "author", "category", "behaviour", "gap", "watch", "user"]

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # minutes on two CPU cores
    "tiny": {
        "width": 64,
        "num_heads": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "ffn_width": 128,
        "num_experts": 4,
        "expert_width": 128,
        "max_history": 50,
    },
    # a public data set on a workstation
    "small": {
        "width": 256,
        "num_heads": 8,
        "num_encoder_layers": 4,
        "num_decoder_layers": 4,
        "ffn_width": 1024,
        "num_experts": 8,
        "expert_width": 512,
        "max_history": 100,
    },
    # OneRec v1: 256 history items, 24 experts of which 2 are active; widths are unpublished and taken from the
    # 0.935B model of the technical report (arXiv 2506.13695, Table 1; expert width 2816 follows from its totals)
    "paper_v1": {
        "width": 1024,
        "num_heads": 8,
        "num_encoder_layers": 4,
        "num_decoder_layers": 4,
        "ffn_width": 2816,
        "num_experts": 24,
        "expert_width": 2816,
        "max_history": 256,
        "encoder_attention": "bidirectional",
    },
}


class ModelConfig(FrozenConfig):
    """Widths and depths of the encoder-decoder.

    ``encoder_attention: causal`` lets one pass over a user's sequence supervise every position (all-prefix training);
    ``bidirectional`` is the published form and is trained on one (history, target) pair per row.
    """

    preset: Literal["tiny", "small", "paper_v1"] = "tiny"
    width: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_encoder_layers: int = Field(gt=0)
    num_decoder_layers: int = Field(gt=0)
    ffn_width: int = Field(gt=0)
    num_experts: int = Field(ge=1)
    experts_per_token: int = Field(default=2, ge=1)
    expert_width: int = Field(gt=0)
    renormalise_gates: bool = False  # OneRec v1 eq. 2 prints softmax-then-top-k without renormalisation
    balance_rate: float = Field(default=0.001, ge=0.0)  # step of the loss-free balancing bias; 0 switches it off
    max_history: int = Field(gt=0)
    encoder_attention: Literal["causal", "bidirectional"] = "causal"
    features: tuple[Feature, ...] = ("item", "codes", "author", "category", "behaviour", "gap", "watch")
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    embedding_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    init_std: float = Field(default=0.02, gt=0.0)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "tiny"), {}), **values}

    @model_validator(mode="after")
    def _check_shape(self) -> ModelConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} exceeds num_experts {self.num_experts}")
        if "item" not in self.features and "codes" not in self.features:
            raise ValueError("features must name 'item' or 'codes': without both the model cannot tell items apart")
        return self

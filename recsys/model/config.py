"""Shape of the model. A preset fills what the configuration leaves out."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from recsys.config import FrozenConfig
from recsys.contracts.errors import ConfigError
from recsys.data.options import WordsConfig
from recsys.model.language_config import LanguageModelConfig

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
    # the 0.935B model of OneRec's technical report (arXiv 2506.13695, section 2.2.1 and Table 1): a user as 405 positions
    # of four pathways, whatever the length of the history
    "tr_0.9b": {
        "width": 1024,
        "num_heads": 8,
        "num_encoder_layers": 4,
        "num_decoder_layers": 4,
        "ffn_width": 2048,
        "num_experts": 24,
        "expert_width": 2816,
        "max_history": 2000,
        "features": ("item", "codes", "author", "category", "behaviour", "gap", "watch", "user"),
        "encoder": "pathways",
        "encoder_attention": "bidirectional",
    },
    # the dense 1B model of OneRec-V2 (arXiv 2508.20900, Tables 2 to 4): no encoder, keys and values straight from the
    # context. Published comparisons use 512 context positions, production 3000
    "v2_1b": {
        "width": 1792,
        "num_heads": 14,
        "num_encoder_layers": 0,
        "num_decoder_layers": 18,
        "ffn_width": 7168,
        "num_experts": 1,
        "experts_per_token": 1,
        "expert_width": 1792,
        "num_dense_blocks": 18,
        "max_history": 512,
        "features": ("item", "codes", "author", "category", "behaviour", "gap", "watch", "user"),
        "decoder": "lazy",
    },
    # the tiny model with the encoder of tr_0.9b
    "tiny_pathways": {
        "width": 64,
        "num_heads": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "ffn_width": 128,
        "num_experts": 4,
        "expert_width": 128,
        "max_history": 50,
        "encoder": "pathways",
        "encoder_attention": "bidirectional",
        "short_events": 10,
        "positive_events": 16,
        "lifelong_queries": 8,
        "lifelong_layers": 1,
    },
    # the tiny model with the decoder of v2_1b, two of its four blocks sparse; as many blocks as tiny has on both sides
    "tiny_lazy": {
        "width": 64,
        "num_heads": 4,
        "num_encoder_layers": 0,
        "num_decoder_layers": 4,
        "ffn_width": 128,
        "num_experts": 4,
        "expert_width": 128,
        "num_dense_blocks": 2,
        "kv_groups": 2,
        "max_history": 50,
        "decoder": "lazy",
    },
}

_PATHWAY_FIELDS: Final = ("short_events", "positive_events", "lifelong_queries", "lifelong_layers")
_LAZY_FIELDS: Final = ("kv_layers", "kv_split", "kv_groups", "num_dense_blocks", "num_shared_experts")


_LANGUAGE_FEATURES: Final = frozenset({"item", "codes", "author", "category", "behaviour"})


class ModelConfig(FrozenConfig):
    """Widths and depths of the encoder-decoder, or the language model that takes its place.

    ``encoder_attention: causal`` lets one pass over a user's sequence supervise every position (all-prefix training);
    ``bidirectional`` is the published form and is trained on one (history, target) pair per row.

    ``encoder: pathways`` reads a history of any length as a fixed number of positions
    (:class:`~recsys.model.variants.pathways.PathwayEncoder`); ``decoder: lazy`` attends to the context without
    projecting it in every layer (:class:`~recsys.model.variants.lazy_decoder.LazyDecoder`). Either goes with either.

    Attributes:
        backbone: ``encoder_decoder``, or ``llm``: a causal language model that reads and writes codes as tokens
            (:mod:`recsys.language_model`). Of the keys below it takes ``max_history``, ``dropout``, ``embedding_dropout``,
            ``init_std`` and ``features``: ``behaviour`` gives every event a token more, ``item``, ``author`` and
            ``category`` make the item vectors of the dense head.
        language_model: Of ``backbone: llm``.
        preset: Fills in what is left out of the keys below; the defaults shown are those of ``tiny``.
        width: D, of every hidden state.
        num_heads: Attention heads; they divide ``width``.
        num_encoder_layers, num_decoder_layers: Blocks.
        ffn_width: Hidden channels of dense feed-forward layers.
        num_experts: Experts of a mixture; 1 is a dense layer.
        experts_per_token: Experts that a token meets.
        expert_width: Hidden channels of an expert.
        renormalise_gates: Let the gates of the chosen experts sum to one; OneRec v1 eq. 2 prints softmax-then-top-k
            without it.
        balance_rate: Step of the loss-free balancing bias; 0 switches it off.
        max_history: Events of a history that are read, the last ones.
        encoder_attention: What an event sees: only earlier ones, or all.
        encoder: One position per event, or four pathways.
        short_events: Pathways: L_s, the most recent events.
        positive_events: Pathways: L_p, the most engaged events.
        lifelong_queries: Pathways: N_q, positions that the whole history is compressed to.
        lifelong_layers: Pathways: N_l, cross-attention blocks that compress it.
        decoder: With projections of the context in every block, or lazy.
        kv_layers: Lazy: L_kv, different keys and values; blocks in a row share one.
        kv_split: Lazy: S_kv, 2 gives values of their own, 1 uses the keys as values.
        kv_groups: Lazy: G_kv, heads of keys and values; ``None`` is ``num_heads``.
        num_dense_blocks: Lazy: the first blocks have a dense feed-forward layer.
        num_shared_experts: Lazy: experts that every token meets.
        features: What an event is made of.
        unseen_user_rows, unseen_author_rows: Rows that ids which training has not seen are hashed to.
        unseen_share: Share of known ids that training replaces by those rows.
        num_objectives: Weights per request that steer the policy: one per tower of the reward.
        words: Sentences that requests may carry; ``None``: the model reads none.
        dropout, embedding_dropout: Share of channels dropped in training, on residuals and after embeddings.
        init_std: Standard deviation of initial weights.
    """

    backbone: Literal["encoder_decoder", "llm"] = "encoder_decoder"
    language_model: LanguageModelConfig | None = None
    preset: Literal["tiny", "small", "paper_v1", "tr_0.9b", "v2_1b", "tiny_pathways", "tiny_lazy"] = "tiny"
    width: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_encoder_layers: int = Field(ge=0)
    num_decoder_layers: int = Field(gt=0)
    ffn_width: int = Field(gt=0)
    num_experts: int = Field(ge=1)
    experts_per_token: int = Field(default=2, ge=1)
    expert_width: int = Field(gt=0)
    renormalise_gates: bool = False
    balance_rate: float = Field(default=0.001, ge=0.0)
    max_history: int = Field(gt=0)
    encoder_attention: Literal["causal", "bidirectional"] = "causal"
    encoder: Literal["plain", "pathways"] = "plain"
    short_events: int = Field(default=20, gt=0)
    positive_events: int = Field(default=256, gt=0)
    lifelong_queries: int = Field(default=128, gt=0)
    lifelong_layers: int = Field(default=2, gt=0)
    decoder: Literal["standard", "lazy"] = "standard"
    kv_layers: int = Field(default=1, gt=0)
    kv_split: Literal[1, 2] = 1
    kv_groups: int | None = Field(default=None, gt=0)
    num_dense_blocks: int = Field(default=0, ge=0)
    num_shared_experts: int = Field(default=0, ge=0)
    features: tuple[Feature, ...] = ("item", "codes", "author", "category", "behaviour", "gap", "watch")
    unseen_user_rows: int = Field(default=0, ge=0)
    unseen_author_rows: int = Field(default=0, ge=0)
    unseen_share: float = Field(default=0.02, gt=0.0, lt=1.0)
    num_objectives: int = Field(default=0, ge=0)
    words: WordsConfig | None = None
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    embedding_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    init_std: float = Field(default=0.02, gt=0.0)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {"features": ("item", "codes")} if values.get("backbone") == "llm" else {}
        return {**PRESETS.get(values.get("preset", "tiny"), {}), **given, **values}

    @model_validator(mode="after")
    def _check_shape(self) -> ModelConfig:
        # a language model has a width of its own, and none of these heads and experts
        if self.backbone == "encoder_decoder":
            self._check_layers()
        if self.num_objectives == 1:
            raise ValueError("num_objectives is 1: one weight has nothing to be weighed against; take at least 2, or 0")
        if self.unseen_user_rows and "user" not in self.features:
            raise ValueError("unseen_user_rows are rows of the user table: add 'user' to features, or leave them out")
        if self.unseen_author_rows and "author" not in self.features:
            raise ValueError(
                "unseen_author_rows are rows of the author table: add 'author' to features, or leave them out"
            )
        if "item" not in self.features and "codes" not in self.features:
            raise ValueError("features must name 'item' or 'codes': without both the model cannot tell items apart")
        return self

    def _check_layers(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} exceeds num_experts {self.num_experts}")
        if self.num_experts > 1 and (self.width % 4 or self.expert_width % 4):
            raise ValueError(
                f"width {self.width} and expert_width {self.expert_width} must be multiples of 4: grouped matrix products "
                "need rows of whole 16 bytes"
            )

    @model_validator(mode="after")
    def _check_encoder(self) -> ModelConfig:
        if self.encoder == "plain":
            self._refuse_changed(_PATHWAY_FIELDS, "encoder", "pathways")
        elif self.encoder_attention == "causal":
            raise ValueError(
                "encoder: pathways cannot be causal: every position of its memory has seen the whole history, the last "
                "event included, so no prefix of it can be supervised on what came next (all-prefix training); set "
                "encoder_attention: bidirectional, which trains on one (history, target) pair per row"
            )
        return self

    @model_validator(mode="after")
    def _check_decoder(self) -> ModelConfig:
        if self.decoder == "standard":
            self._refuse_changed(_LAZY_FIELDS, "decoder", "lazy")
            return self
        if self.num_heads % self.num_kv_groups:
            raise ValueError(f"kv_groups {self.kv_groups} must divide num_heads {self.num_heads}")
        if self.kv_layers > self.num_decoder_layers:
            raise ValueError(f"kv_layers {self.kv_layers} exceeds num_decoder_layers {self.num_decoder_layers}")
        if self.num_dense_blocks > self.num_decoder_layers:
            raise ValueError(
                f"num_dense_blocks {self.num_dense_blocks} exceeds num_decoder_layers {self.num_decoder_layers}"
            )
        return self

    @model_validator(mode="after")
    def _check_backbone(self) -> ModelConfig:
        if self.backbone == "encoder_decoder":
            if self.language_model is not None:
                raise ValueError(
                    "language_model is set, and backbone is encoder_decoder; set backbone: llm, or leave it out"
                )
            return self
        if self.language_model is None:
            raise ValueError("backbone: llm needs language_model.source or language_model.shape")
        if self.encoder != "plain" or self.decoder != "standard" or self.encoder_attention != "causal":
            raise ValueError(
                f"backbone: llm reads histories causally and has neither encoder nor decoder of its own, and encoder is "
                f"{self.encoder}, decoder {self.decoder}, encoder_attention {self.encoder_attention}; take another preset"
            )
        wrong = sorted(set(self.features) - _LANGUAGE_FEATURES)
        if wrong or "codes" not in self.features:
            raise ValueError(
                f"features are {', '.join(self.features)}; backbone: llm reads codes, and can use "
                f"{', '.join(sorted(_LANGUAGE_FEATURES - {'codes'}))}"
            )
        if self.num_objectives or self.unseen_user_rows or self.unseen_author_rows:
            raise ValueError(
                "backbone: llm takes no num_objectives, unseen_user_rows or unseen_author_rows; leave them out"
            )
        return self

    def _refuse_changed(self, names: tuple[str, ...], switch: str, needed: str) -> None:
        """Refuse settings of a part that is not built; a value equal to the default passes."""
        for name in names:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is {value}, but belongs to {switch}: {needed} and this model has {switch}: "
                    f"{getattr(self, switch)}; leave it out (or take another preset), or set {switch}: {needed}"
                )

    def check_bfloat16(self, key: str) -> None:
        """Refuse a shape whose experts bfloat16 products cannot run.

        Args:
            key: What asks for bfloat16, for the message.

        Raises:
            ConfigError: ``width`` or ``expert_width`` is no multiple of 8: grouped products need rows of whole 16 bytes.
        """
        has_experts = self.backbone == "encoder_decoder" and self.num_moe_layers and self.num_experts > 1
        if has_experts and (self.width % 8 or self.expert_width % 8):
            raise ConfigError(
                f"{key} asks for bfloat16, and model.width is {self.width}, model.expert_width {self.expert_width}: grouped "
                f"bfloat16 products need multiples of 8; change them, or leave {key} at float32"
            )

    def check_beside(
        self, *, decode_precision: str, compiles: bool, spreads: bool, smooths: bool, distils: bool
    ) -> None:
        """Refuse what a language model cannot do; an encoder-decoder can do all of it.

        Args:
            decode_precision: ``decode.precision``.
            compiles: ``train.compile`` is not ``none``.
            spreads: ``train.processes`` is above 1, or tables are sharded.
            smooths, distils: ``train.label_smoothing``, ``train.distillation_weight`` are above 0.

        Raises:
            ConfigError: Names the key.
        """
        settings = self.language_model
        if settings is None:
            return
        over_vocabulary = settings.softmax == "vocabulary"
        refused = {
            "decode.precision is int8": (decode_precision == "int8", "use float32"),
            "train.compile is blocks": (compiles, "set it to none"),
            "train.processes is above 1, or train.sharding is not none": (spreads, "train in one process"),
            "train.label_smoothing is set, with softmax: vocabulary": (
                smooths and over_vocabulary,
                "set it to 0, or softmax to level",
            ),
            "train.distillation_weight is set, with softmax: vocabulary": (
                distils and over_vocabulary,
                "set it to 0, or softmax to level",
            ),
        }
        for what, (asked, way_out) in refused.items():
            if asked:
                raise ConfigError(f"{what}, which model.backbone: llm cannot do; {way_out}")

    @property
    def num_kv_groups(self) -> int:
        """G_kv: heads of the lazy decoder's keys and values."""
        return self.num_heads if self.kv_groups is None else self.kv_groups

    @property
    def num_moe_layers(self) -> int:
        """Decoder blocks with a mixture of experts."""
        return self.num_decoder_layers - self.num_dense_blocks

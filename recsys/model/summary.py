"""Parameter, FLOP and memory counts of a policy, by part.

Counts are of matrix products, in multiply-adds; a FLOP figure is twice that. Attention counts every pair of a query and a
key, masked or not. Legend: H history events, S memory positions, W beams, T decoder positions, L levels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender

_KEY_VALUE_BYTES = 4  # float32, what decoding holds


@dataclass(frozen=True)
class PolicySummary:
    """Sizes of a policy.

    Attributes:
        total: All parameters.
        tables: Parameters of the TorchRec tables.
        active: Parameters that one token meets: everything but the tables and the experts it is not sent to.
        train_mflops_per_target: Forward and backward matmul FLOPs (2 per multiply-add, backward = 2 forward) per supervised
            target, in millions: all prefixes in one pass with a causal encoder, one history per target session with a
            bidirectional one. The dense head's softmax over the catalogue is included.
        encode_mflops_per_user: Matmul FLOPs from the history to the decoder's keys and values, in millions.
        decoder_mflops_per_user: Matmul FLOPs of the decoder for one item, all beams and heads, in millions.
        key_value_bytes_per_user: The history's keys and values as decoding holds them, float32.
    """

    total: int
    tables: int
    active: int
    train_mflops_per_target: float
    encode_mflops_per_user: float
    decoder_mflops_per_user: float
    key_value_bytes_per_user: int

    @property
    def decode_mflops_per_user(self) -> float:
        """Matmul FLOPs to answer one user with one item, in millions."""
        return self.encode_mflops_per_user + self.decoder_mflops_per_user

    def __str__(self) -> str:
        return (
            f"{self.total / 1e6:.2f} M parameters ({self.tables / 1e6:.2f} M in tables, {self.active / 1e6:.2f} M active "
            f"per token); {self.train_mflops_per_target:.1f} MFLOP per training target, "
            f"{self.decode_mflops_per_user:.1f} MFLOP to decode one user"
        )


def summarise(policy: GenerativeRecommender, *, history: int | None = None, beam_width: int = 50) -> PolicySummary:
    """Count parameters and matmul FLOPs; a policy on the meta device will do.

    Args:
        history: Events per user; default the longest the model takes.
        beam_width: Beams of the decoding figures.
    """
    config, dataset = policy.spec.model, policy.spec.dataset
    events = config.max_history if history is None else history
    d, levels, session = config.width, policy.num_levels, dataset.session_length
    total = sum(p.numel() for p in policy.parameters())
    tables = sum(p.numel() for p in policy.tables.parameters())
    idle = config.num_moe_layers * (config.num_experts - config.experts_per_token) * 3 * d * config.expert_width

    memory = memory_positions(config, events)
    encode = encoder_products(config, events) + key_value_products(config, memory)
    head = d * sum(policy.spec.level_sizes)
    dense = d * d + d * dataset.num_items
    if config.encoder_attention == "causal":
        # one pass supervises every event and the first: its encoding is shared by as many targets as it has positions
        per_target = encode / memory + levels * token_products(config, memory, levels) + head + dense
    else:
        tokens = session * (levels + 1) - 1
        per_target = (encode + tokens * token_products(config, memory, tokens) + dense) / session + head
    decoder = (1 + (levels - 1) * beam_width) * token_products(config, memory, levels) + beam_width * head
    return PolicySummary(
        total=total,
        tables=tables,
        active=total - tables - idle,
        train_mflops_per_target=6 * per_target / 1e6,
        encode_mflops_per_user=2 * encode / 1e6,
        decoder_mflops_per_user=2 * decoder / 1e6,
        key_value_bytes_per_user=memory * key_value_width(config) * _KEY_VALUE_BYTES,
    )


def memory_positions(config: ModelConfig, events: int) -> int:
    """S: positions that the decoder looks at after a history of ``events``."""
    if config.encoder == "plain":
        return 1 + events
    return config.lifelong_queries + min(config.positive_events, events) + 1 + min(config.short_events, events)


def encoder_products(config: ModelConfig, events: int) -> int:
    """Multiply-adds to turn one history into memory."""
    d, s = config.width, memory_positions(config, events)
    products = config.num_encoder_layers * s * (4 * d * d + 3 * d * config.ffn_width + 2 * d * s)
    if config.encoder == "plain":
        return products
    projected = events + (s - config.lifelong_queries)  # lifelong; positive, user and short-term
    query = 2 * d * d + 3 * d * config.ffn_width + 2 * d * (1 + events)
    compression = config.lifelong_layers * ((1 + events) * 2 * d * d + config.lifelong_queries * query)
    return products + projected * 2 * d * d + compression


def key_value_width(config: ModelConfig) -> int:
    """Numbers per memory position that decoding holds as keys and values of all layers."""
    if config.decoder == "standard":
        return config.num_decoder_layers * 2 * config.width
    return config.kv_layers * config.kv_split * config.num_kv_groups * (config.width // config.num_heads)


def key_value_products(config: ModelConfig, memory: int) -> int:
    """Multiply-adds from memory to keys and values."""
    return memory * config.width * key_value_width(config)


def token_products(config: ModelConfig, memory: int, positions: int) -> int:
    """Multiply-adds of the decoder for one token, without the head.

    Args:
        memory: Memory positions that the token's cross-attention reads.
        positions: Decoder positions that its self-attention reads.
    """
    d, expert = config.width, 3 * config.width * config.expert_width
    router = config.num_experts * d if config.num_experts > 1 else 0
    attention = config.num_decoder_layers * (6 * d * d + 2 * d * memory + 2 * d * positions)
    dense = config.num_dense_blocks * 3 * d * config.ffn_width
    sparse = config.num_moe_layers * ((config.experts_per_token + config.num_shared_experts) * expert + router)
    return attention + dense + sparse

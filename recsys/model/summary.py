"""Parameter, FLOP and memory counts of a policy, by part.

Counts are of matrix products, in multiply-adds; a FLOP figure is twice that. Attention counts every pair of a query and a
key, masked or not. :func:`summarise` describes a policy; :func:`training_flops` and :func:`decoding_flops` count what was
asked for: real events, real targets, real heads, and nothing for padding.

Legend: H history events, S memory positions, W beams, T decoder positions, L levels, N users or rows, G points, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from recsys.data.batch import BatchCounts
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender

_KEY_VALUE_BYTES = 4  # float32, what decoding holds

Counts = npt.NDArray[np.int64]


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


class OwnCosts(Protocol):
    """Counts of a policy that is no encoder-decoder; arguments and results as of the functions below."""

    def summary(self, policy: Any, events: int, beam_width: int, /) -> PolicySummary:
        """As :func:`summarise`."""

    def training_flops(self, counts: BatchCounts, dense_targets: int, scored_items: int, /) -> float:
        """As :func:`training_flops`."""

    def decoding_flops(self, events_N: Counts, widths: Sequence[int], /) -> float:
        """As :func:`decoding_flops`."""


def own_costs(policy: GenerativeRecommender) -> OwnCosts | None:
    """What a policy says of its own costs; ``None`` for an encoder-decoder."""
    costs: OwnCosts | None = getattr(policy, "costs", None)
    return costs


def summarise(policy: GenerativeRecommender, *, history: int | None = None, beam_width: int = 50) -> PolicySummary:
    """Count parameters and matmul FLOPs; a policy on the meta device will do.

    Args:
        history: Events per user; default the longest the model takes.
        beam_width: Beams of the decoding figures.
    """
    config, dataset = policy.spec.model, policy.spec.dataset
    events = config.max_history if history is None else history
    if (own := own_costs(policy)) is not None:
        return own.summary(policy, events, beam_width)
    d, levels, session = config.width, policy.num_levels, dataset.session_length
    total = sum(p.numel() for p in policy.parameters())
    tables = sum(p.numel() for p in policy.tables.parameters())
    idle = config.num_moe_layers * (config.num_experts - config.experts_per_token) * 3 * d * config.expert_width

    memory = int(memory_positions(config, events))
    encode = encoder_products(config, events) + key_value_products(config, memory)
    head = d * sum(policy.spec.level_sizes)
    dense = dense_products(d, dataset.num_items)
    if config.encoder_attention == "causal":
        # one pass supervises every event and the first: its encoding is shared by as many targets as it has positions
        per_target = encode / memory + levels * token_products(config, memory, levels) + head + dense
    else:
        tokens = session * (levels + 1) - 1
        per_target = (encode + tokens * token_products(config, memory, tokens) + dense) / session + head
    widths = [1, *[beam_width] * (levels - 1)]
    return PolicySummary(
        total=total,
        tables=tables,
        active=total - tables - idle,
        train_mflops_per_target=float(6 * per_target / 1e6),
        encode_mflops_per_user=float(2 * encode / 1e6),
        decoder_mflops_per_user=float(2 * beam_products(config, policy.spec.level_sizes, memory, widths) / 1e6),
        key_value_bytes_per_user=memory * key_value_width(config) * _KEY_VALUE_BYTES,
    )


def training_flops(policy: GenerativeRecommender, counts: BatchCounts, dense_targets: int, scored_items: int) -> float:
    """Useful FLOPs of a training step, forward and backward (twice the forward).

    Args:
        counts: Of the batch.
        dense_targets: Targets that the dense head is trained on; 0 where it is off.
        scored_items: Items that each of them is told from: the catalogue, or the sampled ones and itself.
    """
    if (own := own_costs(policy)) is not None:
        return own.training_flops(counts, dense_targets, scored_items)
    config, levels = policy.spec.model, policy.num_levels
    memory_N = memory_positions(config, counts.events_N)
    products = (encoder_products(config, counts.events_N) + key_value_products(config, memory_N)).sum()
    tokens_G = counts.items_G * (levels + 1) - 1
    products += (tokens_G * token_products(config, memory_N[counts.row_G], tokens_G)).sum()
    products += counts.items_G.sum() * config.width * sum(policy.spec.level_sizes)
    return 6.0 * float(products + dense_targets * dense_products(config.width, scored_items))


def decoding_flops(policy: GenerativeRecommender, events_N: Counts, widths: Sequence[int]) -> float:
    """Useful FLOPs to answer N users with one item each, by search or by sampling.

    Args:
        events_N: Events of each history that were read.
        widths: Beams, or candidates, that are fed at every level; see :func:`fed_widths`.
    """
    if (own := own_costs(policy)) is not None:
        return own.decoding_flops(events_N, widths)
    config = policy.spec.model
    memory_N = memory_positions(config, events_N)
    encode_N = encoder_products(config, events_N) + key_value_products(config, memory_N)
    return 2.0 * float((encode_N + beam_products(config, policy.spec.level_sizes, memory_N, widths)).sum())


def fed_widths(width: int, max_children: Sequence[int]) -> list[int]:
    """Beams that a search feeds at every level: one (BOS), and then no more than there are prefixes.

    Args:
        width: W.
        max_children: Per level, the most children of one prefix.

    Example:
        >>> fed_widths(50, (32, 16, 9))  # all 32 first codes, then 50 of 32 * 16 prefixes
        [1, 32, 50]
    """
    widths = [1]
    for children in max_children[:-1]:
        widths.append(min(width, widths[-1] * children))
    return widths


def memory_positions(config: ModelConfig, events: Counts | int) -> Counts:
    """S: positions that the decoder looks at after a history of ``events``."""
    if config.encoder == "plain":
        return np.asarray(1 + events)
    positive, short = np.minimum(config.positive_events, events), np.minimum(config.short_events, events)
    return np.asarray(config.lifelong_queries + positive + 1 + short)


def encoder_products(config: ModelConfig, events: Counts | int) -> Counts:
    """Multiply-adds to turn one history into memory."""
    d, s = config.width, memory_positions(config, events)
    products = config.num_encoder_layers * s * (4 * d * d + 3 * d * config.ffn_width + 2 * d * s)
    if config.encoder == "plain":
        return products
    projected = events + (s - config.lifelong_queries)  # lifelong; positive, user and short-term
    query = 2 * d * d + 3 * d * config.ffn_width + 2 * d * (1 + events)
    compression = config.lifelong_layers * ((1 + events) * 2 * d * d + config.lifelong_queries * query)
    return products + projected * 2 * d * d + compression


def dense_products(width: int, scored_items: int) -> int:
    """Multiply-adds of the dense head for one target: its query, and the items that it is told from."""
    return width * width + width * scored_items


def beam_products(
    config: ModelConfig, level_sizes: Sequence[int], memory: Counts | int, widths: Sequence[int]
) -> Counts:
    """Multiply-adds of the decoder for one item: at every level its beams, each with the head of that level alone."""
    total = np.zeros_like(memory)
    for level, (width, size) in enumerate(zip(widths, level_sizes, strict=True)):
        total = total + width * (token_products(config, memory, level + 1) + config.width * size)
    return total


def key_value_width(config: ModelConfig) -> int:
    """Numbers per memory position that decoding holds as keys and values of all layers."""
    if config.decoder == "standard":
        return config.num_decoder_layers * 2 * config.width
    return config.kv_layers * config.kv_split * config.num_kv_groups * (config.width // config.num_heads)


def key_value_products(config: ModelConfig, memory: Counts | int) -> Counts | int:
    """Multiply-adds from memory to keys and values."""
    return memory * config.width * key_value_width(config)


def token_products(config: ModelConfig, memory: Counts | int, positions: Counts | int) -> Counts | int:
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

"""Parameter and FLOP counts of a policy, by part."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.model.generative_recommender import GenerativeRecommender


@dataclass(frozen=True)
class PolicySummary:
    """Sizes of a policy.

    Attributes:
        total: All parameters.
        tables: Parameters of the TorchRec tables.
        active: Parameters that one token meets: everything but the tables and the experts it is not sent to.
        train_mflops_per_target: Forward and backward matmul FLOPs (2 per multiply-add, backward = 2 forward) per supervised
            target in all-prefix training, in millions; the dense head's softmax over the catalogue is included.
        decode_mflops_per_user: Matmul FLOPs to decode one user, in millions.
    """

    total: int
    tables: int
    active: int
    train_mflops_per_target: float
    decode_mflops_per_user: float

    def __str__(self) -> str:
        return (
            f"{self.total / 1e6:.2f} M parameters ({self.tables / 1e6:.2f} M in tables, {self.active / 1e6:.2f} M active "
            f"per token); {self.train_mflops_per_target:.1f} MFLOP per training target, "
            f"{self.decode_mflops_per_user:.1f} MFLOP to decode one user"
        )


def summarise(policy: GenerativeRecommender, *, history: int | None = None, beam_width: int = 50) -> PolicySummary:
    """Count parameters and matmul FLOPs.

    Args:
        history: Events per user; default the longest the model takes.
        beam_width: Beams of the decoding figure.
    """
    config, vocabulary = policy.spec.model, policy.spec.vocabulary
    h = config.max_history if history is None else history
    d, levels = config.width, policy.num_levels
    total = sum(p.numel() for p in policy.parameters())
    tables = sum(p.numel() for p in policy.tables.parameters())
    expert = 3 * d * config.expert_width
    idle = config.num_decoder_layers * (config.num_experts - config.experts_per_token) * expert

    encoder_event = config.num_encoder_layers * (4 * d * d + 3 * d * config.ffn_width + 2 * d * h)
    cross_event = config.num_decoder_layers * 2 * d * d
    token = config.num_decoder_layers * (
        6 * d * d + config.experts_per_token * expert + config.num_experts * d + 2 * d * h + 2 * d * levels
    )
    head = d * sum(policy.spec.level_sizes)
    dense = d * d + d * vocabulary.num_items
    per_target = encoder_event + cross_event + levels * token + head + dense
    per_user = (h + 1) * (encoder_event + cross_event) + (1 + (levels - 1) * beam_width) * token + beam_width * head
    return PolicySummary(total, tables, total - tables - idle, 6 * per_target / 1e6, 2 * per_user / 1e6)

"""Decoder over semantic-ID codes: causal self-attention, cross-attention to the history, sparse MoE.

The layout of the codes is that of :mod:`recsys.model.code_sequence`.

Legend: N rows (prediction points that are decoded), B users, T decoder positions, S memory positions, W beams, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from recsys.model.code_sequence import CodeSequence
from recsys.model.config import ModelConfig
from recsys.model.encoder import CodeEmbedding
from recsys.model.layers.attention import CrossAttention, KeysValues, SelfAttention, project_memory
from recsys.model.layers.beam_cache import BeamCache
from recsys.model.layers.moe import feed_forward
from recsys.model.layers.precision import Norm
from recsys.model.layers.prediction_points import DecodedRows


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention, mixture of experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_norm = Norm(config.width)
        self.self_attention = SelfAttention(config.width, config.num_heads)
        self.cross_norm = Norm(config.width)
        self.cross_attention = CrossAttention(config.width, config.num_heads)
        self.moe_norm = Norm(config.width)
        self.moe = feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_NTD: torch.Tensor, keys_values: KeysValues, points: DecodedRows) -> torch.Tensor:
        """Apply to N rows, one per decoded point; the points of a user share the user's keys and values."""
        x_NTD = x_NTD + self.dropout(points.attend_within(self.self_attention, self.self_norm(x_NTD)))
        x_NTD = x_NTD + self.dropout(points.attend(self.cross_attention, self.cross_norm(x_NTD), keys_values))
        return x_NTD + self.dropout(self.moe(self.moe_norm(x_NTD)))

    def step(
        self, x_BWD: torch.Tensor, keys_values: KeysValues, visible: torch.Tensor, cache: BeamCache, layer: int
    ) -> torch.Tensor:
        """Advance W beams of B users by one position, beams on the query axis."""
        x_BWD = x_BWD + self.self_attention.step(self.self_norm(x_BWD), cache, layer)
        x_BWD = x_BWD + self.cross_attention(self.cross_norm(x_BWD), keys_values, visible)
        return x_BWD + self.moe(self.moe_norm(x_BWD))


class SessionDecoder(CodeSequence):
    """Decoder with cross-attention to the encoded history in every layer; its code embeddings are the softmax weights."""

    def __init__(self, config: ModelConfig, codes: CodeEmbedding, session_length: int) -> None:
        super().__init__(codes, session_length)
        self._add_inputs(config)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_decoder_layers))
        self.kv_layer = tuple(range(config.num_decoder_layers))
        self.norm = Norm(config.width)
        self.code_bias = nn.Parameter(torch.zeros(sum(codes.level_sizes)))

    def layers(self) -> list[DecoderBlock]:
        """The blocks, first to last, with their type."""
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]

    def keys_values(self, memory_BSD: torch.Tensor) -> list[KeysValues]:
        """Cross-attention keys and values of every layer, computed once per user."""
        return project_memory([block.cross_attention for block in self.layers()], memory_BSD)

    def read_out(self, x_NTD: torch.Tensor, spread: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """One norm for all levels."""
        return spread(self.norm(x_NTD))[..., : self.num_levels, :]

    def read_out_step(self, x_BWD: torch.Tensor, level: int) -> torch.Tensor:
        """One norm for all levels."""
        return self.norm(x_BWD)

    def head(self, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The level's code embeddings, and its biases."""
        return self.codes.level(level), self.code_bias[self.level_rows(level)]

"""Decoder over semantic-ID codes: causal self-attention, cross-attention to the history, sparse MoE.

Legend: N rows (prediction points that are decoded), B users, P prediction points per user, T decoder positions, S memory
positions, L levels, K codes per level, M items per session, A heads, C channels per head, W beams, D width.

Layout (OneRec v1, eq. 3): ``[BOS] c1 … cL`` for every item, a BOS before each. Position BOS predicts c1, c1 predicts c2,
…; what follows cL is a forced BOS, so cL's position predicts nothing and the last cL of a session is never fed.
"""

from __future__ import annotations

import torch
from torch import nn

from recsys.model.config import ModelConfig
from recsys.model.encoder import CodeEmbedding
from recsys.model.layers.attention import CrossAttention, KeysValues, SelfAttention, project_memory
from recsys.model.layers.beam_cache import BeamCache
from recsys.model.layers.moe import feed_forward
from recsys.model.layers.precision import float32_linear
from recsys.model.layers.prediction_points import PredictionPoints


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention, mixture of experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_norm = nn.RMSNorm(config.width)
        self.self_attention = SelfAttention(config.width, config.num_heads)
        self.cross_norm = nn.RMSNorm(config.width)
        self.cross_attention = CrossAttention(config.width, config.num_heads)
        self.moe_norm = nn.RMSNorm(config.width)
        self.moe = feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_NTD: torch.Tensor, keys_values: KeysValues, causal_TT: torch.Tensor, points: PredictionPoints
    ) -> torch.Tensor:
        """Apply to N rows, one per decoded point; the points of a user share the user's keys and values."""
        x_NTD = x_NTD + self.dropout(self.self_attention(self.self_norm(x_NTD), causal_TT))
        x_NTD = x_NTD + self.dropout(points.attend(self.cross_attention, self.cross_norm(x_NTD), keys_values))
        return x_NTD + self.dropout(self.moe(self.moe_norm(x_NTD)))

    def step(
        self, x_BWD: torch.Tensor, keys_values: KeysValues, visible: torch.Tensor, cache: BeamCache, layer: int
    ) -> torch.Tensor:
        """Advance W beams of B users by one position, beams on the query axis."""
        attention = self.self_attention
        qkv_BWR = attention.qkv(self.self_norm(x_BWD))
        mixed_BWD = cache.attend(layer, qkv_BWR, attention.num_heads, attention.head_width**-0.5)
        x_BWD = x_BWD + attention.out(mixed_BWD)
        x_BWD = x_BWD + self.cross_attention(self.cross_norm(x_BWD), keys_values, visible)
        return x_BWD + self.moe(self.moe_norm(x_BWD))


class SessionDecoder(nn.Module):
    """Predict the codes of one item or of a session of M items, level by level, one softmax per level."""

    def __init__(self, config: ModelConfig, codes: CodeEmbedding, session_length: int) -> None:
        super().__init__()
        self.codes = codes
        self.num_levels = len(codes.level_sizes)
        self.session_length = session_length
        self.bos_D = nn.Parameter(torch.empty(config.width).normal_(std=config.init_std))
        self.position = nn.Embedding(session_length * (self.num_levels + 1), config.width)
        nn.init.normal_(self.position.weight, std=config.init_std)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.RMSNorm(config.width)
        self.code_bias = nn.Parameter(torch.zeros(sum(codes.level_sizes)))

    def layers(self) -> list[DecoderBlock]:
        """The blocks, first to last, with their type."""
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]

    def keys_values(self, memory_BSD: torch.Tensor) -> list[KeysValues]:
        """Cross-attention keys and values of every layer, computed once per user."""
        return project_memory([block.cross_attention for block in self.layers()], memory_BSD)

    def forward(
        self,
        codes_BPML: torch.Tensor,
        keys_values: list[KeysValues],
        visible_BP: torch.Tensor,
        asked_BP: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Teacher forcing.

        Args:
            codes_BPML: int64 codes of the target items, level by level (any code where there is no target).
            keys_values: From :meth:`keys_values`.
            visible_BP: Memory positions that a point may look at: ``memory[: visible + 1]`` (user and events).
            asked_BP: PredictionPoints with at least one target; others may be left out. ``None``: all.

        Returns:
            Hidden states that predict code ``l`` of item ``m``, ``[B, P, M, L, D]``.
        """
        b, p, m, levels = codes_BPML.shape
        positions, memory_size = m * (levels + 1) - 1, keys_values[0][0].shape[2]
        points = PredictionPoints.from_masks(visible_BP, asked_BP, positions, memory_size)
        x_NTD = self._embed(points.pick(codes_BPML.view(b * p, m, levels)))
        causal_TT = torch.ones(positions, positions, dtype=torch.bool, device=x_NTD.device).tril()
        for block, layer_keys_values in zip(self.blocks, keys_values, strict=True):
            x_NTD = block(x_NTD, layer_keys_values, causal_TT, points)
        # the position of cL predicts nothing; the very last one was never fed
        hidden = nn.functional.pad(points.spread(self.norm(x_NTD)), (0, 0, 0, 1)).view(b, p, m, levels + 1, -1)
        return hidden[..., :levels, :]

    def _embed(self, codes_NML: torch.Tensor) -> torch.Tensor:
        """Embed ``[BOS] c1 … cL`` per item, without the last code: ``[N, M * (L + 1) - 1, D]``."""
        n, m, _ = codes_NML.shape
        parts = [self.bos_D.expand(n, m, -1)]
        parts += [self.codes(codes_NML[..., level], level) for level in range(self.num_levels)]
        x_NTD = torch.stack(parts, dim=2).view(n, m * (self.num_levels + 1), -1)[:, :-1]
        return self.dropout(x_NTD + self.position.weight[: x_NTD.shape[1]])

    def code_logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Logits over the K codes of one level, in float32, ``[..., D] -> [..., K]``."""
        first = self.codes.offsets[level]
        bias = self.code_bias[first : first + self.codes.level_sizes[level]]
        return float32_linear(hidden, self.codes.level(level), bias)

    def start(self) -> BeamCache:
        """Return an empty cache for :meth:`step`."""
        return BeamCache.empty(len(self.blocks))

    def step(
        self,
        codes_BW: torch.Tensor | None,
        position: int,
        keys_values: list[KeysValues],
        visible: torch.Tensor,
        cache: BeamCache,
    ) -> torch.Tensor:
        """Feed one token per beam and return its hidden state.

        Args:
            codes_BW: Codes chosen at ``position - 1``; ``None`` feeds BOS.
            position: Decoder position, 0-based; which level the codes belong to follows from it.
            visible: Boolean ``[B, 1, 1, S]``.

        Returns:
            ``[B, W, D]``, normalised, ready for :meth:`code_logits`.
        """
        if codes_BW is None:
            x_BWD = self.bos_D.expand(visible.shape[0], cache.width, -1)
        else:
            x_BWD = self.codes(codes_BW, (position % (self.num_levels + 1)) - 1)
        x_BWD = x_BWD + self.position.weight[position]
        for layer, block in enumerate(self.layers()):
            x_BWD = block.step(x_BWD, keys_values[layer], visible, cache, layer)
        cache.finish_step()
        return self.norm(x_BWD)

"""The lazy decoder: it looks at the context through keys and values that no layer projects.

An encoder-decoder spends almost all of its arithmetic on the history (97.66 % at 512 positions, by the paper's count). Here
each context position passes one linear map, which yields the keys and values of all layers; a layer owns only its query
and output projections. Without an encoder (``num_encoder_layers: 0``) the memory is the embedded events themselves.

Legend: N rows (a user, or a user's prediction point), B users, P prediction points per user, M items per session, T decoder
positions, S memory positions, L levels, K codes per level, A query heads, G key-value heads (groups), R = A / G query
heads per group, C channels per head, W beams, D width.

Source: OneRec-V2 (arXiv 2508.20900), section 2.2. Block order cross-attention, self-attention, feed-forward; an output norm
and head of its own for every level; deeper feed-forward layers may be sparse. Departures: the event embeddings have the
width of the model (the paper's are 0.05 D wide and its sequence has separate elements for profile, short and long term); a
session of M items is allowed, with the layout of :mod:`recsys.model.code_sequence`. The paper supervises a user's newest
impression only; here both training forms work, since without an encoder a context position knows its own event alone.
For the same reason the dense head, which the paper has not, then knows no more than the latest event: rank an
encoder-less model by its beam (``decode.rescore``, ``train.monitor``), or give it encoder layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from recsys.model.code_sequence import CodeSequence
from recsys.model.config import ModelConfig
from recsys.model.encoder import CodeEmbedding
from recsys.model.layers.attention import FeedForward, KeysValues, SelfAttention, attend
from recsys.model.layers.beam_cache import BeamCache
from recsys.model.layers.moe import feed_forward
from recsys.model.layers.precision import Norm
from recsys.model.layers.prediction_points import DecodedRows
from recsys.model.layers.rows import Linear


class ContextProcessor(nn.Module):
    """One linear map from a context position to the keys and values of all layers, ``D -> S_kv * L_kv * G * C``.

    The result is cut into ``S_kv * L_kv`` parts, each normalised on its own; with S_kv = 1 the values are the keys.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_groups, self.split = config.num_kv_groups, config.kv_split
        part = config.num_kv_groups * (config.width // config.num_heads)
        num_parts = config.kv_layers * config.kv_split
        self.project = Linear(config.width, num_parts * part, bias=False)
        self.norms = nn.ModuleList(Norm(part) for _ in range(num_parts))

    def forward(self, memory_BSD: torch.Tensor) -> list[KeysValues]:
        """Return L_kv pairs of keys and values, ``[B, G, S, C]`` each; one tensor twice where they are the same."""
        parts = self.project(memory_BSD).chunk(len(self.norms), dim=-1)
        heads = [self._heads(norm(part)) for norm, part in zip(self.norms, parts, strict=True)]
        if self.split == 1:
            return [(keys, keys) for keys in heads]
        return list(zip(heads[::2], heads[1::2], strict=True))

    def _heads(self, part_BSR: torch.Tensor) -> torch.Tensor:
        return part_BSR.unflatten(-1, (self.num_groups, -1)).transpose(1, 2).contiguous()


class LazyCrossAttention(nn.Module):
    """Attention to given keys and values; R neighbouring query heads share one group of them (GQA)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_groups, self.group_heads = config.num_kv_groups, config.num_heads // config.num_kv_groups
        self.query = Linear(config.width, config.width, bias=False)
        self.out = Linear(config.width, config.width, bias=False)

    def forward(self, x_NTD: torch.Tensor, keys_values: KeysValues, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend; ``mask`` is true where a query may look, ``[N, 1, T, S]`` or ``[N, 1, 1, S]``; ``None``: everywhere."""
        n, t, d = x_NTD.shape
        q_NTGRC = self.query(x_NTD).view(n, t, self.num_groups, self.group_heads, -1)
        # a group's query heads stand beside each other on the query axis, so keys and values are never repeated
        q = q_NTGRC.permute(0, 2, 3, 1, 4).reshape(n, self.num_groups, self.group_heads * t, -1)
        if mask is not None and mask.shape[2] > 1 and self.group_heads > 1:
            mask = mask.repeat(1, 1, self.group_heads, 1)
        mixed = attend(q, *keys_values, mask).view(n, self.num_groups, self.group_heads, t, -1)
        return self.out(mixed.permute(0, 3, 1, 2, 4).reshape(n, t, d))


class SparseFeedForward(nn.Module):
    """Routed experts, and where configured a shared one that every token meets."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.moe = feed_forward(config)
        shared_width = config.num_shared_experts * config.expert_width
        self.shared = FeedForward(config.width, shared_width) if shared_width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply position by position."""
        routed = self.moe(x)
        return routed if self.shared is None else routed + self.shared(x)


class LazyBlock(nn.Module):
    """Pre-norm cross-attention, self-attention, feed-forward layer.

    Args:
        sparse: Whether the feed-forward layer is a mixture of experts.
    """

    def __init__(self, config: ModelConfig, sparse: bool) -> None:
        super().__init__()
        self.cross_norm = Norm(config.width)
        self.cross_attention = LazyCrossAttention(config)
        self.self_norm = Norm(config.width)
        self.self_attention = SelfAttention(config.width, config.num_heads)
        self.ffn_norm = Norm(config.width)
        self.ffn = SparseFeedForward(config) if sparse else FeedForward(config.width, config.ffn_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_NTD: torch.Tensor, keys_values: KeysValues, points: DecodedRows) -> torch.Tensor:
        """Apply to N rows, one per decoded point; the points of a user share the user's keys and values."""
        x_NTD = x_NTD + self.dropout(points.attend(self.cross_attention, self.cross_norm(x_NTD), keys_values))
        x_NTD = x_NTD + self.dropout(points.attend_within(self.self_attention, self.self_norm(x_NTD)))
        return x_NTD + self.dropout(self.ffn(self.ffn_norm(x_NTD)))

    def step(
        self, x_BWD: torch.Tensor, keys_values: KeysValues, visible: torch.Tensor, cache: BeamCache, layer: int
    ) -> torch.Tensor:
        """Advance W beams of B users by one position, beams on the query axis."""
        x_BWD = x_BWD + self.cross_attention(self.cross_norm(x_BWD), keys_values, visible)
        x_BWD = x_BWD + self.self_attention.step(self.self_norm(x_BWD), cache, layer)
        return x_BWD + self.ffn(self.ffn_norm(x_BWD))


class LazyDecoder(CodeSequence):
    """Predict codes as :class:`~recsys.model.decoder.SessionDecoder` does, and stand in its place."""

    def __init__(self, config: ModelConfig, codes: CodeEmbedding, session_length: int) -> None:
        super().__init__(codes, session_length)
        self.context = ContextProcessor(config)
        self._add_inputs(config)
        num_layers = config.num_decoder_layers
        self.blocks = nn.ModuleList(LazyBlock(config, layer >= config.num_dense_blocks) for layer in range(num_layers))
        # floor(layer * L_kv / layers)
        self.kv_layer = tuple(layer * config.kv_layers // num_layers for layer in range(num_layers))
        self.norms = nn.ModuleList(Norm(config.width) for _ in codes.level_sizes)
        self.head_KD = nn.Parameter(torch.empty(sum(codes.level_sizes), config.width).normal_(std=config.init_std))
        self.code_bias = nn.Parameter(torch.zeros(sum(codes.level_sizes)))

    def layers(self) -> list[LazyBlock]:
        """The blocks, first to last, with their type."""
        return [block for block in self.blocks if isinstance(block, LazyBlock)]

    def keys_values(self, memory_BSD: torch.Tensor) -> list[KeysValues]:
        """Cross-attention keys and values, computed once per user: L_kv pairs, not one for every block."""
        return self.context(memory_BSD)

    def read_out(self, x_NTD: torch.Tensor, spread: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A norm for every level."""
        x_BPMTD = spread(x_NTD)
        return torch.stack([norm(x_BPMTD[..., level, :]) for level, norm in enumerate(self.norms)], dim=-2)

    def read_out_step(self, x_BWD: torch.Tensor, level: int) -> torch.Tensor:
        """A norm for every level; after the last code of an item nothing is predicted, and none belongs there."""
        return self.norms[level](x_BWD) if level < self.num_levels else x_BWD

    def head(self, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Every level has weights of its own, apart from the code embeddings."""
        rows = self.level_rows(level)
        return self.head_KD[rows], self.code_bias[rows]

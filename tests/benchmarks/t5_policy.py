"""A transformers T5 behind our decoding interface: the same weights, decoded by our engine.

Only what differs between T5 and our own blocks is written here (ReLU feed-forward, relative position bias, unscaled
attention, one vocabulary for all levels); the cache of the beams, the attention and the search are the product's.

Legend: B users, S input tokens, W beams, A heads, C channels per head, T decoder steps, K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import T5ForConditionalGeneration

from recsys.model.layers.attention import KeysValues
from recsys.model.layers.beam_cache import BeamCache

FIRST_CODE = 2
"""Tokens: 0 padding and decoder start, 1 end, then the codes of all levels."""


@dataclass
class T5State:
    """A batch of users in the middle of decoding."""

    keys_values: list[KeysValues]
    visible: torch.Tensor
    cache: BeamCache
    dense_query_BD: torch.Tensor
    position: int = 0


class T5Policy:
    """Decode a T5 with :func:`recsys.decoding.beam_search.beam_search`.

    Args:
        model: In evaluation mode, not gated, tied embeddings.
        level_sizes: K per level; level ``l``'s codes follow those of the levels before it in the vocabulary.
    """

    def __init__(self, model: T5ForConditionalGeneration, level_sizes: tuple[int, ...]) -> None:
        self.model, self.level_sizes = model, level_sizes
        self.offsets = [FIRST_CODE + sum(level_sizes[:level]) for level in range(len(level_sizes))]
        self.cross = [block.layer[1].EncDecAttention for block in model.decoder.block]
        self.qkv = [
            torch.cat([a.q.weight, a.k.weight, a.v.weight])
            for a in (block.layer[0].SelfAttention for block in model.decoder.block)
        ]
        self.encoder_qkv = [
            torch.cat([a.q.weight, a.k.weight, a.v.weight])
            for a in (block.layer[0].SelfAttention for block in model.encoder.block)
        ]
        self.keys_values = torch.cat([w for layer in self.cross for w in (layer.k.weight, layer.v.weight)])
        steps = len(level_sizes)
        bias = model.decoder.block[0].layer[0].SelfAttention.compute_bias(steps, steps)
        self.bias_ATT = bias[0].detach()

    def start(self, tokens_BS: torch.Tensor) -> T5State:
        """Encode, and project all layers' keys and values by one matrix product."""
        memory_BSD = self.encode(tokens_BS)
        users, length, _ = memory_BSD.shape
        heads = self.model.config.num_heads
        projected = F.linear(memory_BSD, self.keys_values).view(users, length, len(self.cross), 2, heads, -1)
        keys_values = [(kv[0].contiguous(), kv[1].contiguous()) for kv in projected.permute(2, 3, 0, 4, 1, 5)]
        visible = torch.ones(users, 1, 1, length, dtype=torch.bool, device=memory_BSD.device)
        return T5State(keys_values, visible, BeamCache.empty(len(self.cross)), memory_BSD[:, 0])

    def encode(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """T5's encoder with one projection for queries, keys and values, and fused attention: ``[B, S, D]``."""
        encoder, heads = self.model.encoder, self.model.config.num_heads
        x_BSD = self.model.shared(tokens_BS)
        users, length, _ = x_BSD.shape
        bias = encoder.block[0].layer[0].SelfAttention.compute_bias(length, length)
        for number, block in enumerate(encoder.block):
            own, feed_forward = block.layer
            qkv = F.linear(own.layer_norm(x_BSD), self.encoder_qkv[number]).view(users, length, 3, heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
            x_BSD = x_BSD + own.SelfAttention.o(mixed.transpose(1, 2).flatten(2))
            dense = feed_forward.DenseReluDense
            x_BSD = x_BSD + dense.wo(torch.relu_(dense.wi(feed_forward.layer_norm(x_BSD))))
        memory_BSD: torch.Tensor = encoder.final_layer_norm(x_BSD)
        return memory_BSD

    def next_codes(self, state: T5State, codes_BW: torch.Tensor | None) -> torch.Tensor | None:
        """Feed the codes chosen last and return log-probabilities of the next level's codes, ``[B, W, K]``."""
        level = state.position
        if codes_BW is None:
            tokens = torch.zeros(len(state.visible), 1, dtype=torch.int64, device=state.visible.device)
        else:
            tokens = codes_BW + self.offsets[level - 1]
        x_BWD = self.model.shared(tokens)
        bias_AT = self.bias_ATT[:, level, : level + 1]
        heads = self.model.config.num_heads
        for number, block in enumerate(self.model.decoder.block):
            own, cross, feed_forward = block.layer
            qkv_BWR = F.linear(own.layer_norm(x_BWD), self.qkv[number])
            x_BWD = x_BWD + own.SelfAttention.o(state.cache.attend(number, qkv_BWR, heads, 1.0, bias_AT))
            q_BAWC = cross.EncDecAttention.q(cross.layer_norm(x_BWD)).unflatten(-1, (heads, -1)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(q_BAWC, *state.keys_values[number], scale=1.0)
            x_BWD = x_BWD + cross.EncDecAttention.o(mixed.transpose(1, 2).flatten(2))
            dense = feed_forward.DenseReluDense
            x_BWD = x_BWD + dense.wo(torch.relu_(dense.wi(feed_forward.layer_norm(x_BWD))))
        state.cache.finish_step()
        state.position += 1
        hidden = self.model.decoder.final_layer_norm(x_BWD) * self.model.config.d_model**-0.5
        log_probs = F.linear(hidden, self.model.shared.weight).log_softmax(-1)
        return log_probs[..., self.offsets[level] : self.offsets[level] + self.level_sizes[level]]

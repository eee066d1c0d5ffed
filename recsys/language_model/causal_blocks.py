"""The layers of a language model with our attention: a prompt is read once per user, and beams look at it together.

The weights are the model's own, and so are norms, projections, rotary positions and feed-forward layers; only who looks at
whom is ours. A beam's own few tokens lie in :class:`~recsys.model.layers.beam_cache.BeamCache`, which is never re-ordered.

Legend: B users, S tokens, W beams, A query heads, G key and value heads, R = A / G, C channels per head, D width, T steps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from recsys.model.layers.attention import KeysValues
from recsys.model.layers.beam_cache import BeamCache


class CausalBlocks(nn.Module):
    """The decoder of a transformers model without its embeddings: Llama, Mistral, Qwen2, Qwen3.

    Args:
        decoder: Has ``layers``, ``norm`` and ``rotary_emb``.
        dropout: Share of channels dropped in training where a branch joins the residual stream.
        checkpointing: Compute activations again in the backward pass.
    """

    def __init__(self, decoder: Any, dropout: float, *, checkpointing: bool) -> None:
        super().__init__()
        self.decoder: Any = decoder
        self.dropout = nn.Dropout(dropout)
        self.checkpointing = checkpointing

    @property
    def num_layers(self) -> int:
        """Layers."""
        return len(self._layers)

    @property
    def _layers(self) -> Any:
        return self.decoder.layers

    def forward(
        self, x_BSD: torch.Tensor, position_BS: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[KeysValues]]:
        """Read whole sequences.

        Args:
            x_BSD: Embedded tokens.
            position_BS: int64, broadcastable.
            mask: Boolean ``[B, 1, S, S]``, true where a token may look; ``None``: at itself and what stands before it.

        Returns:
            ``[B, S, D]`` hidden states behind the last norm, and per layer the keys and values, ``[B, G, S, C]`` each.
        """
        rotary = self._rotary(x_BSD, position_BS)
        keys_values = []
        for layer in self._layers:
            if self.checkpointing and torch.is_grad_enabled():
                x_BSD, *pair = checkpoint(self._layer, layer, x_BSD, rotary, mask, use_reentrant=False)
            else:
                x_BSD, *pair = self._layer(layer, x_BSD, rotary, mask)
            keys_values.append((pair[0], pair[1]))
        hidden: torch.Tensor = self.decoder.norm(x_BSD)
        return hidden, keys_values

    def _layer(
        self, layer: Any, x_BSD: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        attention = layer.self_attn
        q, k, v = (part.transpose(1, 2) for part in project(attention, layer.input_layernorm(x_BSD), rotary))
        groups = q.shape[1] // k.shape[1]
        spread = (k, v) if groups == 1 else (k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))
        mixed = F.scaled_dot_product_attention(
            q, *spread, attn_mask=mask, is_causal=mask is None, scale=attention.scaling
        )
        x_BSD = x_BSD + self.dropout(attention.o_proj(mixed.transpose(1, 2).flatten(2)))
        return x_BSD + self.dropout(layer.mlp(layer.post_attention_layernorm(x_BSD))), k, v

    def step(
        self,
        x_BWD: torch.Tensor,
        position_B1: torch.Tensor,
        keys_values: list[KeysValues],
        visible: torch.Tensor,
        cache: BeamCache,
    ) -> torch.Tensor:
        """Read one token of every beam.

        Args:
            x_BWD: Embedded tokens.
            position_B1: int64 position of the new tokens; all beams of a user are equally long.
            keys_values: The prompt's, from :meth:`forward`.
            visible: Boolean ``[B, 1, 1, S]``, the prompt's real tokens.
            cache: Own tokens of the beams.

        Returns:
            ``[B, W, D]`` hidden states behind the last norm.
        """
        rotary = self._rotary(x_BWD, position_B1)
        for number, layer in enumerate(self._layers):
            attention = layer.self_attn
            q_BWAC, k_BWGC, v_BWGC = project(attention, layer.input_layernorm(x_BWD), rotary)
            cache.blocks[number].append(torch.cat([k_BWGC, v_BWGC], dim=2).flatten(2))
            own = own_keys_values(cache, number, k_BWGC.shape[2])
            mixed = attend_to_prompt(q_BWAC * attention.scaling, keys_values[number], visible, own)
            x_BWD = x_BWD + attention.o_proj(mixed)
            x_BWD = x_BWD + layer.mlp(layer.post_attention_layernorm(x_BWD))
        cache.finish_step()
        hidden: torch.Tensor = self.decoder.norm(x_BWD)
        return hidden

    def _rotary(self, x: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.decoder.rotary_emb(x, position)
        return cos[:, :, None], sin[:, :, None]


def project(
    attention: Any, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries ``[B, S, A, C]``, keys and values ``[B, S, G, C]``, queries and keys turned by their position."""
    q, k, v = (
        layer(x).unflatten(-1, (-1, attention.head_dim))
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):  # Qwen3
        q, k = attention.q_norm(q), attention.k_norm(k)
    return turned(q, *rotary), turned(k, *rotary), v


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel ``c`` with channel ``c + C / 2``, as Llama's weights expect it.

    Example:
        A quarter turn takes the first half of the channels to the second, and the second to minus the first.

        >>> turned(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.ones(2)).tolist()
        [-2.0, 1.0]
    """
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def own_keys_values(cache: BeamCache, layer: int, groups: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per step, the keys and values of each beam's own ancestor, ``[B, W, G, C]`` each; W is 1 where all beams share it."""
    found = []
    for step, block in enumerate(cache.blocks[layer]):
        rows = block
        if step < len(cache.ancestry) and block.shape[1] > 1:
            rows = block.gather(1, cache.ancestry[step][..., None].expand(-1, -1, block.shape[2]))
        keys, values = rows.unflatten(-1, (2 * groups, -1)).split(groups, dim=2)
        found.append((keys, values))
    return found


def attend_to_prompt(
    q_BWAC: torch.Tensor,
    prompt: KeysValues,
    visible: torch.Tensor,
    own: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """One softmax over the prompt, which a user's beams share, and each beam's own tokens: ``[B, W, A * C]``.

    Args:
        q_BWAC: Scaled queries.
        prompt: Keys and values ``[B, G, S, C]``; read by all beams in one product, never copied.
        visible: Boolean ``[B, 1, 1, S]``.
        own: From :func:`own_keys_values`.
    """
    keys, values = prompt
    users, beams, heads, channels = q_BWAC.shape
    groups = keys.shape[1]
    q_BWGRC = q_BWAC.view(users, beams, groups, heads // groups, channels)
    rows = q_BWGRC.permute(0, 2, 3, 1, 4).reshape(users, groups, -1, channels)  # [B, G, R * W, C]
    scores = (rows @ keys.transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    of_own = torch.stack([(q_BWGRC * k[:, :, :, None]).sum(-1) for k, _ in own], dim=-1)  # [B, W, G, R, T]
    of_own = of_own.permute(0, 2, 3, 1, 4).reshape(*scores.shape[:3], -1)
    weights = torch.cat([scores, of_own], dim=-1).softmax(-1, dtype=torch.float32).to(q_BWAC.dtype)
    mixed = weights[..., : keys.shape[2]] @ values
    mixed = mixed.view(users, groups, -1, beams, channels).permute(0, 3, 1, 2, 4)  # [B, W, G, R, C]
    weights_BWGRT = weights[..., keys.shape[2] :].view(users, groups, -1, beams, len(own)).permute(0, 3, 1, 2, 4)
    for step, (_, v) in enumerate(own):
        mixed = torch.addcmul(mixed, weights_BWGRT[..., step, None], v[:, :, :, None])
    return mixed.reshape(users, beams, heads * channels)

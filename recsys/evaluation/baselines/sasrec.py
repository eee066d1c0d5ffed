"""SASRec with full softmax cross-entropy: a strong neural baseline, as a plain Lightning module.

Reads the counted events; produces a causal transformer that scores the whole catalogue at every position. Steps of one
training batch: item and position embeddings -> causal blocks -> states of the positions that have a next item (packed,
no padding) -> dot products with the tied item embeddings -> cross-entropy over all items.

Source: Kang & McAuley 2018, "Self-Attentive Sequential Recommendation". Departures: cross-entropy over the full
    catalogue
instead of one sampled negative (Klenitskiy & Vasilev 2023, "Turning Dross Into Gold Loss"), pre-norm blocks with GELU,
and events counted from the end, so that the latest one always has the same position embedding.

Shape legend: B sequences, T positions (latest last), D width, H heads, I items, P positions with a next item.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.evaluation.baselines.config import SASRecConfig
from recsys.training.losses import full_softmax_loss


class PooledDropout(nn.Module):
    """Dropout whose masks are slices of one pool, drawn once.

    Drawing fresh Bernoulli masks takes a quarter of a training step on a CPU; a random offset into a pool of 2**21
    draws costs nothing and is as good as fresh for this purpose. Expectation is kept by dividing by ``1 - rate``.
    """

    pool: Tensor

    def __init__(self, rate: float, pool_size: int = 1 << 21) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("pool", (torch.rand(pool_size) >= rate).float() / (1.0 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of ``x`` in training; outside training return it as it is."""
        if not self.training or self.rate == 0.0:
            return x
        count = x.numel()
        if count >= len(self.pool):  # larger than the pool: a slice would repeat inside one tensor
            return F.dropout(x, self.rate)
        offset = int(torch.randint(len(self.pool) - count, ()))
        return x * self.pool[offset : offset + count].view_as(x)


class CausalBlock(nn.Module):
    """Pre-norm self-attention and feed-forward; a position sees itself and earlier real positions."""

    def __init__(self, width: int, num_heads: int, dropout: PooledDropout) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x_BTD: Tensor, allowed_B1TT: Tensor) -> Tensor:
        """Args: states, and which positions each may see (every position at least itself)."""
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(B, T, 3, self.num_heads, D // self.num_heads)
        q_BHTd, k_BHTd, v_BHTd = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, attn_mask=allowed_B1TT)
        x_BTD = x_BTD + self.dropout(self.out(mixed.transpose(1, 2).reshape(B, T, D)))
        hidden = F.gelu(self.up(self.feed_forward_norm(x_BTD)))
        return x_BTD + self.dropout(self.down(self.dropout(hidden)))


class SASRecNetwork(nn.Module):
    """Histories to states, and states to scores of all items.

    Items are shifted by one inside: row 0 of the embedding table is padding and is never scored.
    """

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.num_items = num_items
        self.max_len = config.max_len
        self.item_embedding = nn.Embedding(num_items + 1, config.width, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_len, config.width)
        nn.init.normal_(self.item_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
        self.dropout = PooledDropout(config.dropout)
        self.blocks = nn.ModuleList(
            CausalBlock(config.width, config.num_heads, self.dropout) for _ in range(config.num_blocks)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, items_BT: Tensor) -> Tensor:
        """Encode histories.

        Args:
            items_BT: item_index + 1, padded with 0 on the left; ``T <= max_len``.

        Returns:
            ``[B, T, D]``; states of padding positions are meaningless.
        """
        T = items_BT.shape[1]
        real_BT = items_BT > 0
        # the multiplier keeps items louder than positions, as in the original
        x_BTD = self.item_embedding(items_BT) * self.item_embedding.embedding_dim**0.5
        x_BTD = self.dropout(x_BTD + self.position_embedding.weight[self.max_len - T :])
        causal_TT = torch.ones(T, T, dtype=torch.bool, device=items_BT.device).tril()
        itself_TT = torch.eye(T, dtype=torch.bool, device=items_BT.device)
        allowed_B1TT = ((causal_TT & real_BT[:, None, :]) | itself_TT)[:, None]
        for block in self.blocks:
            x_BTD = block(x_BTD, allowed_B1TT)
        return self.norm(x_BTD)

    def scores(self, states_PD: Tensor) -> Tensor:
        """Return logits ``[P, I]`` of all items by the tied embeddings."""
        return states_PD @ self.item_embedding.weight[1:].T

    def loss(self, items_BT: Tensor, next_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next item over all positions that have one.

        Args:
            next_BT: item_index of the next event, -1 where there is none.
        """
        has_next = next_BT >= 0
        return full_softmax_loss(self(items_BT)[has_next], self.item_embedding.weight[1:], next_BT[has_next])

"""Attention with a bias and a value for how alike the items on both sides are.

Whether a candidate continues, repeats or varies what the user has seen decides what a session is worth, and a small
model learns it from embeddings slowly. So the relation of two items (length of their common semantic-ID prefix, same
author, same category, same item) enters the scores as a learned bias and the values as a learned vector, and so does the
cosine of their frozen embeddings, which also knows items that share no code.

Legend: B rows, Q query items, S key items, A heads, C = D / A, R relations, L levels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.layers.rows import Linear


@dataclass(frozen=True)
class Likeness:
    """How alike query and key items are.

    Attributes:
        relation_BQS: int64, below R.
        cosine_BQS: float32 in [-1, 1], 0 if either is no item; ``None`` without item embeddings.
    """

    relation_BQS: torch.Tensor
    cosine_BQS: torch.Tensor | None


class ItemRelations(nn.Module):
    """Number what two items have in common.

    Args:
        catalogue: Semantic ID, author and category of every item; an author or category that is not known equals
            nothing.
        unit_embeddings: float32 ``[rows, any]``, rows of length 1 or 0; ``None`` without.
    """

    catalogue: torch.Tensor
    unit_embeddings: torch.Tensor | None

    def __init__(self, catalogue: ItemCatalogue, unit_embeddings: torch.Tensor | None) -> None:
        super().__init__()
        # side by side, so that one look-up and one comparison serve all
        self.register_buffer("catalogue", torch.cat([catalogue.codes_IL, catalogue.side_I2], dim=1))
        self.register_buffer("unit_embeddings", unit_embeddings)
        self.num_levels = catalogue.num_levels

    @property
    def count(self) -> int:
        """R = 1 + (L + 2) * 2 * 2."""
        return 1 + (self.num_levels + 2) * 4

    def forward(self, query_BQ: torch.Tensor, key_BS: torch.Tensor) -> Likeness:
        """Compare item rows."""
        cosine = None
        if self.unit_embeddings is not None:
            cosine = self.unit_embeddings[query_BQ] @ self.unit_embeddings[key_BS].transpose(1, 2)
        return Likeness(self.number(query_BQ, key_BS), cosine)

    def number(self, query_BQ: torch.Tensor, key_BS: torch.Tensor) -> torch.Tensor:
        """Number the relations, int64 ``[B, Q, S]``: 0 if either is no item.

        ``1 + depth * 4 + same author * 2 + same category``, where depth counts the common first codes, and is L + 1 for
        the same item.
        """
        query, key = self.catalogue[query_BQ][:, :, None], self.catalogue[key_BS][:, None]
        code_agrees, author_agrees, category_agrees = (query == key).split([self.num_levels, 1, 1], dim=-1)
        prefix = torch.ones_like(code_agrees[..., 0])
        depth = torch.zeros_like(prefix, dtype=torch.int64)
        for level in range(self.num_levels):
            prefix = prefix & code_agrees[..., level]
            depth += prefix
        same_item = query_BQ[:, :, None] == key_BS[:, None]
        depth = depth.masked_fill(same_item, self.num_levels + 1)
        _, author, category = query.split([self.num_levels, 1, 1], dim=-1)
        same_author = (author_agrees & (author > 0))[..., 0]
        same_category = (category_agrees & (category > 0))[..., 0]
        both = (query_BQ > 0)[:, :, None] & (key_BS > 0)[:, None]
        return (1 + 4 * depth + 2 * same_author + same_category) * both


class MatchAttention(nn.Module):
    """Multi-head attention with a bias per head and a value per relation and for the cosine.

    ``score_s = q k_s / sqrt(C) + bias[relation_s] + gain cosine_s`` and
    ``result = sum_s weight_s (v_s + value[relation_s] + direction cosine_s)``. The second part tells a head what it found:
    without it, attention spread over unrelated items looks like attention to a match.
    """

    def __init__(self, width: int, num_heads: int, num_relations: int, *, with_cosine: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.relation_bias_RA = nn.Parameter(torch.zeros(num_relations, num_heads))
        self.relation_value_RD = nn.Parameter(torch.zeros(num_relations, width))
        if with_cosine:
            self.cosine_gain_A = nn.Parameter(torch.zeros(num_heads))
            self.cosine_direction_D = nn.Parameter(torch.zeros(width))

    def keys_values(self, x_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project the key side, ``[B, A, S, C]`` each; done once per history."""
        b, s, d = x_BSD.shape
        k, v = self.key_value(x_BSD).view(b, s, 2, self.num_heads, d // self.num_heads).unbind(2)
        return k.transpose(1, 2), v.transpose(1, 2)

    def forward(
        self,
        x_BQD: torch.Tensor,
        keys_values: tuple[torch.Tensor, torch.Tensor],
        likeness: Likeness,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        """Attend.

        Args:
            visible: Boolean, broadcastable to ``[B, Q, S]``; every query must see something.
        """
        b, q, d = x_BQD.shape
        k, v = keys_values
        query = self.query(x_BQD).view(b, q, self.num_heads, d // self.num_heads).transpose(1, 2)
        scores = torch.matmul(query * query.shape[-1] ** -0.5, k.transpose(-1, -2)).float()
        relation_BQS, cosine_BQS = likeness.relation_BQS, likeness.cosine_BQS
        scores = scores + self.relation_bias_RA[relation_BQS].permute(0, 3, 1, 2)
        if cosine_BQS is not None:
            scores = scores + cosine_BQS[:, None] * self.cosine_gain_A[:, None, None]
        weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1).to(v.dtype)
        mixed = torch.matmul(weights, v)
        relations = self.relation_value_RD.shape[0]
        found = weights.new_zeros(*weights.shape[:3], relations)
        found = found.scatter_add(3, relation_BQS[:, None].expand_as(weights), weights)
        value_ARC = self.relation_value_RD.view(relations, self.num_heads, -1).transpose(0, 1)
        mixed = mixed + torch.matmul(found, value_ARC)
        if cosine_BQS is not None:
            mean_BAQ1 = (weights * cosine_BQS[:, None]).sum(-1, keepdim=True)
            mixed = mixed + mean_BAQ1 * self.cosine_direction_D.view(self.num_heads, 1, -1)
        return self.out(mixed.transpose(1, 2).reshape(b, q, d))

"""Items and events to vectors, histories to memory.

Legend: B users, H history events, S = H + 1 memory positions, N ids, L levels, D width.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.config import ModelConfig
from recsys.model.layers.attention import FeedForward, SelfAttention
from recsys.model.layers.precision import Norm
from recsys.model.layers.tables import FeatureTables

ITEM_FEATURES = ("item", "author", "category")
EVENT_FEATURES = ("behaviour", "gap", "watch")
ROWS_AT_A_TIME: Final = 1 << 16
"""Items embedded at once where the whole catalogue is asked for."""


class CodeEmbedding(nn.Module):
    """One table for the codes of all levels; level ``l``'s code ``k`` is row ``offset[l] + k``."""

    offset_L: torch.Tensor

    def __init__(self, level_sizes: tuple[int, ...], width: int, init_std: float) -> None:
        super().__init__()
        self.level_sizes = level_sizes
        self.offsets = tuple(sum(level_sizes[:level]) for level in range(len(level_sizes)))
        self.weight = nn.Parameter(torch.empty(sum(level_sizes), width).normal_(std=init_std))
        # on the device from the start: made anew it would be copied there, and the host would wait, at every lookup
        self.register_buffer("offset_L", torch.tensor(self.offsets), persistent=False)

    def forward(self, codes: torch.Tensor, level: int) -> torch.Tensor:
        """Embed codes of one level, any shape."""
        return nn.functional.embedding(codes + self.offsets[level], self.weight)

    def level(self, level: int) -> torch.Tensor:
        """The rows of one level, ``[K, D]``."""
        return self.weight[self.offsets[level] : self.offsets[level] + self.level_sizes[level]]

    def all_levels(self, codes_NL: torch.Tensor) -> torch.Tensor:
        """Sum of the embeddings of an item's codes, ``[..., L] -> [..., D]``."""
        rows_NL = codes_NL + self.offset_L
        total = nn.functional.embedding(rows_NL[..., 0], self.weight)
        for level in range(1, rows_NL.shape[-1]):  # [..., L, D] is never held
            total.add_(nn.functional.embedding(rows_NL[..., level], self.weight))
        return total


class ItemTower(nn.Module):
    """An item as one vector: the sum of its id, code, author and category embeddings.

    Reads the encoder's inputs and is the output side of the dense head, so a new item with known codes, author and
    category has a meaningful vector before its own id was ever trained.
    """

    codes_IL: torch.Tensor
    side_I: torch.Tensor

    def __init__(
        self, config: ModelConfig, tables: FeatureTables, codes: CodeEmbedding, catalogue: ItemCatalogue
    ) -> None:
        super().__init__()
        self.features = config.features
        self.tables, self.codes = tables, codes
        self.register_buffer("codes_IL", catalogue.codes_IL.contiguous())
        self.register_buffer("side_I", catalogue.side_I2)

    @property
    def author_I(self) -> torch.Tensor:
        """Author_index by item row, 0 "not known"."""
        return self.side_I[:, 0]

    @property
    def category_I(self) -> torch.Tensor:
        """Category_index by item row, 0 "not known"."""
        return self.side_I[:, 1]

    @property
    def catalogue(self) -> ItemCatalogue:
        """What the tower knows of every item."""
        return ItemCatalogue(self.codes_IL, self.author_I, self.category_I)

    def forward(self, rows: torch.Tensor, extra_ids: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Embed item rows of any shape; ``extra_ids`` are event features of the same shape that ride in the same lookup."""
        ids = dict(extra_ids or {})
        if "item" in self.features:
            ids["item"] = rows
        if "author" in self.features:
            ids["author"] = self.author_I[rows]
        if "category" in self.features:
            ids["category"] = self.category_I[rows]
        parts = list(self.tables(ids).values()) if ids else []
        if "codes" in self.features:
            parts.append(self.codes.all_levels(self.codes_IL[rows]))
        total, *others = parts
        for part in others:  # in place: a lookup's gradient does not need its result
            total.add_(part)
        return total

    def all_items(self) -> torch.Tensor:
        """Every row of the catalogue, ``[I, D]``; without gradients a part at a time, into the result."""
        rows = torch.arange(len(self.codes_IL), device=self.codes_IL.device)
        if torch.is_grad_enabled():
            return self(rows)
        result = torch.empty(len(rows), self.codes.weight.shape[1], device=rows.device)
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            result[start : start + ROWS_AT_A_TIME] = self(rows[start : start + ROWS_AT_A_TIME])
        return result


def user_position(
    batch: HistoryBatch, start_D: torch.Tensor, tables: FeatureTables, config: ModelConfig
) -> torch.Tensor:
    """What is known of a request besides its events, ``[B, D]``: start vector, user embedding."""
    user_BD = start_D.expand(len(batch), -1)
    if "user" not in config.features:
        return user_BD
    return user_BD + tables({"user": batch.user_B})["user"]


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward layer (OneRec technical report, section 2.2.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width)
        self.attention = SelfAttention(config.width, config.num_heads)
        self.ffn_norm = Norm(config.width)
        self.ffn = FeedForward(config.width, config.ffn_width)
        self.dropout = nn.Dropout(config.dropout)
        self.causal = config.encoder_attention == "causal"

    def forward(self, x_BSD: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Apply to all memory positions; ``mask`` is true where a position may look, ``None``: wherever it could."""
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), mask, causal=self.causal))
        return x_BSD + self.dropout(self.ffn(self.ffn_norm(x_BSD)))


class HistoryEncoder(nn.Module):
    """Turn a history into memory: one position for the user, then one per event, oldest first.

    The user position carries the user's embedding where that feature is on, and a learned start vector always; it makes
    an empty history an ordinary input.
    """

    def __init__(self, config: ModelConfig, tables: FeatureTables, item_tower: ItemTower) -> None:
        super().__init__()
        self.config = config
        self.tables, self.item_tower = tables, item_tower
        self.start_D = nn.Parameter(torch.empty(config.width).normal_(std=config.init_std))
        self.position = nn.Embedding(config.max_history + 1, config.width)
        nn.init.normal_(self.position.weight, std=config.init_std)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_encoder_layers))
        self.norm = Norm(config.width)

    def forward(self, batch: HistoryBatch, *, full: bool = False) -> torch.Tensor:
        """Return memory ``[B, H + 1, D]``; positions after ``lengths + 1`` are padding and must be masked by readers.

        Args:
            full: The histories are known to be equally long, so that nothing is padding.
        """
        event_ids = {name: getattr(batch, f"{name}_BH") for name in EVENT_FEATURES if name in self.config.features}
        events_BHD = self.item_tower(batch.item_BH, event_ids)
        user_BD = user_position(batch, self.start_D, self.tables, self.config)
        x_BSD = torch.cat([user_BD[:, None], events_BHD], dim=1)
        x_BSD = self.dropout(x_BSD + self.position.weight[: x_BSD.shape[1]])
        mask = None if full else self.mask(batch.lengths_B, x_BSD.shape[1])
        for block in self.blocks:
            x_BSD = block(x_BSD, mask)
        return self.norm(x_BSD)

    def last_position(self, batch: HistoryBatch) -> torch.Tensor:
        """Last real memory position of every user, int64 ``[B]``: the most recent event, or the user where none is."""
        return batch.lengths_B

    def visible(self, batch: TrainingBatch) -> torch.Tensor:
        """Last memory position that each prediction point may look at, int64 ``[B, P]``."""
        return batch.visible_BP

    def mask(self, lengths_B: torch.Tensor, width: int) -> torch.Tensor | None:
        """Which memory positions may be looked at: all real ones, ``[B, 1, 1, S]``; ``None`` where attention is causal."""
        if self.config.encoder_attention == "causal":
            # padding lies after everything real, so looking back alone keeps it out of real positions
            return None
        real_BS = torch.arange(width, device=lengths_B.device) <= lengths_B[:, None]
        return real_BS[:, None, None]

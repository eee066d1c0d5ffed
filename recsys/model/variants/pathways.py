"""A history of any length as a fixed number of memory positions: four pathways and a bidirectional encoder over them.

    user static     1 position     start vector and, where that feature is on, the user's embedding
    short-term      L_s positions  the most recent events
    positive        L_p positions  the most engaged events of the whole history, in order of time
    lifelong        N_q positions  the whole history, compressed by learned queries

Every pathway ends in ``Dense(LeakyReLU(Dense(f)))``; the encoder's cost depends on L_s + L_p + N_q and only the
compression on the length of the history.

Legend: B users, H history events, P prediction points, S memory positions, Q = N_q queries, N gathered events, D width.

Source: OneRec Technical Report (arXiv 2506.13695), section 2.2.1. Departures:

- the tables of this model family have one width, and an event's embeddings are summed before the first Dense layer, where
  the report concatenates embeddings of different widths;
- what the report knows from absolute timestamps, an event's age counted in events says here, as a learned embedding;
- the report compresses a history of up to 100,000 events to 2,000 by hierarchical k-means, once per user and offline, then
  by the queries. Here the queries read the history they are given (``max_history``), and the first step is
  :func:`~recsys.model.variants.lifelong.lifelong_representatives`, for whoever prepares such histories;
- residuals around the query blocks, printed without, and the user's vector among what they read, so that an empty
  history is an ordinary input;
- the pathways are laid out as lifelong, positive, user, short-term. The encoder sees all of them from everywhere and has
  learned positions, so the order means nothing, and the last real position is the most recent event, which the dense
  head reads.
"""

from __future__ import annotations

import torch
from torch import nn

from recsys.contracts.errors import ConfigError
from recsys.contracts.event_features import MAX_SIGNALS, NUM_WATCH_BUCKETS
from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.model.config import ModelConfig
from recsys.model.encoder import EVENT_FEATURES, EncoderBlock, ItemTower, user_position
from recsys.model.layers.attention import CrossAttention, FeedForward, KeysValues, project_memory
from recsys.model.layers.precision import Norm
from recsys.model.layers.rows import Linear
from recsys.model.layers.tables import FeatureTables


class PathwayProjection(nn.Module):
    """``Dense(LeakyReLU(Dense(f)))``, the end of every pathway; no biases, as everywhere in this model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = Linear(width, width, bias=False)
        self.activation = nn.LeakyReLU()
        self.project = Linear(width, width, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Apply position by position, ``[..., D] -> [..., D]``."""
        return self.project(self.activation(self.hidden(features)))


class CompressionBlock(nn.Module):
    """One QFormer block: queries look at the history, then pass a feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width)
        self.attention = CrossAttention(config.width, config.num_heads)
        self.ffn_norm = Norm(config.width)
        self.ffn = FeedForward(config.width, config.ffn_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries_BQD: torch.Tensor, keys_values: KeysValues, real: torch.Tensor) -> torch.Tensor:
        """Update the queries; ``real`` is ``[B, 1, 1, S]``, true where the history is no padding."""
        mixed = self.attention(self.attention_norm(queries_BQD), keys_values, real)
        queries_BQD = queries_BQD + self.dropout(mixed)
        return queries_BQD + self.dropout(self.ffn(self.ffn_norm(queries_BQD)))


class HistoryCompression(nn.Module):
    """Compress a whole history to ``N_q`` vectors with learned queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.queries_QD = nn.Parameter(torch.empty(config.lifelong_queries, config.width).normal_(std=config.init_std))
        self.norm = Norm(config.width)
        self.blocks = nn.ModuleList(CompressionBlock(config) for _ in range(config.lifelong_layers))

    def forward(self, history_BSD: torch.Tensor, real_BS: torch.Tensor) -> torch.Tensor:
        """Return ``[B, N_q, D]``; position 0 of the history must be real."""
        blocks = [block for block in self.blocks if isinstance(block, CompressionBlock)]
        all_keys_values = project_memory([block.attention for block in blocks], self.norm(history_BSD))
        queries_BQD = self.queries_QD.expand(len(history_BSD), -1, -1)
        for block, keys_values in zip(blocks, all_keys_values, strict=True):
            queries_BQD = block(queries_BQD, keys_values, real_BS[:, None, None])
        return queries_BQD


class PathwayEncoder(nn.Module):
    """Turn a history into memory by four pathways.

    1. embed every event: item, side features, age;
    2. gather the short-term and the positive events, compress the whole history, each with its own projection;
    3. lay the pathways out in one sequence with learned positions, real positions before padded ones;
    4. bidirectional pre-norm blocks over the sequence.
    """

    def __init__(self, config: ModelConfig, tables: FeatureTables, item_tower: ItemTower) -> None:
        super().__init__()
        self.config = config
        self.tables, self.item_tower = tables, item_tower
        self.start_D = nn.Parameter(torch.empty(config.width).normal_(std=config.init_std))
        self.age_position = nn.Embedding(config.max_history, config.width)
        slots = config.lifelong_queries + config.positive_events + 1 + config.short_events
        self.position = nn.Embedding(slots, config.width)
        for embedding in (self.age_position, self.position):
            nn.init.normal_(embedding.weight, std=config.init_std)
        self.user_pathway = PathwayProjection(config.width)
        self.short_pathway = PathwayProjection(config.width)
        self.positive_pathway = PathwayProjection(config.width)
        self.lifelong_pathway = PathwayProjection(config.width)
        self.compression = HistoryCompression(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_encoder_layers))
        self.norm = Norm(config.width)

    def forward(self, batch: HistoryBatch, *, full: bool = False) -> torch.Tensor:
        """Return memory ``[B, S, D]``, S = N_q + min(L_p, H) + 1 + min(L_s, H).

        A user's real positions come first; those after :meth:`last_position` are padding and must be masked by readers.

        Args:
            full: The histories are known to be equally long, so that nothing is padding.
        """
        x_BSD, real_BS = self.lay_out(batch)
        mask = None if full else real_BS[:, None, None]
        for block in self.blocks:
            x_BSD = block(x_BSD, mask)
        return self.norm(x_BSD)

    def lay_out(self, batch: HistoryBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The pathways side by side, real positions first, and which positions are real: ``([B, S, D], [B, S])``."""
        events_BHD = self._embed_events(batch)
        user_BD = user_position(batch, self.start_D, self.tables, self.config)
        user_B1D = self.user_pathway(user_BD)[:, None]
        recent_BN = recent_events(batch.lengths_B, min(self.config.short_events, batch.item_BH.shape[1]))
        engaged_BN = engaged_events(batch, min(self.config.positive_events, batch.item_BH.shape[1]))
        history_BSD = torch.cat([user_B1D, self.lifelong_pathway(events_BHD)], dim=1)
        history_real_BS = torch.arange(history_BSD.shape[1], device=user_BD.device) <= batch.lengths_B[:, None]
        lifelong_BQD = self.compression(history_BSD, history_real_BS)
        always_B = torch.ones_like(batch.lengths_B, dtype=torch.bool)[:, None]
        parts = [
            lifelong_BQD,
            self.positive_pathway(_gather(events_BHD, engaged_BN)),
            user_B1D,
            self.short_pathway(_gather(events_BHD, recent_BN)),
        ]
        real_BS = torch.cat(
            [always_B.expand(-1, lifelong_BQD.shape[1]), engaged_BN >= 0, always_B, recent_BN >= 0], dim=1
        )
        x_BSD = self.dropout(torch.cat(parts, dim=1) + self._slots(engaged_BN.shape[1], recent_BN.shape[1]))
        # readers know padding by its place behind everything real, as in the plain encoder
        order_BS = real_BS.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        return _gather(x_BSD, order_BS), real_BS.gather(1, order_BS)

    def _embed_events(self, batch: HistoryBatch) -> torch.Tensor:
        """Item, side features and age of every event, ``[B, H, D]``."""
        event_ids = {name: getattr(batch, f"{name}_BH") for name in EVENT_FEATURES if name in self.config.features}
        events_BHD = self.item_tower(batch.item_BH, event_ids)
        place_H = torch.arange(batch.item_BH.shape[1], device=events_BHD.device)
        age_BH = (batch.lengths_B[:, None] - 1 - place_H).clamp(min=0)
        return events_BHD + self.age_position(age_BH)

    def _slots(self, positive: int, short: int) -> torch.Tensor:
        """Learned positions ``[S, D]`` of a layout with fewer event slots; the most recent event keeps the last one."""
        queries, all_positive = self.config.lifelong_queries, self.config.positive_events
        user = queries + all_positive
        end = user + 1 + self.config.short_events
        weight = self.position.weight
        parts = [weight[:queries], weight[user - positive : user], weight[user, None], weight[end - short : end]]
        return torch.cat(parts)

    def last_position(self, batch: HistoryBatch) -> torch.Tensor:
        """Last real memory position of every user, int64 ``[B]``: the most recent event, or the user where none is."""
        events = batch.item_BH.shape[1]
        positive_B = batch.lengths_B.clamp(max=min(self.config.positive_events, events))
        short_B = batch.lengths_B.clamp(max=min(self.config.short_events, events))
        return self.config.lifelong_queries + positive_B + short_B

    def visible(self, batch: TrainingBatch) -> torch.Tensor:
        """Last memory position that each prediction point may look at, int64 ``[B, P]``.

        Raises:
            ConfigError: A point asks for less than the whole history, as all-prefix training does.
        """
        visible_BP, lengths_B = batch.visible_BP, batch.history.lengths_B
        if not batch.asked.whole_history:
            row, point = (visible_BP != lengths_B[:, None]).nonzero()[0].tolist()
            raise ConfigError(
                f"encoder: pathways was asked to predict from the first {int(visible_BP[row, point])} of "
                f"{int(lengths_B[row])} events (row {row}, point {point} of the batch), but its memory has always seen "
                "all of them; train it with form='pairs', one (history, target) pair per row, not with all prefixes"
            )
        return self.last_position(batch.history)[:, None].expand_as(visible_BP)


def recent_events(lengths_B: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the ``count`` most recent events, oldest first; -1, in front, where a history has fewer.

    Example:
        >>> recent_events(torch.tensor([4, 1]), 3).tolist()
        [[1, 2, 3], [-1, -1, 0]]
    """
    place_BN = lengths_B[:, None] - count + torch.arange(count, device=lengths_B.device)
    return place_BN.clamp(min=-1)


def engaged_events(batch: HistoryBatch, count: int) -> torch.Tensor:
    """Places of the ``count`` most engaged events, in order of time; -1, in front, where a history has fewer.

    More yes/no signals win (the behaviour code holds one bit for each), then the larger watched share, then the later event.
    The report says "high-engagement interactions" and gives no rule.
    """
    bits = torch.arange(MAX_SIGNALS, device=batch.item_BH.device)
    # code 0 is "not known", the bits of the others are those of code - 1
    signals_BH = (((batch.behaviour_BH - 1).clamp(min=0)[..., None] >> bits) & 1).sum(-1)
    engagement_BH = signals_BH * NUM_WATCH_BUCKETS + batch.watch_BH
    place_H = torch.arange(batch.item_BH.shape[1], device=batch.item_BH.device)
    real_BH = place_H < batch.lengths_B[:, None]
    rank_BH = (engagement_BH * len(place_H) + place_H).masked_fill(~real_BH, -1)
    best_rank_BN, best_BN = rank_BH.topk(count, dim=1)
    return best_BN.masked_fill(best_rank_BN < 0, -1).sort(dim=1).values


def _gather(x_BSD: torch.Tensor, place_BN: torch.Tensor) -> torch.Tensor:
    """Rows of ``x`` at the given places, ``[B, N, D]``; whatever stands at place -1 must be masked by the caller."""
    return x_BSD.gather(1, place_BN.clamp(min=0)[..., None].expand(-1, -1, x_BSD.shape[-1]))

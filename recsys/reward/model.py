"""The session reward model: a user's history and a session in, one probability per signal out.

Legend: B users, N candidate sessions of a user, M items of a session, H history events, S = H + 1 memory positions,
T towers, L levels, D width.

Source: OneRec (arXiv 2502.18965), section 3.3.1, eq. 5-7; fused tower: P-Score of the technical report (2506.13695,
section 2.4.1). Sizes and the form of the "target-aware operation" are unpublished. Ours is multi-head target attention, and
attention of both kinds knows how alike two items are (:mod:`recsys.reward.match_attention`). Departures: pre-norm with
residuals and feed-forward layers, and a place embedding inside the session, because worth depends on the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import nn

from recsys.contracts.dataset import DatasetSpec
from recsys.contracts.errors import ConfigError
from recsys.data.batch import HistoryBatch
from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.encoder import EVENT_FEATURES, CodeEmbedding, EncoderBlock, ItemTower
from recsys.model.layers.attention import FeedForward, silu
from recsys.model.layers.rows import Linear
from recsys.model.layers.tables import FeatureTables
from recsys.reward.combining.combination import combine_rewards, tower_weights
from recsys.reward.combining.transforms import fit_constants, neutral_constants, transformed
from recsys.reward.config import CombinationConfig, CombinationMode, RewardModelConfig, RewardSignal
from recsys.reward.match_attention import ItemRelations, Likeness, MatchAttention


class RewardSpec(BaseModel):
    """Everything that fixes a reward model's shapes and what its numbers mean; saved beside the weights.

    Attributes:
        signals: The T towers.
        base_rates: Mean train label of each tower; the towers start from them.
        max_items: Longest session, M.
        embedding_width: Width of the frozen item embeddings, 0 without.
        combination: How the towers become one reward unless a call says otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: RewardModelConfig
    dataset: DatasetSpec
    level_sizes: tuple[int, ...]
    semantic_id_digest: str
    signals: tuple[RewardSignal, ...]
    base_rates: tuple[float, ...]
    max_items: int
    embedding_width: int
    combination: CombinationConfig

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the towers."""
        return tuple(signal.name for signal in self.signals)


@dataclass(frozen=True)
class UserMemory:
    """Encoded histories; serves any number of candidates.

    Attributes:
        states_BSD: One state for the user, then one per event.
        keys_values: Projected for target attention, once.
        rows_BS: Item rows, 0 for the user position and padding.
        visible_BS: Real positions.
    """

    states_BSD: torch.Tensor
    keys_values: tuple[torch.Tensor, torch.Tensor]
    rows_BS: torch.Tensor
    visible_BS: torch.Tensor


@dataclass(frozen=True)
class RewardScores:
    """What the model says of every candidate; NaN for one without any item.

    Attributes:
        logits: float32 ``[B, N, T]``.
        fused: float32 ``[B, N]`` logit of the fused tower, ``None`` without one.
    """

    logits: torch.Tensor
    fused: torch.Tensor | None

    @property
    def probabilities(self) -> torch.Tensor:
        """``[B, N, T]``: expected label of each signal."""
        return self.logits.sigmoid()

    def candidates(self, number: int) -> RewardScores:
        """The scores of one candidate of every user, N = 1."""
        fused = None if self.fused is None else self.fused[:, number : number + 1]
        return RewardScores(self.logits[:, number : number + 1], fused)


class SessionBlock(nn.Module):
    """Self-attention among the items of a session, and a feed-forward layer."""

    def __init__(self, config: RewardModelConfig, num_relations: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width)
        self.attention = MatchAttention(
            config.width, config.num_heads, num_relations, with_cosine=config.item_embeddings
        )
        self.ffn_norm = nn.RMSNorm(config.width)
        self.ffn = FeedForward(config.width, config.ffn_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_KMD: torch.Tensor, likeness: Likeness, visible_KMM: torch.Tensor) -> torch.Tensor:
        """Apply to K sessions."""
        normed = self.attention_norm(x_KMD)
        mixed = self.attention(normed, self.attention.keys_values(normed), likeness, visible_KMM)
        x_KMD = x_KMD + self.dropout(mixed)
        return x_KMD + self.dropout(self.ffn(self.ffn_norm(x_KMD)))


class SessionRewardModel(nn.Module):
    """R(user, session) with one tower per signal.

    1. :meth:`encode` turns a history into memory, once per user: item tower, frozen embedding and feedback rates of the
       item, behaviour, gap and watch embeddings, places counted from the latest event, self-attention if configured;
    2. every candidate item attends to the memory: the target-aware item representation e_i;
    3. items of one session attend to each other; the states of its real items are summed;
    4. one small tower per signal reads the sum and gives a logit, which a scale and a shift per tower calibrate; the
       fused tower reads all towers' hidden states, the user and the sum.

    Args:
        spec: Shapes and meaning.
        catalogue: Semantic ID, author and category of every item.
        item_embeddings: float32 ``[items + 1, embedding_width]``, rows of length 1 or 0, row 0 padding; ``None`` if the
            spec has none.
        item_rates: float32 ``[items + 1, T]`` how much more feedback each item got in the train sessions than the average
            one (:func:`recsys.reward.feedback.labels.relative_rates`), row 0 padding.
    """

    item_rates_IT: torch.Tensor
    scale_T: torch.Tensor
    shift_T: torch.Tensor
    transform_TC: torch.Tensor
    average_reactions_T: torch.Tensor

    def __init__(
        self,
        spec: RewardSpec,
        catalogue: ItemCatalogue,
        item_embeddings: torch.Tensor | None,
        item_rates: torch.Tensor,
    ) -> None:
        super().__init__()
        config, dataset = spec.model, spec.dataset
        rows = dataset.num_items + 1
        catalogue.check_fits(dataset.num_items, spec.level_sizes)
        if config.item_embeddings != (spec.embedding_width > 0):
            raise ValueError(
                f"item_embeddings is {config.item_embeddings}, but the embedding width is {spec.embedding_width}"
            )
        if tuple(item_rates.shape) != (rows, len(spec.signals)):
            raise ValueError(f"item rates have shape {tuple(item_rates.shape)}, expected {(rows, len(spec.signals))}")
        given = (0, 0) if item_embeddings is None else tuple(item_embeddings.shape)
        if given != ((rows, spec.embedding_width) if spec.embedding_width else (0, 0)):
            raise ValueError(f"item embeddings have shape {given}, expected {(rows, spec.embedding_width)}")
        self.spec = spec
        parts = config.shared_parts()
        self.tables = FeatureTables(dataset.table_rows(config.features), config.width, config.init_std)
        self.codes = CodeEmbedding(spec.level_sizes, config.width, config.init_std)
        self.item_tower = ItemTower(parts, self.tables, self.codes, catalogue)
        self.relations = ItemRelations(catalogue, item_embeddings)
        if spec.embedding_width:
            self.content = Linear(spec.embedding_width, config.width, bias=False)
        self.register_buffer("item_rates_IT", item_rates)
        self.rates = Linear(len(spec.signals), config.width, bias=False)
        # set once training is over, see recsys.reward.calibration
        self.register_buffer("scale_T", torch.ones(len(spec.signals)))
        self.register_buffer("shift_T", torch.zeros(len(spec.signals)))
        self.register_buffer(
            "transform_TC",
            neutral_constants(spec.combination.transform, len(spec.signals)),
            persistent=spec.combination.transform != "identity",
        )
        personal = spec.combination.personal is not None
        self.register_buffer("average_reactions_T", torch.zeros(len(spec.signals)), persistent=personal)
        self.start_D = nn.Parameter(torch.empty(config.width).normal_(std=config.init_std))
        self.recency = nn.Embedding(config.max_history, config.width)
        self.place = nn.Embedding(spec.max_items, config.width)
        for places in (self.recency, self.place):
            nn.init.normal_(places.weight, std=config.init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.history_blocks = nn.ModuleList(EncoderBlock(parts) for _ in range(config.num_history_layers))
        self.memory_norm = nn.RMSNorm(config.width)
        self.target_norm = nn.RMSNorm(config.width)
        self.target_attention = MatchAttention(
            config.width, config.num_heads, self.relations.count, with_cosine=config.item_embeddings
        )
        self.target_ffn_norm = nn.RMSNorm(config.width)
        self.target_ffn = FeedForward(config.width, config.ffn_width)
        self.session_blocks = nn.ModuleList(
            SessionBlock(config, self.relations.count) for _ in range(config.num_session_layers)
        )
        self.session_norm = nn.RMSNorm(config.width)
        self.tower_up = nn.ModuleList(Linear(config.width, config.tower_width) for _ in spec.signals)
        self.tower_down = nn.ModuleList(Linear(config.tower_width, 1) for _ in spec.signals)
        if config.fused_tower:
            self.fused_up = Linear(len(spec.signals) * config.tower_width + 2 * config.width, config.tower_width)
            self.fused_down = Linear(config.tower_width, 1)
        self._start_from_base_rates()

    def _start_from_base_rates(self) -> None:
        for down, rate in zip(self.tower_down, self.spec.base_rates, strict=True):
            assert isinstance(down, nn.Linear)
            nn.init.zeros_(down.weight)
            nn.init.constant_(down.bias, _logit(rate))
        if self.spec.model.fused_tower:
            nn.init.zeros_(self.fused_down.weight)
            nn.init.constant_(self.fused_down.bias, _logit(sum(self.spec.base_rates) / len(self.spec.base_rates)))

    def encode(self, history: HistoryBatch) -> UserMemory:
        """Encode histories of at most ``max_history`` events; an empty one is an ordinary input."""
        width = history.item_BH.shape[1]
        if width > self.spec.model.max_history:
            raise ValueError(
                f"histories are {width} events long, this reward model reads {self.spec.model.max_history}; "
                "collate them with its max_history"
            )
        event_features = [name for name in EVENT_FEATURES if name in self.spec.model.features]
        extra: dict[str, torch.Tensor] = {name: getattr(history, f"{name}_BH") for name in event_features}
        age_BH = (history.lengths_B[:, None] - 1 - torch.arange(width, device=history.lengths_B.device)).clamp(min=0)
        events_BHD = self._item_vectors(history.item_BH, extra) + self.recency(age_BH)
        start_B1D = self.start_D.expand(len(history), 1, -1)
        x_BSD = self.dropout(torch.cat([start_B1D, events_BHD], dim=1))
        visible_BS = torch.arange(width + 1, device=x_BSD.device) <= history.lengths_B[:, None]
        for block in self.history_blocks:
            x_BSD = block(x_BSD, visible_BS[:, None, None])
        states = self.memory_norm(x_BSD)
        return UserMemory(states, self.target_attention.keys_values(states), F.pad(history.item_BH, (1, 0)), visible_BS)

    def score_memory(self, memory: UserMemory, items_BNM: torch.Tensor) -> RewardScores:
        """Score candidates against encoded histories; see :meth:`score`."""
        self._check_items(items_BNM, len(memory.rows_BS))
        b, n, m = items_BNM.shape
        rows_BQ = (items_BNM + 1).flatten(1)
        real_KM = (rows_BQ > 0).view(b * n, m)
        v_BQD = self._item_vectors(rows_BQ)
        likeness = self.relations(rows_BQ, memory.rows_BS)
        attended = self.target_attention(
            self.target_norm(v_BQD), memory.keys_values, likeness, memory.visible_BS[:, None]
        )
        e_BQD = v_BQD + self.dropout(attended)
        e_BQD = e_BQD + self.dropout(self.target_ffn(self.target_ffn_norm(e_BQD)))

        h_KMD = e_BQD.view(b * n, m, -1) + self.place.weight[:m]
        rows_KM = rows_BQ.view(b * n, m)
        likeness = self.relations(rows_KM, rows_KM)
        # padding looks at itself, so that its softmax is defined; the sum below leaves it out
        itself_MM = torch.eye(m, dtype=torch.bool, device=rows_KM.device)
        visible_KMM = real_KM[:, None] | itself_MM
        for block in self.session_blocks:
            h_KMD = block(h_KMD, likeness, visible_KMM)
        z_BND = (self.session_norm(h_KMD) * real_KM[..., None]).sum(1).view(b, n, -1)

        hidden = [silu(up(z_BND)) for up in self.tower_up]
        logits = torch.cat([down(x) for down, x in zip(self.tower_down, hidden, strict=True)], dim=-1).float()
        logits = logits * self.scale_T + self.shift_T
        empty_BN = ~real_KM.any(1).view(b, n)
        fused = None
        if self.spec.model.fused_tower:
            user_BND = memory.states_BSD[:, :1].expand(-1, n, -1)
            fused = self.fused_down(silu(self.fused_up(torch.cat([*hidden, user_BND, z_BND], dim=-1))))
            fused = fused[..., 0].float().masked_fill(empty_BN, torch.nan)
        return RewardScores(logits.masked_fill(empty_BN[..., None], torch.nan), fused)

    def score(self, history: HistoryBatch, items_BNM: torch.Tensor) -> RewardScores:
        """Score N candidate sessions of every user; the history is encoded once.

        Args:
            items_BNM: int64 item_index in order of exposure, -1 where a session has no item.
        """
        return self.score_memory(self.encode(history), items_BNM)

    def reward(
        self,
        scores: RewardScores,
        weights: torch.Tensor | None = None,
        mode: CombinationMode | None = None,
    ) -> torch.Tensor:
        """Combine the towers to ``[B, N]``; ``-inf`` for a candidate without items.

        Args:
            weights: ``[T]`` or, per request, ``[B, T]``; ``None``: those of the specification.
            mode: ``None``: that of the specification.

        Raises:
            ConfigError: ``fused`` without a fused tower, or with weights.
        """
        mode = mode or self.spec.combination.mode
        if mode == "fused":
            if scores.fused is None or weights is not None:
                raise ConfigError(
                    "reward mode 'fused' takes no weights and needs a model with fused_tower; train with "
                    "reward.model.fused_tower=true, or choose zscore, raw or rank"
                )
            return scores.fused.masked_fill(scores.fused.isnan(), -torch.inf)
        if weights is None:
            weights = self.default_weights()
        weights = weights.to(scores.logits.device)
        values = transformed(scores.logits, self.transform_TC, self.spec.combination.transform, weights)
        return combine_rewards(values, weights, mode)

    def fit_transform(self, logits_NT: torch.Tensor) -> None:
        """Set the constants of the combination's transform from the answers to train sessions, in place."""
        combination = self.spec.combination
        self.transform_TC = fit_constants(combination.transform, logits_NT, combination.reference_quantile).to(
            self.transform_TC
        )

    def default_weights(self) -> torch.Tensor:
        """``[T]``: the signals' weights, changed by those of the combination."""
        defaults = {signal.name: signal.weight for signal in self.spec.signals}
        return tower_weights(defaults, self.spec.combination.weights)

    def _item_vectors(self, rows: torch.Tensor, extra: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        vectors = self.item_tower(rows, extra) + self.rates(self.item_rates_IT[rows])
        if self.relations.unit_embeddings is not None:
            vectors = vectors + self.content(self.relations.unit_embeddings[rows])
        return vectors

    def _check_items(self, items_BNM: torch.Tensor, users: int) -> None:
        if items_BNM.dim() != 3 or len(items_BNM) != users or items_BNM.shape[2] > self.spec.max_items:
            raise ValueError(
                f"candidates have shape {tuple(items_BNM.shape)}, expected [{users} users, candidates, "
                f"at most {self.spec.max_items} items]"
            )


def _logit(rate: float) -> float:
    rate = min(max(rate, 1e-6), 1 - 1e-6)
    return float(torch.logit(torch.tensor(rate, dtype=torch.float64)))

"""The policy: history in, distribution over items out, as a product over semantic-ID codes; and a dense head beside it.

A policy offers two things to the rest of the system, alignment and decoding know no more: ``log_prob(history, items)`` and
next-code distributions given a prefix (:meth:`GenerativeRecommender.start` and :meth:`~GenerativeRecommender.next_codes`).

Legend: B users, P prediction points, M items per session, L levels, K codes, S memory positions, I item rows, W beams,
D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import nn

from recsys.contracts.dataset import DatasetSpec
from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.config import ModelConfig
from recsys.model.decoder import SessionDecoder
from recsys.model.encoder import CodeEmbedding, HistoryEncoder, ItemTower
from recsys.model.layers.attention import KeysValues
from recsys.model.layers.beam_cache import BeamCache
from recsys.model.layers.moe import MixtureOfExperts
from recsys.model.layers.precision import float32_linear
from recsys.model.layers.prefix_tree import PrefixTree
from recsys.model.layers.rows import Linear
from recsys.model.layers.steering import ObjectiveInput, steer
from recsys.model.layers.tables import FeatureTables, ReservedRows
from recsys.model.layers.words import WordsInput, said
from recsys.model.variants.lazy_decoder import LazyDecoder
from recsys.model.variants.pathways import PathwayEncoder


class LanguageSpec(BaseModel):
    """What fixes the shapes of a policy that is a language model.

    Attributes:
        config: Of transformers, as JSON.
        source: Name of what the base was read from; ``None``: its weights were drawn at random.
        digest: SHA-256 of the source's weights.
        instruction: Tokens before every history.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]
    source: str | None = None
    digest: str | None = None
    instruction: tuple[int, ...] = ()


class PolicySpec(BaseModel):
    """Everything that fixes the policy's parameter shapes; saved beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    dataset: DatasetSpec
    level_sizes: tuple[int, ...]
    semantic_id_digest: str
    objectives: tuple[str, ...] = ()
    """Names of the objective weights that the policy was aligned with, in their order; empty: not steerable."""
    words: tuple[str, ...] = ()
    """Words that requests may use, of ``model.words``."""
    language: LanguageSpec | None = None
    """Of ``model.backbone: llm``."""


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A part of the training loss that a policy brings itself.

    Attributes:
        mean: Over ``count`` examples.
        count: Examples.
        weight: Beside the next-token loss.
    """

    mean: torch.Tensor
    count: int
    weight: float


@dataclass
class DecodingState:
    """A batch of users in the middle of decoding.

    Attributes:
        keys_values: Per layer, cross-attention keys and values, computed once per user.
        visible: ``[B, 1, 1, S]`` real memory positions.
        dense_query_BD: Query of the dense head.
        cache: Own prefixes of the beams.
        position: Next decoder position.
    """

    keys_values: list[KeysValues]
    visible: torch.Tensor
    dense_query_BD: torch.Tensor
    cache: BeamCache
    position: int = 0


class GenerativeRecommender(nn.Module):
    """Encoder-decoder over semantic IDs (OneRec v1, arXiv 2502.18965, section 3.2).

    1. ``encoder`` turns the history into memory, one position per event (OneRec feeds one per code; summing an event's
       codes costs a third of that);
    2. ``decoder`` predicts the codes of the next item, or of a session, one softmax per level;
    3. the dense head scores whole items by the dot product of the encoder's last state with the item tower. It is
       trained jointly, sharpens the encoder, and re-scores the items that the beam found.

    Args:
        spec: Shapes and the digest of the semantic IDs that the codes come from.
        catalogue: Semantic ID, author and category of every item.
    """

    def __init__(self, spec: PolicySpec, catalogue: ItemCatalogue) -> None:
        super().__init__()
        config, dataset = spec.model, spec.dataset
        catalogue.check_fits(dataset.num_items, spec.level_sizes)
        self.spec = spec
        rows = dataset.table_rows(config.features)
        self.tables = FeatureTables(rows, config.width, config.init_std, _reserved_rows(config))
        self.codes = CodeEmbedding(spec.level_sizes, config.width, config.init_std)
        self.item_tower = ItemTower(config, self.tables, self.codes, catalogue)
        encoder_class = PathwayEncoder if config.encoder == "pathways" else HistoryEncoder
        self.encoder = encoder_class(config, self.tables, self.item_tower)
        decoder_class = LazyDecoder if config.decoder == "lazy" else SessionDecoder
        self.decoder = decoder_class(config, self.codes, dataset.session_length)
        self.objective = ObjectiveInput(config.num_objectives, config.width) if config.num_objectives else None
        self.dense_query = Linear(config.width, config.width, bias=False)
        self.words = WordsInput(len(spec.words), config.width) if config.words is not None else None
        self._init_linear_layers(config)

    def _init_linear_layers(self, config: ModelConfig) -> None:
        """Draw matrices by fan-in: unit-variance inputs give unit-variance outputs.

        What ends a residual branch (``out`` and ``down``) is scaled by ``(2 * blocks) ** -0.5`` beyond that, so that the
        stream does not grow with depth (GPT-2). An expert is a matrix like any other; its gate comes on top.
        """
        residual_scale = (2 * (config.num_encoder_layers + config.num_decoder_layers)) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                ends_branch = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=module.in_features**-0.5 * (residual_scale if ends_branch else 1.0))
        for layer in self.moe_layers():
            nn.init.normal_(layer.up_EDF, std=layer.up_EDF.shape[1] ** -0.5)
            nn.init.normal_(layer.down_EFD, std=layer.down_EFD.shape[1] ** -0.5 * residual_scale)
        nn.init.eye_(self.dense_query.weight)
        if self.objective is not None:
            self.objective.reset()
        if self.words is not None:
            self.words.reset()

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.spec.level_sizes)

    def named_rows(self) -> dict[str, list[tuple[str, ...]]]:
        """What each row stands for, by the name of a weight whose rows follow from the data set's words or signals."""
        if self.words is None:
            return {}
        return {"words.embedding.weight": [("none",), *(("word", word) for word in self.spec.words)]}

    def moe_layers(self) -> list[MixtureOfExperts]:
        """The mixture-of-experts layers, first to last."""
        return [module for module in self.modules() if isinstance(module, MixtureOfExperts)]

    def forward(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states for every asked code and dense queries for every point.

        Returns:
            ``([B, P, M, L, D], [B, P, D])``; entries without a target hold arbitrary finite values.
        """
        memory_BSD, said_BD = self.encoder(batch.history, full=batch.asked.full), said(batch.history, self.words)
        codes_BPML = self.item_tower.codes_IL[batch.target_BPM]
        visible_BP = self.encoder.visible(batch)
        keys_values = self.decoder.keys_values(self._steered(memory_BSD, batch.history, said_BD))
        everything = batch.asked.full and batch.asked.whole_history
        hidden = self.decoder(codes_BPML, keys_values, None if everything else visible_BP, batch.asked.point_N)
        index = visible_BP[..., None].expand(-1, -1, memory_BSD.shape[-1])
        return hidden, self._query(memory_BSD.gather(1, index), said_BD)

    def _steered(self, memory_BSD: torch.Tensor, history: HistoryBatch, said_BD: torch.Tensor | None) -> torch.Tensor:
        """Memory under the objective weights and the words of the requests."""
        memory_BSD = steer(memory_BSD, history, self.objective)
        return memory_BSD if said_BD is None else memory_BSD + said_BD[:, None]

    def _query(self, state_BPD: torch.Tensor, said_BD: torch.Tensor | None) -> torch.Tensor:
        """Queries of the dense head under the words of the requests."""
        return self._dense_query(state_BPD if said_BD is None else state_BPD + said_BD[:, None])

    def _dense_query(self, states: torch.Tensor) -> torch.Tensor:
        """Query of the dense head, float32; item vectors are, too."""
        return float32_linear(states, self.dense_query.weight)

    def code_losses(
        self, hidden: torch.Tensor, target_rows: torch.Tensor, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Float32 cross-entropy of the target items' codes.

        Args:
            hidden: ``[..., L, D]`` from :meth:`forward`.
            target_rows: int64 item rows of the leading shape.
            label_smoothing: Share of the target's probability that is spread evenly over the level's codes.

        Returns:
            ``[..., L]``; without smoothing, minus the log-probability of each code.
        """
        codes = self.item_tower.codes_IL[target_rows]
        losses = []
        for level in range(self.num_levels):
            logits = self.decoder.code_logits(hidden[..., level, :], level).flatten(0, -2)
            flat = F.cross_entropy(
                logits, codes[..., level].flatten(), reduction="none", label_smoothing=label_smoothing
            )
            losses.append(flat.view(codes.shape[:-1]))
        return torch.stack(losses, dim=-1)

    def code_log_probs(self, hidden: torch.Tensor, target_rows: torch.Tensor) -> torch.Tensor:
        """Float32 log-probabilities of the target items' codes, ``[..., L]``; their sum over L is the item's."""
        return -self.code_losses(hidden, target_rows)

    def log_prob(self, batch: TrainingBatch) -> torch.Tensor:
        """Log-probability of each target item given the history and the items before it, ``[B, P, M]``; 0 for padding."""
        hidden, _ = self(batch)
        log_probs = self.code_log_probs(hidden, batch.target_BPM).sum(-1)
        return log_probs.masked_fill(batch.target_BPM == 0, 0.0)

    def auxiliary_losses(self, batch: TrainingBatch) -> dict[str, AuxiliaryLoss]:
        """Parts of the training loss that need more than hidden states of the targets; an encoder-decoder has none."""
        return {}

    def log_probs_along(self, history: HistoryBatch, tree: PrefixTree) -> list[torch.Tensor]:
        """Log-probabilities of the next code after every prefix of a tree; the gradient flows.

        Args:
            tree: Prefixes of the same users.

        Returns:
            Per level, float32 ``[N_l, K_l]`` for the level's nodes.
        """
        full = bool((history.lengths_B == history.item_BH.shape[1]).all())
        memory_BSD = self.encoder(history, full=full)
        if not full:
            positions = torch.arange(memory_BSD.shape[1], device=memory_BSD.device)
            tree = replace(tree, visible=(positions <= self.encoder.last_position(history)[:, None])[:, None, None])
        steered_BSD = self._steered(memory_BSD, history, said(history, self.words))
        return self.decoder.along_tree(tree, self.decoder.keys_values(steered_BSD))

    def start(self, history: HistoryBatch) -> DecodingState:
        """Encode the histories and project all cross-attention keys and values, once per user."""
        memory_BSD, said_BD = self.encoder(history), said(history, self.words)
        last_B1 = self.encoder.last_position(history)[:, None]
        visible = torch.arange(memory_BSD.shape[1], device=memory_BSD.device) <= last_B1
        last = last_B1[..., None].expand(-1, 1, memory_BSD.shape[-1])
        return DecodingState(
            keys_values=self.decoder.keys_values(self._steered(memory_BSD, history, said_BD)),
            visible=visible[:, None, None],
            dense_query_BD=self._query(memory_BSD.gather(1, last), said_BD)[:, 0],
            cache=self.decoder.start(),
        )

    def next_codes(self, state: DecodingState, codes_BW: torch.Tensor | None) -> torch.Tensor | None:
        """Feed the codes chosen last (``None``: BOS) and return float32 log-probabilities of the next codes.

        Returns:
            ``[B, W, K]``, or ``None`` after the last code of an item, when only BOS can follow.
        """
        level = state.position % (self.num_levels + 1)
        hidden_BWD = self.decoder.step(codes_BW, state.position, state.keys_values, state.visible, state.cache)
        state.position += 1
        if level == self.num_levels:
            return None
        return self.decoder.code_logits(hidden_BWD, level).log_softmax(-1)

    def item_vectors(self) -> torch.Tensor:
        """Item tower of the whole catalogue, ``[I, D]``, row 0 padding."""
        return self.item_tower.all_items()


def _reserved_rows(config: ModelConfig) -> dict[str, ReservedRows]:
    counts = {"user": config.unseen_user_rows, "author": config.unseen_author_rows}
    return {name: ReservedRows(count, config.unseen_share) for name, count in counts.items() if count}

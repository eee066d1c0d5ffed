"""The sequence of codes that a decoder reads and predicts, whatever its layers look like.

Legend: N rows (prediction points that are decoded), B users, P prediction points per user, T decoder positions, S memory
positions, L levels, K codes per level, M items per session, W beams, D width.

Layout (OneRec v1, eq. 3): ``[BOS] c1 … cL`` for every item, a BOS before each. Position BOS predicts c1, c1 predicts c2,
…; what follows cL is a forced BOS, so cL's position predicts nothing and the last cL of a session is never fed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from recsys.model.config import ModelConfig
from recsys.model.encoder import CodeEmbedding
from recsys.model.layers.attention import KeysValues
from recsys.model.layers.beam_cache import BeamCache
from recsys.model.layers.precision import product_dtype, rounded_linear
from recsys.model.layers.prediction_points import PredictionPoints
from recsys.model.layers.prefix_tree import PrefixTree


class CodeBlock(Protocol):
    """A layer of a decoder."""

    def __call__(self, *arguments: Any) -> torch.Tensor:
        """Apply to whole sequences: ``(x_NTD, keys_values, points) -> x_NTD``."""
        ...

    def step(
        self, x_BWD: torch.Tensor, keys_values: KeysValues, visible: torch.Tensor, cache: BeamCache, layer: int
    ) -> torch.Tensor:
        """Advance W beams of B users by one position, beams on the query axis."""
        ...


class CodeSequence(nn.Module, ABC):
    """A decoder of one item or of a session of M items, level by level, one softmax per level.

    1. :meth:`embed` lays the codes out, with BOS and positions;
    2. the blocks of the decoder at hand read them and the memory;
    3. :meth:`read_out` gives a hidden state per code, :meth:`code_logits` its logits.

    A base class rather than a part of the decoders: in a part, the parameters would have other names in saved policies.

    Args:
        codes: Shared with the item tower.
        session_length: M at most.
    """

    blocks: nn.ModuleList
    kv_layer: tuple[int, ...]
    """Which of the keys and values each block reads."""

    def __init__(self, codes: CodeEmbedding, session_length: int) -> None:
        super().__init__()
        self.codes = codes
        self.num_levels = len(codes.level_sizes)
        self.session_length = session_length
        self._held_heads: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _add_inputs(self, config: ModelConfig) -> None:
        """Create BOS and positions; apart from ``__init__`` because the order of creation decides the random start."""
        self.bos_D = nn.Parameter(torch.empty(config.width).normal_(std=config.init_std))
        self.position = nn.Embedding(self.session_length * (self.num_levels + 1), config.width)
        nn.init.normal_(self.position.weight, std=config.init_std)
        self.dropout = nn.Dropout(config.embedding_dropout)

    @abstractmethod
    def layers(self) -> Sequence[CodeBlock]:
        """The blocks, first to last, with their type."""

    @abstractmethod
    def keys_values(self, memory_BSD: torch.Tensor) -> list[KeysValues]:
        """Cross-attention keys and values, computed once per user."""

    @abstractmethod
    def read_out(self, x_NTD: torch.Tensor, spread: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Turn what the last block gives into the states that predict each code, ``[B, P, M, L, D]``.

        Args:
            spread: Lays rows out by point, item and position, ``[N, T, D] -> [B, P, M, L + 1, D]``.
        """

    @abstractmethod
    def read_out_step(self, x_BWD: torch.Tensor, level: int) -> torch.Tensor:
        """The same for one position of the beams; level L, after the last code of an item, predicts nothing."""

    @abstractmethod
    def head(self, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights ``[K, D]`` and biases ``[K]`` of the softmax of one level."""

    def forward(
        self,
        codes_BPML: torch.Tensor,
        keys_values: list[KeysValues],
        visible_BP: torch.Tensor | None,
        point_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Teacher forcing.

        Args:
            codes_BPML: int64 codes of the target items, level by level (any code where there is no target).
            keys_values: From :meth:`keys_values`.
            visible_BP: Memory positions that a point may look at: ``memory[: visible + 1]`` (user and events); ``None``:
                all of them.
            point_N: int64 places in ``B * P`` of the points to decode, ascending; ``None``: all.

        Returns:
            Hidden states that predict code ``l`` of item ``m``, ``[B, P, M, L, D]``.
        """
        b, p, m, levels = codes_BPML.shape
        positions, memory_size = m * (levels + 1) - 1, keys_values[0][0].shape[2]
        points = PredictionPoints.from_places((b, p), visible_BP, point_N, positions, memory_size)
        x_NTD = self.embed(points.pick(codes_BPML.view(b * p, m, levels)))
        for block, place in zip(self.layers(), self.kv_layer, strict=True):
            x_NTD = block(x_NTD, keys_values[place], points)

        def spread(rows: torch.Tensor) -> torch.Tensor:
            # the position of cL predicts nothing; the very last one was never fed
            return nn.functional.pad(points.spread(rows), (0, 0, 0, 1)).view(b, p, m, levels + 1, -1)

        return self.read_out(x_NTD, spread)

    def along_tree(self, tree: PrefixTree, keys_values: list[KeysValues]) -> list[torch.Tensor]:
        """Log-probabilities of the next code after every prefix of single items.

        Returns:
            Per level, float32 ``[N_l, K_l]``.
        """
        parts = [self.bos_D.expand(tree.users, -1)]
        parts += [self.codes(codes, level) for level, codes in enumerate(tree.codes)]
        x_N1D = torch.cat([part + self.position.weight[level] for level, part in enumerate(parts)])[:, None]
        x_N1D = self.dropout(x_N1D)
        for block, place in zip(self.layers(), self.kv_layer, strict=True):
            x_N1D = block(x_N1D, keys_values[place], tree)
        found = []
        for level, here in enumerate(tree.level_slices):
            found.append(self.code_logits(self.read_out_step(x_N1D[here, 0], level), level).log_softmax(-1))
        return found

    def embed(self, codes_NML: torch.Tensor) -> torch.Tensor:
        """Embed ``[BOS] c1 … cL`` per item, without the last code: ``[N, M * (L + 1) - 1, D]``."""
        n, m, _ = codes_NML.shape
        parts = [self.bos_D.expand(n, m, -1)]
        parts += [self.codes(codes_NML[..., level], level) for level in range(self.num_levels)]
        x_NTD = torch.stack(parts, dim=2).view(n, m * (self.num_levels + 1), -1)[:, :-1]
        return self.dropout(x_NTD + self.position.weight[: x_NTD.shape[1]])

    def code_logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Logits over the K codes of one level, ``[..., D] -> [..., K]``.

        Float32 sums and results; on a GPU in mixed precision of rounded factors, on tensor cores.
        """
        if self._held_heads:
            weight, bias = self._held_heads[level]
            return rounded_linear(hidden, weight, bias, weight.dtype)
        return rounded_linear(hidden, *self.head(level), product_dtype(hidden.device))

    def hold_heads(self, dtype: torch.dtype) -> None:
        """From now on multiply by copies of the heads in ``dtype``, made once; for decoding a policy that stays as it is."""
        heads = [self.head(level) for level in range(self.num_levels)]
        self._held_heads = [(weight.detach().to(dtype), bias.detach().float()) for weight, bias in heads]

    def level_rows(self, level: int) -> slice:
        """Where the K codes of one level stand among those of all levels."""
        first = self.codes.offsets[level]
        return slice(first, first + self.codes.level_sizes[level])

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
            ``[B, W, D]``, ready for :meth:`code_logits`.
        """
        level = position % (self.num_levels + 1)
        bos_BWD = self.bos_D.expand(visible.shape[0], cache.width, -1)
        x_BWD = (bos_BWD if codes_BW is None else self.codes(codes_BW, level - 1)) + self.position.weight[position]
        for layer, (block, place) in enumerate(zip(self.layers(), self.kv_layer, strict=True)):
            x_BWD = block.step(x_BWD, keys_values[place], visible, cache, layer)
        cache.finish_step()
        return self.read_out_step(x_BWD, level)

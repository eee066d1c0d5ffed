"""The prediction points of a batch: which of them the decoder works on, and what each may see of the history.

Legend: B users, P prediction points per user, N points that are decoded, T decoder positions per point, S memory positions,
D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from recsys.model.layers.attention import KeysValues


class MemoryAttention(Protocol):
    """Attention from decoder positions to given keys and values."""

    def __call__(self, x_BRD: torch.Tensor, keys_values: KeysValues, mask: torch.Tensor | None, /) -> torch.Tensor:
        """Attend, one row per user; ``mask`` is ``[B, 1, R, S]``, ``None``: everything is visible."""
        ...


class CausalAttention(Protocol):
    """Self-attention over the positions of each row."""

    def __call__(self, x_NTD: torch.Tensor, /, *, causal: bool = False) -> torch.Tensor:
        """Attend within each row."""
        ...


class DecodedRows(Protocol):
    """What the N rows of a decoder are: points, or the prefixes of a tree."""

    def attend_within(self, attention: Any, x_NTD: torch.Tensor, /) -> torch.Tensor:
        """Attend from every position to what was decoded before it."""
        ...

    def attend(self, attention: MemoryAttention, x_NTD: torch.Tensor, keys_values: KeysValues, /) -> torch.Tensor:
        """Attend from every position to its user's memory."""
        ...


@dataclass(frozen=True)
class PredictionPoints:
    """The points of B users, of which the decoder runs those that ask for something.

    Users of a batch have different numbers of targets, and what stands in the gaps would cost as much as a target. So the
    decoder's rows are the asked points alone, and only for attention to the history, whose keys and values belong to a
    user, are they put back in their places.

    Attributes:
        shape: (B, P).
        place_N: int64 places of the decoded points in ``B * P``, ascending; ``None``: all of them.
        visible: Boolean ``[B, 1, P * T, S]``, true where a position may look at the memory; ``None``: everywhere.
    """

    shape: tuple[int, int]
    place_N: torch.Tensor | None
    visible: torch.Tensor | None

    @classmethod
    def from_places(
        cls,
        shape: tuple[int, int],
        visible_BP: torch.Tensor | None,
        point_N: torch.Tensor | None,
        positions: int,
        memory_size: int,
    ) -> PredictionPoints:
        """Lay out the points.

        Args:
            shape: (B, P).
            visible_BP: Last memory position that a point may look at; ``None``: all may look everywhere.
            point_N: int64 places in ``B * P`` of the points with a target, ascending; ``None``: all. Where no point has
                one, the first is decoded, so that every parameter is part of the result.
            positions: T.
            memory_size: S.

        Example:
            >>> visible, asked = torch.zeros(2, 2, dtype=torch.int64), torch.tensor([0, 2, 3])
            >>> PredictionPoints.from_places((2, 2), visible, asked, positions=3, memory_size=5).place_N
            tensor([0, 2, 3])
        """
        users, points = shape
        visible = None
        if visible_BP is not None:
            visible_BPS = torch.arange(memory_size, device=visible_BP.device) <= visible_BP[..., None]
            visible_BPTS = visible_BPS[:, :, None].expand(users, points, positions, memory_size)
            visible = visible_BPTS.reshape(users, 1, points * positions, memory_size)
        if point_N is not None and len(point_N) == 0:
            point_N = point_N.new_zeros(1)
        place_N = None if point_N is None or len(point_N) == users * points else point_N
        return cls(shape, place_N, visible)

    def pick(self, full: torch.Tensor) -> torch.Tensor:
        """Rows of the decoded points, ``[B * P, ...] -> [N, ...]``."""
        return full if self.place_N is None else full.index_select(0, self.place_N)

    def spread(self, picked: torch.Tensor) -> torch.Tensor:
        """Put the rows back, ``[N, ...] -> [B * P, ...]``; zeros for the others."""
        if self.place_N is None:
            return picked
        users, points = self.shape
        return picked.new_zeros(users * points, *picked.shape[1:]).index_copy(0, self.place_N, picked)

    def attend_within(self, attention: CausalAttention, x_NTD: torch.Tensor) -> torch.Tensor:
        """Attend from every decoder position to those before it, point by point."""
        return attention(x_NTD, causal=True)

    def attend(self, attention: MemoryAttention, x_NTD: torch.Tensor, keys_values: KeysValues) -> torch.Tensor:
        """Attend from every decoded point to its user's memory, ``[N, T, D] -> [N, T, D]``."""
        full = self.spread(x_NTD)
        queries = full.view(self.shape[0], -1, full.shape[-1])
        return self.pick(attention(queries, keys_values, self.visible).view(full.shape))

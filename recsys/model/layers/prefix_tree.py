"""The prefixes of a user's candidate items as one tree, of which a decoder computes every node once.

Candidates of a beam begin alike, and what begins alike is computed alike. A node is a prefix; it attends to its own line of
ancestors and to the user's memory, and predicts the next code.

Legend: B users, G candidates per user, L levels, N nodes of all levels, N_l nodes of level l (prefixes of l codes), W nodes
per user at most, S memory positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from recsys.model.layers.attention import KeysValues
from recsys.model.layers.prediction_points import MemoryAttention


class PrefixAttention(Protocol):
    """Self-attention that gives its projections away."""

    out: torch.nn.Linear

    def project(self, x_NTD: torch.Tensor, /) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys, values, each ``[N, T, A, C]``."""
        ...


@dataclass(frozen=True)
class PrefixTree:
    """Different prefixes of each user, level by level: first everybody's empty one (BOS), then those of one code, ….

    Attributes:
        users: B.
        codes: Per level from 1, int64 ``[N_l]`` last code of the prefix.
        lines: Per level, int64 ``[N_l, l + 1]`` numbers among all N nodes of the prefix's line, from BOS to itself.
        node_BG: Per level, int64 ``[B, G]`` which of the level's nodes predicts a candidate's next code; 0 where the
            candidate does not exist.
        place_N: int64 place of every node in ``B * W``: nodes of a user stand side by side.
        width: W.
        visible: Boolean ``[B, 1, 1, S]`` memory that a user's nodes may look at; ``None``: all of it.
    """

    users: int
    codes: tuple[torch.Tensor, ...]
    lines: tuple[torch.Tensor, ...]
    node_BG: tuple[torch.Tensor, ...]
    place_N: torch.Tensor
    width: int
    visible: torch.Tensor | None = None

    @classmethod
    def from_codes(cls, codes_BGL: torch.Tensor, exists_BG: torch.Tensor, level_sizes: Sequence[int]) -> PrefixTree:
        """Find the different prefixes; a candidate's last code is predicted and begins nothing.

        Args:
            codes_BGL: int64, anything where the candidate does not exist.

        Example:
            Items (1, 0), (2, 0) and (1, 3): the root, and two prefixes of one code.

            >>> codes = torch.tensor([[[1, 0], [2, 0], [1, 3]]])
            >>> tree = PrefixTree.from_codes(codes, torch.ones(1, 3, dtype=torch.bool), (4, 4))
            >>> tree.codes[0].tolist(), tree.node_BG[1].tolist(), tree.lines[1].tolist()
            ([1, 2], [[0, 1, 0]], [[0, 1], [0, 2]])
        """
        users = len(codes_BGL)
        everybody = torch.arange(users, device=codes_BGL.device)
        owner_N, lines = [everybody], [everybody[:, None]]
        nodes = [everybody[:, None].expand_as(exists_BG)]
        codes: list[torch.Tensor] = []
        first = users
        for level in range(len(level_sizes) - 1):
            key_BG = nodes[-1] * level_sizes[level] + codes_BGL[..., level]
            key_M, node_R = key_BG[exists_BG].unique(return_inverse=True)
            parent_M = key_M // level_sizes[level]
            own_M = first + torch.arange(len(key_M), device=key_M.device)
            lines.append(torch.cat([lines[-1][parent_M], own_M[:, None]], dim=1))
            owner_N.append(owner_N[-1][parent_M])
            codes.append(key_M % level_sizes[level])
            nodes.append(torch.zeros_like(key_BG).masked_scatter(exists_BG, node_R))
            first += len(key_M)
        owner = torch.cat(owner_N)
        count_B = owner.bincount(minlength=users)
        order_N = owner.argsort(stable=True)
        slot_N = torch.empty_like(owner)
        slot_N[order_N] = torch.arange(first, device=owner.device) - (count_B.cumsum(0) - count_B)[owner[order_N]]
        width = int(count_B.max()) if users else 0
        return cls(users, tuple(codes), tuple(lines), tuple(nodes), owner * width + slot_N, width)

    @property
    def level_slices(self) -> list[slice]:
        """Where the nodes of each level stand among all."""
        ends = [0]
        for line in self.lines:
            ends.append(ends[-1] + len(line))
        return [slice(begin, end) for begin, end in pairwise(ends)]

    def attend_within(self, attention: PrefixAttention, x_N1D: torch.Tensor) -> torch.Tensor:
        """Attend from every node to its line of ancestors and itself."""
        q_NAC, k_NAC, v_NAC = (part[:, 0] for part in attention.project(x_N1D))
        mixed = []
        for here, line in zip(self.level_slices, self.lines, strict=True):
            if line.shape[1] == 1:  # one position to look at
                mixed.append(v_NAC[here])
                continue
            # one row of keys per place of the line: short, and elementwise as in `attend_few`
            q_MAC = q_NAC[here] * q_NAC.shape[-1] ** -0.5
            weights = torch.stack([(q_MAC * k_NAC[node_M]).sum(-1) for node_M in line.unbind(1)]).softmax(0)
            values = [v_NAC[node_M] for node_M in line.unbind(1)]
            mixed.append(sum(w[..., None] * v for w, v in zip(weights, values, strict=True)))
        return attention.out(torch.cat(mixed).view_as(x_N1D))

    def attend(self, attention: MemoryAttention, x_N1D: torch.Tensor, keys_values: KeysValues) -> torch.Tensor:
        """Attend from every node to its user's memory."""
        full = x_N1D.new_zeros(self.users * self.width, x_N1D.shape[-1]).index_copy(0, self.place_N, x_N1D[:, 0])
        attended = attention(full.view(self.users, self.width, -1), keys_values, self.visible)
        return attended.reshape(full.shape).index_select(0, self.place_N)[:, None]

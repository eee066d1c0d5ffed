"""The prefix index on a search's device, as the packed arrays themselves: 10M items cost the search 70 MB.

Legend: B users, W beams, C children of a node.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys.decoding.prefix_index import BLOCK, Pointers, PrefixIndex

DENSE_BYTES = 4 << 20
"""Largest table of a level's child codes."""

_SIGNED = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}


@dataclass(frozen=True)
class PackedTensor:
    """Unsigned integers in the smallest type torch can index; reading gives int64.

    Torch's unsigned types beyond 8 bits cannot be indexed everywhere, so the bits of uint16 and uint32 are kept in the
    signed type of the same width and masked after reading.
    """

    bits: torch.Tensor
    mask: int

    @classmethod
    def from_array(cls, array: npt.NDArray[np.unsignedinteger[Any]], device: torch.device | str) -> PackedTensor:
        """Share the array's memory on a CPU; copy it to any other device."""
        signed = _SIGNED.get(array.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # torch warns that a mapped file is not writable; nobody writes
            bits = torch.from_numpy(np.asarray(array).view(signed) if signed else np.asarray(array))
        return cls(bits.to(device), (1 << (8 * array.dtype.itemsize)) - 1)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        values = self.bits[index].long()
        return values & self.mask if self.bits.dtype != torch.uint8 else values


@dataclass(frozen=True)
class PackedPointers:
    """:class:`~recsys.decoding.prefix_index.Pointers` on a device; reading gives int64."""

    base: PackedTensor
    offset: PackedTensor

    @classmethod
    def from_pointers(cls, pointers: Pointers, device: torch.device | str) -> PackedPointers:
        """Take over both arrays."""
        return cls(PackedTensor.from_array(pointers.base, device), PackedTensor.from_array(pointers.offset, device))

    def __getitem__(self, node: torch.Tensor) -> torch.Tensor:
        return self.base[node // BLOCK] + self.offset[node]


@dataclass(frozen=True)
class SearchIndex:
    """A prefix index as tensors of one device."""

    codes: tuple[PackedTensor, ...]
    first_child: tuple[PackedPointers, ...]
    leaf_item: PackedTensor
    max_children: tuple[int, ...]

    @classmethod
    def from_index(cls, index: PrefixIndex, device: torch.device | str = "cpu") -> SearchIndex:
        """Take over the flat arrays."""
        return cls(
            tuple(PackedTensor.from_array(codes, device) for codes in index.codes),
            tuple(PackedPointers.from_pointers(pointers, device) for pointers in index.first_child),
            PackedTensor.from_array(index.leaf_item, device),
            index.max_children,
        )

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.codes)

    @cached_property
    def node_of_item(self) -> tuple[torch.Tensor, ...]:
        """Per level, the node above each item_index, int64 ``[I]``."""
        leaf_item = self.leaf_item[torch.arange(len(self.leaf_item.bits), device=self.leaf_item.bits.device)]
        above = torch.empty_like(leaf_item)
        above[leaf_item] = torch.arange(len(leaf_item), device=leaf_item.device)
        nodes = [above]
        for parent in reversed(self.parents):
            above = parent[above]
            nodes.insert(0, above)
        return tuple(nodes)

    @cached_property
    def item_of_leaf(self) -> torch.Tensor:
        """item_index of every leaf, int32 ``[I]``: the order in which items below one node stand side by side."""
        return self.leaf_item[torch.arange(len(self.leaf_item.bits), device=self.leaf_item.bits.device)].int()

    @cached_property
    def first_leaf(self) -> tuple[torch.Tensor, ...]:
        """Per level but the last, int64 ``[V + 1]``: node ``n`` has the leaves ``[first[n], first[n + 1])`` below it."""
        found: list[torch.Tensor] = []
        for first in reversed(self.first_below):
            found.insert(0, found[0][first] if found else first)
        return tuple(found)

    @cached_property
    def most_leaves(self) -> tuple[int, ...]:
        """Per level but the last, the most leaves below one node."""
        return tuple(int(first.diff().max()) for first in self.first_leaf)

    @cached_property
    def first_below(self) -> tuple[torch.Tensor, ...]:
        """Per level but the last, int64 ``[V + 1]``: node ``n`` has the children ``[first[n], first[n + 1])``."""
        return tuple(
            pointers[torch.arange(len(pointers.offset.bits), device=pointers.offset.bits.device)]
            for pointers in self.first_child
        )

    @cached_property
    def parents(self) -> tuple[torch.Tensor, ...]:
        """Per level but the last, the node above each node of the next level, int64 ascending."""
        return tuple(
            torch.repeat_interleave(torch.arange(len(first) - 1, device=first.device), first.diff())
            for first in self.first_below
        )

    @cached_property
    def items_below(self) -> tuple[torch.Tensor, ...]:
        """Per level, how many items are below each node, int64."""
        return tuple(
            torch.bincount(nodes, minlength=len(codes.bits))
            for nodes, codes in zip(self.node_of_item, self.codes, strict=True)
        )

    @cached_property
    def _dense_codes(self) -> tuple[torch.Tensor | None, ...]:
        """Per level a table of child codes, ``[nodes above, C]``, or ``None`` where it would be large.

        The upper levels have few nodes with many children each: a row of a table is read much faster than its codes one
        by one. Entries have the smallest type that holds them.
        """
        return tuple(self._dense_level(level) for level in range(self.num_levels))

    def _dense_level(self, level: int) -> torch.Tensor | None:
        nodes = len(self.first_child[level - 1].offset.bits) - 1 if level else 1
        packed = self.codes[level].bits.dtype
        dtype = packed if packed == torch.uint8 else torch.int32
        if nodes * self.max_children[level] * dtype.itemsize > DENSE_BYTES:
            return None
        child, exists = self.children(torch.arange(nodes, device=self.codes[level].bits.device), level)
        return self.codes[level][child].masked_fill_(~exists, 0).to(dtype)

    def child_codes(self, node_BW: torch.Tensor, child_BWC: torch.Tensor, level: int) -> torch.Tensor:
        """Code of every child from :meth:`children`, int64 ``[B, W, C]``; any code where there is no child."""
        dense = self._dense_codes[level]
        return self.codes[level][child_BWC] if dense is None else dense[node_BW].long()

    def children(self, node_BW: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Child nodes at ``level`` of every beam's node, ``[B, W, C]`` int64, and which of them exist.

        Those that do not exist name some other node of the level.
        """
        fan_out = torch.arange(self.max_children[level], device=node_BW.device)
        if level == 0:
            child = fan_out.expand(*node_BW.shape, -1)
            return child, torch.ones_like(child, dtype=torch.bool)
        pointers = self.first_child[level - 1]
        first_BW = pointers[node_BW]
        exists = fan_out < (pointers[node_BW + 1] - first_BW)[..., None]
        child = (first_BW[..., None] + fan_out).clamp_(max=len(self.codes[level].bits) - 1)
        return child, exists

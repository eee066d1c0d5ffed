"""The catalogue as a prefix tree in flat arrays: which codes may follow a prefix, and which item a full path is.

Reads the codes of all items; produces, per level, the code of every node and the first child of every node. Children of
a node are contiguous, so a node's children are the range ``first_child[n] : first_child[n + 1]`` of the next level, and
the state of a beam is one integer. Leaves are items: their numbers are positions in ``leaf_item``.

Example (3 items, 2 levels): items 0:(0,1) 1:(0,2) 2:(3,0) give level 0 nodes [0, 3] with children [0:2] and [2:3], level 1
nodes [1, 2, 0] which are the leaves of items [0, 1, 2].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import read_json, write_json

BLOCK: Final = 16
"""Nodes that share one full-width pointer in :class:`Pointers`."""


@dataclass(frozen=True)
class Pointers:
    """First child of every node of a level, packed: one uint32 per block of nodes and one small offset per node.

    Attributes:
        base: uint32 ``[blocks]``, the pointer of each block's first node.
        offset: uint8, uint16 or uint32 ``[nodes + 1]``, to be added to the block's base.
    """

    base: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.unsignedinteger[Any]]

    @classmethod
    def pack(cls, pointers: npt.NDArray[np.int64]) -> Pointers:
        """Pack rising pointers, ``[nodes + 1]``."""
        base = pointers[::BLOCK]
        offset = pointers - np.repeat(base, BLOCK)[: len(pointers)]
        return cls(base.astype(np.uint32), offset.astype(np.min_scalar_type(int(offset.max()))))

    def full(self) -> npt.NDArray[np.int64]:
        """Unpack, ``[nodes + 1]``."""
        return np.repeat(self.base.astype(np.int64), BLOCK)[: len(self.offset)] + self.offset

    @property
    def nbytes(self) -> int:
        """Size of both arrays."""
        return self.base.nbytes + self.offset.nbytes


@dataclass(frozen=True)
class PrefixIndex:
    """Flat prefix tree of L levels.

    Attributes:
        codes: Per level, ``[nodes_l]`` of the smallest unsigned type that holds K - 1 (uint8 up to K = 256): the code that
            leads into each node; ascending within one parent.
        first_child: Per level but the last, pointers into the next level's nodes.
        leaf_item: uint32 ``[items]``: item_index of each leaf (node of the last level).
        level_sizes: K per level.
        max_children: Per level, the largest number of children of one parent (``max_children[0]`` is the root's).
    """

    codes: tuple[npt.NDArray[np.unsignedinteger[Any]], ...]
    first_child: tuple[Pointers, ...]
    leaf_item: npt.NDArray[np.uint32]
    level_sizes: tuple[int, ...]
    max_children: tuple[int, ...]

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.codes)

    @property
    def num_items(self) -> int:
        """Leaves."""
        return len(self.leaf_item)

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return sum(c.nbytes for c in self.codes) + sum(p.nbytes for p in self.first_child) + self.leaf_item.nbytes

    @cached_property
    def leaf_of_item(self) -> npt.NDArray[np.int64]:
        """``[I]`` leaf number of each item_index."""
        leaf_of_item = np.empty(self.num_items, np.int64)
        leaf_of_item[self.leaf_item.astype(np.int64)] = np.arange(self.num_items)
        return leaf_of_item

    @cached_property
    def ancestors(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Per level, the node above each leaf; for the last level, the leaf itself."""
        above = np.arange(self.num_items)
        ancestors = [above]
        for packed in reversed(self.first_child):
            pointers = packed.full()
            above = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))[above]
            ancestors.insert(0, above)
        return tuple(ancestors)

    @classmethod
    def build(cls, codes_IL: npt.NDArray[np.integer], level_sizes: tuple[int, ...]) -> PrefixIndex:
        """Build from the codes of all items, ``[I, L]``; cost is one sort.

        Raises:
            DataError: No items, codes outside their level, or two items with the same codes.
        """
        num_items, num_levels = codes_IL.shape
        if num_items == 0:
            raise DataError("prefix index: the catalogue holds no items; expected at least one")
        if num_levels != len(level_sizes):
            raise DataError(
                f"prefix index: codes have {num_levels} levels, level_sizes {level_sizes} has {len(level_sizes)}"
            )
        out_of_range = (codes_IL < 0) | (codes_IL >= np.array(level_sizes))
        if out_of_range.any():
            item, level = np.argwhere(out_of_range)[0]
            raise DataError(
                f"prefix index: item_index {item} has code {codes_IL[item, level]} at level {level}, "
                f"expected 0..{level_sizes[level] - 1}; tokenize again"
            )
        order = _sorted_order(codes_IL, level_sizes)
        ordered = codes_IL[order]
        new_node = np.zeros(num_items, bool)
        new_node[0] = True
        level_codes, first_child, starts_above, max_children = [], [], np.array([0, num_items]), []
        for level in range(num_levels):
            new_node[1:] |= ordered[1:, level] != ordered[:-1, level]
            starts = np.flatnonzero(new_node)
            level_codes.append(ordered[starts, level].astype(np.min_scalar_type(level_sizes[level] - 1)))
            pointers = np.searchsorted(starts, starts_above)
            max_children.append(int(np.diff(pointers).max()))
            if level:
                first_child.append(Pointers.pack(pointers))
            starts_above = np.append(starts, num_items)
        if len(starts) != num_items:
            repeated = int(num_items - len(starts))
            raise DataError(f"prefix index: {repeated} items share their codes with another; tokenize with unique IDs")
        return cls(
            tuple(level_codes), tuple(first_child), order.astype(np.uint32), tuple(level_sizes), tuple(max_children)
        )

    def leaf_counts(self, leaves: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
        """Count, for every node of every level, the marked leaves below it."""
        counts = [leaves.astype(np.int64)]
        for packed in reversed(self.first_child):
            total, pointers = np.concatenate([[0], np.cumsum(counts[0])]), packed.full()
            counts.insert(0, total[pointers[1:]] - total[pointers[:-1]])
        return counts

    def save(self, folder: Path) -> None:
        """Write plain ``.npy`` files, which :meth:`open` maps into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        for level, codes in enumerate(self.codes):
            np.save(folder / f"codes_{level}.npy", codes)
        for level, pointers in enumerate(self.first_child):
            np.save(folder / f"child_base_{level}.npy", pointers.base)
            np.save(folder / f"child_offset_{level}.npy", pointers.offset)
        np.save(folder / "leaf_item.npy", self.leaf_item)
        write_json(folder / "index.json", {"level_sizes": self.level_sizes, "max_children": self.max_children})

    @classmethod
    def open(cls, folder: Path) -> PrefixIndex:
        """Open a saved index, memory-mapped.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        spec = read_json(folder / "index.json")
        levels = len(spec["level_sizes"])
        try:
            codes = tuple(_map(folder / f"codes_{level}.npy") for level in range(levels))
            pointers = tuple(
                Pointers(_map(folder / f"child_base_{level}.npy"), _map(folder / f"child_offset_{level}.npy"))
                for level in range(levels - 1)
            )
            leaf_item = _map(folder / "leaf_item.npy")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"prefix index in '{folder}' cannot be opened: {error}; tokenize again") from error
        return cls(codes, pointers, leaf_item, tuple(spec["level_sizes"]), tuple(spec["max_children"]))


def _sorted_order(codes_IL: npt.NDArray[np.integer], level_sizes: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Order of the items by their codes, first level first."""
    if np.prod([float(size) for size in level_sizes]) < 2.0**63:  # all codes fit one number, whose sort is far cheaper
        key = codes_IL[:, 0].astype(np.int64)
        for level in range(1, len(level_sizes)):
            key = key * level_sizes[level] + codes_IL[:, level]
        return np.argsort(key)
    return np.lexsort(codes_IL.T[::-1])


def _map(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array

"""Rules compiled once for a catalogue: masks over items become counts and flags over the nodes of its index (stage 2 of 3).

Shared rules become, per level, "does this node still lead to an allowed item"; a user's own list becomes the nodes that it
leaves without any, and how much it takes away below the others.

Legend: B users of a batch, U users, R longest personal list, S segments, I items, V nodes of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import DataError
from recsys.data.histories import Histories
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.batch_rules import NO_NODE, BatchRules, Denied, PersonalRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.rules.personal_lists import PersonalLists
from recsys.decoding.rules.seen_items import close_seen, padded_items, padded_lists
from recsys.decoding.search_index import SearchIndex
from recsys.decoding.transfers import to_device

_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class CompiledRules:
    """Rules for one catalogue, good for any number of batches.

    Attributes:
        index: The catalogue.
        exclude_seen: A user's history is a personal list of denied items.
        alive: Per level, bool ``[S, V]``: the node leads to an item that the segment allows. ``None`` when all are allowed.
        allowed_below: Per level, int64 ``[S, V]``: how many allowed items are below the node.
        below: The same on ``device``.
        segment_U: int64 ``[U]`` segment of each user; ``None`` puts all into the first.
        quotas: Limits per group, on ``device``.
        device: Where the search runs.
        search_index: The catalogue on ``device``. Where it is given, seen items become rules there, by tensors
            (:mod:`recsys.decoding.rules.seen_items`); ``None``: in NumPy, which is faster beside a CPU.
        denied_U: Items that each user may not be shown, beside what was seen.
    """

    index: PrefixIndex
    exclude_seen: bool
    alive: tuple[torch.Tensor, ...] | None
    allowed_below: tuple[npt.NDArray[np.int64], ...]
    segment_U: npt.NDArray[np.int64] | None = None
    quotas: Quotas | None = None
    device: torch.device | str = "cpu"
    below: tuple[torch.Tensor, ...] = ()
    search_index: SearchIndex | None = None
    denied_U: PersonalLists | None = None

    @classmethod
    def compile(
        cls,
        index: PrefixIndex,
        rules: ItemRules,
        *,
        exclude_seen: bool,
        device: torch.device | str = "cpu",
        search_index: SearchIndex | None = None,
    ) -> CompiledRules:
        """Turn masks over item_index into node masks.

        Args:
            exclude_seen: What ``rules`` say, or where they say nothing the decode configuration.
            device: Where the search runs.
            search_index: The same catalogue there, to make rules of seen items by tensors.

        Raises:
            DataError: A mask has another length than the catalogue, all of them together allow nothing, or segments are
                missing or do not exist, or a personal list names an item outside the catalogue.
        """
        alive, allowed_below = _node_masks(index, rules.allowed)
        _check_segments(rules.segments, len(allowed_below[0]))
        _check_lists(rules.personal, index.num_items)
        quotas = rules.quotas.to(device) if rules.quotas is not None else None
        return cls(
            index=index,
            exclude_seen=exclude_seen,
            alive=None if alive is None else tuple(level.to(device) for level in alive),
            allowed_below=allowed_below,
            segment_U=rules.segments,
            quotas=quotas,
            device=device,
            below=tuple(torch.from_numpy(level).to(device) for level in allowed_below),
            search_index=search_index,
            denied_U=rules.personal,
        )

    def take(self, rows: npt.NDArray[np.integer]) -> CompiledRules:
        """Rules of the users given by number."""
        if self.segment_U is None and self.denied_U is None:
            return self
        segment_U = None if self.segment_U is None else self.segment_U[rows]
        return replace(self, segment_U=segment_U, denied_U=None if self.denied_U is None else self.denied_U.take(rows))

    def check_users(self, num_users: int) -> None:
        """Refuse to be used for another number of users than the rules name segments or personal lists for.

        Raises:
            DataError: They are not the same.
        """
        if self.segment_U is not None and self.segment_U.shape != (num_users,):
            raise DataError(f"segments have shape {self.segment_U.shape}, expected ({num_users},): one per history")
        if self.denied_U is not None and len(self.denied_U) != num_users:
            raise DataError(f"personal lists are of {len(self.denied_U)} users, expected {num_users}: one per history")

    def for_batch(self, histories: Histories, *, num_items: int = 1, list_length: int | None = None) -> BatchRules:
        """Rules of a batch: users and order are those of these rules.

        Args:
            histories: B users.
            num_items: Items of an answer; sessions of several need more of the personal lists.
            list_length: What is searched is a pool, from which a list of so many items is cut under the quotas.
        """
        self.check_users(len(histories))
        segment_B = None if self.segment_U is None else to_device(torch.from_numpy(self.segment_U), self.device)
        personal, count = None, num_items > 1
        if self.denied_U is not None:
            lists = self.denied_U.after(histories.seen_items() if self.exclude_seen else None)
            if self.search_index is None:
                personal = self.personal(lists, self.segment_U, count=count).to(self.device)
            else:
                listed_BR = to_device(padded_lists(lists), self.device)
                personal = close_seen(listed_BR, self.search_index, self.below, segment_B, count=count)
        elif self.exclude_seen and self.search_index is None:
            personal = self.personal(histories.seen_items(), self.segment_U, count=count).to(self.device)
        elif self.exclude_seen and self.search_index is not None:
            seen_BR = to_device(padded_items(histories), self.device)
            personal = close_seen(seen_BR, self.search_index, self.below, segment_B, count=count)
        return BatchRules(
            alive=self.alive,
            below=self.below,
            segment_B=segment_B,
            personal=personal,
            quotas=self.quotas.of_pool(list_length) if self.quotas is not None and list_length else self.quotas,
        )

    def personal(
        self,
        denied: Sequence[npt.NDArray[np.integer]],
        segments: npt.NDArray[np.int64] | None = None,
        *,
        count: bool = True,
    ) -> PersonalRules:
        """What each user's own list of denied items closes, and what it takes away below other nodes.

        A node is closed for a user when every item below it that the user's segment allows is on the list.

        Args:
            denied: Per user, the denied item_index; repeats are harmless.
            segments: int64 ``[B]`` segment of each user; ``None`` puts all into the first.
            count: Return the counts as well, which only sessions need.
        """
        num_users = len(denied)
        segment_B = segments if segments is not None else np.zeros(num_users, np.int64)
        closed, counted = [], []
        for level, (user, node, taken) in enumerate(self._taken_away(denied, segment_B)):
            shut = taken == self.allowed_below[level][segment_B[user], node]
            closed.append(_pad_lists(user[shut], node[shut], num_users))
            if count:
                counted.append(Denied(_pad_lists(user, node, num_users), _pad_lists(user, taken, num_users)))
        return PersonalRules(closed, counted if count else None)

    def denied_of(self, row: int) -> npt.NDArray[np.int64]:
        """Items that user number ``row`` may not be shown, beside what was seen."""
        return np.empty(0, np.int64) if self.denied_U is None else self.denied_U.of(row)

    def count_allowed(self, segment: int, denied: npt.NDArray[np.integer] = _NOTHING) -> int:
        """How many items a segment, or with ``denied`` a user of it, may have."""
        return int(self.allowed_below[0][segment].sum()) - self._count_listed(segment, denied)

    def count_left(
        self, segment: int, seen: npt.NDArray[np.integer], denied: npt.NDArray[np.integer] = _NOTHING
    ) -> int:
        """How many of them are left to a user with this history (all, where seen items may come again)."""
        left_out = np.concatenate([seen, denied]) if self.exclude_seen else denied
        return self.count_allowed(segment) - self._count_listed(segment, left_out)

    def _count_listed(self, segment: int, items: npt.NDArray[np.integer]) -> int:
        """How many different ones of these the segment allows."""
        leaves = self.index.leaf_of_item[np.unique(items).astype(np.int64)]
        return int((self.allowed_below[-1][segment, leaves] > 0).sum())

    def count_within_quotas(
        self, segment: int, seen: npt.NDArray[np.integer], denied: npt.NDArray[np.integer] = _NOTHING
    ) -> int:
        """Length of the longest list that such a user may have: of what is left, each group up to its limit."""
        if self.quotas is None:
            return self.count_left(segment, seen, denied)
        count_G, limit_G = self._left_per_group(self.quotas, segment, seen, denied)
        return int(count_G[0] + np.minimum(count_G[1:], limit_G[1:]).sum())

    def count_sessions(
        self,
        segment: int,
        seen: npt.NDArray[np.integer],
        length: int,
        denied: npt.NDArray[np.integer] = _NOTHING,
    ) -> int:
        """How many sessions of ``length`` different items such a user may have; the order of the items counts.

        Without quotas ``n! / (n - length)!`` of the n items that are left. With them, a session takes up to its limit of
        each group: the coefficient of ``x ** length`` in the product over groups of ``sum_j choose(n_g, j) x ** j``,
        times ``length!``.
        """
        if self.quotas is None:
            return math.perm(self.count_left(segment, seen, denied), length)
        count_G, limit_G = self._left_per_group(self.quotas, segment, seen, denied)
        limit_G[0] = length
        ways = [1] + [0] * length  # how many sets of 0 … length items; Python's numbers do not overflow
        for count, limit in zip(count_G.tolist(), limit_G.tolist(), strict=True):
            if count and limit:
                of_group = [math.comb(count, taken) for taken in range(min(limit, length) + 1)]
                ways = [
                    sum(of_group[j] * ways[n - j] for j in range(min(n + 1, len(of_group)))) for n in range(length + 1)
                ]
        return ways[length] * math.factorial(length)

    def _left_per_group(
        self, quotas: Quotas, segment: int, seen: npt.NDArray[np.integer], denied: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """How many items of each group are left to a user, and the limits, ``[G]`` each."""
        group_I, limit_G = quotas.group_I.cpu().numpy(), quotas.limit_G.cpu().numpy().copy()
        allowed = self.allowed_below[-1][segment] > 0
        count_G = np.bincount(group_I[self.index.leaf_item[allowed]], minlength=len(limit_G))
        items = np.unique(np.concatenate([seen, denied]) if self.exclude_seen else denied).astype(np.int64)
        items = items[allowed[self.index.leaf_of_item[items]]]
        count_G = count_G - np.bincount(group_I[items], minlength=len(limit_G))
        return count_G, limit_G

    def segment_of(self, row: int) -> int:
        """Segment of user number ``row``."""
        return int(self.segment_U[row]) if self.segment_U is not None else 0

    def _taken_away(
        self, denied: Sequence[npt.NDArray[np.integer]], segment_B: npt.NDArray[np.int64]
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Per level ``(user, node, number of allowed items denied below it)``, sorted by user and node."""
        index = self.index
        lengths = np.array([len(items) for items in denied])
        if lengths.sum() == 0:
            nothing = np.empty(0, np.int64)
            return [(nothing, nothing, nothing)] * index.num_levels
        user = np.repeat(np.arange(len(denied)), lengths)
        leaf = index.leaf_of_item[np.concatenate(denied).astype(np.int64)]
        pairs = np.unique(user * index.num_items + leaf)  # a repeated item counts once
        user, leaf = pairs // index.num_items, pairs % index.num_items
        if self.alive is not None:  # what is not allowed anyway closes nothing more
            keep = self.allowed_below[-1][segment_B[user], leaf] > 0
            user, leaf = user[keep], leaf[keep]
        result = []
        for level in range(index.num_levels):
            nodes_at_level = len(index.codes[level])
            keys, counts = np.unique(user * nodes_at_level + index.ancestors[level][leaf], return_counts=True)
            result.append((keys // nodes_at_level, keys % nodes_at_level, counts))
        return result


def _node_masks(
    index: PrefixIndex, allowed: npt.NDArray[np.bool_] | None
) -> tuple[tuple[torch.Tensor, ...] | None, tuple[npt.NDArray[np.int64], ...]]:
    """``alive`` and ``allowed_below`` of :class:`CompiledRules`, from a mask ``[I]`` or ``[S, I]``."""
    if allowed is None:
        return None, tuple(count[None] for count in index.leaf_counts(np.ones(index.num_items, bool)))
    masks_SI = np.atleast_2d(allowed)
    if masks_SI.shape[1] != index.num_items:
        raise DataError(
            f"allow/deny mask has shape {allowed.shape}, expected ({index.num_items},): one flag per item_index"
        )
    if not masks_SI.any():
        raise DataError("the item rules together leave no item of the catalogue to anybody; nothing can be recommended")
    per_segment = [index.leaf_counts(mask[index.leaf_item]) for mask in masks_SI]
    counts = tuple(np.stack(level) for level in zip(*per_segment, strict=True))
    return tuple(torch.from_numpy(count > 0) for count in counts), counts


def _check_segments(segments: npt.NDArray[np.int64] | None, num_segments: int) -> None:
    if segments is None and num_segments > 1:
        raise DataError(f"item rules have {num_segments} segments, but no segment is given for the histories")
    if segments is not None and len(segments) and not (segments.min() >= 0 and segments.max() < num_segments):
        raise DataError(f"segments run from {segments.min()} to {segments.max()}, expected 0..{num_segments - 1}")


def _check_lists(lists: PersonalLists | None, num_items: int) -> None:
    items = _NOTHING if lists is None else lists.items
    if len(items) and not (items.min() >= 0 and items.max() < num_items):
        raise DataError(
            f"personal lists hold item_index {items.min()} to {items.max()}, expected 0..{num_items - 1}; leave out items "
            "that the model does not know"
        )


def _pad_lists(user: npt.NDArray[np.int64], node: npt.NDArray[np.int64], num_users: int) -> torch.Tensor:
    """Turn sorted (user, node) pairs into ``[B, R]``."""
    counts = np.bincount(user, minlength=num_users)
    padded = np.full((num_users, int(counts.max(initial=0))), NO_NODE, np.int64)
    column = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded[user, column] = node
    return torch.from_numpy(padded)

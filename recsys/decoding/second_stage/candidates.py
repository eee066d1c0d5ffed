"""Candidates from several sources under one set of rules: the best of each source, united, each item once.

Reads item scores of whole batches and the rules of the batch; produces item lists. A search gives what it found; any other
source is a score of every item, and gives its best items that the user's rules allow. Ties go to the lower item_index, so
that an answer depends on neither the batch nor the device.

Legend: B users, I items, k places, N candidates of one source, T of all sources, C different candidates of a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from recsys.decoding.answers import NO_ITEM, sort_key, within_quotas
from recsys.decoding.rules.batch_rules import NO_NODE, BatchRules
from recsys.decoding.rules.item_rules import Quotas
from recsys.decoding.search_index import SearchIndex


def allowed_items(rules: BatchRules, index: SearchIndex, num_users: int) -> torch.Tensor | None:
    """Which items the shared and personal rules leave to each user, bool ``[B, I]``; ``None``: all."""
    last = index.num_levels - 1
    leaf_of_item = index.node_of_item[last]
    closed_BR = rules.closed(last, leaf_of_item.device)
    if rules.alive is None and (closed_BR is None or not closed_BR.shape[1]):
        return None
    num_items = len(leaf_of_item)
    if rules.alive is None:
        allowed_BV = torch.ones(num_users, num_items, dtype=torch.bool, device=leaf_of_item.device)
    else:
        alive_SV = rules.alive[last].to(leaf_of_item.device)
        allowed_BV = alive_SV[:1].expand(num_users, -1) if rules.segment_B is None else alive_SV[rules.segment_B]
    allowed_BI = allowed_BV[:, leaf_of_item]
    if closed_BR is None or not closed_BR.shape[1]:
        return allowed_BI
    item_BR = index.leaf_item[closed_BR.clamp(min=0)].masked_fill(closed_BR == NO_NODE, num_items)
    # padding of the lists is written into a column of its own
    padded_BI = torch.cat([allowed_BI, allowed_BI[:, :1]], dim=1)
    return padded_BI.scatter_(1, item_BR, False)[:, :-1]


def best_items(score_BI: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` best items of each user and their scores, best first; ``-inf`` marks what must not be chosen.

    Returns:
        int64 item_index ``[B, k']`` and scores, k' the smaller of ``k`` and I; -1 and ``-inf`` where fewer are possible.

    Example:
        >>> best_items(torch.tensor([[0.5, 0.9, 0.5, -torch.inf, 0.5]]), 3)[0].tolist()
        [[1, 0, 2]]
    """
    k = min(k, score_BI.shape[1])
    found, item = score_BI.topk(k, dim=1)
    if bool(found[:, 0].isnan().any()):  # torch puts NaN first
        found, item = sort_key(score_BI).sort(dim=1, descending=True, stable=True)
        return item[:, :k].masked_fill(found[:, :k] == -torch.inf, NO_ITEM), score_BI.gather(1, item[:, :k])
    last_B1 = found[:, -1:]
    # where more than k are at least as good as the last one, topk may have taken any of those that are equal to it
    unclear_B = ((score_BI >= last_B1).sum(1) > k) & (last_B1[:, 0] > -torch.inf)
    if bool(unclear_B.any()):
        item[unclear_B] = score_BI[unclear_B].argsort(dim=1, descending=True, stable=True)[:, :k]
    item = item.sort(dim=1).values
    found = score_BI.gather(1, item)
    found, order = found.sort(dim=1, descending=True, stable=True)
    return item.gather(1, order).masked_fill_(found == -torch.inf, NO_ITEM), found


def best_within_quotas(score_BI: torch.Tensor, k: int, quotas: Quotas | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`best_items`, walking down the order of scores and taking what its group's quota still admits."""
    if quotas is None:
        return best_items(score_BI, k)
    reach = min(4 * k, score_BI.shape[1])
    while True:
        item, found = best_items(score_BI, reach)
        if reach == score_BI.shape[1] or bool((quotas.is_filled(item, k) | (item[:, -1] == NO_ITEM)).all()):
            item, found = within_quotas(item, found, quotas, k)
            return item[:, :k], found[:, :k]
        reach = min(4 * reach, score_BI.shape[1])


@dataclass(frozen=True)
class Union:
    """Different candidates of each user, by rising item_index.

    Attributes:
        item_BC: int64, -1 behind the last.
        bits_BC: int64, bit ``s`` set where source number ``s`` brought the candidate.
        sources: Names of the sources, in the order of the bits.
    """

    item_BC: torch.Tensor
    bits_BC: torch.Tensor
    sources: tuple[str, ...]

    def found_by(self, source: str) -> torch.Tensor:
        """Which candidates a source brought, bool ``[B, C]``."""
        return (self.bits_BC >> self.sources.index(source)) & 1 == 1

    def spread(self, item_BN: torch.Tensor, value_BN: torch.Tensor, missing: float) -> torch.Tensor:
        """Give values of one source's items to the candidates, ``[B, C]``; others get ``missing``."""
        place_BN, hit_BN = self._places(item_BN)
        count = self.item_BC.shape[1]
        padded = value_BN.new_full((len(item_BN), count + 1), missing)
        return padded.scatter_(1, place_BN.masked_fill(~hit_BN, count), value_BN)[:, :-1]

    def bits_at(self, item_BN: torch.Tensor) -> torch.Tensor:
        """Which sources brought given items, ``[B, N]``; 0 where none did."""
        place_BN, hit_BN = self._places(item_BN)
        return self.bits_BC.gather(1, place_BN).masked_fill(~hit_BN, 0)

    def _places(self, item_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where items stand among the candidates, and which of them do."""
        ordered_BC = self.item_BC.masked_fill(self.item_BC < 0, torch.iinfo(torch.int64).max)
        place_BN = torch.searchsorted(ordered_BC, item_BN.contiguous()).clamp(max=self.item_BC.shape[1] - 1)
        return place_BN, (ordered_BC.gather(1, place_BN) == item_BN) & (item_BN >= 0)


def unite(lists: Mapping[str, torch.Tensor]) -> Union:
    """Unite item lists, each item once.

    Args:
        lists: By source, int64 ``[B, N]`` item_index without repeats in a row, -1 where there is none.

    Example:
        >>> both = unite({"beam": torch.tensor([[4, 2]]), "dense": torch.tensor([[2, -1]])})
        >>> both.item_BC.tolist(), both.bits_BC.tolist()
        ([[2, 4]], [[3, 1]])
    """
    item_BT = torch.cat(list(lists.values()), dim=1)
    bit_BT = torch.cat([torch.full_like(items, 1 << place) for place, items in enumerate(lists.values())], dim=1)
    none = torch.iinfo(torch.int64).max
    item_BT, order = item_BT.masked_fill(item_BT < 0, none).sort(dim=1, stable=True)
    bit_BT = bit_BT.gather(1, order)
    is_new = torch.nn.functional.pad(item_BT[:, 1:] != item_BT[:, :-1], (1, 0), value=True)
    place_BT = is_new.cumsum(1) - 1
    count = max(1, int(((item_BT != none) & is_new).sum(1).max())) if len(item_BT) else 1
    place_BT = place_BT.masked_fill(item_BT == none, count).clamp(max=count)
    item_BC = item_BT.new_full((len(item_BT), count + 1), NO_ITEM).scatter_(1, place_BT, item_BT)[:, :count]
    bits_BC = bit_BT.new_zeros(len(item_BT), count + 1).scatter_add_(1, place_BT, bit_BT)[:, :count]
    return Union(item_BC, bits_BC, tuple(lists))

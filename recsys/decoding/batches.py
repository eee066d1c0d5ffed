"""A batch of users, ready to be decoded: padded, with the rules of its search, on the policy's device.

Attention sums over all positions of a memory, so in float32 the last bits of an answer depend on how far the history was
padded. Every user is therefore padded to a width that follows from the own history (:func:`padded_width`), and users of
different widths are never decoded together (:func:`cut_batches`): whoever else is asked for changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.data.batch import HistoryBatch, collate_histories
from recsys.data.histories import Histories
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import Quotas

POSITIONS_TOGETHER: Final = 16
"""Memory positions by which histories are padded."""


def padded_width(events: int, max_history: int) -> int:
    """Events that a history of ``events`` is padded to: with the user's position whole tiles, of growing size.

    Beyond 128 events at most an eighth is padding.

    Example:
        >>> [padded_width(events, 200) for events in (0, 15, 16, 47, 128, 129, 180)]
        [15, 15, 31, 47, 143, 143, 191]
        >>> padded_width(40, max_history=45)
        45
    """
    step = max(POSITIONS_TOGETHER, 1 << max(0, events.bit_length() - 4))
    return min(-(-(events + 1) // step) * step - 1, max_history)


def cut_batches(
    rows: npt.NDArray[np.integer], events_N: npt.NDArray[np.integer], max_history: int, users: int
) -> list[npt.NDArray[np.integer]]:
    """Cut users into batches of one width each, shorter histories first.

    Args:
        rows: Numbers of the N users.
        events_N: Their events; the model reads at most ``max_history`` of them.
        users: Users of a batch at most.

    Example:
        >>> [batch.tolist() for batch in cut_batches(np.array([0, 1, 2, 3]), np.array([40, 3, 5, 4]), 50, users=2)]
        [[1, 3], [2], [0]]
    """
    events_N = np.minimum(events_N, max_history)
    order = np.argsort(events_N, kind="stable")
    room = np.array([padded_width(events, max_history) for events in range(max_history + 1)])
    widths = room[events_N[order]]
    groups: Sequence[npt.NDArray[np.integer]] = np.split(rows[order], np.flatnonzero(np.diff(widths)) + 1)
    return [group[start : start + users] for group in groups for start in range(0, len(group), users)]


@dataclass(frozen=True)
class PreparedBatch:
    """Everything about a batch that can be made before its turn.

    Attributes:
        histories: B users.
        batch: What the encoder reads.
        rules: Of the search; their quotas are those of the whole beam.
        quotas: Of the list that is cut from the beam.
    """

    histories: Histories
    batch: HistoryBatch
    rules: BatchRules
    quotas: Quotas | None

    @classmethod
    def of(
        cls,
        histories: Histories,
        rules: CompiledRules,
        max_history: int,
        device: torch.device,
        *,
        list_length: int | None = None,
        num_items: int = 1,
    ) -> PreparedBatch:
        """Collate users and make their rules: all that the host does for a batch.

        Args:
            rules: Compiled for these users.
            list_length: What is searched is a pool, from which a list of so many items is cut under the quotas.
            num_items: Items of an answer.
        """
        longest = min(int(histories.lengths.max(initial=0)), max_history)
        batch = collate_histories(histories, max_history, padded_width(longest, max_history))
        if device.type == "cuda":
            batch = batch.pin_memory()
        batch_rules = rules.for_batch(histories, num_items=num_items, list_length=list_length)
        return cls(histories, batch.to(device), batch_rules, rules.quotas)

"""A batch of users, ready to be decoded: padded, with the rules of its search, on the policy's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys.data.batch import HistoryBatch, collate_histories
from recsys.data.histories import Histories
from recsys.decoding.rules.batch_rules import BatchRules
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import Quotas


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
        batch = collate_histories(histories, max_history)
        if device.type == "cuda":
            batch = batch.pin_memory()
        batch_rules = rules.for_batch(histories, num_items=num_items, list_length=list_length)
        return cls(histories, batch.to(device), batch_rules, rules.quotas)

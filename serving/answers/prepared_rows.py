"""Any bundle's lists for rows of a prepared data set, in the data set's own indices.

Reads a bundle, opened, and rows of a split; produces what an evaluation compares. Ids are the bridge: a model of another
night has other indices, and an item that this data set does not have keeps its place as -1 and hits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Targets
from recsys.contracts.ranking import RankedItems
from recsys.decoding.rules.item_rules import ItemRules
from serving.answers.scorer import Scorer
from serving.bundle.catalogue import index_of
from serving.inputs.user_histories import MappedUsers, PreparedUsers


def answer_rows(
    scorer: Scorer, users: PreparedUsers, targets: Targets, places: int, *, exclude_seen: bool, rows_per_block: int
) -> Iterator[RankedItems]:
    """Answer rows block by block.

    Args:
        targets: N rows of ``users.prepared``.
        places: k, items per row.
        exclude_seen: Leave out the items of the history, whatever the bundle does by default.
        rows_per_block: Rows answered at once.

    Yields:
        ``[b, k]`` lists of item_index of the data set.

    Raises:
        DataError: The model knows other feedback signals, or ids of another kind.
    """
    here = index_of(scorer.catalogue.item_ids, users.prepared.items[Columns.ITEM_ID], "the model's item ids")
    rules = ItemRules(exclude_seen=exclude_seen)
    for first in range(0, len(targets), rows_per_block):
        block = targets.take(np.arange(first, min(first + rows_per_block, len(targets))))
        asked = MappedUsers(users.map_targets(block, scorer.catalogue))
        ranked = scorer.answer(scorer.request(asked, places, rules)).ranked
        assert isinstance(ranked, RankedItems)
        yield RankedItems(np.where(ranked.items >= 0, here[ranked.items], -1).astype(np.int32), ranked.scores)

"""The rules of one user, one by one: what each file alone allows.

The job compiles all rules into one mask; here they are kept apart, so that an item's absence can be given a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.decoding.rules.item_rules import ItemRules
from serving.bundle.catalogue import BoolMask, Catalogue
from serving.config import RecommendConfig
from serving.inputs.rules.item_lists import read_item_list
from serving.inputs.rules.item_rules import read_rules
from serving.inputs.user_histories import StoredUsers


@dataclass(frozen=True)
class RuleMasks:
    """What each rule allows.

    Attributes:
        allowed: ``[I]`` by rule.
        segment: Number of the user's segment; ``None``: there are none.
        rules: All of them for this user alone, as a request takes them.
    """

    allowed: Mapping[str, BoolMask]
    segment: int | None
    rules: ItemRules


def rules_of(config: RecommendConfig, catalogue: Catalogue, users: StoredUsers, row: int) -> RuleMasks:
    """Read the rules of a job for user number ``row``.

    Raises:
        ConfigError, DataError: As in :func:`~serving.inputs.rules.item_rules.read_rules`.
    """
    user_ids = users.user_ids
    together = read_rules(config, catalogue, user_ids, users.personal_lists(config.exclude_disliked, catalogue))
    allowed: dict[str, BoolMask] = {}
    for name, permits in (("allow", True), ("available", True), ("deny", False)):
        path = getattr(config, name)
        if path is not None:
            mask = catalogue.mask(read_item_list(path, catalogue.item_ids.dtype, catalogue.item_ids), name)
            allowed[name] = mask if permits else ~mask
    segment, mine = None, together.allowed
    if together.segments is not None and mine is not None:
        segment = int(together.segments[row])
        mine = mine[segment]
        lists_alone = config.model_copy(
            update={"allow": None, "available": None, "deny": None, "max_per_category": None, "category_limits": {}}
        )
        own = read_rules(lists_alone, catalogue, user_ids).allowed
        allowed["segment"] = np.atleast_2d(own)[segment] if own is not None else np.ones_like(mine)
    own_list = None if together.personal is None else together.personal.take(np.array([row]))
    return RuleMasks(allowed, segment, ItemRules(mine, None, None, together.quotas, together.exclude_seen, own_list))

"""Why a list is short: what took the last of the missing items is named, by hand and against all lists there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.rules.shortfall import explain_shortfalls

GROUPS = np.array([1, 1, 1, 2, 2, 0])
"""Items 0 1 2 are of group 1, 3 and 4 of group 2, 5 of none."""


def history(*items: int) -> Histories:
    count = len(items)
    return Histories(
        user_index=np.array([-1], np.int32),
        start=np.array([0]),
        end=np.array([count]),
        item=np.array(items, np.int32),
        behaviour=np.ones(count, np.uint8),
        gap=np.zeros(count, np.uint8),
        watch=np.zeros(count, np.uint8),
    )


def rules(allow: list[int], limit: int | None, *, exclude_seen: bool = True) -> CompiledRules:
    codes = np.array([[item // 3, item % 3] for item in range(6)], np.int32)
    quotas = None if limit is None else Quotas.from_groups(GROUPS, limit)
    mask = np.isin(np.arange(6), allow)
    return CompiledRules.compile(
        PrefixIndex.build(codes, (2, 3)), ItemRules(mask, quotas=quotas), exclude_seen=exclude_seen
    )


def reason_of(found: list[int], wanted: int, compiled: CompiledRules, seen: Histories) -> str:
    items = np.array([found + [-1] * (wanted - len(found))], np.int32)
    (short,) = explain_shortfalls(seen, RankedItems(items, np.zeros(items.shape, np.float32)), compiled)
    return short.reason


@pytest.mark.parametrize(
    ("allow", "seen", "limit", "found", "wanted", "reason"),
    [
        ([0, 1, 2], [], None, [0, 1, 2], 4, "rules"),  # three are allowed
        ([0, 1, 2, 3], [0], None, [1, 2, 3], 4, "seen"),  # four are allowed, one was seen
        ([0, 1, 2], [], 1, [0], 4, "quotas"),  # fewer are allowed than wanted, but the quota took two of them
        ([0, 1, 2, 3, 4, 5], [], 1, [0, 3, 5], 4, "quotas"),  # one of each group, and the one of none
        ([0, 1, 2, 3, 4, 5], [3, 4], 1, [0, 5], 4, "quotas"),  # of 0 1 2 5 the quota leaves two
        ([0, 3, 5], [3], 1, [0, 5], 3, "seen"),  # the quota takes nothing of 0 and 5
        ([0, 1, 2, 3, 4, 5], [], 2, [0, 1, 2], 4, "beam"),  # two of group 1, two of group 2 and 5 would have been five
        ([0, 1, 3], [], 1, [0], 2, "beam"),  # 3 was possible
    ],
)
def test_by_hand(
    allow: list[int], seen: list[int], limit: int | None, found: list[int], wanted: int, reason: str
) -> None:
    assert reason_of(found, wanted, rules(allow, limit), history(*seen)) == reason


def test_the_longest_list_is_that_of_all_lists() -> None:
    """Every set of allowed items, history of one and limit, against the longest of all 64 sets that keep the quotas."""
    for allow, seen, limit, exclude in itertools.product(
        ([0, 1, 3, 5], [0, 1, 2, 3, 4]), (0, 3, 5), (0, 1, 2), (True, False)
    ):
        compiled = rules(allow, limit, exclude_seen=exclude)
        left = [item for item in allow if not (exclude and item == seen)]
        keeps = [
            len(chosen)
            for size in range(len(left) + 1)
            for chosen in itertools.combinations(left, size)
            if max(np.bincount(GROUPS[list(chosen)], minlength=3)[1:]) <= limit
        ]
        assert compiled.count_within_quotas(0, np.array([seen])) == max(keeps)

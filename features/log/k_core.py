"""Thin users and items: those with too few positive events go, again and again until nothing changes."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from features.log.arrays import BoolArray, CodeArray
from recsys.config import FrozenConfig

CountArray = npt.NDArray[np.int64]
_SLICE: Final = 1 << 22


class KCoreConfig(FrozenConfig):
    """Fewest positive events of a user and of an item; applied again and again until nothing changes.

    Attributes:
        user: Fewest positive events of a user; 0 keeps all.
        item: Fewest positive events of an item; 0 keeps all.
    """

    user: int = Field(0, ge=0)
    item: int = Field(0, ge=0)


def k_core_mask(user: CodeArray, item: CodeArray, positive: BoolArray, limits: KCoreConfig) -> BoolArray | None:
    """Keep users and items that have enough positive events among the kept ones, to the fixed point.

    Returns:
        ``[E]`` whether the event's user and item both stay, or ``None`` for all;
        events that are not positive follow their user and item.

    Example:
        User 1 has one event; without it item 1 has only one left, and so user 0 falls below two as well.

        >>> user, item = np.array([0, 0, 1], np.int32), np.array([0, 1, 1], np.int32)
        >>> k_core_mask(user, item, np.ones(3, bool), KCoreConfig(user=2)).tolist()
        [True, True, False]
        >>> k_core_mask(user, item, np.ones(3, bool), KCoreConfig(user=2, item=2)).tolist()
        [False, False, False]
    """
    if limits.user == 0 and limits.item == 0:
        return None
    num_users, num_items = int(user.max(initial=-1)) + 1, int(item.max(initial=-1)) + 1
    left_user, left_item = (user, item) if positive.all() else (user[positive], item[positive])
    user_events, item_events = count_codes(left_user, num_users), count_codes(left_item, num_items)
    user_stays, item_stays = k_core(left_user, left_item, user_events, item_events, limits)
    return user_stays[user] & item_stays[item]


def k_core(
    user: CodeArray, item: CodeArray, user_events: CountArray, item_events: CountArray, limits: KCoreConfig
) -> tuple[BoolArray, BoolArray]:
    """Return ``[users]`` and ``[items]`` who stays.

    Args:
        user, item: Of the positive events that may go; those that are certain to stay need not be here.
        user_events, item_events: All positive events of each user and item; both are counted down to those that stay.
        limits: Fewest of them.
    """
    user_stays, item_stays = np.ones(len(user_events), bool), np.ones(len(item_events), bool)
    while True:
        user_falls, item_falls = user_stays & (user_events < limits.user), item_stays & (item_events < limits.item)
        if not user_falls.any() and not item_falls.any():
            return user_stays, item_stays
        user_stays &= ~user_falls
        item_stays &= ~item_falls
        # an event whose user fell in one round and whose item falls in another is taken off twice: of both, which are out
        gone = np.flatnonzero(user_falls[user] | item_falls[item])
        user_events -= count_codes(user[gone], len(user_events))
        item_events -= count_codes(item[gone], len(item_events))


def count_codes(codes: CodeArray, size: int) -> CountArray:
    """Count codes, slice by slice: ``bincount`` makes a copy of 8 bytes per event."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(codes), _SLICE):
        counts += np.bincount(codes[start : start + _SLICE], minlength=size)
    return counts

"""Thin users and items: those with too few positive events go, again and again until nothing changes."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from features.log.arrays import BoolArray, CodeArray
from recsys.config import FrozenConfig

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
    user_events, item_events = _count(left_user, num_users), _count(left_item, num_items)
    user_stays, item_stays = np.ones(num_users, bool), np.ones(num_items, bool)
    while True:
        user_falls, item_falls = user_stays & (user_events < limits.user), item_stays & (item_events < limits.item)
        if not user_falls.any() and not item_falls.any():
            return user_stays[user] & item_stays[item]
        user_stays &= ~user_falls
        item_stays &= ~item_falls
        # an event whose user fell in one round and whose item falls in another is taken off twice: of both, which are out
        gone = np.flatnonzero(user_falls[left_user] | item_falls[left_item])
        user_events -= _count(left_user[gone], num_users)
        item_events -= _count(left_item[gone], num_items)


def _count(codes: CodeArray, size: int) -> npt.NDArray[np.int64]:
    """Count codes, slice by slice: ``bincount`` makes a copy of 8 bytes per event."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(codes), _SLICE):
        counts += np.bincount(codes[start : start + _SLICE], minlength=size)
    return counts

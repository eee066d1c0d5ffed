"""Thin users and items: those with too few positive events go, again and again until nothing changes."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from features.log.arrays import BoolArray, CodeArray
from recsys.config import FrozenConfig


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
    user_stays, item_stays = np.ones(num_users, bool), np.ones(num_items, bool)
    left_user, left_item = user[positive], item[positive]
    while True:
        user_stays &= np.bincount(left_user, minlength=num_users) >= limits.user
        item_stays &= np.bincount(left_item, minlength=num_items) >= limits.item
        stays = user_stays[left_user] & item_stays[left_item]
        if stays.all():
            return user_stays[user] & item_stays[item]
        left_user, left_item = left_user[stays], left_item[stays]

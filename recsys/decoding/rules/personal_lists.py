"""Items that single users may not be shown, beside what they have seen: what they said they dislike, returned, or own.

Legend: U users, E items of all lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import DataError

Items = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PersonalLists:
    """One list of item_index per user; most are empty.

    Attributes:
        items: int64 ``[E]``, user by user.
        offsets: int64 ``[U + 1]``; user ``u`` owns ``items[offsets[u]:offsets[u + 1]]``.
    """

    items: Items
    offsets: npt.NDArray[np.int64]

    @classmethod
    def from_pairs(
        cls, user_P: npt.NDArray[np.integer], item_P: npt.NDArray[np.integer], num_users: int
    ) -> PersonalLists:
        """Collect pairs in any order; a pair may occur twice.

        Args:
            user_P: Number of the user, 0 to ``num_users - 1``.
            item_P: item_index.

        Raises:
            DataError: A user's number is outside of that.

        Example:
            >>> lists = PersonalLists.from_pairs(np.array([2, 0, 2]), np.array([7, 5, 6]), 3)
            >>> [lists.of(user).tolist() for user in range(len(lists))]
            [[5], [], [7, 6]]
        """
        if len(user_P) and not 0 <= user_P.min() <= user_P.max() < num_users:
            raise DataError(f"personal lists name users {user_P.min()} to {user_P.max()}, expected 0..{num_users - 1}")
        order = np.argsort(user_P, kind="stable")
        offsets = np.searchsorted(user_P[order], np.arange(num_users + 1))
        return cls(np.asarray(item_P, np.int64)[order], offsets.astype(np.int64))

    def joined(self, other: PersonalLists | None) -> PersonalLists:
        """Every user's items of both.

        Raises:
            DataError: The others are of another number of users.
        """
        if other is None:
            return self
        if len(other) != len(self):
            raise DataError(f"personal lists are of {len(self)} and {len(other)} users, expected as many")
        users = [np.repeat(np.arange(len(lists)), np.diff(lists.offsets)) for lists in (self, other)]
        return PersonalLists.from_pairs(np.concatenate(users), np.concatenate([self.items, other.items]), len(self))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, user: int) -> Items:
        """The user's list."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def take(self, users: npt.NDArray[np.integer]) -> PersonalLists:
        """The lists of the users given by number, in that order."""
        lengths = np.diff(self.offsets)[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return PersonalLists(self.items[np.repeat(self.offsets[:-1][users], lengths) + inside], offsets)

    def after(self, seen: list[npt.NDArray[np.int32]] | None) -> list[npt.NDArray[np.integer]]:
        """Every user's list behind what they have seen; ``None``: that may come again.

        Raises:
            DataError: Other users than these.
        """
        own: list[npt.NDArray[np.integer]] = [self.of(user) for user in range(len(self))]
        if seen is None:
            return own
        if len(seen) != len(own):
            raise DataError(f"personal lists are of {len(own)} users, expected {len(seen)}: one per history")
        return [np.concatenate(both) for both in zip(seen, own, strict=True)]

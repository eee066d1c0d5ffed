"""What the simulator's feeds show: one that knows its users but for some noise, and one that knows the log alone.

Legend: U users, N users of one call, I items.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from features.sources.simulated.behaviour import UserState, item_utility, subtopic_utility, tire, watched
from features.sources.simulated.catalogue import FloatArray, IndexArray, SimulatedItems

_BY_INTEREST: Final = 6  # sub-topics the feed draws for a user, with a popular item from each
_NEXT_PARTS: Final = 1  # of them, sub-topics whose next part is offered too
_POPULAR: Final = 2  # candidates by popularity alone
_MOST_EXPLORED: Final = 3  # sub-topics of an exploring request
_FIRST: Final = np.float32(100.0)  # outweighs every popularity and luck


def show(
    state: UserState,
    items: SimulatedItems,
    rows: IndexArray,
    day: FloatArray,
    rng: np.random.Generator,
    noise: float = 1.0,
) -> tuple[IndexArray, FloatArray]:
    """Choose one item per user as the logging policy does: noisy preference mixed with popularity.

    The feed draws sub-topics by noisy preference, offers from each a popular item and the part after the one watched
    last, adds items that are popular with everybody, and picks by utility, popularity and chance.

    Args:
        rows: ``[N]`` places in ``state``.
        day: ``[N]`` time of the exposure; later items do not exist yet.
        noise: Factor on the noise in what the policy knows of preferences.

    Returns:
        ``[N]`` items and their true utility.
    """
    by_subtopic = subtopic_utility(state, items, rows)
    noisy = by_subtopic - 0.6 * noise * np.log(rng.exponential(size=by_subtopic.shape).astype(np.float32) + 1e-20)
    drawn = np.argpartition(-noisy, _BY_INTEREST, axis=1)[:, :_BY_INTEREST]
    sibling = items.popular_in(items.first_item[drawn], items.first_item[drawn + 1], rng.random(drawn.shape))
    last = state.last_item[rows[:, None], drawn].astype(np.int64)
    following = np.minimum(last + 1, items.num_items - 1)
    has_next = (last >= 0) & (items.part[following] > 0) & (items.subtopic[following] == drawn)
    count = (len(rows), _POPULAR)
    anything = items.popular_in(np.zeros(count, np.int64), np.full(count, items.num_items), rng.random(count))
    item = np.concatenate([sibling, np.where(has_next, following, sibling)[:, :_NEXT_PARTS], anything], axis=1)
    value = item_utility(state, items, rows, item, by_subtopic)
    luck = rng.gumbel(size=item.shape).astype(np.float32)
    # an item that is not out yet is shown only if nothing else is there
    score = value + 0.2 * items.pull[item] + 0.4 * noise * luck - 1e4 * (items.release_day[item] > day[:, None])
    choice = score.argmax(1)
    place = np.arange(len(rows))
    return item[place, choice], value[place, choice]


def plan_request(
    state: UserState,
    items: SimulatedItems,
    length: int,
    day: FloatArray,
    rng: np.random.Generator,
    noise: float = 1.0,
) -> IndexArray:
    """Choose several items per user at once, as the logging policy does before it knows any feedback on them.

    It reckons that what it has planned will be watched and will tire, and no more.

    Args:
        state: A copy to plan with; changed in place.
        day: ``[U]`` time of the request.
        noise: As in :func:`show`.

    Returns:
        ``[U, length]`` items in order of exposure.
    """
    rows = np.arange(len(day))
    planned = np.empty((len(day), length), np.int64)
    for place in range(length):
        planned[:, place], _ = show(state, items, rows, day, rng, noise)
        watched(state, items, rows, planned[:, place])
        tire(state, items, rows, planned[:, place])
    return planned


def plan_exploration(
    state: UserState, items: SimulatedItems, length: int, day: FloatArray, rng: np.random.Generator
) -> IndexArray:
    """Choose several items per user at once as a recommender does that knows the log and nothing else.

    It draws one to three sub-topics by how warmly the user took them lately (appetite follows from logged feedback alone;
    interests and tastes stay hidden), and from them popular items that are new to them. So what it shows says nothing about
    the user that their history does not say, and what follows is caused by showing it.

    Args:
        state: Of the users, not changed.
        day: ``[U]`` time of the request; later items do not exist yet.

    Returns:
        ``[U, length]`` different items in order of exposure.
    """
    users = len(day)
    warmth = 0.5 * state.appetite + rng.gumbel(size=state.appetite.shape).astype(np.float32)
    place_of_subtopic = np.argsort(np.argsort(-warmth, axis=1), axis=1)
    wanted = rng.integers(1, _MOST_EXPLORED + 1, users)
    explored = place_of_subtopic < wanted[:, None]
    score = items.pull + rng.gumbel(size=(users, items.num_items)).astype(np.float32)
    score += _FIRST * explored[:, items.subtopic]
    score -= 10 * _FIRST * (items.release_day > day[:, None]) + 2 * _FIRST * state.seen
    return np.argsort(-score, axis=1)[:, :length]

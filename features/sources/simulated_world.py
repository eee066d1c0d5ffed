"""The simulator's world: users with drifting interests and appetites, and a feed that shows them items.

Reads a configuration and a seed; produces exposures with feedback, and the true utility of any session, which is to be
used only for judging. Vectorised over users: the loop is over sessions and places in a session.

What makes the log worth modelling:

- A user has several interests at once, *interleaved*, so the last item says little and the recent context much.
- Feedback changes what comes next: a like or follow makes hungry for the sub-topic, a view without a like has sated it,
  a skip puts off. A model that sees only which items were watched mixes up the two.
- Series are watched on: after part n, part n + 1 is worth more.
- Within a session a topic grows tiring, so a session has to be judged as a whole.
- Interests drift from session to session, and new parts appear every day.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from features.sources.simulated_catalogue import (
    SUBTOPICS_PER_TOPIC,
    FloatArray,
    IndexArray,
    SimulatedItems,
    make_items,
)

BoolArray = npt.NDArray[np.bool_]

TASTE_DIM: Final = 8
_BY_INTEREST: Final = 6  # sub-topics the feed draws for a user, with a popular item from each
_NEXT_PARTS: Final = 1  # of them, sub-topics whose next part is offered too
_POPULAR: Final = 2  # candidates by popularity alone
_MOST_EXPLORED: Final = 3  # sub-topics of an exploring request
_FIRST: Final = np.float32(100.0)  # outweighs every popularity and luck

# Weights of the utility, chosen by trial so that about half of the exposures are watched to the end, a fifth liked, and
# recent context explains much more of what comes next than the last item does.
_INTEREST_WEIGHT: Final = 1.0
_TASTE_WEIGHT: Final = 0.8
_APPETITE_WEIGHT: Final = 1.0
_CONTINUATION: Final = 0.3
_FATIGUE_WEIGHT: Final = 1.0
_FATIGUE_DECAY: Final = 0.8
_SEEN_PENALTY: Final = 3.0
_LONG_VIEW_BIAS: Final = 2.8
_LIKE_BIAS: Final = 4.0
_FOLLOW_BIAS: Final = 6.5
_SHARE_BIAS: Final = 7.0
_AFTER_FOLLOW: Final = 4.0
_AFTER_LIKE: Final = 3.0
_AFTER_VIEW: Final = -4.0
_AFTER_SKIP: Final = -0.5
_APPETITE_DECAY: Final = 0.99  # per exposure

# What a session is worth: a completed view counts 1, the rarer and stronger signals more.
_LIKE_VALUE: Final = 1.0
_FOLLOW_VALUE: Final = 3.0
_SHARE_VALUE: Final = 3.0


@dataclass(frozen=True)
class UserState:
    """What is true of U users at one instant.

    Attributes:
        home: ``[U, T]`` interests that the drift returns to.
        interest: ``[U, T]`` interest in each topic now.
        taste: ``[U, G]`` constant fine taste for each sub-topic.
        appetite: ``[U, G]`` what feedback has made of it: hungry above 0, sated or put off below.
        last_item: ``[U, G]`` item of the sub-topic watched last, -1 for none.
        seen: ``[U, I]`` items watched so far.
        fatigue: ``[U, T]`` recent exposures to each topic inside the session.
    """

    home: FloatArray
    interest: FloatArray
    taste: FloatArray
    appetite: FloatArray
    last_item: npt.NDArray[np.int32]
    seen: BoolArray
    fatigue: FloatArray

    def take(self, rows: npt.NDArray[np.integer]) -> UserState:
        """Copy the state of some users."""
        return UserState(*(getattr(self, f.name)[rows].copy() for f in fields(self)))


@dataclass(frozen=True)
class ExpectedOutcomes:
    """What N sessions are expected to bring, ``[N]`` each, summed over their places.

    Attributes:
        utility: ``P(view) + P(like) + 3 P(follow) + 3 P(share)``.
        watch_ms: Watched time, milliseconds.
        long_views, likes, follows, shares: Counts.
    """

    utility: FloatArray
    watch_ms: FloatArray
    long_views: FloatArray
    likes: FloatArray
    follows: FloatArray
    shares: FloatArray

    @classmethod
    def zeros(cls, count: int) -> ExpectedOutcomes:
        """Return nothing for ``count`` sessions."""
        return cls(*(np.zeros(count, np.float32) for _ in fields(cls)))

    def add(self, rows: IndexArray, value: FloatArray, duration_ms: FloatArray, weight: float) -> None:
        """Add one exposure, of this true utility, to some sessions in place; no row twice."""
        self.utility[rows] += weight * expected_value(value)
        self.watch_ms[rows] += weight * expected_watch_ratio(value) * duration_ms
        self.long_views[rows] += weight * sigmoid(value - _LONG_VIEW_BIAS)
        self.likes[rows] += weight * sigmoid(value - _LIKE_BIAS)
        self.follows[rows] += weight * sigmoid(value - _FOLLOW_BIAS)
        self.shares[rows] += weight * sigmoid(value - _SHARE_BIAS)


@dataclass(frozen=True)
class Feedback:
    """Outcomes of exposures, one entry each."""

    watch_ratio: FloatArray
    long_view: BoolArray
    like: BoolArray
    follow: BoolArray
    share: BoolArray


def sigmoid(x: FloatArray) -> FloatArray:
    """Logistic function in float32."""
    return (1.0 / (1.0 + np.exp(-x))).astype(np.float32)


def new_users(count: int, items: SimulatedItems, rng: np.random.Generator) -> UserState:
    """Draw users before their first session; each has two or three strong interests."""
    # the strongest of T Gumbel draws grows with log T; the shift keeps it, and with it the rate of views, the same
    centre = -0.5 - 0.9 * np.log(items.num_topics / 16)
    home = rng.gumbel(centre, 0.9, (count, items.num_topics)).astype(np.float32)
    taste = rng.normal(size=(count, TASTE_DIM)).astype(np.float32) @ items.subtopic_taste.T
    return UserState(
        home=home,
        interest=home.copy(),
        taste=taste,
        appetite=np.zeros((count, items.num_subtopics), np.float32),
        last_item=np.full((count, items.num_subtopics), -1, np.int32),
        seen=np.zeros((count, items.num_items), bool),
        fatigue=np.zeros((count, items.num_topics), np.float32),
    )


def subtopic_utility(state: UserState, items: SimulatedItems, rows: IndexArray) -> FloatArray:
    """Return ``[N, G]``: what any item of a sub-topic is worth to the users now, before its own merits."""
    by_topic = _INTEREST_WEIGHT * state.interest[rows] - _FATIGUE_WEIGHT * state.fatigue[rows]
    by_subtopic = _TASTE_WEIGHT * state.taste[rows] + _APPETITE_WEIGHT * state.appetite[rows]
    return np.repeat(by_topic, SUBTOPICS_PER_TOPIC, axis=1) + by_subtopic


def item_utility(
    state: UserState, items: SimulatedItems, rows: IndexArray, item: IndexArray, subtopic_value: FloatArray
) -> FloatArray:
    """Return the true utility of showing items now.

    Args:
        rows: ``[N]`` places of the users in ``state``.
        item: ``[N, C]`` places of the items in the world.
        subtopic_value: ``[N, G]`` from :func:`subtopic_utility`.
    """
    subtopic = items.subtopic[item]
    last = state.last_item[rows[:, None], subtopic]
    continues = (items.part[item] > 0) & (last == item - 1)
    return (
        np.take_along_axis(subtopic_value, subtopic, axis=1)
        + items.quality[item]
        + _CONTINUATION * continues
        - _SEEN_PENALTY * state.seen[rows[:, None], item]
    ).astype(np.float32)


def utility_now(state: UserState, items: SimulatedItems, rows: IndexArray, item: IndexArray) -> FloatArray:
    """Return the true utility of showing one item to each user now, ``[N]``."""
    return item_utility(state, items, rows, item[:, None], subtopic_utility(state, items, rows))[:, 0]


def draw_feedback(value: FloatArray, rng: np.random.Generator) -> Feedback:
    """Draw what users do; ``P(long_view) = sigmoid(utility - bias)``, and the other signals likewise."""
    return feedback_of(value, rng.random((4, len(value)), dtype=np.float32))


def feedback_of(value: FloatArray, uniform: FloatArray) -> Feedback:
    """Decide what users do.

    Args:
        value: ``[N]`` true utility.
        uniform: ``[4, N]`` draws from [0, 1); the same draws and a greater utility never give less.
    """
    uniform = uniform.clip(1e-6, 1 - 1e-6)
    excess = value - _LONG_VIEW_BIAS + np.log(uniform[0] / (1 - uniform[0]))
    ratio = np.clip(0.7 * np.exp(0.5 * excess), 0.0, 2.0).astype(np.float32)
    return Feedback(
        watch_ratio=ratio,
        long_view=ratio >= 0.7,
        like=uniform[1] < sigmoid(value - _LIKE_BIAS),
        follow=uniform[2] < sigmoid(value - _FOLLOW_BIAS),
        share=uniform[3] < sigmoid(value - _SHARE_BIAS),
    )


def expected_watch_ratio(value: FloatArray) -> FloatArray:
    """Return the expected watched share of an exposure of this utility, between 0 and 2.

    The share is ``min(r o, 2)`` with ``r = 0.7 exp((value - bias) / 2)`` and ``o`` the root of the odds of a uniform draw;
    the integral over the draw is ``r arctan(2 / r)``.

    Example:
        >>> round(float(expected_watch_ratio(np.array([2.8], np.float32))[0]), 3)  # r = 0.7: 0.7 arctan(2.857)
        0.864
    """
    root = 0.7 * np.exp(0.5 * (value - _LONG_VIEW_BIAS))
    return (root * np.arctan(2.0 / root)).astype(np.float32)


def expected_value(value: FloatArray) -> FloatArray:
    """Return the expected worth of an exposure of this utility: views, likes, follows and shares, weighted."""
    return (
        sigmoid(value - _LONG_VIEW_BIAS)
        + _LIKE_VALUE * sigmoid(value - _LIKE_BIAS)
        + _FOLLOW_VALUE * sigmoid(value - _FOLLOW_BIAS)
        + _SHARE_VALUE * sigmoid(value - _SHARE_BIAS)
    )


def after_exposure(state: UserState, items: SimulatedItems, rows: IndexArray, item: IndexArray, done: Feedback) -> None:
    """Change the users' state in place: fatigue, appetite, what they have seen.

    Args:
        rows: ``[N]`` places in ``state``, no one twice.
        item: ``[N]``.
        done: What they did.
    """
    satisfied = done.long_view | done.like
    state.appetite[rows] *= _APPETITE_DECAY
    state.appetite[rows, items.subtopic[item]] = np.select(
        [done.follow, done.like, satisfied], [_AFTER_FOLLOW, _AFTER_LIKE, _AFTER_VIEW], _AFTER_SKIP
    )
    watched(state, items, rows[satisfied], item[satisfied])
    tire(state, items, rows, item)


def watched(state: UserState, items: SimulatedItems, rows: IndexArray, item: IndexArray) -> None:
    """Remember that items were watched."""
    state.seen[rows, item] = True
    state.last_item[rows, items.subtopic[item]] = item


def tire(state: UserState, items: SimulatedItems, rows: IndexArray, item: IndexArray) -> None:
    """Add one exposure to the fatigue of the item's topic; older ones of the session count less."""
    state.fatigue[rows] *= _FATIGUE_DECAY
    state.fatigue[rows, items.subtopic[item] // SUBTOPICS_PER_TOPIC] += 1.0


def start_session(state: UserState, rows: IndexArray, rng: np.random.Generator) -> None:
    """Rest from the last session, and let interests drift: a random walk that returns to the user's home."""
    state.fatigue[rows] = 0.0
    home = state.home[rows]
    noise = rng.normal(0.0, 0.3, home.shape).astype(np.float32)
    state.interest[rows] = home + 0.9 * (state.interest[rows] - home) + noise


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
    interests and tastes stay hidden), and from them popular items that are new to him. So what it shows says nothing about
    the user that his history does not say, and what follows is caused by showing it.

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


class SimulatedWorld:
    """A world that can be asked for the truth, once its log has been simulated.

    Args:
        num_users: Users.
        num_items: Items.
        num_topics: Topics.
        parts: Items per series.
        days: Length of the log.
        seed: Decides everything.
        feed_noise: Factor on the noise in what the logging policy knows of preferences.
        exploration: Share of requests answered by :func:`plan_exploration`.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        num_topics: int,
        parts: int,
        days: float,
        seed: int,
        feed_noise: float = 1.0,
        exploration: float = 0.0,
    ) -> None:
        self.num_users = num_users
        self.days = days
        self.feed_noise = feed_noise
        self.exploration = exploration
        self.items = make_items(num_items, num_topics, parts, TASTE_DIM, days, seed)
        self._final: list[UserState] = []
        self._starts: list[int] = []

    def keep(self, state: UserState, first_user: int) -> None:
        """Remember how a chunk of users ended; chunks come in order."""
        self._final.append(state)
        self._starts.append(first_user)

    def true_utility(self, user: IndexArray, sessions: IndexArray) -> FloatArray:
        """Return the worth of sessions shown right after the end of the log, in closed form. For judging only.

        Each place counts ``P(view) + P(like) + 3 P(follow) + 3 P(share)`` given what stands before it in the session:
        topics tire, an item is worth little a second time, and a part that was shown makes the next part worth more.
        Appetites stay as they were at the end of the log, as if users did not respond inside the session; what they would
        do if they did is :meth:`true_outcomes`.

        Args:
            user: ``[N]`` places of the users in the world (user_id - ``FIRST_USER_ID``).
            sessions: ``[N, m]`` places of the items in the world (item_id - ``FIRST_ITEM_ID``), in order of exposure; -1
                shows nothing, which brings nothing and tires nobody.

        Returns:
            ``[N]``, between 0 and ``8 m``.

        Raises:
            ValueError: No log has been simulated.
        """
        result = np.zeros(len(user), np.float32)
        for state, some in self._states(user):
            for place in sessions[some].T:
                rows = np.flatnonzero(place >= 0)
                result[some[rows]] += expected_value(utility_now(state, self.items, rows, place[rows]))
                self._show_next(state, rows, place[rows])
        return result

    def true_outcomes(self, user: IndexArray, sessions: IndexArray, *, draws: int, seed: int) -> ExpectedOutcomes:
        """Return what sessions shown right after the end of the log bring when users respond. For judging only.

        The world goes on by its own rules: a like at the first place makes hungry for what stands at the second, a mere
        view sates, a skip puts off. Along each drawn path the expectations of its places are summed, and paths are
        averaged. The draws belong to the user and the place, whatever is shown there, so that two policies meet the same
        luck.

        Args:
            user: ``[N]`` as in :meth:`true_utility`.
            sessions: ``[N, m]`` as in :meth:`true_utility`.
            draws: Paths per session.
            seed: Of the draws.

        Raises:
            ValueError: No log has been simulated.
        """
        result = ExpectedOutcomes.zeros(len(user))
        for draw in range(draws):
            luck = np.random.default_rng([seed, 4, draw]).random((sessions.shape[1], 4, self.num_users), np.float32)
            for state, some in self._states(user):
                for uniform, place in zip(luck, sessions[some].T, strict=True):
                    rows = np.flatnonzero(place >= 0)
                    value = utility_now(state, self.items, rows, place[rows])
                    result.add(some[rows], value, self.items.duration_ms[place[rows]], 1.0 / draws)
                    seen = feedback_of(value, uniform[:, user[some[rows]]])
                    after_exposure(state, self.items, rows, place[rows], seen)
        return result

    def logging_sessions(self, user: IndexArray, length: int, rng: np.random.Generator) -> IndexArray:
        """Return a session per user, ``[N, length]``, as the logging policy would show it right after the end of the log.

        The policy sees the users' true preferences, noise apart (:func:`show`), and like any policy that generates whole
        sessions it fixes them before any feedback (:func:`plan_request`).

        Raises:
            ValueError: No log has been simulated.
        """
        sessions = np.empty((len(user), length), np.int64)
        for state, some in self._states(user):
            day = np.full(len(some), self.days, np.float32)
            sessions[some] = self.plan(state, length, day, rng)
        return sessions

    def plan(self, state: UserState, length: int, day: FloatArray, rng: np.random.Generator) -> IndexArray:
        """Let the logging policy fix whole requests, ``[U, length]``: most by the feed, some by exploration.

        Args:
            state: A copy to plan with; changed in place.
            day: ``[U]`` time of the request.
        """
        if not self.exploration:
            return plan_request(state, self.items, length, day, rng, self.feed_noise)
        explores = rng.random(len(day)) < self.exploration
        exploring, fed = np.flatnonzero(explores), np.flatnonzero(~explores)
        planned = np.empty((len(day), length), np.int64)
        planned[exploring] = plan_exploration(state.take(exploring), self.items, length, day[exploring], rng)
        planned[fed] = plan_request(state.take(fed), self.items, length, day[fed], rng, self.feed_noise)
        return planned

    def greedy_sessions(self, user: IndexArray, length: int, allowed: BoolArray) -> IndexArray:
        """Return a session per user, ``[N, length]``, that takes at each place the new item of the greatest true worth.

        No item comes twice. It is close to the best that any policy could show, and uses what no policy may know.

        Args:
            allowed: ``[I]`` items to choose from.

        Raises:
            ValueError: No log has been simulated.
        """
        sessions = np.empty((len(user), length), np.int64)
        choice = np.flatnonzero(allowed)
        for state, some in self._states(user):
            rows = np.arange(len(some))
            everything = np.broadcast_to(choice, (len(some), len(choice)))
            for place in range(length):
                value = item_utility(state, self.items, rows, everything, subtopic_utility(state, self.items, rows))
                used = (everything[..., None] == sessions[some, None, :place]).any(-1)
                value[used] = -np.inf
                sessions[some, place] = choice[value.argmax(1)]
                self._show_next(state, rows, sessions[some, place])
        return sessions

    def _states(self, user: IndexArray) -> Iterator[tuple[UserState, IndexArray]]:
        """Yield copies of the users' last states, rested, with the places in ``user`` that they belong to."""
        if not self._final:
            raise ValueError("the world has no log yet; call SimulatedSource.simulate() before asking for the truth")
        chunk = np.searchsorted(np.array(self._starts), user, side="right") - 1
        for number in np.unique(chunk):
            rows = np.flatnonzero(chunk == number)
            for some in np.array_split(rows, -(-len(rows) // 4096)):  # copies of the state, so memory is bounded
                state = self._final[number].take(user[some] - self._starts[number])
                state.fatigue[:] = 0.0
                yield state, some

    def _show_next(self, state: UserState, rows: IndexArray, item: IndexArray) -> None:
        """Go on to the next place of a session whose feedback is not known: an item that was shown was watched."""
        watched(state, self.items, rows, item)
        tire(state, self.items, rows, item)

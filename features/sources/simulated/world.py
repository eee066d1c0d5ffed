"""The simulator's world: its items, and its users as the log left them, who can be asked for the truth.

Users respond as :mod:`~features.sources.simulated.behaviour` says, to what :mod:`~features.sources.simulated.feed` shows
them. The true utility of any session is to be used only for evaluation. Vectorised over users: the loop is over sessions and
places in a session.

Legend: N users of one call, U users of one request, I items, m places of a session.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from features.sources.simulated.behaviour import (
    TASTE_DIM,
    BoolArray,
    ExpectedOutcomes,
    UserState,
    after_exposure,
    expected_value,
    feedback_of,
    item_utility,
    subtopic_utility,
    tire,
    utility_now,
    watched,
)
from features.sources.simulated.catalogue import FloatArray, IndexArray, make_items
from features.sources.simulated.feed import plan_exploration, plan_request


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
        exploration: Share of requests answered by :func:`~features.sources.simulated.feed.plan_exploration`.
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
        """Return the worth of sessions shown right after the end of the log, in closed form. For evaluation only.

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
        """Return what sessions shown right after the end of the log bring when users respond. For evaluation only.

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

        The policy sees the users' true preferences, noise apart, and like any policy that generates whole sessions it fixes
        them before any feedback: :meth:`plan`.

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

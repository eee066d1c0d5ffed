"""What the simulator's users are like and what they do: interests, appetites, and feedback on what they are shown.

Vectorised over users. What makes the log worth modelling:

- A user has several interests at once, *interleaved*, so the last item says little and the recent context much.
- Feedback changes what comes next: a like or follow makes hungry for the sub-topic, a view without a like has sated it,
  a skip puts off. A model that sees only which items were watched mixes up the two.
- Series are watched on: after part n, part n + 1 is worth more.
- Within a session a topic grows tiring, so a session has to be evaluated as a whole.
- Interests drift from session to session.

Legend: U users, T topics, G sub-topics, I items, N and C users and candidates of one call.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from features.sources.simulated.catalogue import SUBTOPICS_PER_TOPIC, FloatArray, IndexArray, SimulatedItems

BoolArray = npt.NDArray[np.bool_]

TASTE_DIM: Final = 8

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

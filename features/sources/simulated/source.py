"""The simulator as a source: a log of short-video sessions, no download needed.

Reads nothing; produces ``RawTables`` of any size, the same under the same configuration and seed. Users are simulated in
chunks, so that memory stays bounded by the log itself.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from features.sources.base import PREHISTORY, ROW, EventStream, RawTables, Source, text_sha256
from features.sources.simulated.behaviour import (
    Feedback,
    after_exposure,
    draw_feedback,
    new_users,
    start_session,
    utility_now,
)
from features.sources.simulated.catalogue import FIRST_ITEM_ID, IndexArray, item_table
from features.sources.simulated.feed import show
from features.sources.simulated.world import SimulatedWorld
from recsys.contracts.columns import Columns
from recsys.contracts.manifest import canonical_json

CODE_VERSION: Final = "1"
"""Raised when the same configuration and seed would give another log."""

FIRST_USER_ID: Final = 1_000_000
"""user_id = FIRST_USER_ID + place in the world."""

START_US: Final = 1_704_067_200_000_000  # 2024-01-01 00:00 UTC
_DAY_US: Final = 86_400_000_000
_HOUR_US: Final = 3_600_000_000
_STATE_CELLS: Final = 60_000_000  # users x items of one chunk, a byte each
SIGNALS: Final = ("long_view", "like", "follow", "share")
POSITIVE: Final = ("long_view", "like")
"""An exposure with any of these counts as liked, and is what the world calls satisfied."""


class SimulatedSource(Source):
    """A simulated world of short videos.

    Attributes:
        users: Users.
        items: Items, at least 8 per topic (a topic has four sub-topics); they come in series of ``parts``.
        events: Exposures to simulate, met within a few per cent; activity differs between users, and everybody has at
            least one session.
        topics: Topics.
        parts: Items per series.
        session_length: Mean exposures per session.
        request_length: Exposures that the feed fixes at once, before it knows the feedback on any of them; 1 reacts to
            everything. Above 1 a visit is a run of whole requests, and ``session_id`` names the request: OneRec's
            session is what one request returns, and only what was chosen before the feedback tells cause from selection.
        feed_noise: Factor on the noise in what the feed knows of its users. At 1 it knows their state so well that being
            shown something says more about a user than their history does, and a reward model that learns from the log
            takes that for the effect of showing it; more noise is more exploration, and a log to learn causes from.
        exploration: Share of requests answered by a recommender that knows the log and nothing else: one to three
            sub-topics that the user took warmly, popular items from them. Without it a session of one sub-topic is
            shown only to those who adore it, and a reward model learns that such sessions are good for everybody. Needs
            ``request_length`` above 1.
        days: Length of the log.
        kind: Names this form of source.
    """

    kind: Literal["simulated"] = "simulated"
    users: int = Field(5_000, ge=1)
    items: int = Field(2_000, ge=20)
    events: int = Field(300_000, ge=1)
    topics: int = Field(16, ge=2)
    parts: int = Field(6, ge=2)
    session_length: float = Field(10.0, gt=1.0)
    request_length: int = Field(1, ge=1)
    feed_noise: float = Field(1.0, ge=0.0)
    exploration: float = Field(0.0, ge=0.0, le=1.0)
    days: float = Field(30.0, gt=0.0)

    @model_validator(mode="after")
    def _no_empty_subtopic(self) -> Self:
        if self.items < 8 * self.topics:
            raise ValueError(
                f"{self.items} items are too few for {self.topics} topics, at least {8 * self.topics} are needed; "
                "raise items or lower topics"
            )
        if self.request_length > self.session_length:
            raise ValueError(
                f"request_length {self.request_length} exceeds session_length {self.session_length}, and a session is at "
                "least one request; raise session_length"
            )
        if self.exploration and self.request_length == 1:
            raise ValueError(
                f"exploration {self.exploration} is a share of requests of several items, and request_length is 1; raise it"
            )
        return self

    def fingerprint(self) -> dict[str, str]:
        """Return the configuration and code version in place of file hashes."""
        return {"simulated": text_sha256(canonical_json({"code": CODE_VERSION, **self.model_dump(mode="json")}))}

    def read(self, seed: int) -> RawTables:
        """Simulate the log."""
        world, interactions = self.simulate(seed, keep_state=False)
        return RawTables(
            interactions=EventStream.from_frame(interactions, "simulated"),
            items=item_table(world.items),
            users=None,
            signals=SIGNALS,
            positive=POSITIVE,
            has_timestamps=True,
            notes={"absent_item_columns": []},
        )

    def simulate(self, seed: int, *, keep_state: bool = True) -> tuple[SimulatedWorld, pl.DataFrame]:
        """Run the world to the end of the log.

        Args:
            seed: Decides everything.
            keep_state: Keep how every user ended, about ``items + 800`` bytes each, so that the world can be asked.

        Returns:
            The world, which now answers :meth:`~features.sources.simulated.world.SimulatedWorld.true_utility`, and the
            log in canonical columns.
        """
        world = SimulatedWorld(
            self.users, self.items, self.topics, self.parts, self.days, seed, self.feed_noise, self.exploration
        )
        plan = np.random.default_rng([seed, 2])
        activity = np.exp(plan.normal(0.0, 0.6, self.users))
        sessions = 1 + plan.poisson(
            np.maximum(self.events / self.session_length / self.users - 1, 0) * activity / activity.mean()
        )
        size = max(1, min(10_000, _STATE_CELLS // self.items))
        chunks = [
            self._simulate_chunk(world, first, sessions[first : first + size], seed, keep_state)
            for first in range(0, self.users, size)
        ]
        log = pl.concat(chunks)
        return world, log.with_row_index(ROW).with_columns(pl.lit(False).alias(PREHISTORY))

    def _simulate_chunk(
        self, world: SimulatedWorld, first_user: int, sessions: IndexArray, seed: int, keep_state: bool
    ) -> pl.DataFrame:
        """Simulate some users from their first session to their last, all of them side by side."""
        rng = np.random.default_rng([seed, 3, first_user])
        count, most = len(sessions), int(sessions.max())
        state = new_users(count, world.items, rng)
        unused = np.arange(most) >= sessions[:, None]
        starts = np.sort(np.where(unused, np.inf, rng.random((count, most)) * self.days), axis=1)
        clock = np.zeros(count)  # microseconds since the start of the log
        steps: list[dict[str, npt.NDArray[Any]]] = []
        for number in range(most):
            rows = np.flatnonzero(sessions > number)
            start_session(state, rows, rng)
            # never less than an hour after the last session ended
            clock[rows] = np.maximum(starts[rows, number] * _DAY_US, clock[rows] + _HOUR_US)
            left = self.request_length * rng.geometric(self.request_length / self.session_length, count)
            request = np.empty((count, self.request_length), np.int64)
            for place in range(int(left[rows].max())):
                now = rows[left[rows] > place]
                day = (clock[now] / _DAY_US).astype(np.float32)
                if self.request_length == 1:
                    item, value = show(state, world.items, now, day, rng, self.feed_noise)
                else:
                    turn = place % self.request_length
                    if turn == 0:
                        request[now] = world.plan(state.take(now), self.request_length, day, rng)
                    item = request[now, turn]
                    value = utility_now(state, world.items, now, item)
                seen = draw_feedback(value, rng)
                steps.append(
                    {
                        "user": now.astype(np.int32),
                        "item": item.astype(np.int32),
                        "clock": clock[now].astype(np.int64),
                        "session": np.full(len(now), number, np.int32),
                        "request": np.full(len(now), place // self.request_length, np.int32),
                        "feedback": _packed(seen),
                        "watch_ratio": seen.watch_ratio,
                    }
                )
                after_exposure(state, world.items, now, item, seen)
                watched_us = seen.watch_ratio * world.items.duration_ms[item] * 1e3
                clock[now] += watched_us + rng.uniform(0.5e6, 3e6, len(now))
        if keep_state:
            world.keep(state, first_user)
        columns = {name: np.concatenate([s[name] for s in steps]) for name in steps[0]}
        return _log_table(world, first_user, columns, by_request=self.request_length > 1)


def _packed(seen: Feedback) -> npt.NDArray[np.uint8]:
    flags = (getattr(seen, name) for name in SIGNALS)
    return np.sum([flag.astype(np.uint8) << bit for bit, flag in enumerate(flags)], axis=0, dtype=np.uint8)


def _log_table(
    world: SimulatedWorld, first_user: int, columns: dict[str, npt.NDArray[Any]], *, by_request: bool
) -> pl.DataFrame:
    """Sort the exposures of a chunk by user and time, and name the columns canonically."""
    order = np.lexsort((columns["clock"], columns["user"]))
    sorted_columns = {name: values[order] for name, values in columns.items()}
    duration = world.items.duration_ms[sorted_columns["item"]]
    user_id = sorted_columns["user"].astype(np.int64) + first_user + FIRST_USER_ID
    session_id = user_id * 1_000_000 + sorted_columns["session"]
    if by_request:
        session_id = session_id * 1_000 + sorted_columns["request"]
    return pl.DataFrame(
        {
            Columns.USER_ID: user_id,
            Columns.ITEM_ID: sorted_columns["item"].astype(np.int64) + FIRST_ITEM_ID,
            Columns.TIMESTAMP: sorted_columns["clock"] + START_US,
            Columns.SESSION_ID: session_id,
            Columns.WATCH_TIME_MS: np.round(sorted_columns["watch_ratio"] * duration),
            Columns.DURATION_MS: duration,
            **{name: (sorted_columns["feedback"] >> bit & 1).astype(bool) for bit, name in enumerate(SIGNALS)},
        }
    )

"""The simulator as a source: a log of short-video sessions, no download needed.

Reads nothing; produces ``RawTables`` of any size, the same under the same configuration and seed. Users are simulated in
chunks, so that memory stays bounded by the log itself.
"""

from __future__ import annotations

from typing import Final, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features.sources.base import PREHISTORY, ROW, EventStream, RawTables, Source, text_sha256
from features.sources.simulated.behaviour import new_users, start_session
from features.sources.simulated.catalogue import IndexArray, item_table
from features.sources.simulated.visits import DAY_US, HOUR_US, SIGNALS, Step, log_table, visit
from features.sources.simulated.world import SimulatedWorld
from recsys.contracts.manifest import canonical_json

CODE_VERSION: Final = "1"
"""Raised when the same configuration and seed would give another log."""

_STATE_CELLS: Final = 60_000_000  # users x items of one chunk, a byte each
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
        steps: list[Step] = []
        for number in range(most):
            rows = np.flatnonzero(sessions > number)
            start_session(state, rows, rng)
            # never less than an hour after the last session ended
            clock[rows] = np.maximum(starts[rows, number] * DAY_US, clock[rows] + HOUR_US)
            left = self.request_length * rng.geometric(self.request_length / self.session_length, count)
            numbers = np.full(count, number, np.int32)
            steps += visit(world, state, rows, clock, left, numbers, rng, self.request_length)
        if keep_state:
            world.keep(state, first_user)
        return log_table(world, first_user, steps, by_request=self.request_length > 1)

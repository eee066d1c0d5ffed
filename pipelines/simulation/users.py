"""The simulator's users at one moment, as a policy sees them and as the truth knows them.

Reads a simulated source and the data set prepared from it; produces sessions of several policies for the same users, and
what these sessions are truly expected to bring. The moment is the end of the log: a policy gets every positive event up to
it, exactly as a nightly batch job would, and the truth is the state that the same events have left the user in. Whether the
two agree is checked event by event when the world is opened.

Legend: N users, S sessions per user, M items per session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.sources.base import Source
from features.sources.simulated.behaviour import ExpectedOutcomes
from features.sources.simulated.catalogue import FIRST_ITEM_ID
from features.sources.simulated.source import POSITIVE, SimulatedSource
from features.sources.simulated.visits import FIRST_USER_ID
from features.sources.simulated.world import SimulatedWorld
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.data.histories import Histories
from recsys.decoding.recommender import Recommender
from recsys.evaluation.baselines.popularity import Popularity
from recsys.runtime import PlainProgress, Progress

Sessions = npt.NDArray[np.int64]
"""``[N, S, M]`` item_index in order of exposure, -1 where nothing is shown."""

_USERS_PER_CALL = 500


@dataclass(frozen=True)
class SimulatedUsers:
    """N users of the world, ready to be shown sessions.

    Attributes:
        world: Simulated to the end of its log.
        prepared: The data set that `prepare` made of the same log.
        histories: ``[N]`` what a policy may look at: all positive events of each user.
        user_place: ``[N]`` place of each user in the world.
        item_place: ``[I]`` place of each item_index in the world.
    """

    world: SimulatedWorld
    prepared: Dataset
    histories: Histories
    user_place: npt.NDArray[np.int64]
    item_place: npt.NDArray[np.int64]

    @classmethod
    def open(cls, source: Source, prepared: Dataset, seed: int) -> SimulatedUsers:
        """Simulate the log again and put the world beside the data that were prepared from it.

        Args:
            seed: The one that `prepare` ran with.

        Raises:
            ConfigError: The source is not the simulator.
            ArtifactError: The data are not this world's whole log, so the truth would speak of other users, or of users at
                another moment.
        """
        if not isinstance(source, SimulatedSource):
            raise ConfigError(
                f"the source is a {type(source).__name__}, and only the simulator knows the truth; use a recipe with "
                "source.kind: simulated, for example pipelines/recipes/simulated_sessions.yaml"
            )
        world, log = source.simulate(seed)
        _check_same_log(log, prepared)
        user_id = prepared.users[Columns.USER_ID].to_numpy()
        item_id = prepared.items[Columns.ITEM_ID].to_numpy()
        return cls(
            world=world,
            prepared=prepared,
            histories=Histories.from_targets(prepared.history, prepared.all_users()),
            user_place=user_id.astype(np.int64) - FIRST_USER_ID,
            item_place=item_id.astype(np.int64) - FIRST_ITEM_ID,
        )

    def __len__(self) -> int:
        return len(self.user_place)

    @property
    def session_length(self) -> int:
        """M."""
        return self.prepared.spec.session_length

    def take(self, rows: npt.NDArray[np.integer]) -> SimulatedUsers:
        """Return the users given by number."""
        return SimulatedUsers(
            self.world, self.prepared, self.histories.take(rows), self.user_place[rows], self.item_place
        )

    def truth(self, sessions: Sessions, *, draws: int = 16, seed: int = 0) -> ExpectedOutcomes:
        """Show each session to its user, who responds, and return what it brings: ``[N, S]`` per outcome.

        For evaluation only.

        Args:
            sessions: ``[N, S, M]``; a session of -1 alone brings nothing.
            draws: Paths of feedback that are averaged.
            seed: Of the feedback; the same for all sessions of a user, so that policies meet the same luck.
        """
        users, places = self._flat(sessions)
        flat = self.world.true_outcomes(users, places, draws=draws, seed=seed)
        return ExpectedOutcomes(**{name: value.reshape(sessions.shape[:2]) for name, value in vars(flat).items()})

    def frozen_utility(self, sessions: Sessions) -> npt.NDArray[np.float32]:
        """Return the closed form of the utility, ``[N, S]``, in which users do not respond inside a session."""
        users, places = self._flat(sessions)
        return self.world.true_utility(users, places).reshape(sessions.shape[:2])

    def _flat(self, sessions: Sessions) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Users and items of the world, one row per session."""
        if sessions.ndim != 3 or len(sessions) != len(self):
            raise ValueError(f"sessions have shape {sessions.shape}, expected [{len(self)} users, sessions, items]")
        places = np.where(sessions >= 0, self.item_place[sessions], -1)
        return np.repeat(self.user_place, sessions.shape[1]), places.reshape(-1, sessions.shape[2])

    def policy_sessions(
        self, recommender: Recommender, num_sessions: int = 1, progress: Progress | None = None
    ) -> Sessions:
        """Let a policy generate its best sessions of items that the user has not seen, best first: ``[N, S, M]``."""
        starts = range(0, len(self), _USERS_PER_CALL)
        blocks = [np.arange(start, min(start + _USERS_PER_CALL, len(self))) for start in starts]
        return np.concatenate(
            [
                recommender.recommend_sessions(self.histories.take(rows), num_sessions, exclude_seen=True)[0]
                for rows in (progress or PlainProgress()).track(blocks, "rolling out", len(blocks))
            ]
        )

    def logging_sessions(self, draws: int, seed: int) -> Sessions:
        """Go on with the policy that made the log, ``draws`` sessions per user; it knows the true preferences."""
        rng = np.random.default_rng([seed, 101])
        places = [self.world.logging_sessions(self.user_place, self.session_length, rng) for _ in range(draws)]
        return self._item_index()[np.stack(places, axis=1)]

    def greedy_sessions(self) -> Sessions:
        """Take the item of greatest true worth at each place: what no policy can know, an upper mark."""
        allowed = np.zeros(self.world.items.num_items, bool)
        allowed[self.item_place] = True
        return self._item_index()[self.world.greedy_sessions(self.user_place, self.session_length, allowed)][:, None]

    def popular_sessions(self, seed: int) -> Sessions:
        """Show everybody what was recently popular in the train events and is new to the user."""
        ranker = Popularity()
        ranker.fit(self.prepared, seed, "train")
        return ranker.rank(self.histories, self.session_length, exclude_seen=True).items.astype(np.int64)[:, None]

    def random_sessions(self, draws: int, seed: int) -> Sessions:
        """Draw different items that are new to the user, ``draws`` sessions per user."""
        rng = np.random.default_rng([seed, 102])
        sessions = np.full((len(self), draws, self.session_length), -1, np.int64)
        for row, seen in enumerate(self.histories.seen_items()):
            score = rng.random((draws, len(self.item_place)), dtype=np.float32)
            score[:, seen] = -1.0
            head = np.argpartition(-score, self.session_length - 1, axis=1)[:, : self.session_length]
            sessions[row] = np.where(np.take_along_axis(score, head, axis=1) >= 0, head, -1)
        return sessions

    def _item_index(self) -> npt.NDArray[np.int64]:
        """``[items of the world]`` item_index of each place, -1 for an item that no event has and no policy can name."""
        index = np.full(self.world.items.num_items, -1, np.int64)
        index[self.item_place] = np.arange(len(self.item_place))
        return index


def best_by(values: npt.NDArray[np.floating], sessions: Sessions) -> Sessions:
    """Pick the session of greatest value for each user, ``[N, 1, M]``; ties go to the first.

    Args:
        values: ``[N, S]``.

    Example:
        >>> best_by(np.array([[0.1, 0.9]]), np.array([[[3, 4], [5, 6]]])).tolist()
        [[[5, 6]]]
    """
    best: Sessions = sessions[np.arange(len(sessions)), values.argmax(axis=1)][:, None]
    return best


def _check_same_log(log: pl.DataFrame, prepared: Dataset) -> None:
    """Compare the positive events of world and data, user by user and in order.

    Raises:
        ArtifactError: They differ.
    """
    mine = log.filter(pl.any_horizontal(*POSITIVE)).sort(Columns.USER_ID, Columns.TIMESTAMP, maintain_order=True)
    history = prepared.history
    users = prepared.users[Columns.USER_ID].to_numpy()
    theirs_user = np.repeat(users, np.diff(history.offsets))
    theirs_item = prepared.items[Columns.ITEM_ID].to_numpy()[np.asarray(history.item)]
    if len(mine) != len(theirs_item):
        raise ArtifactError(
            f"the world's log has {len(mine)} positive events, the prepared data '{prepared.path}' {len(theirs_item)}; "
            "prepare them from the same source and seed, without k-core or other filters"
        )
    same = (mine[Columns.USER_ID].to_numpy() == theirs_user) & (mine[Columns.ITEM_ID].to_numpy() == theirs_item)
    same &= mine[Columns.TIMESTAMP].to_numpy() == np.asarray(history.timestamp)
    if not same.all():
        raise ArtifactError(
            f"{int((~same).sum())} of {len(same)} positive events differ between the simulated world and the prepared data "
            f"'{prepared.path}'; prepare them from the same source and seed"
        )

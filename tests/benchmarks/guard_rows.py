"""Rows that the guard's simulation is made of: made up with known truth, or those of a real policy before and after updates.

Both give recall, soft recall and first place of ``ROWS`` validation rows at the start and after rounds that changed nothing
but which rows win and lose, and plant the same harms: targets that vanish, and targets that sink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from recsys.alignment.rounds.measurement import HR1, recall_name
from recsys.alignment.rounds.soft_recall import soft_recall

Rows = npt.NDArray[np.float64]
ROWS: Final = 2000
DEPTH: Final = 50
DEPTHS: Final = (5, 10, 50)
RECALL: Final = {1: 0.10, 5: 0.22, 10: 0.30, 25: 0.385, 50: 0.45}
"""Hit rates of the made-up start by cut-off, as of a policy on a catalogue of some thousand items."""
NATS: Final = 3.9
"""Standard deviation over rows of the target's log-probability beside the edge of the list, as on the industrial set."""
TAILS: Final = 6.5
"""Degrees of freedom of the changes of a round: their kurtosis is 5.4 on the industrial set."""

_ROUNDING: Final = 1e-4
"""A target in the list is scored once more alone, which differs by some millionths."""


@dataclass(frozen=True)
class Listed:
    """What is known of every row's list and target.

    Attributes:
        log_prob: ``[N]`` of the target.
        scores: ``[N, W]`` of the list.
        inside: ``[N]`` place of the target from 0, or a number beyond the list.
    """

    log_prob: Rows
    scores: Rows
    inside: npt.NDArray[np.int64]

    def figures(self) -> dict[str, Rows]:
        """Rows that the guard compares."""
        rows = {HR1: (self.inside < 1).astype(np.float64)}
        for k in DEPTHS:
            rows[recall_name(k)] = (self.inside < k).astype(np.float64)
            rows[recall_name(k, soft=True)] = soft_recall(self.log_prob[:, None], self.scores, k)
        return rows

    def lower(self, by: Rows) -> Listed:
        """Targets that lost so many nats, ``[N]``; a target that was lost by the search stays lost.

        Example:
            >>> once = Listed(np.array([-2.0, -2.0]), np.array([[-1.0, -2.0, -3.0, -4.0]] * 2), np.array([1, 9]))
            >>> once.lower(np.array([0.0, 1.5])).inside.tolist(), once.lower(np.array([1.5, 0.0])).inside.tolist()
            ([1, 9], [3, 9])
        """
        log_prob = self.log_prob - by
        now = (self.scores > log_prob[:, None] + _ROUNDING).sum(1)
        return Listed(log_prob, self.scores, np.maximum(self.inside, now))


Harm = Callable[[Listed, np.random.Generator], Listed]


def vanish(share: float) -> Harm:
    """Targets between places 11 and 50 go out of reach at random, so that recall@50 falls by this share of itself."""

    def apply(now: Listed, generator: np.random.Generator) -> Listed:
        deep = (now.inside >= 10) & (now.inside < DEPTH)
        odds = share * (now.inside < DEPTH).sum() / deep.sum()
        gone = deep & (generator.random(len(deep)) < odds)
        return now.lower(np.where(gone, 5.0, 0.0))

    return apply


def sink(nats: float) -> Harm:
    """All targets lose so many nats."""
    return lambda now, generator: now.lower(np.full(len(now.inside), nats))


class Source(Protocol):
    """Where rows come from."""

    @property
    def name(self) -> str:
        """For the page."""
        ...

    def draw(self, generator: np.random.Generator, rounds: int) -> list[Listed]:
        """A start and so many rounds that changed nothing, ``ROWS`` rows."""
        ...

    def many(self) -> tuple[Listed, Listed]:
        """A start and such a round, as many rows as there are or make a mean exact."""
        ...


@dataclass(frozen=True)
class MadeUp:
    """Rows with a latent place, which a round moves a little, each round on its own from the start.

    Attributes:
        kept: Correlation of the latent place from round to round.
    """

    name: str
    kept: float

    def draw(self, generator: np.random.Generator, rounds: int) -> list[Listed]:
        """A start and its rounds."""
        return self._draw(generator, rounds, ROWS)

    def many(self) -> tuple[Listed, Listed]:
        """200,000 rows."""
        start, now = self._draw(np.random.default_rng(0), 1, 200_000)
        return start, now

    def _draw(self, generator: np.random.Generator, rounds: int, rows: int) -> list[Listed]:
        place = generator.normal(size=rows)
        spread = np.sqrt((1 - self.kept**2) * (TAILS - 2) / TAILS)
        moved = [self.kept * place + spread * generator.standard_t(TAILS, rows) for _ in range(rounds)]
        return [_listed(one) for one in (place, *moved)]


def _listed(place: Rows) -> Listed:
    cut = np.array([NormalDist().inv_cdf(share) for share in RECALL.values()])
    edges = np.interp(np.log(np.arange(1, DEPTH + 1)), np.log(list(RECALL)), cut)
    scores = np.broadcast_to(-NATS * edges, (len(place), DEPTH))
    return Listed(-NATS * place, scores, np.searchsorted(edges, place))


@dataclass(frozen=True)
class Real:
    """Rows of a trained policy and of what updates of ReRe made of it.

    A run that changed nothing gives every row's figures before and after to start and rounds in an order drawn for the row:
    then no round is better than the start, and every row changes as much as it really did.

    Attributes:
        log_prob: ``[P, N]`` of P policies, the trained one among them.
        scores: ``[P, N, W]``.
        inside: ``[P, N]``.
    """

    name: str
    log_prob: Rows
    scores: Rows
    inside: npt.NDArray[np.int64]

    @classmethod
    def load(cls, name: str, path: Path) -> Real:
        """Read what :mod:`tests.benchmarks.guard_policies` measured."""
        with np.load(path) as archive:
            return cls(name, archive["log_prob"], archive["scores"], archive["inside"])

    def draw(self, generator: np.random.Generator, rounds: int) -> list[Listed]:
        """A start and its rounds, of rows drawn without replacement."""
        rows = generator.permutation(self.inside.shape[1])[:ROWS]
        return self._of(rows, generator, rounds + 1)

    def many(self) -> tuple[Listed, Listed]:
        """All rows."""
        start, now = self._of(np.arange(self.inside.shape[1]), np.random.default_rng(0), 2)
        return start, now

    def _of(self, rows: npt.NDArray[np.integer], generator: np.random.Generator, count: int) -> list[Listed]:
        order = generator.permuted(np.arange(len(self.inside))[:, None].repeat(len(rows), 1), axis=0)[:count]
        return [Listed(self.log_prob[o, rows], self.scores[o, rows], self.inside[o, rows]) for o in order]


def nats_for(source: Source, share: float) -> float:
    """How far all targets must sink so that recall@50 falls by this share of itself, by bisection."""
    start, _ = source.many()
    before = float((start.inside < DEPTH).mean())
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        fell = 1 - float((start.lower(np.full(len(start.inside), middle)).inside < DEPTH).mean()) / before
        low, high = (middle, high) if fell < share else (low, middle)
    return high

"""What every item scorer offers: a score of each item of the catalogue for each history, on a scale that can be summed.

A raw score is a count, a cosine, a share; the scales below bring them beside a log-probability, so that one weight per
scorer is enough: counts and shares as ``log(1 + x / floor)``, cosines and EASE times a factor. ``log(1 + x / floor)`` is
``log(x + floor)`` but for a constant, and 0 where nothing is known, so that a sum over a million items touches few.

Legend: N rows (histories), I items, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.data.histories import Histories
from recsys.scorers.events import FloatArray, history_weights

ItemArray = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Scale:
    """From a raw score to a summand.

    Attributes:
        kind: ``log``: ``log(1 + x / amount)``, negative ``x`` as 0; ``linear``: ``x * amount``.
        amount: Floor or factor, above 0.

    Example:
        >>> Scale("log", 0.5).apply(np.array([0.0, 0.5], np.float32)).round(3).tolist()
        [0.0, 0.6930000185966492]
    """

    kind: Literal["log", "linear"]
    amount: float

    def apply(self, raw: FloatArray) -> FloatArray:
        """Return the summands, in an array of their own."""
        scaled = raw * np.float32(1.0 / self.amount if self.kind == "log" else self.amount)
        return np.log1p(np.maximum(scaled, 0.0, out=scaled), out=scaled) if self.kind == "log" else scaled


@dataclass
class WeighedHistories:
    """Histories as weights of their items; scorers with the same decay share the work.

    Attributes:
        histories: N rows.
        num_items: I.
    """

    histories: Histories
    num_items: int
    _by_decay: dict[float, sparse.csr_array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.histories)

    def weights(self, decay: float) -> sparse.csr_array:
        """Return ``[N, I]`` float32: :func:`~recsys.scorers.events.history_weights`.

        Raises:
            DataError: A history holds an item beyond the catalogue.
        """
        if decay not in self._by_decay:
            self._by_decay[decay] = history_weights(self.histories, self.num_items, decay)
        return self._by_decay[decay]


class ItemScorer(Protocol):
    """A fitted scorer; every implementation passes ``tests/suites/test_item_scorers.py``."""

    @property
    def name(self) -> str:
        """One of :data:`~recsys.scorers.config.SCORER_NAMES`."""
        ...

    @property
    def scale(self) -> Scale:
        """How raw scores become summands."""
        ...

    def scores(self, rows: WeighedHistories) -> FloatArray:
        """Return raw scores of all items, ``[N, I]`` float32, in an array of their own."""
        ...

    def add_scaled(self, rows: WeighedHistories, weight: float, out: FloatArray) -> None:
        """Add ``weight`` times the scaled scores to ``out``, ``[N, I]`` float32, C-contiguous, in place."""
        ...

    def scaled_at(self, rows: WeighedHistories, items: ItemArray) -> FloatArray:
        """Return the scaled scores of given items ``[N, C]``, float32 of that shape; anything stands at item -1."""
        ...

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what was fitted, for :meth:`~recsys.scorers.scorer_set.ScorerSet.save`."""
        ...

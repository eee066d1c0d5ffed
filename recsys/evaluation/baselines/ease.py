"""EASE as a baseline: :mod:`recsys.scorers.ease` solves it, here it ranks; the history decay when ranking is ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import fitted, rank_in_blocks
from recsys.evaluation.baselines.config import EASEConfig
from recsys.scorers.config import Until
from recsys.scorers.ease import ease_weights
from recsys.scorers.events import CountedEvents, FloatArray, history_weights
from recsys.scorers.popularity import popularity_shares


@dataclass(frozen=True)
class _Fitted:
    weights: FloatArray
    backoff: FloatArray


class EASE:
    """Rank by the reconstruction of the decayed history."""

    name = "ease"

    def __init__(self, config: EASEConfig | None = None) -> None:
        self.config = config or EASEConfig()
        self._fitted: _Fitted | None = None

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Solve; nothing is drawn, so the seed has no influence.

        Raises:
            ConfigError: The catalogue is larger than ``max_items``.
        """
        spec, limit = prepared.spec, self.config.max_items
        if spec.num_items > limit:
            raise ConfigError(
                f"EASE: the catalogue has {spec.num_items} items, ease.max_items allows {limit} (the inverse "
                f"needs {4 * spec.num_items**2 / 1e9:.1f} GB); raise ease.max_items or leave 'ease' out of "
                "the baselines"
            )
        events = CountedEvents.from_dataset(prepared, until)
        matrix = events.user_item_matrix(spec.num_users, spec.num_items)
        shares = popularity_shares(events, spec.num_items, self.config.popularity)
        self._fitted = _Fitted(ease_weights(matrix, self.config.regularisation), (1e-6 * shares).astype(np.float32))

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank by the weighted sum of the history's weight rows."""
        state = fitted(self._fitted, self.name)
        num_items = len(state.backoff)

        def score(rows: Histories) -> FloatArray:
            weights = history_weights(rows, num_items, self.config.history_decay)
            return np.asarray(weights @ state.weights + state.backoff, dtype=np.float32)

        return rank_in_blocks(score, histories, num_items, k, exclude_seen)
